//! When the next checkpoint is due: at once when somebody waits for output and the guest has nothing else to do, seldom when nothing
//! happens, and never so often that the pauses eat the guest's time.

use std::time::Duration;

use crate::time::Instant;

/// Limits of the pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaceLimits {
    /// A guest that nobody waits for has a checkpoint this often: the most work that a takeover repeats.
    pub idle: Duration,
    /// The guest runs at least this many times as long as its last pause took, while nobody waits for what it sends.
    pub run_per_pause: u32,
    /// The same while somebody waits, and it has more to do. With less its pauses and page faults take it more than those gain who wait:
    /// a database with many clients (pgbench of `cargo xtask bench checkpoint`) did less work with 4, and hardly more with 10.
    pub run_per_pause_waiting: u32,
    /// The same while somebody waits, and it rests: a pause takes it nothing then.
    pub run_per_pause_resting: u32,
    /// Checkpoints that the standby has not confirmed; with more, the next one waits.
    pub unconfirmed: u64,
    /// An epoch that has lasted for so long while the link or the standby is behind: the guest is slowed, so that the epoch stays small
    /// enough to be sent.
    pub epoch: Duration,
    /// The guest runs for so long between two brakes.
    pub run_per_brake: Duration,
}

impl Default for PaceLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(1),
            run_per_pause: 9,
            run_per_pause_waiting: 7,
            run_per_pause_resting: 1,
            unconfirmed: 2,
            epoch: Duration::from_secs(1),
            run_per_brake: Duration::from_millis(30),
        }
    }
}

/// What has been seen of the guest's present epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    limits: PaceLimits,
    /// When the present epoch began, and how long the pause before it took.
    began: Instant,
    last_pause: Duration,
    output_waits: bool,
    rested: bool,
    /// When the guest was last let go on by a brake.
    braked: Option<Instant>,
}

impl Pace {
    pub(super) fn new(limits: PaceLimits, now: Instant) -> Self {
        Self { limits, began: now, last_pause: Duration::ZERO, output_waits: false, rested: false, braked: None }
    }

    pub(super) fn output(&mut self) {
        self.output_waits = true;
    }

    pub(super) fn rested(&mut self) {
        self.rested = true;
    }

    pub(super) fn captured(&mut self, now: Instant, pause: Duration) {
        self.began = now;
        self.last_pause = pause;
        self.output_waits = false;
        self.rested = false;
    }

    pub(super) fn braked(&mut self, now: Instant) {
        self.braked = Some(now);
    }

    /// Whether the guest is to be slowed: it runs far ahead of what the standby has confirmed.
    pub(super) fn is_ahead(&self, now: Instant, unconfirmed: u64) -> bool {
        unconfirmed >= self.limits.unconfirmed
            && now.since(self.began) >= self.limits.epoch
            && self.braked.is_none_or(|at| now.since(at) >= self.limits.run_per_brake)
    }

    /// Whether a checkpoint is due, with so many on their way.
    pub(super) fn is_due(&self, now: Instant, unconfirmed: u64) -> bool {
        let ran = now.since(self.began);
        let least = match (self.output_waits, self.rested) {
            (true, true) => self.limits.run_per_pause_resting,
            (true, false) => self.limits.run_per_pause_waiting,
            (false, _) => self.limits.run_per_pause,
        };
        unconfirmed < self.limits.unconfirmed
            && ran >= self.last_pause * least
            && (self.output_waits || ran >= self.limits.idle)
    }

    /// Whether a checkpoint would be due if the guest rested now, and is not otherwise.
    pub(super) fn waits_for_rest(&self, now: Instant, unconfirmed: u64) -> bool {
        let resting = Self { rested: true, ..*self };
        self.output_waits && !self.is_due(now, unconfirmed) && resting.is_due(now, unconfirmed)
    }
}
