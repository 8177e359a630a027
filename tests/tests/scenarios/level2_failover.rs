//! The main job, with the tiny guest: the active host dies in the middle of writes, the guest comes back on the other one
//! with everything that was acknowledged; the dead host returns, is brought in sync, and the other one dies.

use std::time::Duration;

use ev_tests::{Load, Pool, Service, TestLab, TinyGuest, TinyImage, eventually, in_client};

const ADDRESS: &str = "10.10.3.30";
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const SYNC_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_guest_survives_the_death_of_either_host_with_all_that_was_acknowledged() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &TinyImage::find().create_arguments("tiny", "256M", ADDRESS));
    pool.ok("h1", &["pvm-protect", "tiny", "--level", "2", "--wait"]);
    pool.ok("h1", &["pvm-start", "tiny"]);
    let load = Load::start(&lab, 0, || TinyGuest::connect(ADDRESS));
    load.wait_for_more(50, BOOT_LIMIT);

    let mut other = "h2".to_owned();
    for round in 1..=2 {
        let view = pool.wait_in_sync(&other, "tiny", SYNC_LIMIT);
        let active = view.active.expect("a running guest has an active host");
        other = if active == "h1" { "h2".to_owned() } else { "h1".to_owned() };
        load.wait_for_more(20, BOOT_LIMIT);
        lab.kill(&active).expect("the host dies");
        load.wait_for_more(20, BOOT_LIMIT);
        let view = pool.wait_vm(&other, "tiny", "the guest on the other host", BOOT_LIMIT, |vm| {
            vm.active.as_deref() == Some(other.as_str())
        });
        println!("round {round}: from {active} to {other} at generation {}", view.generation);
        lab.start(&active).expect("the host returns");
    }
    let report = load.stop();
    println!("{report:?}");
    let missing = in_client(&lab, || {
        eventually("the guest to answer", BOOT_LIMIT, || TinyGuest::connect(ADDRESS)?.missing(report.acknowledged))
    });
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    pool.wait_in_sync(&other, "tiny", SYNC_LIMIT);
}
