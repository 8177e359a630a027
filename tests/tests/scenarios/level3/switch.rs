//! The role switch: a guest goes on on its other host because somebody asked for it.

use ev_tests::{System, TestLab};

use super::BLACKOUT_MAX;

#[test]
fn a_switch_is_not_noticed_and_the_host_that_was_left_is_the_standby() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let boot_id = system.boot_id();
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        stream.take_longest_gap();
        system.pool.ok(from, &["pvm-switch", system.vm, "--wait"]);
        system.goes_on(&stream);
        let blackout = stream.take_longest_gap();
        println!("{from} to {to}: {blackout:?}");
        assert!(blackout < BLACKOUT_MAX, "{blackout:?}");
        system.protected_on(to);
    }
    assert_eq!(system.boot_id(), boot_id);
    // The redundancy is a true one.
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2", "h1", "h2"]);
}

#[test]
fn a_switch_without_a_standby_is_refused_with_what_to_do() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    lab.kill("h2").expect("dies");
    system.simplex("h1");
    let refused = system.pool.ev("h1", &["pvm-switch", system.vm]).expect_err("there is no standby");
    assert!(refused.message.contains("h2 does not hold the memory of tiny now"), "{refused}");
    assert!(refused.message.contains("pvm-show"), "{refused}");
    system.pool.ok("h1", &["pvm-protect", system.vm, "--level", "2"]);
    let refused = system.pool.ev("h1", &["pvm-switch", system.vm]).expect_err("it is at level 2");
    assert!(refused.message.contains("tiny is at level 2"), "{refused}");
    system.goes_on(&stream);
    system.unnoticed(stream, &["h1"]);
}
