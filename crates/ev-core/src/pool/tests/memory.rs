//! Level 3: which host may go on from the guest's memory.

use super::super::fixtures::{H1, H2, disk_id, memory_held, place, protected};
use super::super::*;
use crate::authority::{Authority, AuthorityChange, Origin, Power};
use crate::ids::{HostId, MemberId};
use crate::vm::{Desired, Level};

const HELD: fn(HostId) -> AuthorityChange = |host| AuthorityChange::MemoryHeld { host };
const GONE: fn(HostId) -> AuthorityChange = |host| AuthorityChange::StandbyLost { host };
const CONTINUE: fn(HostId) -> AuthorityChange = |host| AuthorityChange::Continue { host };
const LOST: fn(HostId) -> AuthorityChange = |host| AuthorityChange::ReplicaLost { disk: disk_id(1, 0), host };
const START: fn(HostId, bool) -> AuthorityChange = |host, clean| AuthorityChange::Start { host, clean };

/// Level 3, running on host 1; nothing is held yet.
fn running() -> PoolState {
    let mut state = protected();
    state.must(place(1, Level::System, &[H1, H2]));
    state.start(1, H1, true);
    state
}

fn good(state: &PoolState) -> Vec<HostId> {
    state.record(1).good[&disk_id(1, 0)].iter().copied().collect()
}

#[test]
fn memory_is_held_by_the_other_host_of_a_running_guest_at_level_3() {
    let mut off = protected();
    off.must(place(1, Level::System, &[H1, H2]));
    assert_eq!(off.must_refuse(off.change(1, HELD(H2))), Refusal::NotRunning);
    let mut level_2 = protected();
    level_2.start(1, H1, true);
    assert_eq!(level_2.must_refuse(level_2.change(1, HELD(H2))), Refusal::NotSystemLevel);
    let mut state = running();
    assert_eq!(state.must_refuse(state.change(1, HELD(H1))), Refusal::IsActive);
    assert_eq!(state.must_refuse(state.change(1, HELD(MemberId(7)))), Refusal::NotAHostOfTheVm);
    let since = state.record(1).power;
    state.must(state.change(1, HELD(H2)));
    assert_eq!((state.record(1).memory, state.record(1).power), (Some(H2), since));
}

#[test]
fn memory_counts_only_with_all_disks_of_both_hosts() {
    for lost in [H1, H2] {
        let mut state = running();
        state.must(state.change(1, LOST(lost)));
        assert_eq!(state.must_refuse(state.change(1, HELD(H2))), Refusal::ReplicaNotGood);
    }
}

#[test]
fn a_lost_standby_loses_memory_and_disks_in_one_change() {
    for change in [GONE(H2), LOST(H2)] {
        let mut state = memory_held();
        let before = state.generation(1);
        state.must(state.change(1, change));
        assert_eq!(state.generation(1), before.next());
        assert_eq!((state.record(1).memory, state.record(1).standby, good(&state)), (None, None, vec![H1]));
        assert_eq!(state.must_refuse(state.change(1, CONTINUE(H2))), Refusal::MemoryNotHeld);
    }
}

#[test]
fn a_standby_that_holds_no_memory_yet_is_lost_too() {
    let mut state = running();
    state.must(state.change(1, GONE(H2)));
    assert_eq!(good(&state), [H1]);
    state.must(state.change(1, GONE(H2)));
    assert_eq!(state.must_refuse(state.change(1, GONE(H1))), Refusal::IsActive);
    let mut state = running();
    state.must(state.change(1, LOST(H1)));
    assert_eq!(state.must_refuse(state.change(1, GONE(H2))), Refusal::LastGoodReplica);
}

#[test]
fn the_disk_of_the_active_host_is_not_given_up_for_an_older_one() {
    let mut state = memory_held();
    assert_eq!(state.must_refuse(state.change(1, LOST(H1))), Refusal::MemoryIsElsewhere);
    state.must(state.change(1, CONTINUE(H2)));
}

