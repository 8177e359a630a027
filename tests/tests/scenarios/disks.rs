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
    let view = protected.in_sync(&active);
    assert_eq!(view.active.as_deref(), Some(active.as_str()), "its replica came back under it");
    assert!(view.disks.iter().filter_map(|disk| disk.copy.as_ref()).all(|copy| !copy.full), "{view:?}");
    assert_eq!(protected.boot_id(), boot_id, "nor did it notice that");
    // What came back is all there.
    let other = protected.other_than(&active);
    lab.kill(&other).expect("dies");
    load.wait_for_more(50, LIMIT);
    lab.kill(&active).expect("dies");
    lab.start(&active).expect("starts");
    load.wait_for_more(50, LIMIT);
    lab.start(&other).expect("starts");
    protected.in_sync(&active);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=0);
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
