//! Ten thousand schedules of faults for checkpoints, mirror and authority together. `EVENKEEL_SEED=n` runs one, `EVENKEEL_TRACE=1` tells
//! what happens in it, `EVENKEEL_SCHEDULES=n` runs so many.

use ev_sim::joint::{Summary, run};
use ev_sim::schedules::{all_are_run, for_each_seed, schedules};

#[test]
fn nothing_that_was_seen_is_undone_and_memory_and_disk_belong_together() {
    let mut total = Summary::default();
    let schedules = schedules(10_000);
    for_each_seed(schedules, |seed| total.add(run(seed)));
    eprintln!("{total:?}");
    if all_are_run() {
        let Summary { protections, went_on, went_on_from_frozen, boots, confirmed, seen } = total;
        assert!(protections > schedules && went_on > schedules / 10, "the faults do not bite: {total:?}");
        assert!(went_on_from_frozen > schedules / 50 && boots > schedules, "the faults do not bite: {total:?}");
        assert!(confirmed > 20 * schedules && seen > 20 * schedules, "the guest does too little: {total:?}");
    }
}
