//! The main job, with the tiny guest: the active host dies in the middle of writes, the guest comes back on the other one
//! with everything that was acknowledged; the dead host returns, is brought in sync, and the other one dies.

use ev_api::host::HostView;
use ev_tests::{Pool, Protected, TestLab};

#[test]
fn a_guest_survives_the_death_of_either_host_with_all_that_was_acknowledged() {
    either_host_dies(&TestLab::up(2, 1));
}

#[test]
fn a_guest_of_qemu_10_survives_the_death_of_either_host() {
    let Some(lab) = TestLab::up_with_qemu_10(2, 1) else { return };
    let pool = either_host_dies(&lab);
    let hosts: Vec<HostView> = pool.json("h1", &["host-list"]);
    assert!(hosts.iter().all(|host| host.qemu_version.starts_with("10.")), "{hosts:?}");
}

fn either_host_dies(lab: &TestLab) -> Pool<'_> {
    let (protected, load) = Protected::tiny(lab);
    let mut asked = "h1".to_owned();
    for round in 1..=2 {
        let takeover = protected.kill_active(&load, &asked);
        println!("round {round}: {takeover:?}");
        let back = protected.bring_back(&takeover);
        println!("round {round}: {back:?}");
        assert!(back.by_delta_copy(), "{back:?}");
        asked = takeover.active;
    }
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(2..=2);
    protected.pool
}
