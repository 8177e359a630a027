//! Ten thousand schedules of faults for the engines of Level 3. `EVENKEEL_SEED=n` runs one, `EVENKEEL_TRACE=1` tells what happens
//! in it, `EVENKEEL_SCHEDULES=n` runs so many.

use ev_sim::checkpoint::{Summary, run};
use ev_sim::schedules::{all_are_run, for_each_seed, schedules};

#[test]
fn what_was_seen_is_never_undone_and_memory_and_disks_are_of_one_epoch() {
    let mut total = Summary::default();
    let schedules = schedules(10_000);
    for_each_seed(schedules, |seed| total.add(run(seed)));
    eprintln!("{total:?}");
    if all_are_run() {
        assert!(total.takeovers > schedules / 10, "the faults do not bite: {total:?}");
        assert!(total.frozen_takeovers > schedules / 50, "the faults do not bite: {total:?}");
        assert!(total.simplex > schedules / 5, "the faults do not bite: {total:?}");
    }
}
