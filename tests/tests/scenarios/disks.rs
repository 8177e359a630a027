//! Disks of hosts: failed, replaced by a blank one, full.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use ev_lab::{DiskKind, RepairKind};
use ev_tests::{Protected, TestLab, eventually};

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

#[test]
fn a_replica_that_rots_is_found_and_repaired_on_demand_and_in_the_background() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let view = protected.in_sync("h1");
    let active = view.active.expect("it runs");
    let other = if active == "h1" { "h2" } else { "h1" };
    let node = lab.plan().node(other).expect("a host");
    let replica = lab.plan().state_dir(node).join("vms").join(view.uuid.to_string()).join("disk-0.raw");
    // Far behind what the guest writes.
    let rot = |at_mib: u64| {
        let file = std::fs::File::options().write(true).open(&replica).expect("the replica is there");
        file.write_all_at(&[0x5a; 4096], at_mib << 20).expect("it is written");
    };
    let pool = protected.pool;
    let compare = |more: &[&str]| pool.compare(&active, "tiny", more);
    let alike = compare(&[]).expect("they are alike");
    assert!(alike.contains("alike"), "{alike}");

    rot(200);
    let failure = compare(&[]).expect_err("they differ");
    assert!(failure.message.contains("not known to be alike"), "{failure}");
    let repaired = compare(&["--repair"]).expect("they are made alike");
    assert!(repaired.contains("repaired"), "{repaired}");
    let alike = compare(&[]).expect("they are alike");
    assert!(alike.contains("alike"), "{alike}");

    rot(210);
    pool.ok(&active, &["pool-set", "--scrub-interval", "1s"]);
    eventually("the comparison in the background", LIMIT, || {
        let events = pool.ev(&active, &["event-list"]).map_err(|failure| failure.to_string())?;
        let found = events.lines().filter(|line| line.contains("warning") && line.contains("the replicas differed"));
        if found.count() == 3 { Ok(()) } else { Err(events) }
    });
    pool.ok(&active, &["pool-set", "--scrub-interval", "0"]);
    let shown = pool.ok(&active, &["disk-show", "tiny"]);
    println!("{shown}");
    load.wait_for_more(10, LIMIT);
    protected.in_sync(&active);
    lab.kill(&active).expect("dies");
    load.wait_for_more(10, LIMIT);
    protected.assert_nothing_lost(load);
}
