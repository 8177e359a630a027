//! Ten thousand schedules of faults for checkpoints, mirror and authority together. `EVENKEEL_SEED=n` runs one, `EVENKEEL_TRACE=1` tells
//! what happens in it, `EVENKEEL_SCHEDULES=n` runs so many.

use ev_sim::joint::{Summary, run};
use ev_sim::rng::seeds;

fn schedules() -> u64 {
    std::env::var("EVENKEEL_SCHEDULES").map_or(10_000, |text| text.parse().expect("EVENKEEL_SCHEDULES is a number"))
}

#[test]
fn nothing_that_was_seen_is_undone_and_memory_and_disk_belong_together() {
    let mut total = Summary::default();
    for seed in seeds(0, schedules()) {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(summary) => total.add(summary),
            Err(_) => panic!("seed {seed} failed; run it alone with EVENKEEL_SEED={seed}"),
        }
    }
    eprintln!("{total:?}");
    if std::env::var_os("EVENKEEL_SEED").is_none() {
        let Summary { protections, went_on, went_on_from_frozen, boots, confirmed, seen } = total;
        assert!(protections > schedules() && went_on > schedules() / 10, "the faults do not bite: {total:?}");
        assert!(went_on_from_frozen > schedules() / 50 && boots > schedules(), "the faults do not bite: {total:?}");
        assert!(confirmed > 20 * schedules() && seen > 20 * schedules(), "the guest does too little: {total:?}");
    }
}
