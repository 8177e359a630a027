//! Epochs of a checkpointed guest (Level 3) on the standby's replica: what the coordinator sends is kept aside until its epoch is decided.
//!
//! ```text
//!   Write, Flush ─► arriving ──EpochEnd──► staged ──ApplyEpoch──► applying ──all stored, flushed where the guest did──► applied
//! ```
//! Nothing that is not told to be applied ever reaches the storage. What is applied keeps the guest's order: overlapping writes one after
//! the other, a flush after all that came before it.

use std::collections::{BTreeMap, VecDeque};

use super::super::extent::Extent;
use super::super::message::{Action, CloseReason, Durability, LocalIo, Message, OpId, Outcome, Write};
use super::{Link, Op, Replica, Stage, Task};
use crate::checkpoint::{Epoch, Session};

/// Most bytes that are kept aside. Beyond that the session is given up: the active side writes faster than epochs are decided.
pub const STAGED_BYTES_MAX: u64 = 512 << 20;
/// Writes of an epoch that are on their way to the storage at once.
const IN_FLIGHT_MAX: usize = 64;

/// What one epoch brought.
#[derive(Debug, Default)]
struct Part {
    writes: Vec<(OpId, Write)>,
    /// Flushes, each with how many writes came before it.
    flushes: Vec<(OpId, usize)>,
    bytes: u64,
}

impl Part {
    fn flushed(&self) -> bool {
        let durable = |(_, write): &(OpId, Write)| write.durability == Durability::BeforeReply;
        !self.flushes.is_empty() || self.writes.iter().any(durable)
    }

    fn ops(&self) -> impl Iterator<Item = OpId> {
        self.writes.iter().map(|(op, _)| *op).chain(self.flushes.iter().map(|(op, _)| *op))
    }
}

/// An epoch that is on its way to the storage.
#[derive(Debug)]
struct Applying {
    epoch: Epoch,
    writes: VecDeque<(OpId, Write)>,
    in_flight: BTreeMap<OpId, Extent>,
    /// The last flush does the work of all before it; only writes after it can follow.
    flush: Flush,
    /// To be answered when it is done.
    answers: Vec<OpId>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    None,
    /// After so many writes more have been started.
    After(OpId, usize),
    Running(OpId),
}

/// The session's epochs.
#[derive(Debug)]
pub(super) struct Epochs {
    session: Session,
    /// The newest one that is here as a whole.
    last: Epoch,
    arriving: Part,
    staged: BTreeMap<Epoch, Part>,
    decided: VecDeque<(Epoch, Part)>,
    applying: Option<Applying>,
    bytes: u64,
}

impl Epochs {
    fn new(session: Session) -> Self {
        Self {
            session,
            last: Epoch::FIRST,
            arriving: Part::default(),
            staged: BTreeMap::from([(Epoch::FIRST, Part::default())]),
            decided: VecDeque::new(),
            applying: None,
            bytes: 0,
        }
    }

    /// Whether all that was to be applied is.
    pub fn is_quiet(&self) -> bool {
        self.decided.is_empty() && self.applying.is_none()
    }

    fn all_ops(self) -> Vec<OpId> {
        let parts =
            self.staged.into_values().chain(self.decided.into_iter().map(|(_, part)| part)).chain([self.arriving]);
        let mut ops: Vec<OpId> = parts.flat_map(|part| part.ops().collect::<Vec<_>>()).collect();
        ops.extend(self.applying.into_iter().flat_map(|applying| applying.writes).map(|(op, _)| op));
        ops
    }
}

impl Replica {
    /// Whether a session's epochs are kept here: then no new link is taken.
    #[must_use]
    pub fn keeps_epochs(&self) -> bool {
        self.epochs.is_some()
    }

    pub(super) fn epoch_ends(&mut self, session: Session, epoch: Epoch, out: &mut Vec<Action>) {
        let can_begin = epoch == Epoch::FIRST && self.refusal().is_none() && !self.sole;
        match &mut self.epochs {
            None if can_begin => {
                self.epochs = Some(Epochs::new(session));
                out.push(Action::EpochStaged { session, epoch, flushed: false });
            }
            Some(epochs) if epochs.session == session && epoch == epochs.last.next() => {
                let part = std::mem::take(&mut epochs.arriving);
                let flushed = part.flushed();
                epochs.last = epoch;
                epochs.staged.insert(epoch, part);
                out.push(Action::EpochStaged { session, epoch, flushed });
            }
            Some(_) | None => self.close(CloseReason::OutOfPlace, out),
        }
    }

    /// Keeps aside what came, if a session is on; `false`: it is to be done at once.
    pub(super) fn keep_aside(&mut self, message: &Message, out: &mut Vec<Action>) -> bool {
        let Some(epochs) = &mut self.epochs else { return false };
        match *message {
            Message::Write { op, write } => {
                epochs.arriving.writes.push((op, write));
                epochs.arriving.bytes += u64::from(write.extent.length);
                epochs.bytes += u64::from(write.extent.length);
                if epochs.bytes > STAGED_BYTES_MAX {
                    self.lose_epochs(out);
                    self.close(CloseReason::EpochsOver, out);
                }
                true
            }
            Message::Flush { op } => {
                epochs.arriving.flushes.push((op, epochs.arriving.writes.len()));
                true
            }
            _ => false,
        }
    }

