//! The way of a guest's operation: queued behind what overlaps, marked in the log, started on both replicas, acknowledged.

use super::super::acknowledge::{Decision, Leg, Required};
use super::super::extent::Extent;
use super::super::lock::Turn;
use super::super::message::{Action, Durability, LocalIo, Message, OpId, Outcome, Source, Trouble, Write, WriteKind};
use super::Coordinator;
use super::op::{Op, Stage, Task};
use super::settle::Flushed;

impl Coordinator {
    pub(super) fn submit_write(&mut self, op: OpId, write: Write, out: &mut Vec<Action>) {
        let turn = self.locks.enter(op, write.extent);
        self.ops.insert(op, Op::new(Task::Write(write), Stage::Queued));
        if turn == Turn::Now {
            self.begin_write(op, out);
        }
    }

    /// The range is free: mark it, then start.
    fn begin_write(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        let Task::Write(write) = entry.task else { return };
        entry.stage = Stage::Logging;
        if !self.try_start(op, write, out) {
            self.logging.insert(op);
        }
    }

    /// Whether the partner has, or is to have, a replica: then writes are marked.
    pub(super) fn is_tracked(&self) -> bool {
        let named = |record: Option<super::Record>| record.is_some_and(|record| record.partner.is_some());
        named(self.record) || named(self.next_record)
    }

    /// Marks the regions of a write in the map that fits.
    fn note_write(&mut self, extent: Extent) {
        if !self.is_tracked() {
            return;
        }
        if self.required().partner || self.partner.takes_part() {
            self.local.log.intend(extent);
        } else {
            self.local.log.mark_out_of_sync(extent);
        }
    }

    /// Whether a crash from here on leaves the regions marked, on the side that tracks.
    fn may_start(&mut self, extent: Extent) -> bool {
        if self.record.is_none() || self.own.unresolved {
            return false;
        }
        if (self.partner.tracks_for_us() && !self.own.is_written()) || !self.is_tracked() {
            return true;
        }
        // With a failed replica here nothing new can be marked; the partner will, once the record is in effect.
        self.local.log.protects(extent)
    }

    /// No replica that counts can be written. A partner that takes part without counting must not be written either: its replica
    /// would have what no log names.
    fn nobody_left(&self) -> bool {
        self.local.failed && !self.required().partner
    }

    /// Starts a write if it may be, or fails it if it never will be. Else it waits.
    fn try_start(&mut self, op: OpId, write: Write, out: &mut Vec<Action>) -> bool {
        self.note_write(write.extent);
        if self.record.is_some() && self.nobody_left() {
            self.ops.remove(&op);
            out.push(Action::Fail { op });
            self.release(op, out);
            return true;
        }
        let may = self.may_start(write.extent);
        if may {
            self.start_write(op, write, out);
        }
        may
    }

    /// Starts writes whose regions have become safe to write.
    pub(super) fn start_logged(&mut self, out: &mut Vec<Action>) {
        if self.logging.is_empty() || self.record.is_none() || self.own.unresolved {
            return;
        }
        for op in self.logging.iter().copied().collect::<Vec<_>>() {
            match self.ops.get(&op).map(|entry| entry.task) {
                Some(Task::Write(write)) => {
                    if self.try_start(op, write, out) {
                        self.logging.remove(&op);
                    }
                }
                Some(task @ (Task::Flush | Task::Settle)) => {
                    self.logging.remove(&op);
                    self.start_flush(op, task, out);
                }
                Some(
                    Task::Trailing
                    | Task::Read(_)
                    | Task::Repair(_)
                    | Task::Chunk
                    | Task::CopyOut { .. }
                    | Task::CopyIn { .. }
                    | Task::Control,
                )
                | None => {
                    self.logging.remove(&op);
                }
            }
        }
    }

