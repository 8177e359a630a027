//! Ten thousand schedules of faults for the engines of Level 3. `EVENKEEL_SEED=n` runs one, `EVENKEEL_TRACE=1` tells what happens
//! in it, `EVENKEEL_SCHEDULES=n` runs so many.

use ev_sim::checkpoint::{Summary, run};
use ev_sim::rng::seeds;

fn schedules() -> u64 {
    std::env::var("EVENKEEL_SCHEDULES").map_or(10_000, |text| text.parse().expect("EVENKEEL_SCHEDULES is a number"))
}

#[test]
fn what_was_seen_is_never_undone_and_memory_and_disks_are_of_one_epoch() {
    let mut total = Summary::default();
    for seed in seeds(0, schedules()) {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(summary) => total.add(summary),
            Err(_) => panic!("seed {seed} failed; run it alone with EVENKEEL_SEED={seed}"),
        }
    }
    eprintln!("{total:?}");
    if std::env::var_os("EVENKEEL_SEED").is_none() {
        assert!(total.takeovers > schedules() / 10, "the faults do not bite: {total:?}");
        assert!(total.frozen_takeovers > schedules() / 50, "the faults do not bite: {total:?}");
        assert!(total.simplex > schedules() / 5, "the faults do not bite: {total:?}");
    }
}
