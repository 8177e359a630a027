//! The proof with a real service: PostgreSQL in Debian, and a client that has one connection to it.

use std::time::Duration;

use ev_tests::{DebianGuest, Load, Pool, Postgres, Service, System, TestLab, eventually, in_client};

/// Debian boots, or its memory is sent, on an emulated processor that has to share the machine.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn a_database_client_with_one_connection_sees_nothing_of_dying_hosts() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    let mut arguments = DebianGuest::find().import_arguments("db01");
    arguments.extend(["--vcpus", "2"].map(str::to_owned));
    pool.ok("h1", &arguments);
    pool.ok("h1", &["pvm-protect", "db01", "--level", "3", "--wait"]);
    pool.ok("h1", &["pvm-start", "db01"]);
    let load = Load::start(&lab, 0, Postgres::connect_patiently);
    load.wait_for_more(100, LIMIT);
    let system = System { lab: &lab, pool, vm: "db01" };
    let mut asked = "h1".to_owned();
    for _ in 0..super::kills() {
        let active = system.protected(&asked).active_host();
        let other = system.other_than(&active);
        load.wait_for_more(50, LIMIT);
        // Still.
        system.protected(&asked);
        lab.kill(&active).expect("dies");
        load.wait_for_more(50, LIMIT);
        lab.start(&active).expect("starts");
        system.protected_on(&other);
        asked = other;
    }
    let report = load.stop();
    println!("{report:?}");
    assert_eq!(report.reconnects, 0, "{report:?}");
    let missing = in_client(&lab, || {
        eventually("the database to answer", LIMIT, || Postgres::connect()?.missing(report.acknowledged))
    });
    assert_eq!(missing, Vec::<u64>::new());
    if let Err(complaint) = Postgres::check_integrity(&lab) {
        panic!("pg_amcheck: {complaint}");
    }
}
