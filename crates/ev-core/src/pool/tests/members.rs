//! Pools, tokens and members.

use uuid::Uuid;

use super::super::fixtures::{H1, H2, QUORUM, create, member, place, pool, protected};
use super::super::*;
use crate::ids::{MemberId, NetworkId, PoolId};
use crate::vm::Level;

const HASH: &str = "a hash";

fn token(purpose: TokenPurpose) -> Command {
    let token = Token { purpose, expires_unix_ms: 5_000, used: false };
    Command::TokenAdd { hash: HASH.to_owned(), token }
}

fn join(number: u64, kind: MemberKind) -> Command {
    Command::MemberJoin { token_hash: HASH.to_owned(), member: Box::new(member(number, kind)) }
}

#[test]
fn a_second_pool_is_refused() {
    let mut state = pool();
    let refusal = state.must_refuse(Command::PoolCreate {
        pool: PoolInfo { id: PoolId(Uuid::from_u128(901)), name: "other".to_owned() },
        first: Box::new(member(7, MemberKind::Host)),
        network: Network { id: NetworkId(Uuid::from_u128(801)), name: "vm".to_owned(), bridge: "b".to_owned() },
        admin_token: String::new(),
    });
    assert_eq!(refusal, Refusal::PoolExists("pool".to_owned()));
}

#[test]
fn nobody_joins_a_pool_that_is_not_there() {
    let refusal =
        PoolState::default().must_refuse(Command::MemberAdd { member: Box::new(member(1, MemberKind::Host)) });
    assert_eq!(refusal, Refusal::NoPool);
}

#[test]
fn a_token_lets_in_one_member() {
    let mut state = pool();
    state.must(token(TokenPurpose::JoinHost));
    assert_eq!(state.run(join(4, MemberKind::Host)), Outcome::MemberAdded(MemberId(4)));
    assert_eq!(state.must_refuse(join(5, MemberKind::Host)), Refusal::TokenUsed);
}

#[test]
fn a_token_lets_in_only_what_it_is_for() {
    let mut state = pool();
    state.must(token(TokenPurpose::JoinQuorumServer));
    assert_eq!(state.must_refuse(join(4, MemberKind::Host)), Refusal::TokenForOther);
    state.must(token(TokenPurpose::JoinHost));
    assert_eq!(state.must_refuse(join(4, MemberKind::QuorumServer)), Refusal::TokenForOther);
}

#[test]
fn a_token_expires_and_an_unknown_one_is_worth_nothing() {
    let mut state = pool();
    assert_eq!(state.must_refuse(join(4, MemberKind::Host)), Refusal::TokenUnknown);
    state.must(token(TokenPurpose::JoinHost));
    let late = state.apply(Stamped { unix_ms: 5_000, command: join(4, MemberKind::Host) });
    assert_eq!(late, Outcome::Refused(Refusal::TokenExpired));
}

#[test]
fn a_join_that_is_refused_leaves_the_token_usable() {
    let mut state = pool();
    state.must(token(TokenPurpose::JoinHost));
    let mut same_name = member(4, MemberKind::Host);
    same_name.name = "h1".to_owned();
    let command = Command::MemberJoin { token_hash: HASH.to_owned(), member: Box::new(same_name) };
    assert_eq!(state.must_refuse(command), Refusal::NameTaken("h1".to_owned()));
    assert_eq!(state.run(join(4, MemberKind::Host)), Outcome::MemberAdded(MemberId(4)));
}

#[test]
fn a_machine_joins_once() {
    let mut state = pool();
    state.must(token(TokenPurpose::JoinHost));
    let mut again = member(2, MemberKind::Host);
    again.name = "another-name".to_owned();
    let command = Command::MemberJoin { token_hash: HASH.to_owned(), member: Box::new(again) };
    assert_eq!(state.must_refuse(command), Refusal::MemberKnown("h2".to_owned()));
}

#[test]
fn old_tokens_make_room_and_their_number_has_an_end() {
    let mut state = pool();
    let add = |state: &mut PoolState, n: usize, unix_ms: u64| {
        let token = Token { purpose: TokenPurpose::JoinHost, expires_unix_ms: 5_000 + unix_ms, used: false };
        state.apply(Stamped { unix_ms, command: Command::TokenAdd { hash: n.to_string(), token } })
    };
    for n in 0..TOKENS_MAX {
        assert_eq!(add(&mut state, n, 0), Outcome::Done);
    }
    assert_eq!(add(&mut state, TOKENS_MAX, 0), Outcome::Refused(Refusal::TooMany(TOKENS_MAX)));
    assert_eq!(add(&mut state, TOKENS_MAX, 5_000), Outcome::Done);
    assert_eq!(state.tokens.len(), 1);
}

