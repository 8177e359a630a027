//! Single programs of either host: QEMU, ev-am, evd.

use ev_tests::{System, TestLab};

use super::BLACKOUT_MAX;

const QEMU: &str = "qemu-system-x86_64";

#[test]
fn a_killed_qemu_of_the_active_host_is_not_noticed() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let gone_on = system.goes_on_elsewhere_after(&stream, "h1", |active| {
        assert_eq!(lab.kill_program(active, QEMU).expect("on"), 1);
    });
    assert!(gone_on.blackout < BLACKOUT_MAX, "{gone_on:?}");
    // The host lives: it becomes the standby.
    system.protected_on(&gone_on.to);
    system.kill_active(&stream, &gone_on.to);
    system.unnoticed(stream, &["h1", "h2", "h1"]);
}

#[test]
fn a_killed_am_of_the_active_host_is_not_noticed() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let boot_id = system.boot_id();
    let before = system.protected("h1");
    stream.take_longest_gap();
    assert_eq!(lab.kill_program("h1", "ev-am").expect("on"), 1);
    system.goes_on(&stream);
    println!("blackout {:?}", stream.take_longest_gap());
    // Taken up by the next AM, or gone on elsewhere: either will do.
    let active = system.protected_anew("h2", &before).active_host();
    assert_eq!(system.boot_id(), boot_id);
    system.kill_active(&stream, &active);
    assert_eq!(system.boot_id(), boot_id);
    stream.stop();
    let owners = lab.owners_seen();
    assert!((2..=3).contains(&owners.len()), "{owners:?}");
}

#[test]
fn a_killed_am_or_qemu_of_the_standby_costs_redundancy_for_a_while() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    for program in ["ev-am", QEMU] {
        let before = system.protected("h1");
        stream.take_longest_gap();
        assert!(lab.kill_program("h2", program).expect("on") >= 1, "{program} runs on the standby");
        system.goes_on(&stream);
        let blackout = stream.take_longest_gap();
        assert!(blackout < BLACKOUT_MAX, "{program}: {blackout:?}");
        let view = system.protected_anew("h1", &before);
        assert_eq!(view.active.as_deref(), Some("h1"), "{program}");
    }
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

#[test]
fn killed_daemons_of_both_hosts_are_not_noticed() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    for host in ["h1", "h2"] {
        assert_eq!(lab.kill_program(host, "evd").expect("on"), 1);
        system.goes_on(&stream);
    }
    let before = system.protected("h1");
    for host in ["h1", "h2"] {
        lab.kill_program(host, "evd").expect("on");
        lab.kill_program(host, "ev-am").expect("on");
    }
    system.goes_on(&stream);
    let active = system.protected_anew("h1", &before).active_host();
    system.kill_active(&stream, &active);
    stream.stop();
}
