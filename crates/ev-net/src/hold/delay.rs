//! How long frames were held: a bounded sample of the newest.

use std::time::Duration;

/// So many of the newest are kept.
pub const DELAYS_MAX: usize = 1024;

/// What holding frames until their epoch is complete adds to their way, over the newest [`DELAYS_MAX`] released frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddedDelay {
    /// Half of the frames were held for less.
    pub median_us: u64,
    /// One frame of a hundred was held for longer.
    pub p99_us: u64,
    /// Frames that this is said of.
    pub frames: usize,
}

/// The newest delays, the oldest overwritten.
#[derive(Debug, Default)]
pub(super) struct Delays {
    micros: Vec<u64>,
    next: usize,
}

impl Delays {
    pub(super) fn add(&mut self, delay: Duration) {
        let delay = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        match self.micros.get_mut(self.next) {
            Some(oldest) => *oldest = delay,
            None => self.micros.push(delay),
        }
        self.next = (self.next + 1) % DELAYS_MAX;
    }

    pub(super) fn summary(&self) -> Option<AddedDelay> {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied();
        Some(AddedDelay { median_us: at(50)?, p99_us: at(99)?, frames: sorted.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_median_and_p99_of_the_newest() {
        let mut delays = Delays::default();
        assert_eq!(delays.summary(), None);
        for delay in 1..=101 {
            delays.add(Duration::from_micros(delay));
        }
        assert_eq!(delays.summary(), Some(AddedDelay { median_us: 51, p99_us: 100, frames: 101 }));
        for _ in 0..DELAYS_MAX {
            delays.add(Duration::from_millis(7));
        }
        assert_eq!(delays.summary(), Some(AddedDelay { median_us: 7000, p99_us: 7000, frames: DELAYS_MAX }));
    }
}