    fn start_write(&mut self, op: OpId, write: Write, out: &mut Vec<Action>) {
        self.note_lacking(write.extent);
        self.settling.write_starts(self.local.log.geometry().regions_of(write.extent));
        let legs = self.start_legs(op, &Message::Write { op, write }, LocalIo::Write(write), out);
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.stage = Stage::Started;
            (entry.local, entry.partner) = legs;
        }
        self.reconsider(op, out);
    }

    /// Starts an operation on each replica that takes part, the partner first: its way is longer.
    fn start_legs(&self, op: OpId, message: &Message, io: LocalIo, out: &mut Vec<Action>) -> (Leg, Leg) {
        // Ahead of the partner, what can't be done here has not happened: the guest goes on there from before it.
        let undone = self.is_ahead() && self.local.failed;
        let partner = if self.partner.takes_part() && !undone {
            out.push(Action::Send(message.clone()));
            Leg::Running
        } else if self.waits_for().partner {
            Leg::Todo
        } else {
            Leg::Unneeded
        };
        let local = if self.local.failed {
            Leg::Failed
        } else if self.required().local || self.own.is_written() {
            out.push(Action::Local { op, io });
            Leg::Running
        } else {
            Leg::Unneeded
        };
        (local, partner)
    }

    pub(super) fn submit_flush(&mut self, op: OpId, out: &mut Vec<Action>) {
        if self.record.is_some() && !self.own.unresolved {
            if self.is_flushed() {
                self.answer_flushed(op, out);
            } else {
                self.start_flush(op, Task::Flush, out);
            }
        } else {
            self.ops.insert(op, Op::new(Task::Flush, Stage::Logging));
            self.logging.insert(op);
        }
    }

    /// Whether all that was written is durable wherever a flush is waited for. QEMU flushes whenever the guest is stopped, so at each
    /// checkpoint.
    fn is_flushed(&self) -> bool {
        match self.settling.all_flushed() {
            Some(Flushed::OnBoth) => !self.local.failed,
            Some(Flushed::Here) => !self.local.failed && !self.waits_for().partner,
            None => false,
        }
    }

    fn answer_flushed(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Required { local, partner } = self.waits_for();
        let leg = |waited_for| if waited_for { Leg::Done } else { Leg::Unneeded };
        let mut entry = Op::new(Task::Flush, Stage::Started);
        (entry.local, entry.partner) = (leg(local), leg(partner));
        self.ops.insert(op, entry);
        self.reconsider(op, out);
    }

    pub(super) fn start_flush(&mut self, op: OpId, task: Task, out: &mut Vec<Action>) {
        let mut entry = Op::new(task, Stage::Started);
        entry.epoch = self.settling.flush_starts();
        (entry.local, entry.partner) = self.start_legs(op, &Message::Flush { op }, LocalIo::Flush, out);
        self.ops.insert(op, entry);
        self.settling.flush_may_cover(op);
        self.reconsider(op, out);
    }

    pub(super) fn submit_read(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        self.ops.insert(op, Op::new(Task::Read(extent), Stage::Started));
        self.start_read(op, extent, out);
    }

    /// Reads here if this replica counts and works, else from the partner, else waits.
    fn start_read(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        let source = self.reads_from();
        let may_come = self.required().partner || self.partner.has_everything();
        let starting = self.record.is_none() || self.start_is_unresolved();
        let current = self.partner_is_current();
        let Some(entry) = self.ops.get_mut(&op) else { return };
        match source {
            Some(Source::Local) if entry.local != Leg::Failed => {
                entry.local = Leg::Running;
                out.push(Action::Local { op, io: LocalIo::Read { extent } });
            }
            Some(_) if current => {
                entry.partner = Leg::Running;
                out.push(Action::Send(Message::Read { op, extent }));
            }
            Some(_) | None if may_come || starting => {
                // By then it may be readable here: it may have been written meanwhile.
                entry.local = Leg::Unneeded;
                self.reads_held.insert(op);
            }
            Some(_) | None => {
                self.ops.remove(&op);
                out.push(Action::Fail { op });
            }
        }
    }

    fn retry_reads(&mut self, out: &mut Vec<Action>) {
        for op in std::mem::take(&mut self.reads_held) {
            let Some(Task::Read(extent)) = self.ops.get(&op).map(|entry| entry.task) else { continue };
            self.start_read(op, extent, out);
        }
    }

    pub(super) fn local_done(&mut self, op: OpId, ok: bool, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        entry.local = if ok { Leg::Done } else { Leg::Failed };
        match entry.task {
            Task::Read(_) if ok => {
                self.ops.remove(&op);
                out.push(Action::Answer { op, source: Source::Local });
            }
            Task::Read(extent) => self.read_failed_here(op, extent, out),
            Task::CopyOut { chunk, extent } if ok => self.copy_out(op, chunk, extent, out),
            Task::CopyOut { .. } => self.copy_source_failed(out),
            Task::CopyIn { chunk, .. } if ok => self.copied(op, chunk, out),
            Task::CopyIn { chunk, .. } => {
                self.copied(op, chunk, out);
                self.local_failed(out);
            }
            Task::Write(_) | Task::Flush | Task::Trailing | Task::Settle | Task::Repair(_) => {
                if !ok {
                    self.local_failed(out);
                }
                self.reconsider(op, out);
            }
            Task::Chunk | Task::Control => {}
        }
    }

    /// The partner answers, and the block is rewritten here under the lock of its range.
    fn read_failed_here(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        self.ahead_is_stuck(Some(Trouble::ReadWaits), out);
        self.start_read(op, extent, out);
        if self.partner_is_current() && !self.local.failed {
            let repair = self.own_op();
            let turn = self.locks.enter(repair, extent);
            self.ops.insert(repair, Op::new(Task::Repair(extent), Stage::Queued));
            if turn == Turn::Now {
                self.begin_repair(repair, extent, out);
            }
        }
    }

    fn begin_repair(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        let can_be_done = self.partner_is_current() && !self.local.failed;
        let Some(entry) = self.ops.get_mut(&op) else { return };
        entry.stage = Stage::Started;
        if can_be_done {
            entry.partner = Leg::Running;
            out.push(Action::Send(Message::Read { op, extent }));
        } else {
            self.finish_own(op, out);
        }
    }

    /// Data that was asked of the partner has come.
    pub(super) fn read_data(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.get_mut(&op).filter(|entry| entry.partner == Leg::Running) else { return };
        entry.partner = Leg::Done;
        match entry.task {
            Task::Read(_) => {
                self.ops.remove(&op);
                out.push(Action::Answer { op, source: Source::Partner });
            }
            Task::Repair(extent) if !self.local.failed => {
                entry.local = Leg::Running;
                let write = Write { extent, kind: WriteKind::Data, durability: Durability::AtFlush };
                out.push(Action::Trouble(Trouble::Repaired));
                out.push(Action::Local { op, io: LocalIo::Write(write) });
            }
            Task::Repair(_) => self.finish_own(op, out),
            Task::CopyIn { extent, .. } => self.copy_in(op, extent, out),
            Task::Write(_)
            | Task::Flush
            | Task::Trailing
            | Task::Settle
            | Task::Chunk
            | Task::CopyOut { .. }
            | Task::Control => {}
        }
    }

    /// The partner has answered.
    pub(super) fn partner_done(&mut self, op: OpId, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.get_mut(&op).filter(|entry| entry.partner == Leg::Running) else { return };
        entry.partner = if outcome == Outcome::Done { Leg::Done } else { Leg::Failed };
        let task = entry.task;
        match (task, outcome) {
            (Task::Read(extent), _) => {
                // The partner could not read it. What it said of its state decides whether it is asked again.
                entry.partner = Leg::Unneeded;
                self.partner_read_failed(op, extent, out);
            }
            (Task::Repair(_), _) => self.finish_own(op, out),
            (Task::CopyIn { .. }, _) => self.own_source_failed(out),
            (_, Outcome::Failed | Outcome::NotNow) => self.partner_failed(out),
            (Task::Write(_) | Task::Flush | Task::Trailing | Task::Settle, Outcome::Done) => self.reconsider(op, out),
            (Task::CopyOut { chunk, .. }, Outcome::Done) => self.copied(op, chunk, out),
            (Task::Control, Outcome::Done) => self.control_done(op, out),
            (Task::Chunk, Outcome::Done) => {}
        }
    }

    fn partner_read_failed(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        let local_can = self.record.is_some_and(|record| record.good.local) && !self.local.failed;
        let local_failed = self.ops.get(&op).is_some_and(|entry| entry.local == Leg::Failed);
        if local_can && !local_failed {
            self.start_read(op, extent, out);
        } else {
            self.ops.remove(&op);
            out.push(Action::Fail { op });
        }
    }

    /// Looks whether an operation can be acknowledged now.
    pub(super) fn reconsider(&mut self, op: OpId, out: &mut Vec<Action>) {
        let awaited = self.waits_for().partner;
        let in_effect = self.record.is_some();
        let Some(entry) = self.ops.get_mut(&op).filter(|entry| entry.stage == Stage::Started && in_effect) else {
            return;
        };
        if entry.partner == Leg::Todo && !awaited {
            entry.partner = Leg::Unneeded;
        }
        match entry.task {
            Task::Write(_) | Task::Flush | Task::Trailing | Task::Settle => {}
            Task::Repair(_) if entry.local != Leg::Running && entry.partner != Leg::Running => {
                self.finish_own(op, out);
                return;
            }
            Task::Read(_)
            | Task::Repair(_)
            | Task::Chunk
            | Task::CopyOut { .. }
            | Task::CopyIn { .. }
            | Task::Control => return,
        }
        let (task, local, partner) = (entry.task, entry.local, entry.partner);
        match self.decision(op, task, local, partner) {
            Decision::Wait => {}
            Decision::Acknowledge(proof) => {
                match (local, partner) {
                    (Leg::Done, Leg::Done) => self.settling.flush_covers(op, Flushed::OnBoth),
                    (Leg::Done, _) => self.settling.flush_covers(op, Flushed::Here),
                    _ => {}
                }
                if task.is_guests() {
                    out.push(Action::Acknowledge(proof));
                }
                if self.is_to_trail(task, partner) {
                    self.trail(op);
                } else {
                    self.finish(op, out);
                }
            }
            Decision::Fail => {
                if task.is_guests() {
                    out.push(Action::Fail { op });
                }
                self.finish(op, out);
            }
        }
    }

    fn trail(&mut self, op: OpId) {
        if let Some(entry) = self.ops.get_mut(&op) {
            entry.task = Task::Trailing;
        }
    }

    /// Looks at all operations again, after something that concerns all has changed.
    pub(super) fn reconsider_all(&mut self, out: &mut Vec<Action>) {
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            self.reconsider(op, out);
        }
        self.retry_reads(out);
    }

    /// A write or flush is over.
    fn finish(&mut self, op: OpId, out: &mut Vec<Action>) {
        let Some(entry) = self.ops.remove(&op) else { return };
        match entry.task {
            Task::Write(write) => {
                let tracked = self.partner.takes_part() || self.required().partner;
                self.settling.write_ends(self.local.log.geometry().regions_of(write.extent), tracked);
                self.release(op, out);
            }
            Task::Flush | Task::Trailing | Task::Settle => {
                let both = entry.local == Leg::Done && entry.partner == Leg::Done;
                self.flushed(entry.task, entry.epoch, both);
            }
            Task::Read(_)
            | Task::Repair(_)
            | Task::Chunk
            | Task::CopyOut { .. }
            | Task::CopyIn { .. }
            | Task::Control => {}
        }
    }

    /// An operation of our own that holds a range is over.
    pub(super) fn finish_own(&mut self, op: OpId, out: &mut Vec<Action>) {
        if self.ops.remove(&op).is_some() {
            out.push(Action::Forget { op });
            self.release(op, out);
        }
    }

    /// Frees the range and begins what waited for it.
    fn release(&mut self, op: OpId, out: &mut Vec<Action>) {
        let mut ready = Vec::new();
        self.locks.leave(op, &mut ready);
        for next in ready {
            match self.ops.get(&next).map(|entry| entry.task) {
                Some(Task::Write(_)) => self.begin_write(next, out),
                Some(Task::Repair(extent)) => self.begin_repair(next, extent, out),
                Some(Task::Chunk) => self.begin_chunk(next, out),
                Some(
                    Task::Flush
                    | Task::Trailing
                    | Task::Settle
                    | Task::Read(_)
                    | Task::CopyOut { .. }
                    | Task::CopyIn { .. }
                    | Task::Control,
                )
                | None => {}
            }
        }
    }

    /// The link is lost: what was under way there is to be done again, or no longer needed.
    pub(super) fn partner_legs_lost(&mut self) {
        let required = self.waits_for().partner;
        for (op, entry) in &mut self.ops {
            // What it confirmed goes again too: if it is another instance by then, it may have lost that.
            if matches!(entry.partner, Leg::Unneeded | Leg::Todo) {
                continue;
            }
            entry.partner = if required { Leg::Todo } else { Leg::Unneeded };
            if let Task::Read(_) = entry.task {
                entry.partner = Leg::Unneeded;
                self.reads_held.insert(*op);
            }
        }
    }

    /// The same replica is linked again: everything that it has not confirmed is sent again, in order. Writes that
    /// overlap are never under way together, so doing one twice changes nothing.
    pub(super) fn resend(&mut self, out: &mut Vec<Action>) {
        for (op, entry) in &mut self.ops {
            if entry.partner != Leg::Todo || entry.stage != Stage::Started {
                continue;
            }
            let message = match entry.task {
                Task::Write(write) => Message::Write { op: *op, write },
                Task::Flush | Task::Settle => Message::Flush { op: *op },
                Task::Trailing
                | Task::Read(_)
                | Task::Repair(_)
                | Task::Chunk
                | Task::CopyOut { .. }
                | Task::CopyIn { .. }
                | Task::Control => continue,
            };
            entry.partner = Leg::Running;
            out.push(Action::Send(message));
        }
        self.reconsider_all(out);
    }
}
