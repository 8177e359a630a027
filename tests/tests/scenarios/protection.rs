//! Protection put on and taken off while the guest runs.

use std::time::Duration;

use ev_api::vm::PowerState;
use ev_tests::{Load, Pool, Protected, TestLab, TinyGuest, TinyImage};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn levels_change_under_a_running_guest_which_then_shuts_down_and_starts_again() {
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &TinyImage::find().create_arguments("tiny", "256M", TinyImage::ADDRESS));
    pool.ok("h1", &["pvm-start", "tiny"]);
    let load = Load::start(&lab, 0, || TinyGuest::connect(TinyImage::ADDRESS));
    load.wait_for_more(50, LIMIT);
    let protected = Protected { lab: &lab, pool, vm: "tiny" };
    let boot_id = protected.boot_id();
    for level in ["2", "1", "2"] {
        pool.ok("h1", &["pvm-protect", "tiny", "--level", level, "--wait"]);
        load.wait_for_more(50, LIMIT);
        let view = protected.in_sync("h1");
        assert_eq!((view.level.to_string().as_str(), view.hosts.len()), (level, 2), "{view:?}");
    }
    pool.ok("h1", &["pvm-unprotect", "tiny", "--wait"]);
    load.wait_for_more(50, LIMIT);
    let view = pool.wait_vm("h1", "tiny", "one host to be left", LIMIT, |vm| vm.level == 0 && vm.hosts.len() == 1);
    assert_eq!(view.power, PowerState::Running);
    assert_eq!(protected.boot_id(), boot_id, "the guest ran on through it");

    pool.ok("h1", &["pvm-force-off", "tiny"]);
    pool.wait_vm("h1", "tiny", "the guest to be off", LIMIT, |vm| vm.power == PowerState::Off);
    pool.ok("h1", &["pvm-start", "tiny"]);
    load.wait_for_more(50, LIMIT);
    assert_ne!(protected.boot_id(), boot_id);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=0);
}
