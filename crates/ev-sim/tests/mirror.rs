//! Ten thousand schedules of faults for the mirror's engines, and a power cut after each event of some calm ones.
//!
//! Which rules were broken by hand, and how that was caught: `docs/internals/mirror.md`. `EVENKEEL_SEED=n` runs one
//! schedule, `EVENKEEL_TRACE=1` tells what happens in it, `EVENKEEL_SCHEDULES=n` runs so many instead of 20,000.

use ev_sim::mirror::{Cut, Summary, run, run_protected_with_cut, run_with_cut};
use ev_sim::schedules::{all_are_run, for_each_seed, schedules, seeds};

/// Events of a calm schedule after each of which the power is cut.
const CUT_STEPS: u64 = 600;

#[test]
fn what_was_acknowledged_is_never_lost_and_both_replicas_meet_again() {
    let mut total = Summary::default();
    let schedules = schedules(20_000);
    for_each_seed(schedules, |seed| total.add(run(seed)));
    eprintln!("{total:?}");
    if all_are_run() {
        let Summary { delta_copies, full_copies, entrusted, failed_disks, clean_ends, compared, came_home, .. } = total;
        for (what, count) in [
            ("delta copies", delta_copies),
            ("full copies", full_copies),
            ("disks that only the partner has", entrusted),
            ("failed disks", failed_disks),
            ("clean ends", clean_ends),
            ("comparisons", compared),
        ] {
            assert!(count > schedules / 100, "only {count} {what}: the faults do not bite");
        }
        assert!(came_home > schedules / 500, "only {came_home} own replicas brought back under the guest");
        let Summary { confirmed, went_on, behind, .. } = total;
        assert!(confirmed > schedules / 5, "only {confirmed} epochs confirmed");
        assert!(went_on > schedules / 25, "only {went_on} guests went on from memory");
        assert!(behind > schedules / 500, "only {behind} starts from a replica that was written ahead of");
    }
}

#[test]
fn power_may_be_cut_after_any_event() {
    for seed in seeds(6) {
        for step in 0..CUT_STEPS {
            for cut in [Cut::One(0), Cut::One(1), Cut::Both] {
                if std::panic::catch_unwind(|| run_with_cut(seed, step, cut)).is_err() {
                    panic!(
                        "seed {seed}, power cut ({cut:?}) after event {step}; run the seed alone with EVENKEEL_SEED={seed}"
                    );
                }
            }
        }
    }
}

#[test]
fn power_may_be_cut_after_every_second_event_of_a_protected_guest() {
    let mut total = Summary::default();
    for seed in seeds(20) {
        for step in (seed % 2..CUT_STEPS).step_by(2) {
            for cut in [Cut::One(0), Cut::One(1), Cut::Both] {
                match std::panic::catch_unwind(|| run_protected_with_cut(seed, step, cut)) {
                    Ok(summary) => total.add(summary),
                    Err(_) => panic!(
                        "seed {seed}, power cut ({cut:?}) after event {step}; run the seed alone with EVENKEEL_SEED={seed}"
                    ),
                }
            }
        }
    }
    eprintln!("{total:?}");
    if all_are_run() {
        let Summary { confirmed, went_on, behind, .. } = total;
        assert!(confirmed > 10_000 && went_on > 500 && behind > 500, "the cuts do not come while it is protected");
    }
}
