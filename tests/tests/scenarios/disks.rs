//! Disks of hosts: failed, replaced by a blank one, full.

use std::time::Duration;

use ev_lab::{DiskKind, RepairKind};
use ev_tests::{Protected, TestLab};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_failed_disk_under_the_guest_is_served_from_the_other_host() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let boot_id = protected.boot_id();
    let active = protected.in_sync("h1").active.expect("it runs");
    lab.fail_disk(&active, DiskKind::Storage).expect("fails");
    load.wait_for_more(100, LIMIT);
    lab.repair_disk(&active, DiskKind::Storage, RepairKind::Same).expect("repairs");
    load.wait_for_more(100, LIMIT);
    assert_eq!(protected.boot_id(), boot_id, "the guest did not notice");
    // Its own replica gets in step once the guest runs on the other host, which has all the data.
    lab.kill(&active).expect("dies");
    load.wait_for_more(50, LIMIT);
    lab.start(&active).expect("starts");
    let view = protected.in_sync(protected.other_than(&active).as_str());
    assert!(view.disks.iter().filter_map(|disk| disk.copy.as_ref()).all(|copy| !copy.full), "{view:?}");
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(1..=1);
}

#[test]
fn a_failed_disk_of_the_partner_is_copied_anew_after_its_replacement() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let boot_id = protected.boot_id();
    let active = protected.in_sync("h1").active.expect("it runs");
    let other = if active == "h1" { "h2" } else { "h1" };
    lab.fail_disk(other, DiskKind::Storage).expect("fails");
    load.wait_for_more(100, LIMIT);
    lab.repair_disk(other, DiskKind::Storage, RepairKind::Blank).expect("replaces");
    load.wait_for_more(100, LIMIT);
    protected.in_sync(&active);
    lab.kill(&active).expect("dies");
    load.wait_for_more(50, LIMIT);
    assert_ne!(protected.boot_id(), boot_id);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(1..=1);
}
