//! The way back of this host's own replica: copied from the partner, which alone is good, while the guest goes on.
//!
//! ```text
//! Idle ─► Disowning ─► Copying ─► Owning ─► Ready ─► Closing ─► (both good, linked in step)
//!   ▲         │            │        │
//!   └─────────┴── link or storage lost, partner unreadable
//! ```
//!
//! - *Disowning*: the superblock is to say `copying` before the first byte changes.
//! - *Copying*: the guest's writes go to both, marked in the write-intent log here too; what the partner's map names is compared
//!   and fetched. The record still calls the partner alone good, so nothing waits for this replica but the order of writes.
//! - *Owning*: all is here and flushed; the superblock is to say so.
//! - *Ready*: the record is to call this replica good. From the proposal on it counts.
//! - *Closing*: it does. The partner need not mark writes for it any more.

use super::super::acknowledge::Leg;
use super::super::extent::Extent;
use super::super::history::{Health, History, ReplicaInfo};
use super::super::message::{Action, CopyKind, Durability, LocalIo, Message, OpId, Trouble, Write, WriteKind};
use super::super::region::RegionSet;
use super::Coordinator;
use super::copy::Copier;
use super::op::{Op, Stage, Task};
use super::partner::{Link, RETRY};
use crate::ids::Generation;
use crate::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing is to be done, or not before then.
    Idle {
        from: Instant,
    },
    Disowning(CopyKind),
    Copying,
    Owning,
    Ready,
    Closing(OpId),
}

/// Where this host's own replica is on its way back.
#[derive(Debug)]
pub(super) struct Own {
    step: Step,
    /// Regions that it may lack: what the partner's map named when it was last greeted, and what was written since.
    lacking: Option<RegionSet>,
    /// That it be good was proposed, and no newer record has come since: it counts.
    pub proposed: bool,
    /// An earlier process on this host may have proposed that. Until a newer record comes, nothing is done for the guest.
    pub unresolved: bool,
}

impl Own {
    pub fn new() -> Self {
        Self { step: Step::Idle { from: Instant::default() }, lacking: None, proposed: false, unresolved: false }
    }

    /// Whether the guest's writes go to this replica although the record does not call it good.
    pub fn is_written(&self) -> bool {
        match self.step {
            Step::Copying | Step::Owning | Step::Ready | Step::Closing(_) => true,
            Step::Idle { .. } | Step::Disowning(_) => false,
        }
    }

    /// Whether it holds everything, so that the record may call it good.
    pub fn is_ready(&self) -> bool {
        matches!(self.step, Step::Ready)
    }

    pub fn is_under_way(&self) -> bool {
        !matches!(self.step, Step::Idle { .. })
    }
}

impl Coordinator {
    /// These regions, too, may differ where the partner goes on alone.
    pub(super) fn own_lacks(&mut self, regions: &RegionSet) {
        match &mut self.own.lacking {
            Some(lacking) => lacking.union(regions),
            None => self.own.lacking = Some(regions.clone()),
        }
    }

    /// A write begins that goes to the partner only.
    pub(super) fn note_lacking(&mut self, extent: Extent) {
        if !self.own.is_written()
            && let Some(lacking) = &mut self.own.lacking
        {
            self.local.log.geometry().regions_of(extent).for_each(|region| {
                lacking.insert(region);
            });
        }
    }

    pub(super) fn advance_own(&mut self, out: &mut Vec<Action>) {
        match self.own.step {
            Step::Idle { from } if self.now >= from && self.own_can_begin() => self.disown(),
            Step::Disowning(kind) if self.local.is_stored() => self.own_copy_begins(kind),
            Step::Owning if self.local.is_stored() && self.own_knows_all_ops() => self.own.step = Step::Ready,
            Step::Ready if self.record.is_some_and(|record| record.good.local) => self.close_own(out),
            Step::Idle { .. } | Step::Disowning(_) | Step::Copying | Step::Owning | Step::Ready | Step::Closing(_) => {}
        }
    }

    fn own_can_begin(&self) -> bool {
        let partner_alone = |record: super::Record| record.good.partner && !record.good.local;
        let late_writes = self.ops.values().any(|op| matches!(op.task, Task::CopyIn { .. }));
        matches!(self.partner.link, Link::Alone)
            && self.record.is_some_and(partner_alone)
            && self.next_record.is_none()
            && self.copier.is_none()
            && self.own.lacking.is_some()
            && !(self.own.proposed || self.own.unresolved || self.local.failed || late_writes)
    }

