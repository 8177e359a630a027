//! Whether anything may reach the guest or the network now: the lease, as the data plane sees it.

use std::sync::atomic::{AtomicU64, Ordering};

use ev_core::time::Instant;

const CLOSED: u64 = 0;
const ALWAYS: u64 = u64::MAX;

/// Shared by the AM, which opens it, and the threads that look at it before each acknowledgement and each frame.
///
/// It closes by itself: it holds the deadline, not a state. After a host was frozen and thawed the deadline has passed
/// on the boot-time clock, so nothing gets out before the AM has renewed the lease.
#[derive(Debug)]
pub struct Gate {
    /// Reading of the boot-time clock, in nanoseconds, from which on the gate is closed.
    until: AtomicU64,
}

impl Default for Gate {
    /// A closed gate.
    fn default() -> Self {
        Self { until: AtomicU64::new(CLOSED) }
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Open until that reading of the boot-time clock; replaces what was set before.
    pub fn open_until(&self, deadline: Instant) {
        self.until.store(deadline.0, Ordering::Release);
    }

    /// Open until it is closed: level 0 needs no lease.
    pub fn open_always(&self) {
        self.until.store(ALWAYS, Ordering::Release);
    }

    /// Closed from now on.
    pub fn close(&self) {
        self.until.store(CLOSED, Ordering::Release);
    }

    /// Whether something may get out at this moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.until.load(Ordering::Acquire) {
            CLOSED => false,
            ALWAYS => true,
            deadline => boot_time().0 < deadline,
        }
    }

    /// When it closes by itself; `None` if it is closed or always open.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.until.load(Ordering::Acquire) {
            CLOSED | ALWAYS => None,
            deadline => Some(Instant(deadline)),
        }
    }
}

/// The clock of leases: counts suspended time and never steps.
#[must_use]
pub fn boot_time() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("the boot-time clock starts at 0");
    let nanoseconds = u64::try_from(now.tv_nsec).expect("a timespec's nanoseconds are not negative");
    Instant(seconds * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn closes_by_itself_at_the_deadline_and_at_once_when_told() {
        let gate = Gate::new();
        assert!(!gate.is_open());
        gate.open_until(boot_time().after(Duration::from_secs(100)));
        assert!(gate.is_open());
        gate.open_until(boot_time());
        assert!(!gate.is_open());
        gate.open_always();
        assert!(gate.is_open());
        gate.close();
        assert!(!gate.is_open());
    }
}
