//! Level 3: guests that go on from memory.

use super::tests::{Bench, TAKEOVER, at, report, since};
use super::*;
use crate::pool::fixtures::{H1, H2, disk_id, memory_held, place, protect, vm_id};
use crate::report::{EndCause, GuestState, Level3Report, Level3State};
use crate::vm::Desired;

const CONTINUE: AuthorityChange = AuthorityChange::Continue { host: H2 };

/// The guest runs on host 1 and host 2 holds its memory.
fn held() -> Bench {
    let state = memory_held();
    let since = since(&state, 1);
    let mut bench = Bench::new(state);
    bench.reporting = vec![(1, GuestState::Running { since })];
    assert_eq!(bench.pass(5_000), []);
    bench
}

fn ended(bench: &Bench, cause: EndCause) -> (u8, GuestState) {
    (1, GuestState::Ended { since: since(&bench.state, 1), cause, clean: false })
}

fn crashed(bench: &Bench) -> (u8, GuestState) {
    ended(bench, EndCause::Crashed("killed".to_owned()))
}

#[test]
fn a_dead_hosts_guest_goes_on_when_it_is_surely_silent_and_no_lease_is_waited_for() {
    let mut bench = held();
    let died_ms = bench.now_ms;
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, CONTINUE)]);
    let waited = bench.now_ms - died_ms;
    let detection = bench.state.settings.detection_ms;
    assert!((detection..=detection + 50).contains(&waited), "{waited} ms");
}

#[test]
fn a_new_master_lets_a_guest_go_on_without_waiting_for_leases_either() {
    let mut bench = Bench::new(memory_held());
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, CONTINUE)]);
    assert!(bench.now_ms <= bench.state.settings.detection_ms + 50, "{}", bench.now_ms);
}

/// It heard the heartbeats before it was elected, so it knows since when the other host has been silent.
#[test]
fn a_new_master_that_was_awake_does_not_wait_for_the_detection_time_again() {
    let mut bench = held();
    bench.master.deposed();
    bench.host_1_dies();
    let detection = bench.state.settings.detection_ms;
    assert_eq!(bench.pass(detection), [], "it does not lead");
    bench.master.elected(at(bench.now_ms));
    assert_eq!(bench.pass(50), [(1, CONTINUE)]);
}

/// What it heard while it stood still it may have missed.
#[test]
fn a_new_master_that_stood_still_waits_for_the_detection_time() {
    let mut bench = held();
    bench.master.deposed();
    bench.host_1_dies();
    let detection = bench.state.settings.detection_ms;
    bench.now_ms += 10 * detection;
    bench.master.elected(at(bench.now_ms));
    assert_eq!(bench.pass(detection), []);
    assert_eq!(bench.pass(100), [(1, CONTINUE)]);
}

/// An active AM that did not report to the new master yet is not stuck.
#[test]
fn a_new_master_does_not_take_a_living_hosts_am_for_stuck() {
    let mut bench = held();
    bench.master.deposed();
    let reporting = std::mem::take(&mut bench.reporting);
    assert_eq!(bench.pass(60_000), []);
    bench.master.elected(at(bench.now_ms));
    assert_eq!(bench.pass(2_000), []);
    bench.reporting = reporting;
    assert_eq!(bench.pass(20_000), []);
}

#[test]
fn leases_are_granted_while_the_memory_is_held_and_not_once_the_guest_is_to_go_on_elsewhere() {
    let mut bench = held();
    let running = bench.reporting[0].1.clone();
    assert!(bench.report(1, running.clone()).is_some());
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, CONTINUE)]);
    assert_eq!(bench.report(1, running), None);
}

#[test]
fn without_held_memory_a_lease_is_waited_for_as_at_level_2() {
    let mut bench = held();
    bench.commit((1, AuthorityChange::StandbyLost { host: H2 }));
    bench.commit((1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
    let died_ms = bench.now_ms;
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, TAKEOVER)]);
    assert!(bench.now_ms - died_ms >= bench.state.settings.lease_ms);
}

#[test]
fn a_guest_that_goes_on_waits_for_no_start_order() {
    let mut state = memory_held();
    protect(&mut state, 2);
    state.wish(2, Desired::Running);
    if let Some(vm) = state.vms.get_mut(&vm_id(1)) {
        vm.config.start_order = 5;
    }
    let mut bench = Bench::new(state);
    bench.host_1_dies();
    let changes = bench.pass(60_000);
    assert!(changes.contains(&(1, CONTINUE)) || bench.pass(600).contains(&(1, CONTINUE)), "{changes:?}");
}

#[test]
fn the_holder_of_the_memory_must_be_alive() {
    let state = memory_held();
    let mut bench = Bench::new(state);
    bench.master = Master::new(H1);
    bench.master.elected(crate::time::Instant(0));
    bench.beating = vec![H1];
    let running = GuestState::Running { since: since(&bench.state, 1) };
    bench.reporting = vec![(1, running)];
    assert_eq!(bench.pass(3_000), []);
    bench.reporting = vec![crashed(&bench)];
    assert_eq!(bench.pass(3_000), [(1, AuthorityChange::Start { host: H1, clean: false })], "from its disks");
}

#[test]
fn a_qemu_that_dies_is_survived_and_counts_as_no_failure() {
    let mut bench = held();
    bench.reporting = vec![crashed(&bench)];
    let from_ms = bench.now_ms;
    assert_eq!(bench.pass(60_000), [(1, CONTINUE)]);
    assert_eq!(bench.now_ms - from_ms, 50);
    assert_eq!(bench.master.failures(vm_id(1)), 0);
    bench.commit((1, CONTINUE));
    assert_eq!(bench.pass(3_000), [], "the old end is not the new guest's");
}

