//! Protecting and unprotecting, online and offline.

use super::super::fixtures::{H1, H2, QUORUM, create, disk_id, place, pool, protected};
use super::super::*;
use crate::authority::{AuthorityChange, Power};
use crate::ids::MemberId;
use crate::vm::Level;

#[test]
fn a_level_has_its_number_of_hosts() {
    let mut state = protected();
    for (level, hosts) in [
        (Level::Unprotected, vec![]),
        (Level::Unprotected, vec![H1, H2]),
        (Level::Restart, vec![H1]),
        (Level::Component, vec![H1]),
        (Level::Component, vec![H1, H2, QUORUM]),
    ] {
        assert!(matches!(state.must_refuse(place(1, level, &hosts)), Refusal::WrongHostCount { .. }), "{level:?}");
    }
    for stranger in [QUORUM, MemberId(50)] {
        assert_eq!(state.must_refuse(place(1, Level::Component, &[H1, stranger])), Refusal::NoSuchMember);
    }
}

#[test]
fn protecting_a_running_vm_leaves_it_running_and_counts_only_what_was_copied() {
    let mut state = pool();
    state.must(create(1));
    state.start(1, H1, true);
    let power = state.record(1).power;
    let before = state.generation(1);
    state.must(place(1, Level::Component, &[H1, H2]));
    assert_eq!(state.record(1).power, power);
    assert_eq!(state.generation(1), before.next(), "an AM with the older level must be known to hold an older record");
    assert_eq!(state.record(1).standby, None);
    assert_eq!(state.record(1).good[&disk_id(1, 0)], [H1].into());
}

#[test]
fn placing_a_vm_where_it_is_changes_nothing() {
    let mut state = protected();
    let before = state.vm(1).clone();
    state.must(place(1, Level::Component, &[H1, H2]));
    assert_eq!(*state.vm(1), before);
    state.must(place(1, Level::Restart, &[H1, H2]));
    assert_eq!(state.generation(1), before.authority.generation.next());
}

#[test]
fn unprotecting_takes_the_other_hosts_standing_away() {
    let mut state = protected();
    state.start(1, H1, true);
    assert_eq!(state.must_refuse(place(1, Level::Unprotected, &[H2])), Refusal::ActiveHostLeftOut("h1".to_owned()));
    state.must(place(1, Level::Unprotected, &[H1]));
    assert_eq!(state.record(1).good[&disk_id(1, 0)], [H1].into());
    assert_eq!(state.record(1).standby, None);
    assert!(matches!(state.record(1).power, Power::On { .. }));
    // Protected again: what the other host holds is worth nothing until it was copied.
    state.must(place(1, Level::Component, &[H1, H2]));
    assert_eq!(state.record(1).good[&disk_id(1, 0)], [H1].into());
}

#[test]
fn a_vm_that_is_off_can_be_left_to_the_other_host() {
    let mut state = protected();
    state.must(place(1, Level::Unprotected, &[H2]));
    assert_eq!(state.record(1).active, None);
    assert_eq!(state.record(1).good[&disk_id(1, 0)], [H2].into());
    state.start(1, H2, true);
    assert_eq!(state.record(1).active, Some(H2));
}

#[test]
fn a_host_without_a_good_replica_can_not_be_the_only_one() {
    let mut state = protected();
    state.must(state.change(1, AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H2 }));
    assert_eq!(state.must_refuse(place(1, Level::Unprotected, &[H2])), Refusal::NoGoodReplicaLeft);
    state.start(1, H1, true);
    state.must(state.change(1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
    state.must(state.change(1, AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host: H1 }));
    assert_eq!(state.must_refuse(place(1, Level::Unprotected, &[H1])), Refusal::NoGoodReplicaLeft);
}
