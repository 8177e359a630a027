//! Writing ahead of the partner (Level 3): the guest is answered when this host has its write; the partner stages what it is sent.
//!
//! ```text
//!           first mark, in step                   the record is without the partner's replica
//!   Not ───────────────────────► Writing ────────────────────────────────────────────────────► Not
//!                                   │ told to end before that record                            ▲
//!                                   └───────────────────────────► Leaving ──────────────────────┘
//! ```
//! - *Writing*: acknowledgements wait for this host's replica alone. What the guest is told is seen by nobody else before the partner's
//!   host holds its epoch. A lost link changes nothing for the guest. Whether the partner is to be given up is decided by whoever
//!   protects the memory: nothing is wished for here.
//! - *Leaving*: the record still counts on the partner, which lacks what was acknowledged. Nothing more is, before a record without it. A new
//!   process that takes up a guest begins so.
//!
//! A partner that was written ahead of never takes up where it was: only a copy brings it back.
//!
//! The write-intent log stays true: a region leaves it when both have flushed it, and the partner's word for that comes when it has
//! applied the flush's epoch. So a flush that the guest was told of lives on as [`Task::Trailing`] until then.

use super::super::acknowledge::{Decision, Leg, Required, decide, decide_ahead};
use super::super::message::{Action, CloseReason, MarkRefusal, Message, OpId, Trouble};
use super::Coordinator;
use super::op::Task;
use super::partner::{Expected, Link};
use crate::checkpoint::{Epoch, Session};

/// Flushes that the guest was told of and the partner has not done yet. Later ones are not followed: the log is then thinned out by
/// one that comes after.
pub const TRAILING_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    Not,
    Writing {
        session: Session,
        /// The newest that is marked.
        epoch: Epoch,
        /// It was said that the guest waits.
        stuck_told: bool,
    },
    Leaving,
}

impl Coordinator {
    /// The session in which the guest is answered ahead of the partner.
    #[must_use]
    pub fn ahead(&self) -> Option<Session> {
        match self.ahead {
            Ahead::Writing { session, .. } => Some(session),
            Ahead::Not | Ahead::Leaving => None,
        }
    }

    pub(super) fn is_ahead(&self) -> bool {
        self.ahead().is_some()
    }

    /// Whether the partner's replica may hold less than what was acknowledged, although it takes part or counts.
    pub(super) fn was_ahead(&self) -> bool {
        self.ahead != Ahead::Not
    }

    /// Whether what the partner would read is what the guest has been told.
    pub(super) fn partner_is_current(&self) -> bool {
        self.partner.has_everything() && !self.was_ahead()
    }

    /// Which replicas acknowledgements wait for.
    pub(super) fn waits_for(&self) -> Required {
        if self.is_ahead() { Required { local: true, partner: false } } else { self.required() }
    }

    pub(super) fn mark_epoch(&mut self, session: Session, epoch: Epoch, out: &mut Vec<Action>) {
        if let Some(refusal) = self.mark_refusal(session, epoch) {
            out.push(Action::Marked(Err(refusal)));
            return;
        }
        if !self.is_ahead() {
            // From here on both replicas differ while they are in step: there is nothing to be compared.
            self.abort_copy(out);
        }
        let stuck_told = false;
        self.ahead = Ahead::Writing { session, epoch, stuck_told };
        out.push(Action::Send(Message::EpochEnd { session, epoch }));
        out.push(Action::Marked(Ok(())));
        self.reconsider_all(out);
    }

    fn mark_refusal(&self, session: Session, epoch: Epoch) -> Option<MarkRefusal> {
        let next = match self.ahead {
            Ahead::Not => epoch == Epoch::FIRST,
            Ahead::Writing { session: ours, epoch: newest, .. } => session == ours && epoch == newest.next(),
            Ahead::Leaving => return Some(MarkRefusal::NotInStep),
        };
        let both = |record: super::Record| record.good.local && record.good.partner;
        let counts = self.record.is_some_and(both) && self.next_record.is_none_or(both);
        if !next {
            Some(MarkRefusal::OutOfOrder)
        } else if self.own.is_under_way() || self.copier.as_ref().is_some_and(super::Copier::is_copy) {
            Some(MarkRefusal::Copying)
        } else if !matches!(self.partner.link, Link::InStep) || !counts || self.local.failed {
            Some(MarkRefusal::NotInStep)
        } else {
            None
        }
    }

    /// The rules without checkpoints hold again. If the record still counts on the partner, which lacks what was acknowledged, the guest
    /// waits for one that does not.
    pub(super) fn end_ahead(&mut self, out: &mut Vec<Action>) {
        if !self.is_ahead() {
            return;
        }
        self.part_from_staged(out);
        self.ahead = Ahead::Leaving;
        let awaited = self.required().partner;
        for entry in self.ops.values_mut().filter(|entry| awaited && entry.partner == Leg::Unneeded) {
            if matches!(entry.task, Task::Write(_) | Task::Flush | Task::Settle) {
                entry.partner = Leg::Todo;
            }
        }
        self.reconsider_all(out);
    }

    /// The guest was perhaps answered ahead of the partner before this process began: should this host's replica fail now, the partner's
    /// is not the disk that the guest knows.
    pub(super) fn may_have_been_ahead(&mut self) {
        if self.record.is_none() && self.ahead == Ahead::Not {
            self.ahead = Ahead::Leaving;
        }
    }

    /// The record in effect does not count on the partner any more.
    pub(super) fn ahead_is_over(&mut self, out: &mut Vec<Action>) {
        if self.was_ahead() {
            self.part_from_staged(out);
            self.ahead = Ahead::Not;
        }
    }

    /// The partner has staged what it was sent, and may not apply it: it is greeted anew. A later link knows that already.
    fn part_from_staged(&mut self, out: &mut Vec<Action>) {
        if self.partner.takes_part() {
            self.drop_link(CloseReason::EpochsEnded, out);
        }
        self.partner.expected = Expected::Nothing;
    }

    /// What may be told of an operation, by the rules that hold now.
    pub(super) fn decision(&self, op: OpId, task: Task, local: Leg, partner: Leg) -> Decision {
        match task {
            Task::Write(_) | Task::Flush if self.is_ahead() => decide_ahead(op, local),
            _ => decide(op, self.waits_for(), local, partner),
        }
    }

    /// Whether the guest's flush, of which it is told now, is to be followed until the partner has done it.
    pub(super) fn is_to_trail(&self, task: Task, partner: Leg) -> bool {
        let trailing = || self.ops.values().filter(|op| op.task == Task::Trailing).count();
        task == Task::Flush && partner == Leg::Running && trailing() < TRAILING_MAX
    }

    /// This host's replica failed, or can't be read somewhere, and the partner's is older.
    pub(super) fn ahead_is_stuck(&mut self, trouble: Option<Trouble>, out: &mut Vec<Action>) {
        if let Ahead::Writing { session, stuck_told, .. } = &mut self.ahead
            && !std::mem::replace(stuck_told, true)
        {
            out.extend(trouble.map(Action::Trouble));
            out.push(Action::AheadStuck { session: *session });
        }
    }
}
