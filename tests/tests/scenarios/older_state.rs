//! The good host is lost in the middle of a copy: what the other one held before can be had back, by a person's decision.

use std::time::Duration;

use ev_api::event::AlertView;
use ev_api::pool::PoolView;
use ev_api::vm::{DiskView, PowerState};
use ev_tests::{Pool, Protected, TestLab, TinyImage, eventually};

const LIMIT: Duration = Duration::from_secs(120);
/// Parts of the disk in MiB: one that is written before and after, one that makes the copy take its time.
const REWRITTEN: (u64, u64) = (16, 64);
const LARGE: (u64, u64) = (128, 800);
const COPY_RATE: &str = "100M";

#[test]
fn the_state_before_a_copy_is_had_back_when_the_good_host_is_lost() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &TinyImage::find().create_arguments("tiny", "1G", TinyImage::ADDRESS));
    pool.ok("h1", &["pvm-protect", "tiny", "--level", "2", "--wait"]);
    pool.ok("h1", &["pvm-start", "tiny"]);
    let protected = Protected { lab: &lab, pool, vm: "tiny" };
    protected.boot_id();
    protected.fill(REWRITTEN.0, REWRITTEN.1, 7);
    protected.in_sync("h1");
    lab.kill("h2").expect("dies");
    protected.fill(REWRITTEN.0, REWRITTEN.1, 8);
    protected.fill(LARGE.0, LARGE.1, 9);
    // The copy is to be in its middle for long enough.
    pool.ok("h1", &["pool-set", "--copy-rate", COPY_RATE]);
    lab.start("h2").expect("starts");
    eventually("a copy in the middle", LIMIT, || {
        let disks: Vec<DiskView> =
            pool.try_json("h1", &["disk-show", "tiny"]).map_err(|failure| failure.to_string())?;
        let middle = |disk: &DiskView| disk.copy.as_ref().is_some_and(|copy| copy.running && copy.moved_bytes > 0);
        if disks.iter().any(middle) { Ok(()) } else { Err(format!("{disks:?}")) }
    });
    lab.kill("h1").expect("dies");
    eventually("h2 to lead the pool", LIMIT, || {
        let view: PoolView = pool.try_json("h2", &["pool-show"]).map_err(|failure| failure.to_string())?;
        if view.master.as_deref() == Some("h2") { Ok(()) } else { Err(format!("{:?}", view.master)) }
    });

    eventually("an alert", LIMIT, || {
        let alerts: Vec<AlertView> = pool.try_json("h2", &["alert-list"]).map_err(|failure| failure.to_string())?;
        let stranded = |alert: &AlertView| alert.object == "tiny" && alert.action.contains("ev pvm-revert");
        if alerts.iter().any(stranded) { Ok(()) } else { Err(format!("{alerts:?}")) }
    });
    let refused = |arguments: &[&str], why: &str| {
        let failure = pool.ev("h2", arguments).expect_err("it is refused");
        assert!(failure.message.contains(why), "{failure}");
    };
    refused(&["pvm-revert", "tiny", "--host", "h2", "--give-up-newer-writes"], "pvm-force-off");
    pool.ok("h2", &["pvm-force-off", "tiny"]);
    pool.wait_vm("h2", "tiny", "the end to be on record", LIMIT, |vm| vm.power == PowerState::Off);
    refused(&["pvm-revert", "tiny", "--host", "h2"], "--give-up-newer-writes");
    refused(&["pvm-revert", "tiny", "--host", "h1", "--give-up-newer-writes"], "nothing to go back to");
    // The record is written before the AM is told.
    eventually("the older state", LIMIT, || {
        pool.ev("h2", &["pvm-revert", "tiny", "--host", "h2", "--give-up-newer-writes"])
    });
    pool.ok("h2", &["pvm-start", "tiny"]);
    protected.boot_id();
    protected.check(REWRITTEN.0, REWRITTEN.1, 7);

    // The lost host was not lost after all: it is brought in step with the older state.
    lab.start("h1").expect("starts");
    let view = protected.in_sync("h2");
    assert_eq!(view.active.as_deref(), Some("h2"));
    println!("{}", pool.compare("h2", "tiny", &[]).expect("they are alike"));
    protected.in_sync("h2");
    lab.kill("h2").expect("dies");
    pool.wait_vm("h1", "tiny", "the guest on h1", LIMIT, |vm| vm.active.as_deref() == Some("h1"));
    protected.boot_id();
    protected.check(REWRITTEN.0, REWRITTEN.1, 7);
    protected.one_guest_process();
}
