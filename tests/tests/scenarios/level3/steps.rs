//! A host dies, or stands still, exactly at each step of the protocol.

use std::time::Duration;

use ev_failpoint::{Failpoint, Step};
use ev_tests::{Load, Service, System, TestLab, TinyGuest, TinyImage, eventually, in_client};

use super::{BLACKOUT_MAX, SLOW_BITS_PER_S};

/// A guest boots, or a memory is sent, on an emulated processor that has to share the machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Of an epoch, on the active host.
const ACTIVE: [Step; 6] = [
    Step::ActiveBeforeStop,
    Step::ActiveDevicesSaved,
    Step::ActiveSending,
    Step::ActiveSent,
    Step::ActiveConfirmed,
    Step::ActiveReleased,
];

/// Of an epoch, on the standby's host.
const STANDBY: [Step; 6] = [
    Step::StandbyReceiving,
    Step::StandbyStaged,
    Step::StandbyConfirming,
    Step::StandbyConfirmed,
    Step::StandbyApplying,
    Step::StandbyApplyingDisk,
];

#[track_caller]
fn until_reached(failpoint: &Failpoint) {
    eventually("the step", LIMIT, || failpoint.reached().ok_or(format!("nobody came to {failpoint:?}")));
}

#[test]
fn the_active_host_dies_at_each_step_of_an_epoch() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let mut asked = "h1".to_owned();
    for step in ACTIVE {
        let gone_on = system.goes_on_elsewhere_after(&stream, &asked, |active| {
            until_reached(&lab.stop_at(active, step));
            lab.kill(active).expect("the host dies");
        });
        println!("{step:?}: {gone_on:?}");
        assert!(gone_on.blackout < BLACKOUT_MAX, "{step:?}: {gone_on:?}");
        system.bring_back(&stream, &gone_on);
        asked = gone_on.to;
    }
    system.unnoticed(stream, &["h1", "h2", "h1", "h2", "h1", "h2", "h1"]);
}

#[test]
fn the_active_host_stands_still_at_each_step_of_an_epoch_and_wakes_up_when_it_is_none_any_more() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let boot_id = system.boot_id();
    let mut asked = "h1".to_owned();
    for step in ACTIVE {
        let mut stopped = None;
        let gone_on = system.goes_on_elsewhere_after(&stream, &asked, |active| {
            let failpoint = lab.stop_at(active, step);
            until_reached(&failpoint);
            lab.freeze(active).expect("the host stands still");
            stopped = Some(failpoint);
        });
        println!("{step:?}: {gone_on:?}");
        stopped.expect("it stopped").disarm().expect("it goes on");
        lab.thaw(&gone_on.from).expect("the host goes on");
        system.goes_on(&stream);
        system.protected_on(&gone_on.to);
        asked = gone_on.to;
    }
    assert_eq!(system.boot_id(), boot_id);
    system.unnoticed(stream, &["h1", "h2", "h1", "h2", "h1", "h2", "h1"]);
}

#[test]
fn the_standby_dies_at_each_step_of_an_epoch() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    for step in STANDBY {
        system.protected("h1");
        stream.take_longest_gap();
        until_reached(&lab.stop_at("h2", step));
        lab.kill("h2").expect("the host dies");
        system.goes_on(&stream);
        let blackout = stream.take_longest_gap();
        println!("{step:?}: {blackout:?}");
        assert!(blackout < BLACKOUT_MAX, "{step:?}: {blackout:?}");
        let alone = system.simplex("h1");
        lab.start("h2").expect("the host starts");
        system.protected_anew("h1", &alone);
    }
    // What came of all that is a true standby.
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

#[test]
fn the_standby_dies_at_each_step_of_its_return() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    lab.kill("h2").expect("the host dies");
    let mut alone = system.simplex("h1");
    for (host, step) in [
        ("h2", Step::StandbyPrepared),
        ("h2", Step::StandbyFilling),
        ("h1", Step::ActiveFilling),
        ("h1", Step::ActiveJoining),
    ] {
        let failpoint = lab.stop_at(host, step);
        lab.start("h2").expect("the host starts");
        until_reached(&failpoint);
        lab.kill("h2").expect("the host dies");
        failpoint.disarm().expect("the other one goes on");
        system.goes_on(&stream);
        alone = system.simplex("h1");
    }
    lab.start("h2").expect("the host starts");
    system.protected_anew("h1", &alone);
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

/// By a slow link: the first checkpoint has to wait until what was copied before is sent, which it never is.
#[test]
fn the_standby_dies_while_a_checkpoint_waits_to_be_taken() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    lab.kill("h2").expect("the host dies");
    let alone = system.simplex("h1");
    lab.set_private_rate("h1", Some(SLOW_BITS_PER_S));
    let failpoint = lab.stop_at("h1", Step::ActiveCaptureWaits);
    lab.start("h2").expect("the host starts");
    until_reached(&failpoint);
    lab.kill("h2").expect("the host dies");
    failpoint.disarm().expect("it goes on");
    system.goes_on(&stream);
    system.simplex("h1");
    lab.set_private_rate("h1", None);
    lab.start("h2").expect("the host starts");
    system.protected_anew("h1", &alone);
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

/// The standby does not have the memory yet: the guest is started from its disks, as at Level 2.
#[test]
fn the_active_host_dies_while_its_standby_returns() {
    let lab = TestLab::up(2, 1);
    let (system, load) = System::tiny_with_writes(&lab);
    let mut active = "h1".to_owned();
    for step in [Step::ActiveFilling, Step::ActiveJoining] {
        let standby = system.other_than(&active);
        lab.kill(&standby).expect("the host dies");
        system.simplex(&active);
        let failpoint = lab.stop_at(&active, step);
        lab.start(&standby).expect("the host starts");
        until_reached(&failpoint);
        lab.kill(&active).expect("the host dies");
        load.wait_for_more(50, LIMIT);
        lab.start(&active).expect("the host starts");
        system.protected_on(&standby);
        active = standby;
    }
    nothing_is_lost(&lab, load);
}

/// Both hosts fail, one after the other: the memory is gone, and what was acknowledged is not.
#[test]
fn the_host_that_takes_over_dies_at_each_step_of_it() {
    let lab = TestLab::up(2, 1);
    let (system, load) = System::tiny_with_writes(&lab);
    let mut asked = "h1".to_owned();
    for step in [Step::TakeoverBegun, Step::TakeoverApplied, Step::TakeoverLoaded] {
        let active = system.protected(&asked).active_host();
        let other = system.other_than(&active);
        load.wait_for_more(50, LIMIT);
        // Still.
        system.protected(&asked);
        let failpoint = lab.stop_at(&other, step);
        lab.kill(&active).expect("the host dies");
        until_reached(&failpoint);
        lab.kill(&other).expect("the other one dies");
        lab.start(&active).expect("the host starts");
        lab.start(&other).expect("the host starts");
        load.wait_for_more(50, LIMIT);
        asked = other;
    }
    system.protected(&asked);
    nothing_is_lost(&lab, load);
}

#[track_caller]
fn nothing_is_lost(lab: &TestLab, load: Load) {
    let report = load.stop();
    println!("{report:?}");
    let missing = in_client(lab, || {
        eventually("the guest to answer", LIMIT, || {
            TinyGuest::connect(TinyImage::ADDRESS)?.missing(report.acknowledged)
        })
    });
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?} of {report:?}");
}