    /// All of this epoch is to reach the storage, after those before it.
    pub(super) fn apply_epoch(&mut self, session: Session, epoch: Epoch) {
        let Some(epochs) = self.epochs.as_mut().filter(|epochs| epochs.session == session) else { return };
        if let Some(part) = epochs.staged.remove(&epoch) {
            epochs.decided.push_back((epoch, part));
        }
    }

    /// Nobody goes on from them: they are forgotten, but for what is on its way to the storage.
    pub(super) fn discard_epochs(&mut self, out: &mut Vec<Action>) {
        if let Some(epochs) = self.epochs.take() {
            out.extend(epochs.all_ops().into_iter().map(|op| Action::Forget { op }));
        }
    }

    /// The session can't be followed any more.
    pub(super) fn lose_epochs(&mut self, out: &mut Vec<Action>) {
        if let Some(session) = self.epochs.as_ref().map(|epochs| epochs.session) {
            out.push(Action::EpochsLost { session });
            self.discard_epochs(out);
        }
    }

    /// The link is gone: an epoch that did not arrive as a whole never will.
    pub(super) fn forget_arriving(&mut self, out: &mut Vec<Action>) {
        let Some(epochs) = &mut self.epochs else { return };
        let part = std::mem::take(&mut epochs.arriving);
        epochs.bytes -= part.bytes;
        out.extend(part.ops().map(|op| Action::Forget { op }));
    }

    /// Starts what can be started, and tells what is done.
    pub(super) fn advance_epochs(&mut self, out: &mut Vec<Action>) {
        if self.local.failed {
            return self.lose_epochs(out);
        }
        loop {
            let Some(epochs) = &mut self.epochs else { return };
            let Some(applying) = &mut epochs.applying else {
                let Some((epoch, part)) = epochs.decided.pop_front() else { return };
                epochs.applying = Some(Applying::new(epoch, part));
                continue;
            };
            let mut started = Vec::new();
            applying.start(&mut started);
            if !applying.is_done() {
                for (op, task, io) in started {
                    self.ops.insert(op, Op { task, stage: Stage::Storage, answer: false });
                    out.push(Action::Local { op, io });
                }
                return;
            }
            let (session, epoch) = (epochs.session, applying.epoch);
            let answers = std::mem::take(&mut applying.answers);
            epochs.bytes -= applying.bytes;
            epochs.applying = None;
            if self.link == Link::Up {
                let acks = answers.iter().map(|op| Action::Send(Message::Ack { op: *op, outcome: Outcome::Done }));
                out.extend(acks);
            }
            out.extend(answers.into_iter().map(|op| Action::Forget { op }));
            out.push(Action::EpochApplied { session, epoch });
        }
    }

    /// Something that was being applied has ended.
    pub(super) fn epoch_io_ended(&mut self, op: OpId) {
        if let Some(applying) = self.epochs.as_mut().and_then(|epochs| epochs.applying.as_mut()) {
            applying.ended(op);
        }
    }
}

impl Applying {
    fn new(epoch: Epoch, part: Part) -> Self {
        let flush = part.flushes.last().map_or(Flush::None, |(op, before)| Flush::After(*op, *before));
        Self {
            epoch,
            writes: part.writes.into(),
            in_flight: BTreeMap::new(),
            flush,
            answers: part.flushes.into_iter().map(|(op, _)| op).collect(),
            bytes: part.bytes,
        }
    }

    fn is_done(&self) -> bool {
        self.writes.is_empty() && self.in_flight.is_empty() && self.flush == Flush::None
    }

    fn start(&mut self, started: &mut Vec<(OpId, Task, LocalIo)>) {
        loop {
            match self.flush {
                Flush::After(op, 0) if self.in_flight.is_empty() => {
                    self.flush = Flush::Running(op);
                    started.push((op, Task::Flush, LocalIo::Flush));
                    return;
                }
                Flush::After(_, 0) | Flush::Running(_) => return,
                Flush::After(..) | Flush::None => {}
            }
            let Some((op, write)) = self.writes.front().copied() else { return };
            let overlaps = self.in_flight.values().any(|extent| extent.overlaps(write.extent));
            if overlaps || self.in_flight.len() >= IN_FLIGHT_MAX {
                return;
            }
            self.writes.pop_front();
            if let Flush::After(_, before) = &mut self.flush {
                *before -= 1;
            }
            self.in_flight.insert(op, write.extent);
            started.push((op, Task::Write(write), LocalIo::Write(write)));
        }
    }

    fn ended(&mut self, op: OpId) {
        self.in_flight.remove(&op);
        if self.flush == Flush::Running(op) {
            self.flush = Flush::None;
        }
    }
}
