//! Ten thousand schedules of faults for the mirror's engines.

use ev_sim::mirror::run;
use ev_sim::rng::seeds;

#[test]
fn what_was_acknowledged_is_never_lost_and_both_replicas_meet_again() {
    let mut total = ev_sim::mirror::Summary::default();
    for seed in seeds(0, 10_000) {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(summary) => total.add(summary),
            Err(_) => panic!("seed {seed} failed; run it alone with EVENKEEL_SEED={seed}"),
        }
    }
    eprintln!("{total:?}");
}
