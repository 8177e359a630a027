//! Which schedules a test runs: all of its own, so many, or one that failed.
//!
//! `EVENKEEL_SEED=n` runs one, `EVENKEEL_TRACE=1` tells what happens in it, `EVENKEEL_SCHEDULES=n` runs so many.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A number of the environment.
///
/// # Panics
/// When it is set and is no number.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is to be a decimal number, not {text:?}")))
}

/// How many schedules to run, where a test is meant for `count` of them.
///
/// # Panics
/// When `EVENKEEL_SCHEDULES` is set and is no number.
#[must_use]
pub fn schedules(count: u64) -> u64 {
    number("EVENKEEL_SCHEDULES").unwrap_or(count)
}

/// The seed that was asked for alone, or the first `count`.
///
/// # Panics
/// When `EVENKEEL_SEED` is set and is no number.
#[must_use]
pub fn seeds(count: u64) -> Range<u64> {
    number("EVENKEEL_SEED").map_or(0..count, |seed| seed..seed + 1)
}

/// Whether all are run, so that they can be expected to contain something of everything.
#[must_use]
pub fn all_are_run() -> bool {
    number("EVENKEEL_SEED").is_none()
}

/// Runs a schedule for each of the seeds.
///
/// # Panics
/// When one fails; the message has its seed.
pub fn for_each_seed(count: u64, mut run: impl FnMut(u64)) {
    for seed in seeds(count) {
        let ran = catch_unwind(AssertUnwindSafe(|| run(seed)));
        assert!(ran.is_ok(), "seed {seed} failed; run it alone with EVENKEEL_SEED={seed}");
    }
}
