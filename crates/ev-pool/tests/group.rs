//! The consensus group: election, loss and return of members, change of members, compaction.

mod support;

use std::time::Duration;

use ev_core::ids::MemberId;
use ev_core::pool::{Command, Outcome, Severity};
use ev_pool::{ConfirmError, ProposeError, VoterRole};
use ev_wire::identity::Role;
use ev_wire::peer::{PeerRequest, PeerResponse};
use ev_wire::transport::PeerClient;
use support::{PATIENCE, TestPool, wait_note, wait_until};
use tokio::time::Instant;

const HOST: Role = Role::Host;
const QUORUM: Role = Role::Quorum;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_keeps_its_state_over_a_restart() {
    let mut pool = TestPool::founded().await;
    pool.note(&pool.node(1), "before").await;
    pool.kill(1).await;
    pool.restart(1).await;
    let (_, master) = pool.master().await;
    wait_note(&master, "before").await;
    pool.note(&master, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_masters_place_is_taken_and_it_comes_back_as_a_follower() {
    let mut pool = TestPool::of(&[HOST, HOST, HOST]).await;
    let (first, _) = pool.master().await;
    let follower = (1..=3).find(|id| *id != first).unwrap();
    pool.note(&pool.node(follower), "handed on").await;

    pool.kill(first).await;
    let began = Instant::now();
    let (second, master) = pool.master().await;
    println!("elected {} ms after the master's loss", began.elapsed().as_millis());
    assert_ne!(first, second);
    pool.note(&master, "while away").await;

    pool.restart(first).await;
    let returned = pool.node(first);
    wait_note(&returned, "while away").await;
    wait_until("the old master follows", || returned.leader().is_some_and(|leader| leader.member.0 != first)).await;
    pool.note(&returned, "from the returned one").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_down_and_up_again_lose_nothing() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    pool.note(&pool.master().await.1, "kept").await;
    for member in 1..=3 {
        pool.kill(member).await;
    }
    for member in [3, 2, 1] {
        pool.restart(member).await;
    }
    pool.note(&pool.master().await.1, "again").await;
    for member in 1..=3 {
        wait_note(&pool.node(member), "kept").await;
        wait_note(&pool.node(member), "again").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_and_one_far_behind_get_a_snapshot() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (master_id, master) = pool.master().await;
    let behind = if master_id == 2 { 1 } else { 2 };
    pool.kill(behind).await;
    for count in 0..1_100 {
        pool.note(&master, &format!("n{count}")).await;
    }
    wait_until("a snapshot", || master.status().snapshot.is_some_and(|index| index >= 900)).await;
    pool.restart(behind).await;
    wait_note(&pool.node(behind), "n1099").await;
    assert!(pool.node(behind).status().snapshot.is_some_and(|index| index >= 500), "it came by snapshot");

    pool.add(4, HOST).await;
    pool.settle().await;
    wait_note(&pool.node(4), "n1099").await;
    assert_eq!(pool.node(4).state().borrow().members, master.state().borrow().members);

    // And a restart from a snapshot and the log after it.
    pool.note(&master, "last").await;
    wait_note(&pool.node(4), "last").await;
    pool.kill(4).await;
    pool.restart(4).await;
    wait_note(&pool.node(4), "n1099").await;
    wait_note(&pool.node(4), "last").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_masters_decision_is_void_in_any_other_term() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (old, node) = pool.master().await;
    let term = node.leadership().borrow().term;
    let note =
        |text: &str| Command::EventAdd { severity: Severity::Info, object: "test".to_owned(), text: text.to_owned() };
    let made = node.propose_in_term(term, note("in time"), PATIENCE).await;
    assert_eq!(made, Ok(Outcome::Done), "in term {}", node.leadership().borrow().term);
    for other in [term - 1, term + 1] {
        assert_eq!(node.propose_in_term(other, note("void"), PATIENCE).await, Err(ProposeError::OtherTerm));
    }
    drop(node);
    pool.kill(old).await;
    let (_, next) = pool.master().await;
    assert_eq!(next.propose_in_term(term, note("void"), PATIENCE).await, Err(ProposeError::OtherTerm));
    pool.restart(old).await;
    let not_master = pool.node(old);
    wait_note(&not_master, "in time").await;
    let newest = next.leadership().borrow().term;
    assert_eq!(not_master.propose_in_term(newest, note("void"), PATIENCE).await, Err(ProposeError::OtherTerm));
    assert!(next.state().borrow().events.iter().all(|event| event.text != "void"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_server_votes_and_is_never_master() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let roles: Vec<_> = pool.node(3).status().members.iter().map(|member| member.role).collect();
    assert_eq!(roles, [VoterRole::Voter; 3]);
    for round in 0..3 {
        let (master, node) = pool.master().await;
        assert_ne!(master, 3);
        pool.note(&node, &format!("round {round}")).await;
        drop(node);
        pool.kill(master).await;
        let (next, node) = pool.master().await;
        assert_ne!(next, 3);
        pool.note(&node, &format!("round {round} without {master}")).await;
        pool.restart(master).await;
        wait_note(&pool.node(master), &format!("round {round} without {master}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_only_the_dead_master_and_the_quorum_server_had_are_not_lost() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (master, node) = pool.master().await;
    let other = 3 - master;
    pool.cut(other, master);
    pool.cut(other, 3);
    pool.note(&node, "only two have it").await;
    drop(node);
    pool.kill(master).await;
    pool.heal();
    let (next, node) = pool.master().await;
    assert_eq!(next, other);
    wait_note(&node, "only two have it").await;
    pool.note(&node, "and on").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_cut_off_stops_calling_itself_one() {
    let pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (old, node) = pool.master().await;
    let other = 3 - old;
    assert_eq!(node.ensure_linearizable(PATIENCE).await, Ok(()));
    pool.cut(old, other);
    pool.cut(old, 3);
    assert_eq!(
        node.ensure_linearizable(Duration::from_millis(300)).await,
        Err(ConfirmError::NoMajority),
        "nobody can confirm it"
    );
    let (new, _) = pool.master_where(|id| id != old).await;
    assert_eq!(new, other);
    wait_until("the old master gives up", || !node.is_leader()).await;
    pool.heal();
    wait_until("it follows", || node.leader().is_some_and(|leader| leader.member.0 != old)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_unseats_nobody_when_it_returns() {
    let pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (master, node) = pool.master().await;
    let other = 3 - master;
    pool.cut(other, master);
    pool.cut(other, 3);
    let cut_off = pool.node(other);
    wait_until("it has lost the master", || cut_off.leader().is_none()).await;
    let its_term = cut_off.status().leadership.term;
    // Long enough for several elections if it held any.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cut_off.status().leadership.term, its_term);
    let term = node.status().leadership.term;
    pool.heal();
    wait_until("it follows again", || cut_off.leader().is_some()).await;
    pool.note(&cut_off, "handed on again").await;
    assert_eq!(node.status().leadership.term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_committed_and_the_silent_are_named() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (master, _) = pool.master().await;
    let other = 3 - master;
    pool.kill(master).await;
    pool.kill(3).await;
    let node = pool.node(other);
    wait_until("the master's loss is seen", || node.leader().is_none()).await;
    let command = Command::AdminTokenAdd { hash: "lost".to_owned(), name: String::new() };
    let error = node.propose(command, Duration::from_millis(500)).await.unwrap_err();
    let ProposeError::NoMaster { silence, .. } = &error else { panic!("{error}") };
    let mut expected = vec![format!("m{master}"), "m3".to_owned()];
    expected.sort();
    assert_eq!(silence.silent, expected);
    assert!(error.to_string().contains("of 3 voters these don't answer"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_alone_have_one_voter_and_survive_the_others_death() {
    let mut pool = TestPool::of(&[HOST, HOST]).await;
    let node = pool.node(1);
    let roles: Vec<_> = node.status().members.iter().map(|one| (one.at.member.0, one.role)).collect();
    assert_eq!(roles, [(1, VoterRole::Voter), (2, VoterRole::Learner)]);
    pool.kill(2).await;
    pool.note(&node, "alone").await;
    pool.restart(2).await;
    wait_note(&pool.node(2), "alone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_out_and_told_so() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (master, node) = pool.master().await;
    let other = 3 - master;
    let removed = node.propose(Command::MemberRemove { id: MemberId(other) }, PATIENCE).await;
    removed.unwrap();
    pool.settle().await;
    let left: Vec<_> = node.status().members.iter().map(|one| one.at.member.0).collect();
    assert_eq!(left, if master == 1 { [1, 3] } else { [2, 3] });
    let client = PeerClient::new(&pool.members[&other].identity);
    let answer = client.call(pool.members[&master].address, None, PeerRequest::Standing, PATIENCE).await.unwrap();
    assert_eq!(answer, PeerResponse::Removed);
    pool.kill(other).await;
    pool.note(&node, "without it").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_removed_while_it_was_away_learns_it_at_its_return() {
    removed_while_away(&[HOST, HOST, QUORUM]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_vote_removed_while_it_was_away_learns_it_too() {
    removed_while_away(&[HOST, HOST]).await;
}

async fn removed_while_away(roles: &[Role]) {
    let mut pool = TestPool::of(roles).await;
    let (master, node) = pool.master().await;
    let other = 3 - master;
    pool.kill(other).await;
    node.propose(Command::MemberRemove { id: MemberId(other) }, PATIENCE).await.unwrap();
    pool.settle().await;
    pool.restart(other).await;
    let told = pool.node(other);
    tokio::time::timeout(PATIENCE, told.removed()).await.expect("it hears of it");
    assert!(told.state().borrow().members.contains_key(&MemberId(other)), "not from its own log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_reached_at_its_new_address() {
    let mut pool = TestPool::of(&[HOST, HOST, QUORUM]).await;
    let (master, node) = pool.master().await;
    let other = 3 - master;
    pool.kill(other).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    pool.members.get_mut(&other).unwrap().address = free;
    pool.restart(other).await;
    let mut member = node.state().borrow().members[&MemberId(other)].clone();
    member.peer = free;
    node.propose(Command::MemberUpdate { member: Box::new(member) }, PATIENCE).await.unwrap();
    pool.settle().await;
    pool.note(&node, "moved").await;
    wait_note(&pool.node(other), "moved").await;
}
