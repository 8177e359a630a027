//! A replica while the coordinator writes ahead: it stages, and applies what it is told to.

use super::super::extent::Extent;
use super::super::history::{Health, History, ReplicaInfo};
use super::super::message::{Action, CloseReason, Durability, Epochs, OpId, Outcome, Write, WriteKind};
use super::staging::{Refused, Staging, Stream};
use super::{Op, Replica, Stage, Task};
use crate::checkpoint::{Epoch, Session};
use crate::ids::Generation;

impl Replica {
    /// Bytes of what is held back, of all that was not written yet.
    #[must_use]
    pub fn staged_bytes(&self) -> u64 {
        self.staging.as_ref().map_or(0, Staging::bytes)
    }

    /// Whether decided epochs are being written, so that there will be room for more.
    #[must_use]
    pub fn is_applying(&self) -> bool {
        self.staging.as_ref().is_some_and(|staging| !staging.is_quiet())
    }

    pub(super) fn epochs(&self) -> Epochs {
        if self.staging.is_some() { Epochs::Held } else { Epochs::None }
    }

    /// Whether it can be written ahead of: it works, holds one state, and marks nothing for the coordinator.
    fn is_plainly_good(&self) -> bool {
        !self.local.failed && !self.sole && self.local.info().health == Health::Good
    }

    fn staged_op(&mut self) -> OpId {
        self.next_staged += 1;
        OpId(self.next_staged)
    }

    /// A mark: from the first one of a session on, writes are staged.
    pub(super) fn epoch_ends(&mut self, session: Session, epoch: Epoch, out: &mut Vec<Action>) {
        let may_begin = epoch == Epoch::FIRST && self.is_plainly_good();
        let marked = match &mut self.staging {
            Some(staging) => staging.mark(session, epoch),
            None if may_begin => {
                self.staging = Some(Staging::new(session));
                Ok(false)
            }
            None => Err(Refused::OutOfOrder),
        };
        match marked {
            Ok(flushed) => out.push(Action::EpochStaged { session, epoch, flushed }),
            Err(Refused::TooMuch) => self.lose_epochs(out),
            Err(Refused::OutOfOrder) => self.close(CloseReason::EpochOutOfOrder, out),
        }
    }

    /// A write while a session is on: staged if it belongs to it, else refused.
    pub(super) fn stage_write(&mut self, op: OpId, write: Write, out: &mut Vec<Action>) {
        let id = self.staged_op();
        let Some(staging) = self.staging.as_mut().filter(|staging| staging.stream() == Stream::Live) else {
            self.refuse(op, out);
            return;
        };
        match staging.write(id, write) {
            Ok(()) => out.push(Action::Stage { op, staged: id }),
            Err(_) => {
                out.push(Action::Forget { op });
                self.lose_epochs(out);
            }
        }
    }

    pub(super) fn stage_flush(&mut self, op: OpId, out: &mut Vec<Action>) {
        let id = self.staged_op();
        let Some(staging) = self.staging.as_mut().filter(|staging| staging.stream() == Stream::Live) else {
            self.refuse(op, out);
            return;
        };
        if staging.flush(id, op).is_err() {
            self.lose_epochs(out);
        }
    }

    /// What is not of the session waits for the copy that ends it.
    pub(super) fn refuse(&mut self, op: OpId, out: &mut Vec<Action>) {
        self.answer(op, Outcome::NotNow, out);
        out.push(Action::Forget { op });
    }

    /// A part of a copy, as a write.
    pub(super) fn copied(&mut self, op: OpId, extent: Extent, out: &mut Vec<Action>) {
        let write = Write { extent, kind: WriteKind::Data, durability: Durability::AtFlush };
        if self.staging.is_some() { self.refuse(op, out) } else { self.write(op, write, out) }
    }

    /// Nothing more of the session can be taken. The coordinator's stream ends with the link.
    fn lose_epochs(&mut self, out: &mut Vec<Action>) {
        let Some(staging) = &mut self.staging else { return };
        let was_live = staging.stream() == Stream::Live;
        if staging.stream() != Stream::Lost {
            out.push(Action::EpochsLost { session: staging.session() });
        }
        staging.discard(out);
        if was_live {
            self.close(CloseReason::EpochsLost, out);
        }
    }

    pub(super) fn apply_epoch(&mut self, session: Session, epoch: Epoch) {
        if let Some(staging) = &mut self.staging {
            staging.decide(session, epoch);
        }
    }

    /// The caller knows that nothing will be gone on from.
    pub(super) fn discard_epochs(&mut self, out: &mut Vec<Action>) {
        let Some(staging) = &mut self.staging else { return };
        let was_live = staging.stream() == Stream::Live;
        staging.discard(out);
        if was_live {
            self.close(CloseReason::EpochsLost, out);
        }
    }

    /// The storage failed: what is staged can't be written any more.
    pub(super) fn fail_epochs(&mut self, out: &mut Vec<Action>) {
        let Some(staging) = &mut self.staging else { return };
        let stream = staging.stream();
        if stream != Stream::Lost {
            out.push(Action::EpochsLost { session: staging.session() });
        }
        staging.give_up(out);
        if stream == Stream::Live {
            self.close(CloseReason::EpochsLost, out);
        }
    }

    pub(super) fn staged_done(&mut self, op: OpId, ok: bool, out: &mut Vec<Action>) {
        let Some(staging) = &mut self.staging else { return };
        if ok {
            staging.done(op, out);
        } else {
            staging.failed(op, out);
            self.fail(out);
        }
    }

    /// A copy ends the session: the coordinator's record no longer counts on this replica, so nobody goes on from what it holds. What
    /// was decided is still written, so that what the copy keeps of this replica is one state.
    pub(super) fn copy_begins(&mut self, op: OpId, current: Generation, out: &mut Vec<Action>) {
        if self.local.failed {
            self.answer(op, Outcome::Failed, out);
            return;
        }
        if let Some(staging) = &mut self.staging {
            if staging.stream() != Stream::Lost {
                out.push(Action::EpochsLost { session: staging.session() });
            }
            staging.discard(out);
        }
        self.copy_awaited = Some((op, current));
    }

    /// Writes what is decided; then begins the copy that waits for it.
    pub(super) fn advance_epochs(&mut self, out: &mut Vec<Action>) {
        if let Some(staging) = &mut self.staging {
            // What came before the first mark comes first.
            let direct = |op: &Op| matches!(op.task, Task::Write(_) | Task::Flush);
            if !self.ops.values().any(direct) {
                staging.advance(out);
            }
            if !staging.is_quiet() {
                return;
            }
        }
        let Some((op, current)) = self.copy_awaited.take() else { return };
        self.staging = None;
        let history = History { current, bitmap_base: self.local.history().bitmap_base };
        let info = ReplicaInfo { health: Health::Copying, history };
        self.local.want(info);
        self.change(op, Task::Become { info, sole: false, clear_maps: false }, Stage::Superblock, out);
    }
}
