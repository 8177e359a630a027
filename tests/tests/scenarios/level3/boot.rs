//! Level 3: a guest is protected from its first moment, in its firmware and its boot loader, and comes up all the same.

use ev_api::vm::PowerState;
use ev_tests::{System, TestLab};

/// Boots without being asked for more.
const BOOTS: usize = 3;

/// `EVENKEEL_BOOTS=100` for more of them.
#[test]
fn a_guest_that_is_protected_while_it_boots_comes_up() {
    let boots = std::env::var("EVENKEEL_BOOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(BOOTS);
    let lab = TestLab::up(2, 1);
    let system = System::start_tiny(&lab);
    let mut seen: Vec<String> = Vec::new();
    for boot in 1..=boots {
        let started = std::time::Instant::now();
        let id = system.boot_id();
        println!("boot {boot}: answers after {:?}", started.elapsed());
        assert!(!seen.contains(&id), "another boot");
        seen.push(id);
        system.protected("h1");
        system.pool.ok("h1", &["pvm-force-off", system.vm]);
        system.wait("h1", "the guest to be off", |view| view.power == PowerState::Off);
        if boot < boots {
            system.pool.ok("h1", &["pvm-start", system.vm]);
        }
    }
}
