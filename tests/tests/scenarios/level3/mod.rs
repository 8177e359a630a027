//! Level 3: a host, or a part of one, fails in any way, and neither the guest nor its client on one connection notices.

mod boot;
mod database;
mod links;
mod power;
mod programs;
mod queue;
mod slow;
mod steps;
mod switch;

use std::time::Duration;

use ev_tests::{System, TestLab};

/// How long a client may be without an answer on a machine with few processors that runs all of the lab; `cargo xtask bench checkpoint`
/// measures it properly.
const BLACKOUT_MAX: Duration = Duration::from_secs(3);
/// What a slow link carries: less than the guest writes.
const SLOW_BITS_PER_S: u64 = 100_000_000;
/// Kills in turn without being asked for more.
const KILLS: usize = 10;

#[test]
fn a_host_dies_and_the_guest_does_not_notice() {
    either_host_dies(&TestLab::up(2, 1));
}

#[test]
fn a_host_dies_and_a_guest_of_qemu_10_does_not_notice() {
    if let Some(lab) = TestLab::up_with_qemu_10(2, 1) {
        either_host_dies(&lab);
    }
}

fn either_host_dies(lab: &TestLab) {
    let (system, stream) = System::tiny(lab);
    let boot_id = system.boot_id();
    let seen = stream.memory();
    let mut asked = "h1".to_owned();
    for round in 1..=2 {
        let gone_on = system.kill_active(&stream, &asked);
        println!("round {round}: {gone_on:?}");
        assert!(gone_on.blackout < BLACKOUT_MAX, "{gone_on:?}");
        let back = system.bring_back(&stream, &gone_on);
        println!("round {round}: protected again after {back:?}");
        asked = gone_on.to;
    }
    assert_eq!(system.boot_id(), boot_id, "the guest ran on");
    assert!(stream.memory().rounds > seen.rounds);
    system.unnoticed(stream, &["h1", "h2", "h1"]);
}

/// How many hosts die in turn: `EVENKEEL_KILLS=50` for more of them.
fn kills() -> usize {
    std::env::var("EVENKEEL_KILLS").map_or(KILLS, |text| text.parse().expect("EVENKEEL_KILLS is a number"))
}

#[test]
fn hosts_die_in_turn_again_and_again() {
    let kills = kills();
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let (mut asked, mut blackouts) = ("h1".to_owned(), Vec::new());
    for _ in 0..kills {
        let gone_on = system.kill_active(&stream, &asked);
        system.bring_back(&stream, &gone_on);
        blackouts.push(gone_on.blackout);
        asked = gone_on.to;
    }
    blackouts.sort_unstable();
    println!("blackouts: median {:?}, worst {:?}", blackouts[kills / 2], blackouts[kills - 1]);
    let owners: Vec<&str> = ["h1", "h2"].into_iter().cycle().take(kills + 1).collect();
    system.unnoticed(stream, &owners);
}

#[test]
fn a_dead_standby_costs_redundancy_and_nothing_else() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let (active, standby) = ("h1", "h2");
    stream.take_longest_gap();
    lab.kill(standby).expect("dies");
    system.goes_on(&stream);
    let blackout = stream.take_longest_gap();
    assert!(blackout < BLACKOUT_MAX, "{blackout:?}");
    let alone = system.simplex(active);
    system.goes_on(&stream);
    lab.start(standby).expect("starts");
    system.protected_anew(active, &alone);
    // The redundancy is a true one.
    system.kill_active(&stream, active);
    system.unnoticed(stream, &[active, standby]);
}

#[test]
fn levels_change_under_a_running_guest_and_its_connection() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    for level in ["2", "3", "2", "3"] {
        system.pool.ok("h1", &["pvm-protect", system.vm, "--level", level, "--wait"]);
        system.goes_on(&stream);
        system.wait("h1", "the level", |view| view.level.to_string() == level);
    }
    let gone_on = system.kill_active(&stream, "h1");
    system.bring_back(&stream, &gone_on);
    system.pool.ok("h2", &["pvm-unprotect", system.vm, "--wait"]);
    system.goes_on(&stream);
    system.wait("h2", "one host to be left", |view| view.level == 0 && view.standby.is_none());
    system.unnoticed(stream, &["h1", "h2"]);
}