#[test]
fn an_end_that_was_meant_is_no_reason_to_go_on() {
    let mut bench = held();
    bench.reporting = vec![ended(&bench, EndCause::GuestShutdown)];
    assert_eq!(bench.pass(60_000), [(1, AuthorityChange::Ended { clean: false })]);

    let mut bench = held();
    bench.state.wish(1, Desired::ForceReboot);
    bench.reporting = vec![ended(&bench, EndCause::Forced)];
    assert_eq!(bench.pass(60_000), [(1, AuthorityChange::Start { host: H1, clean: false })]);

    let mut bench = held();
    bench.state.wish(1, Desired::Shutdown);
    bench.reporting = vec![crashed(&bench)];
    assert_eq!(bench.pass(60_000), [(1, AuthorityChange::Ended { clean: false })]);
}

#[test]
fn a_guest_that_could_not_go_on_is_started_from_its_disks_at_once() {
    let mut bench = held();
    bench.host_1_dies();
    assert_eq!(bench.pass(60_000), [(1, CONTINUE)]);
    bench.commit((1, CONTINUE));
    let since = since(&bench.state, 1);
    let failed = GuestState::Ended { since, cause: EndCause::StartFailed("no memory".to_owned()), clean: true };
    let report = report(&bench.state, 1, H2, failed);
    bench.master.report(at(bench.now_ms), report, &bench.state);
    let from_ms = bench.now_ms;
    assert_eq!(bench.pass(60_000), [(1, AuthorityChange::Start { host: H2, clean: true })]);
    assert_eq!(bench.now_ms - from_ms, 50);
}

/// The alert about missing redundancy, if there is one now.
fn simplex(bench: &mut Bench) -> Option<(String, String)> {
    let mut out = Vec::new();
    bench.master.tick(at(bench.now_ms), 0, &bench.state, &mut out);
    out.into_iter().find_map(|command| match command {
        Command::AlertRaise { key, alert } if key == format!("vm-simplex/{}", vm_id(1)) => {
            Some((alert.text, alert.action))
        }
        _ => None,
    })
}

fn level3(bench: &mut Bench, state: Level3State) {
    let guest = bench.reporting[0].1.clone();
    let mut report = report(&bench.state, 1, H1, guest);
    report.level3 = Some(Level3Report {
        state,
        confirmed: 0,
        epoch_us: 0,
        pause_median_us: 0,
        pause_p99_us: 0,
        stood_still_permille: 0,
        pages_per_s: 0,
        bytes_per_s: 0,
        latency_median_us: 0,
        latency_p99_us: 0,
        lag_median_us: 0,
        last_end: None,
        blackout_us: None,
    });
    bench.master.report(at(bench.now_ms), report, &bench.state);
}

#[test]
fn memory_that_no_other_host_holds_for_long_is_an_alert_with_the_reason() {
    let mut bench = held();
    assert_eq!(simplex(&mut bench), None);
    bench.commit((1, AuthorityChange::StandbyLost { host: H2 }));
    let (text, _) = simplex(&mut bench).expect("the disks are not redundant: at once, as at level 2");
    assert!(text.contains("h2 lacks an up-to-date replica"), "{text}");
    bench.commit((1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
    assert_eq!(bench.pass(9_000), []);
    assert_eq!(bench.pass(1_500), []);
    level3(&mut bench, Level3State::Simplex("h2 is short of memory".to_owned()));
    let (text, action) = simplex(&mut bench).expect("it has taken long");
    assert!(text.contains("restarted from its disks") && text.ends_with("h2 is short of memory"), "{text}");
    assert!(action.starts_with("mend what it names"), "{action}");
    level3(&mut bench, Level3State::Queued { position: 3 });
    assert_eq!(simplex(&mut bench), None, "to wait for others is no error");
    level3(&mut bench, Level3State::Synchronising);
    let (text, _) = simplex(&mut bench).expect("it takes long");
    assert!(text.ends_with("h2 is being given its memory"), "{text}");
    bench.commit((1, AuthorityChange::MemoryHeld { host: H2 }));
    assert_eq!(simplex(&mut bench), None);
}

#[test]
fn a_short_gap_after_a_start_and_a_guest_that_is_off_are_no_alerts() {
    let mut bench = held();
    let Power::On { .. } = bench.state.record(1).power else { panic!("it is on") };
    bench.commit((1, AuthorityChange::Start { host: H1, clean: true }));
    bench.commit((1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
    bench.reporting = vec![(1, GuestState::Running { since: since(&bench.state, 1) })];
    assert_eq!(bench.pass(9_000), []);
    assert_eq!(simplex(&mut bench), None);
    bench.state.wish(1, Desired::ForceOff);
    bench.commit((1, AuthorityChange::Ended { clean: true }));
    assert_eq!(bench.pass(60_000), []);
    assert_eq!(simplex(&mut bench), None);
}

#[test]
fn level_2_knows_nothing_of_it() {
    let mut bench = held();
    bench.state.must(place(1, Level::Component, &[H1, H2]));
    bench.commit((1, AuthorityChange::ReplicaGood { disk: disk_id(1, 0), host: H2 }));
    assert_eq!(bench.pass(60_000), []);
    assert_eq!(simplex(&mut bench), None);
}
