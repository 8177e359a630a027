//! Links between the hosts, cut and healed.

use ev_lab::{Direction, Network};
use ev_tests::{System, TestLab};

use super::BLACKOUT_MAX;

#[test]
fn cut_private_links_are_not_noticed() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    stream.take_longest_gap();
    for network in [Network::Private1, Network::Private2] {
        lab.cut("h1", "h2", Some(network), Direction::BothWays).expect("cuts");
        system.goes_on(&stream);
        let blackout = stream.take_longest_gap();
        assert!(blackout < BLACKOUT_MAX, "{network}: {blackout:?}");
    }
    lab.heal().expect("heals");
    system.goes_on(&stream);
    let view = system.protected("h1");
    assert_eq!(view.active.as_deref(), Some("h1"), "the guest stays where it is");
    system.kill_active(&stream, "h1");
    system.unnoticed(stream, &["h1", "h2"]);
}

#[test]
fn a_link_that_is_cut_one_way_is_not_noticed() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    for (from, to) in [("h1", "h2"), ("h2", "h1")] {
        for network in [Network::Private1, Network::Private2] {
            lab.cut(from, to, Some(network), Direction::FirstToSecond).expect("cuts");
        }
        system.goes_on(&stream);
        lab.heal().expect("heals");
        system.goes_on(&stream);
        system.protected("h1");
    }
    stream.stop();
}

#[test]
fn all_networks_between_the_hosts_cut_leave_one_owner_that_goes_on() {
    let lab = TestLab::up(2, 1);
    let (system, stream) = System::tiny(&lab);
    let boot_id = system.boot_id();
    for network in [Network::Management, Network::Private1, Network::Private2] {
        lab.cut("h1", "h2", Some(network), Direction::BothWays).expect("cuts");
    }
    system.goes_on(&stream);
    println!("blackout {:?}", stream.take_longest_gap());
    lab.heal().expect("heals");
    system.goes_on(&stream);
    let active = system.protected("h1").active_host();
    assert_eq!(system.boot_id(), boot_id);
    system.kill_active(&stream, &active);
    stream.stop();
    let owners = lab.owners_seen();
    assert!((2..=3).contains(&owners.len()), "{owners:?}");
}
