//! The boot-time clock: it counts suspended time and never steps, so a frozen and thawed host sees that time has passed.

use ev_core::time::Instant;
use rustix::time::{ClockId, clock_gettime};

/// The present reading.
#[must_use]
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("the boot-time clock is never negative");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("the boot-time clock is never negative");
    Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}