#[test]
fn a_guest_goes_on_only_where_its_memory_is() {
    let mut state = memory_held();
    assert_eq!(state.must_refuse(state.change(1, CONTINUE(H1))), Refusal::MemoryNotHeld);
    state.must(state.change(1, CONTINUE(H2)));
    let record = state.record(1);
    let expected = Authority {
        active: Some(H2),
        standby: None,
        power: Power::On { since: record.generation },
        clean: false,
        memory: None,
        origin: Origin::Memory,
        ..record.clone()
    };
    assert_eq!((record, good(&state)), (&expected, vec![H2]));
    let last = state.events.back().expect("it is an event");
    assert_eq!(last.severity, Severity::Warning);
    assert!(last.text.starts_with("goes on from its memory on h2, taken over from h1"), "{}", last.text);
    assert_eq!(state.must_refuse(state.change(1, CONTINUE(H2))), Refusal::MemoryNotHeld, "once");
}

#[test]
fn a_guest_that_is_wished_off_does_not_go_on_and_a_reboot_is_not_forgotten() {
    for desired in [Desired::Shutdown, Desired::ForceOff] {
        let mut state = memory_held();
        state.wish(1, desired);
        assert_eq!(state.must_refuse(state.change(1, CONTINUE(H2))), Refusal::NotDesired);
    }
    let mut state = memory_held();
    state.wish(1, Desired::Reboot);
    state.must(state.change(1, CONTINUE(H2)));
    assert_eq!(state.vm(1).desired, Desired::Reboot);
}

#[test]
fn a_start_forgets_the_memory_and_counts_on_one_sides_disks() {
    // However clean the end is said to be: the active host's disks were ahead of the other's.
    for host in [H1, H2] {
        let mut state = memory_held();
        state.must(state.change(1, START(host, true)));
        let record = state.record(1);
        assert_eq!((record.memory, record.origin, good(&state)), (None, Origin::Boot, vec![host]));
    }
    let mut state = memory_held();
    state.must(state.change(1, CONTINUE(H2)));
    state.must(state.change(1, START(H2, false)));
    assert_eq!(state.record(1).origin, Origin::Boot);
}

#[test]
fn what_was_written_before_a_clean_end_is_where_the_guest_ran() {
    let mut state = memory_held();
    state.must(state.change(1, AuthorityChange::Ended { clean: true }));
    assert_eq!((state.record(1).memory, good(&state)), (None, vec![H1]));
    // After any other end both sides are what a power cut could have left.
    let mut state = memory_held();
    state.must(state.change(1, AuthorityChange::Ended { clean: false }));
    assert_eq!((state.record(1).memory, good(&state)), (None, vec![H1, H2]));
    state.start(1, H2, true);
    assert_eq!(good(&state), [H2]);
}

#[test]
fn another_level_or_other_hosts_end_it_with_the_standbys_disks() {
    for (level, mut state) in [
        (Level::Component, memory_held()),
        (Level::Restart, memory_held()),
        // Not on record yet, and yet it may be ahead.
        (Level::Component, running()),
    ] {
        let before = state.generation(1);
        state.must(place(1, level, &[H1, H2]));
        assert_eq!((state.generation(1), state.record(1).memory), (before.next(), None));
        assert_eq!(good(&state), [H1], "the other side lacks what was acknowledged since the last checkpoint");
    }
    let mut state = running();
    state.must(state.change(1, LOST(H1)));
    state.must(place(1, Level::Component, &[H1, H2]));
    assert_eq!(good(&state), [H2], "the last one stays");
    let mut state = memory_held();
    state.must(place(1, Level::Unprotected, &[H1]));
    assert_eq!((state.record(1).memory, good(&state)), (None, vec![H1]));
    let mut state = protected();
    state.start(1, H1, true);
    let before = state.generation(1);
    state.must(place(1, Level::System, &[H1, H2]));
    assert_eq!((state.generation(1), good(&state)), (before.next(), vec![H1, H2]), "2 to 3 takes nothing away");
}

#[test]
fn a_record_of_before_level_3_is_read() {
    let text = r#"{"generation":4,"active":1,"standby":2,"power":{"On":{"since":4}},"clean":false,"good":{}}"#;
    let record: Authority = serde_json::from_str(text).unwrap();
    assert_eq!((record.memory, record.origin), (None, Origin::Boot));
}
