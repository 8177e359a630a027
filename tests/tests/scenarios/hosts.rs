//! Whole hosts: both killed at once, frozen and thawed, the pool master and the quorum server killed.

use std::time::Duration;

use ev_api::pool::PoolView;
use ev_tests::{Protected, TestLab, eventually};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn both_hosts_killed_at_once_come_back_by_themselves_with_everything() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    load.wait_for_more(50, LIMIT);
    lab.kill("h1").expect("dies");
    lab.kill("h2").expect("dies");
    lab.start("h1").expect("starts");
    lab.start("h2").expect("starts");
    load.wait_for_more(50, LIMIT);
    let view = protected.in_sync("h1");
    assert!(view.disks.iter().filter_map(|disk| disk.copy.as_ref()).all(|copy| !copy.full), "{view:?}");
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=1);
}

#[test]
fn a_host_frozen_past_its_lease_does_no_harm_when_it_thaws() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let frozen = protected.in_sync("h1").active.expect("it runs");
    let other = if frozen == "h1" { "h2" } else { "h1" };
    lab.freeze(&frozen).expect("freezes");
    load.wait_for_more(50, LIMIT);
    let boot_id = protected.boot_id();
    let view = protected.pool.try_vm(other, "tiny").expect("the other host answers");
    assert_eq!(view.active.as_deref(), Some(other));

    lab.thaw(&frozen).expect("thaws");
    load.wait_for_more(50, LIMIT);
    protected.in_sync(other);
    protected.one_guest_process();
    assert_eq!(protected.boot_id(), boot_id, "the guest ran on where it was");
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(1..=1);
}

#[test]
fn the_death_of_the_pool_master_and_of_the_quorum_server_is_not_seen_by_a_guest_elsewhere() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny_on(&lab, "h2");
    let boot_id = protected.boot_id();
    lab.kill("q1").expect("dies");
    load.wait_for_more(50, LIMIT);
    assert_eq!(protected.boot_id(), boot_id);
    lab.start("q1").expect("starts");
    eventually("the quorum server to be back", LIMIT, || {
        let pool: PoolView = protected.pool.try_json("h1", &["pool-show"]).map_err(|failure| failure.to_string())?;
        if pool.members.iter().all(|member| member.reachable) { Ok(()) } else { Err(format!("{:?}", pool.members)) }
    });
    let active = protected.in_sync("h1").active.expect("it runs");
    let master = eventually("a pool master on the other host", LIMIT, || {
        let pool: PoolView = protected.pool.try_json("h1", &["pool-show"]).map_err(|failure| failure.to_string())?;
        match pool.master {
            Some(master) if master != active => return Ok(master),
            // The host that made the pool leads it unless it stood still for a moment: then it gets another chance.
            Some(_) => drop(lab.kill_program(&active, "evd")),
            None => {}
        }
        Err(format!("{:?}", pool.master))
    });
    lab.kill(&master).expect("dies");
    load.wait_for_more(50, LIMIT);
    assert_eq!(protected.boot_id(), boot_id, "a guest on the other host ran on");
    lab.start(&master).expect("starts");
    protected.in_sync(&master);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=0);
}
