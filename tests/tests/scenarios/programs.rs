//! Single programs of the active host: evd, ev-am, QEMU. Only QEMU's end may be seen by the guest.

use std::time::Duration;

use ev_tests::{Protected, TestLab};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_killed_evd_or_am_leaves_the_guest_running_and_a_killed_qemu_is_started_again() {
    let lab = TestLab::up(2, 1);
    let (protected, load) = Protected::tiny(&lab);
    let boot_id = protected.boot_id();
    let active = protected.in_sync("h1").active.expect("it runs");
    for program in ["evd", "ev-am"] {
        assert_eq!(lab.kill_program(&active, program).expect("on"), 1, "one {program} runs on {active}");
        load.wait_for_more(100, LIMIT);
        protected.in_sync(&active);
        assert_eq!(protected.boot_id(), boot_id, "{program} was killed, and the guest with it");
    }
    // Both at once, and the partner's too.
    for host in ["h1", "h2"] {
        lab.kill_program(host, "evd").expect("on");
        lab.kill_program(host, "ev-am").expect("on");
    }
    load.wait_for_more(100, LIMIT);
    protected.in_sync(&active);
    assert_eq!(protected.boot_id(), boot_id, "all daemons were killed, and the guest with them");

    assert_eq!(lab.kill_program(&active, "qemu-system-x86_64").expect("on"), 1);
    load.wait_for_more(100, LIMIT);
    assert_ne!(protected.boot_id(), boot_id);
    protected.in_sync(&active);
    protected.assert_nothing_lost(load);
    protected.one_guest_process();
    protected.assert_owner_moved(0..=0);
}
