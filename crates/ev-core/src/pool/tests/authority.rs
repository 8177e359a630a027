//! The rules of the authority record, change by change.

use super::super::fixtures::{H1, H2, disk_id, protected, vm_id};
use super::super::*;
use crate::authority::{AuthorityChange, Power};
use crate::ids::{Generation, MemberId};
use crate::vm::Desired;

const LOST: fn(MemberId) -> AuthorityChange = |host| AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host };
const GOOD: fn(MemberId) -> AuthorityChange = |host| AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host };

fn running() -> PoolState {
    let mut state = protected();
    state.start(1, H1, true);
    state
}

#[test]
fn a_change_under_an_older_record_is_refused_with_the_newest_one() {
    let mut state = running();
    let seen = Generation(state.generation(1).0 - 1);
    let command = Command::VmAuthority { id: vm_id(1), if_generation: seen, change: LOST(H2) };
    let newest = state.record(1).clone();
    assert_eq!(state.must_refuse(command), Refusal::Superseded(newest));
    let ahead = Generation(state.generation(1).0 + 1);
    let command = Command::VmAuthority { id: vm_id(1), if_generation: ahead, change: LOST(H2) };
    assert!(matches!(state.must_refuse(command), Refusal::Superseded(_)));
}

#[test]
fn each_change_raises_the_generation_and_only_a_start_moves_since() {
    let mut state = running();
    let Power::On { since } = state.record(1).power else { panic!("it is on") };
    assert_eq!(since, state.generation(1));
    for change in [LOST(H2), GOOD(H2), LOST(H2)] {
        let before = state.generation(1);
        state.must(state.change(1, change));
        assert_eq!(state.generation(1), before.next());
        assert_eq!(state.record(1).power, Power::On { since });
    }
    state.must(state.change(1, AuthorityChange::Start { host: H1, clean: true }));
    assert_eq!(state.record(1).power, Power::On { since: state.generation(1) });
}

#[test]
fn a_lost_replica_ends_the_standby_and_a_good_one_makes_it() {
    let mut state = running();
    assert_eq!(state.record(1).standby, Some(H2));
    state.must(state.change(1, LOST(H2)));
    assert_eq!(state.record(1).standby, None);
    assert_eq!(state.record(1).good[&disk_id(1, 0)], [H1].into());
    state.must(state.change(1, GOOD(H2)));
    assert_eq!(state.record(1).standby, Some(H2));
}

#[test]
fn the_last_good_replica_is_not_given_up() {
    let mut state = running();
    state.must(state.change(1, LOST(H1)));
    assert_eq!(state.must_refuse(state.change(1, LOST(H2))), Refusal::LastGoodReplica);
}

#[test]
fn a_replica_counts_only_on_a_host_of_the_vm_and_of_a_disk_of_the_vm() {
    let mut state = running();
    assert_eq!(state.must_refuse(state.change(1, GOOD(MemberId(7)))), Refusal::NotAHostOfTheVm);
    for change in [
        AuthorityChange::ReplicaGood { disk: disk_id(2, 0), host: H2 },
        AuthorityChange::ReplicaLost { disk: disk_id(2, 0), host: H2 },
    ] {
        assert_eq!(state.must_refuse(state.change(1, change)), Refusal::NoSuchDisk);
    }
}

#[test]
fn a_guest_starts_only_where_all_replicas_are_good() {
    let mut state = running();
    state.must(state.change(1, LOST(H2)));
    let start = |host| AuthorityChange::Start { host, clean: false };
    assert_eq!(state.must_refuse(state.change(1, start(H2))), Refusal::ReplicaNotGood);
    assert_eq!(state.must_refuse(state.change(1, start(MemberId(7)))), Refusal::NotAHostOfTheVm);
    state.must(state.change(1, start(H1)));
}

#[test]
fn a_guest_that_is_wished_off_is_not_started() {
    for desired in [Desired::Shutdown, Desired::ForceOff] {
        let mut state = running();
        state.wish(1, desired);
        let start = AuthorityChange::Start { host: H2, clean: false };
        assert_eq!(state.must_refuse(state.change(1, start)), Refusal::NotDesired);
    }
}

