//! Flushes, and what they allow: a region that both replicas have flushed since it was last written leaves the logs.
//!
//! Time is counted in epochs; each flush ends one. A region's last write ended in some epoch; a flush that both
//! replicas finished covers all epochs up to the one that it ended.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::log::{INTENT_REGIONS_MAX, RegionLog};
use super::super::message::{Action, OpId};
use super::Coordinator;
use super::op::Task;
use crate::time::Instant;

/// A disk that was not written for so long is flushed on both sides, and its write-intent log emptied.
pub(super) const IDLE: Duration = Duration::from_secs(5);

#[derive(Debug, Default, Clone, Copy)]
struct Activity {
    in_flight: u32,
    /// Epoch in which the last write ended.
    touched: u64,
}

/// Where everything that was written is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    Here,
    OnBoth,
}

#[derive(Debug, Default)]
pub(super) struct Settling {
    epoch: u64,
    flushed_through: u64,
    /// Regions that are being written or were since they entered the write-intent log.
    activity: BTreeMap<u64, Activity>,
    /// Our own flush under way.
    pub op: Option<OpId>,
    pub wanted: bool,
    /// How many regions may stay in the write-intent log after the next flush.
    thin_to: Option<u64>,
    last_write: Option<Instant>,
    writes_since_tick: bool,
    changes_in_flight: u32,
    /// A flush under way before which all writes had ended; none has begun since.
    covering: Option<OpId>,
    /// Nothing was written since such a flush ended.
    all_flushed: Option<Flushed>,
}

impl Settling {
    pub fn write_starts(&mut self, regions: std::ops::Range<u64>) {
        self.writes_since_tick = true;
        for region in regions {
            self.hold(region);
        }
    }

    /// `tracked`: the regions are in the write-intent log, so that it matters when they were last written.
    pub fn write_ends(&mut self, regions: std::ops::Range<u64>, tracked: bool) {
        for region in regions {
            self.let_go(region);
            if !tracked && self.activity.get(&region).is_some_and(|activity| activity.in_flight == 0) {
                self.activity.remove(&region);
            }
        }
    }

    /// The region is being changed.
    pub fn hold(&mut self, region: u64) {
        self.activity.entry(region).or_default().in_flight += 1;
        self.changes_in_flight += 1;
        self.forget_flushes();
    }

    pub fn let_go(&mut self, region: u64) {
        let epoch = self.epoch;
        let activity = self.activity.entry(region).or_default();
        assert!(activity.in_flight > 0, "a change that ends has begun");
        activity.in_flight -= 1;
        activity.touched = epoch;
        self.changes_in_flight -= 1;
    }

    /// Replicas take part, fail or count otherwise than before: who has flushed what is to be asked anew.
    pub fn forget_flushes(&mut self) {
        (self.covering, self.all_flushed) = (None, None);
    }

    /// This flush begins.
    pub fn flush_may_cover(&mut self, op: OpId) {
        if self.changes_in_flight == 0 {
            self.covering = Some(op);
        }
    }

    /// It is done there.
    pub fn flush_covers(&mut self, op: OpId, done: Flushed) {
        if self.covering == Some(op) {
            (self.covering, self.all_flushed) = (None, Some(done));
        }
    }

    pub fn all_flushed(&self) -> Option<Flushed> {
        self.all_flushed
    }

    /// The epoch that ends with this flush.
    pub fn flush_starts(&mut self) -> u64 {
        let ends = self.epoch;
        self.epoch += 1;
        ends
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether both replicas have flushed everything that ended in that epoch.
    pub fn is_covered(&self, epoch: u64) -> bool {
        self.flushed_through > epoch
    }

    /// Whether the region is not being written and was flushed on both sides since.
    fn is_settled(&self, region: u64) -> bool {
        self.activity.get(&region).is_none_or(|a| a.in_flight == 0 && self.is_covered(a.touched))
    }

    /// Takes a settled region out of the write-intent log.
    pub fn leave_log(&mut self, region: u64, log: &mut RegionLog) {
        if self.is_settled(region) {
            log.clear_intent(region);
            self.activity.remove(&region);
        }
    }

    fn touched(&self, region: u64) -> u64 {
        self.activity.get(&region).map_or(0, |activity| activity.touched)
    }
}

impl Coordinator {
    /// A flush has ended, on both replicas or not.
    pub(super) fn flushed(&mut self, task: Task, epoch: u64, both: bool) {
        if task == Task::Settle {
            self.settling.op = None;
        }
        if !both {
            return;
        }
        self.settling.flushed_through = self.settling.flushed_through.max(epoch + 1);
        self.copies_settled();
        if let Some(limit) = self.settling.thin_to.take() {
            self.thin_out(limit);
        } else if self.local.log.intent_count() > INTENT_REGIONS_MAX {
            self.thin_out(INTENT_REGIONS_MAX / 2);
        }
    }

    /// Takes settled regions out of the write-intent log, the longest unwritten first, until `limit` stay.
    pub(super) fn thin_out(&mut self, limit: u64) {
        if !self.partner.takes_part() || self.local.failed {
            return;
        }
        let mut settled: Vec<u64> =
            self.local.log.intent().iter().filter(|region| self.settling.is_settled(*region)).collect();
        settled.sort_by_key(|region| self.settling.touched(*region));
        for region in settled {
            if self.local.log.intent_count() <= limit {
                break;
            }
            self.settling.leave_log(region, &mut self.local.log);
        }
        self.local.log.want_commit();
    }

    /// Starts our own flush when it is wanted.
    pub(super) fn advance_settling(&mut self, out: &mut Vec<Action>) {
        if self.local.log.intent_count() > INTENT_REGIONS_MAX && self.settling.op.is_none() {
            self.settling.wanted = true;
        }
        let can = self.partner.takes_part() && !self.local.failed && self.record.is_some();
        if self.settling.wanted && self.settling.op.is_none() && can {
            self.settling.wanted = false;
            let op = self.own_op();
            self.settling.op = Some(op);
            self.start_flush(op, Task::Settle, out);
        }
    }

    /// An idle disk's write-intent log is emptied, so that a crash leaves nothing to compare.
    pub(super) fn settle_when_idle(&mut self) {
        if std::mem::take(&mut self.settling.writes_since_tick) {
            self.settling.last_write = Some(self.now);
        }
        let idle = self.settling.last_write.is_none_or(|last| self.now.since(last) >= IDLE);
        let nothing_held = self.copier.is_none() && self.settling.op.is_none();
        if idle && nothing_held && self.partner.has_everything() && self.local.log.intent_count() > 0 {
            self.settling.thin_to = Some(0);
            self.settling.wanted = true;
        }
    }
}