    fn disown(&mut self) {
        let ours = self.local.info();
        let base = self.partner.history.bitmap_base;
        let common = base != Generation::NONE && base == ours.history.current;
        let delta = common && matches!(ours.health, Health::Good | Health::Copying);
        // Without a common history it must not be taken for close to the partner's by anyone later.
        let history = if delta { ours.history } else { History::NONE };
        self.local.want(ReplicaInfo { health: Health::Copying, history });
        self.own.step = Step::Disowning(if delta { CopyKind::Delta } else { CopyKind::Full });
    }

    fn own_copy_begins(&mut self, kind: CopyKind) {
        let geometry = self.local.log.geometry();
        let mut todo = self.own.lacking.clone().unwrap_or_else(|| RegionSet::empty(geometry.regions()));
        match kind {
            CopyKind::Full => todo.fill(),
            CopyKind::Delta => {
                todo.union(self.local.log.intent());
                todo.union(self.local.log.out_of_sync());
                for op in self.ops.values() {
                    if let Task::Write(write) = op.task {
                        for region in geometry.regions_of(write.extent) {
                            todo.insert(region);
                        }
                    }
                }
            }
        }
        self.own.lacking = Some(todo.clone());
        self.copier = Some(Copier::homeward(kind, &todo, self.now));
        self.own.step = Step::Copying;
    }

    /// A part that differs is fetched: the partner's data comes under the operation's number.
    pub(super) fn copy_in(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        entry.local = Leg::Running;
        let write = Write { extent, kind: WriteKind::Data, durability: Durability::AtFlush };
        out.push(Action::Local { op, io: LocalIo::Write(write) });
    }

    /// Whether nothing is under way that began before this replica took part: it would be waited for in vain.
    fn own_knows_all_ops(&self) -> bool {
        let began_without = |op: &Op| op.stage == Stage::Started && op.local == Leg::Unneeded;
        !self.ops.values().any(|op| matches!(op.task, Task::Write(_) | Task::Flush | Task::Settle) && began_without(op))
    }

    /// Everything is here and flushed on both sides.
    pub(super) fn own_copy_ends(&mut self) {
        let current = self.partner.history.current;
        self.local.want(ReplicaInfo { health: Health::Good, history: History { current, bitmap_base: current } });
        self.own.step = Step::Owning;
    }

    /// The record calls both good: the partner stops marking, and its history is ours.
    fn close_own(&mut self, out: &mut Vec<Action>) {
        if matches!(self.partner.link, Link::Entrusting(_)) {
            return;
        }
        if !matches!(self.partner.link, Link::Alone) {
            // The next greeting finds both good, and this instance in step with what it confirmed.
            self.own = Own::new();
            return;
        }
        let op = self.own_op();
        self.control(op);
        let current = self.local.history().current;
        out.push(Action::Send(Message::CopyEnd { op, current }));
        self.own.step = Step::Closing(op);
    }

    /// The partner has answered; perhaps to what ends the way back.
    pub(super) fn own_closed(&mut self, op: OpId) {
        if self.own.step == Step::Closing(op) {
            self.own = Own::new();
            let current = self.local.history().current;
            self.partner.history = History { current, bitmap_base: current };
            self.partner.link = Link::InStep;
        }
    }

    /// The link or this replica is lost. What is complete stays so: it has been written with everything.
    pub(super) fn own_interrupted(&mut self) {
        match self.own.step {
            Step::Ready if !self.local.failed => {}
            Step::Idle { .. } => {}
            Step::Disowning(_) | Step::Copying | Step::Owning | Step::Ready | Step::Closing(_) => {
                self.own.step = Step::Idle { from: self.now };
            }
        }
    }

    /// The partner can't read what is to be fetched: it is tried again later.
    pub(super) fn own_source_failed(&mut self, out: &mut Vec<Action>) {
        self.abort_copy(out);
        self.own.step = Step::Idle { from: self.now.after(RETRY) };
        if !std::mem::replace(&mut self.told.source_unreadable, true) {
            out.push(Action::Trouble(Trouble::PartnerUnreadable));
        }
    }
}