#[test]
fn after_an_unclean_end_only_the_starting_side_counts() {
    let start = |host, clean| AuthorityChange::Start { host, clean };
    let good = |state: &PoolState| state.record(1).good[&disk_id(1, 0)].clone();
    // A takeover.
    let mut state = running();
    state.must(state.change(1, start(H2, false)));
    assert_eq!((good(&state), state.record(1).active, state.record(1).standby), ([H2].into(), Some(H2), None));
    // A restart on the same host after a crash.
    let mut state = running();
    state.must(state.change(1, start(H1, false)));
    assert_eq!(good(&state), [H1].into());
    // A restart after a clean end: both still count.
    let mut state = running();
    state.must(state.change(1, start(H2, true)));
    assert_eq!((good(&state), state.record(1).standby), ([H1, H2].into(), Some(H1)));
}

#[test]
fn an_unclean_end_is_remembered_while_the_guest_is_off() {
    for (clean, expected) in [(true, vec![H1, H2]), (false, vec![H1])] {
        let mut state = running();
        state.must(state.change(1, AuthorityChange::Ended { clean }));
        assert_eq!(state.record(1).good[&disk_id(1, 0)], [H1, H2].into(), "an end alone takes nobody's standing");
        // Whoever asks for a clean start: the record knows better.
        state.start(1, H1, true);
        assert_eq!(state.record(1).good[&disk_id(1, 0)], expected.into_iter().collect());
        assert!(!state.record(1).clean);
    }
}

#[test]
fn an_older_state_counts_only_while_the_guest_is_off_and_only_where_the_newest_is_not() {
    let revert = |host| AuthorityChange::Revert { host };
    let mut state = running();
    state.must(state.change(1, LOST(H2)));
    assert!(matches!(state.must_refuse(state.change(1, revert(H2))), Refusal::VmRuns(_)));
    state.must(Command::VmDesire { id: vm_id(1), desired: Desired::ForceOff });
    state.must(state.change(1, AuthorityChange::Ended { clean: false }));
    assert_eq!(state.must_refuse(state.change(1, revert(MemberId(9)))), Refusal::NotAHostOfTheVm);
    assert_eq!(state.must_refuse(state.change(1, revert(H1))), Refusal::NothingToRevert);
    let before = state.generation(1);
    state.must(state.change(1, revert(H2)));
    let record = state.record(1);
    assert_eq!((record.generation, record.active, record.standby), (before.next(), Some(H2), None));
    assert!(record.good.values().all(|good| *good == [H2].into()), "the newer replica counts no more: {record:?}");
    assert_eq!(record.power, Power::Off);
    let last = state.events.back().expect("it is an event");
    assert!(last.text.contains("given up"), "{last:?}");
    state.must(Command::VmDesire { id: vm_id(1), desired: Desired::Running });
    assert_eq!(
        state.must_refuse(state.change(1, AuthorityChange::Start { host: H1, clean: true })),
        Refusal::ReplicaNotGood
    );
    state.must(state.change(1, AuthorityChange::Start { host: H2, clean: true }));
}

#[test]
fn what_is_off_does_not_end() {
    let mut state = protected();
    let ended = AuthorityChange::Ended { clean: true };
    assert_eq!(state.must_refuse(state.change(1, ended.clone())), Refusal::NotRunning);
    state.start(1, H1, true);
    state.must(state.change(1, ended));
    assert_eq!(state.record(1).power, Power::Off);
}

#[test]
fn wishes_follow_what_happened() {
    let mut state = running();
    state.wish(1, Desired::Reboot);
    state.must(state.change(1, AuthorityChange::Start { host: H1, clean: true }));
    assert_eq!(state.vm(1).desired, Desired::Running, "a reboot is over with the start");
    state.must(state.change(1, AuthorityChange::Ended { clean: true }));
    assert_eq!(state.vm(1).desired, Desired::Shutdown, "a guest that powered itself off stays off");
    let mut state = running();
    state.wish(1, Desired::ForceOff);
    state.must(state.change(1, AuthorityChange::Ended { clean: true }));
    assert_eq!(state.vm(1).desired, Desired::ForceOff);
}

#[test]
fn takeovers_and_losses_leave_events() {
    let mut state = running();
    state.must(state.change(1, AuthorityChange::Start { host: H2, clean: false }));
    let last = state.events.back().unwrap();
    assert_eq!((last.severity, last.object.as_str()), (Severity::Warning, "vm1"));
    assert!(last.text.starts_with("started on h2, taken over from h1 (generation "), "{}", last.text);
    state.must(state.change(1, GOOD(H1)));
    state.must(state.change(1, LOST(H1)));
    assert!(state.events.back().unwrap().text.starts_with("disk 0: the replica on h1 no longer counts"));
}