#[test]
fn members_have_numbers_that_are_never_given_again() {
    let mut state = pool();
    state.must(Command::MemberRemove { id: QUORUM });
    let outcome = state.run(Command::MemberAdd { member: Box::new(member(9, MemberKind::QuorumServer)) });
    assert_eq!(outcome, Outcome::MemberAdded(MemberId(4)));
    assert_eq!(state.members[&MemberId(4)].id, MemberId(4));
}

#[test]
fn the_number_of_members_has_an_end() {
    let mut state = pool();
    for number in 4..=u64::try_from(MEMBERS_MAX).unwrap() {
        state.must(Command::MemberAdd { member: Box::new(member(number, MemberKind::Host)) });
    }
    let refusal = state.must_refuse(Command::MemberAdd { member: Box::new(member(99, MemberKind::Host)) });
    assert_eq!(refusal, Refusal::TooManyMembers(MEMBERS_MAX));
}

#[test]
fn a_host_with_vms_and_the_last_host_stay() {
    let mut state = protected();
    let in_use = |host: &str| Refusal::HostInUse { host: host.to_owned(), vms: "vm1".to_owned() };
    assert_eq!(state.must_refuse(Command::MemberRemove { id: H2 }), in_use("h2"));
    state.must(place(1, Level::Unprotected, &[H1]));
    state.must(Command::MemberRemove { id: H2 });
    assert_eq!(state.must_refuse(Command::MemberRemove { id: H1 }), in_use("h1"));
    state.must(Command::VmDelete { id: super::super::fixtures::vm_id(1) });
    assert_eq!(state.must_refuse(Command::MemberRemove { id: H1 }), Refusal::LastHost("h1".to_owned()));
    state.must(Command::MemberRemove { id: QUORUM });
    assert_eq!(state.must_refuse(Command::MemberRemove { id: QUORUM }), Refusal::NoSuchMember);
}

#[test]
fn an_update_is_of_the_same_machine() {
    let mut state = pool();
    let mut update = member(2, MemberKind::Host);
    update.qemu_version = "10.0.2".to_owned();
    state.must(Command::MemberUpdate { member: Box::new(update.clone()) });
    assert_eq!(state.members[&H2], update);
    let other_machine = Member { uuid: Uuid::from_u128(77), ..update.clone() };
    let refusal = state.must_refuse(Command::MemberUpdate { member: Box::new(other_machine) });
    assert_eq!(refusal, Refusal::OtherMember("h2".to_owned()));
    let other_name = Member { name: "h1".to_owned(), ..update };
    let refusal = state.must_refuse(Command::MemberUpdate { member: Box::new(other_name) });
    assert_eq!(refusal, Refusal::NameTaken("h1".to_owned()));
}

#[test]
fn a_vm_needs_a_host_that_is_one() {
    let mut state = pool();
    let Command::VmCreate { id, name, config, .. } = create(1) else { unreachable!() };
    for host in [QUORUM, MemberId(50)] {
        let command = Command::VmCreate { id, name: name.clone(), config: config.clone(), host };
        assert_eq!(state.must_refuse(command), Refusal::NoSuchMember);
    }
}

#[test]
fn an_administrators_token_is_revoked_by_the_beginning_of_its_hash() {
    let mut state = pool();
    for hash in ["abc1", "abc2"] {
        state.must(Command::AdminTokenAdd { hash: hash.to_owned(), name: "script".to_owned() });
    }
    let known = AdminTokenInfo { name: "script".to_owned(), created_unix_ms: Some(1_000) };
    assert_eq!(state.admin_tokens["abc1"], known);
    let revoke = |start: &str| Command::AdminTokenRevoke { hash_start: start.to_owned() };
    for several_or_none in ["abc", "", "abc3"] {
        assert!(matches!(state.must_refuse(revoke(several_or_none)), Refusal::NoSuchAdminToken(_)));
    }
    state.must(revoke("abc2"));
    assert!(state.events.back().unwrap().text.contains("abc2 revoked (script)"));
    assert_eq!(state.admin_tokens.keys().collect::<Vec<_>>(), ["abc1", "hash"]);
    let long = Command::AdminTokenAdd { hash: "b".to_owned(), name: "x".repeat(64) };
    assert_eq!(state.must_refuse(long), Refusal::BadTokenName(63));
}

#[test]
fn a_state_that_has_the_hashes_of_tokens_alone_loads() {
    let mut json = serde_json::to_value(pool()).unwrap();
    json["admin_tokens"] = serde_json::json!(["hash"]);
    let state: PoolState = serde_json::from_value(json).unwrap();
    assert_eq!(state.admin_tokens["hash"], AdminTokenInfo::default());
    let again: PoolState = serde_json::from_value(serde_json::to_value(&state).unwrap()).unwrap();
    assert_eq!(again, state);
    let command: Command = serde_json::from_value(serde_json::json!({ "AdminTokenAdd": { "hash": "h" } })).unwrap();
    assert_eq!(command, Command::AdminTokenAdd { hash: "h".to_owned(), name: String::new() });
}
