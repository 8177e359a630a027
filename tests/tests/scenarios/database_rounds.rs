//! The proof with a real service: PostgreSQL in Debian at Level 2, three rounds of death, takeover, return and delta copy.

use std::time::Duration;

use ev_api::vm::PowerState;
use ev_tests::{DebianGuest, Load, Pool, Postgres, Protected, Service, TestLab, eventually, in_client};

const ROUNDS: usize = 3;
/// systemd stops PostgreSQL and itself on an emulated processor.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(120);
/// It is there, but may stand still for a moment.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// A round writes some hundred rows and boots Debian once; far less than this part of the disk changes.
const MOVED_PART_MAX: u64 = 8;

#[test]
fn every_acknowledged_row_survives_three_deaths_of_hosts() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &DebianGuest::find().import_arguments("db01"));
    pool.ok("h1", &["pvm-protect", "db01", "--level", "2", "--wait"]);
    pool.ok("h1", &["pvm-start", "db01"]);
    let load = Load::start(&lab, 0, Postgres::connect);
    let protected = Protected { lab: &lab, pool, vm: "db01" };
    let mut asked = "h1".to_owned();
    for round in 1..=ROUNDS {
        let takeover = protected.kill_active(&load, &asked);
        println!("round {round}: {takeover:?}");
        assert_all_rows(&lab, load.acknowledged());
        let back = protected.bring_back(&takeover);
        println!("round {round}: {back:?}");
        assert!(back.by_delta_copy(), "{back:?}");
        assert!(back.moved_bytes() > 0, "rows were written meanwhile: {back:?}");
        assert!(back.moved_bytes() < back.disk_bytes / MOVED_PART_MAX, "{back:?}");
        asked = takeover.active;
    }
    let report = load.stop();
    assert_all_rows(&lab, report.acknowledged);
    protected.one_guest_process();
    protected.assert_owner_moved(ROUNDS..=ROUNDS);
    println!("{}", protected.pool.compare(&asked, "db01", &[]).expect("they are alike"));
    protected.pool.ok(&asked, &["pvm-shutdown", "db01"]);
    let off = protected
        .pool
        .wait_vm(&asked, "db01", "the guest to power itself down", SHUTDOWN_LIMIT, |vm| vm.power == PowerState::Off);
    assert!(off.disks.iter().all(|disk| disk.in_sync), "a clean end leaves both replicas good: {off:?}");
}

fn assert_all_rows(lab: &ev_lab::Lab, acknowledged: u64) {
    let missing = in_client(lab, || {
        eventually("the database to answer", ANSWER_LIMIT, || Postgres::connect()?.missing(acknowledged))
    });
    assert_eq!(missing, Vec::<u64>::new());
    if let Err(complaint) = Postgres::check_integrity(lab) {
        panic!("pg_amcheck: {complaint}");
    }
}
