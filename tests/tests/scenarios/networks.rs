//! Networks: one private link, all of them, the management network of one host; the guest goes on through all of it.

use std::time::Duration;

use ev_lab::{Direction, Network};
use ev_tests::{Protected, TestLab};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn cut_private_links_cost_no_acknowledged_write_and_no_restart() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let boot_id = protected.boot_id();
    lab.cut("h1", "h2", Some(Network::Private1), Direction::BothWays).expect("cuts");
    load.wait_for_more(100, LIMIT);
    protected.in_sync("h1");
    lab.cut("h1", "h2", Some(Network::Private2), Direction::BothWays).expect("cuts");
    load.wait_for_more(100, LIMIT);
    lab.heal().expect("heals");
    lab.cut("h2", "h1", Some(Network::Private1), Direction::FirstToSecond).expect("cuts");
    load.wait_for_more(100, LIMIT);
    lab.heal().expect("heals");
    load.wait_for_more(100, LIMIT);
    protected.in_sync("h1");
    assert_eq!(protected.boot_id(), boot_id, "the guest ran through it");
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=0);
}

#[test]
fn all_networks_between_the_hosts_cut_leave_one_owner_that_goes_on() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    for network in [Network::Management, Network::Private1, Network::Private2] {
        lab.cut("h1", "h2", Some(network), Direction::BothWays).expect("cuts");
    }
    load.wait_for_more(100, LIMIT);
    lab.heal().expect("heals");
    load.wait_for_more(100, LIMIT);
    protected.in_sync("h1");
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=1);
}

#[test]
fn a_host_without_its_management_network_loses_no_acknowledged_write() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let active = protected.in_sync("h1").active.expect("it runs");
    let other = if active == "h1" { "h2" } else { "h1" };
    lab.unplug(&active, Network::Management).expect("unplugs");
    load.wait_for_more(100, LIMIT);
    lab.plug(&active, Network::Management).expect("plugs");
    load.wait_for_more(100, LIMIT);
    protected.in_sync(other);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=1);
}
