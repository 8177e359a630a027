//! Hosts that stand still and go on, and power cuts of everything.

use std::time::Duration;

use ev_tests::{Service, System, TestLab, TinyGuest, TinyImage, eventually, in_client};

use super::BLACKOUT_MAX;

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_frozen_and_thawed_active_host_does_no_harm() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let boot_id = system.boot_id();
    let gone_on = system.goes_on_elsewhere_after(&stream, "h1", |active| lab.freeze(active).expect("freezes"));
    assert!(gone_on.blackout < BLACKOUT_MAX, "{gone_on:?}");
    // What it had read and not sent, and what its guest does in its first moments, must not leave.
    lab.thaw(&gone_on.from).expect("thaws");
    system.goes_on(&stream);
    system.protected_on(&gone_on.to);
    system.goes_on(&stream);
    assert_eq!(system.boot_id(), boot_id);
    // The switch never saw the guest at the old host again.
    system.unnoticed(stream, &["h1", "h2"]);
}

#[test]
fn a_frozen_and_thawed_standby_does_no_harm() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    lab.freeze("h2").expect("freezes");
    system.goes_on(&stream);
    let alone = system.simplex("h1");
    lab.thaw("h2").expect("thaws");
    system.goes_on(&stream);
    let view = system.protected_anew("h1", &alone);
    assert_eq!(view.active.as_deref(), Some("h1"));
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

#[test]
fn both_hosts_without_power_boot_the_guest_with_all_that_was_acknowledged() {
    let lab = TestLab::up(2, 1);
    let (system, load) = System::tiny_with_writes(&lab);
    load.wait_for_more(50, LIMIT);
    lab.kill("h1").expect("dies");
    lab.kill("h2").expect("dies");
    lab.start("h1").expect("starts");
    lab.start("h2").expect("starts");
    load.wait_for_more(50, LIMIT);
    system.protected("h1");
    let report = load.stop();
    println!("{report:?}");
    let missing = in_client(&lab, || {
        eventually("the guest to answer", LIMIT, || {
            TinyGuest::connect(TinyImage::ADDRESS)?.missing(report.acknowledged)
        })
    });
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?} of {report:?}");
}
