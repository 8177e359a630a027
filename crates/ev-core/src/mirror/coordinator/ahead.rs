//! Writing ahead (Level 3): the guest's writes are acknowledged when this replica has them, and sent in order with the ends of epochs between them.
//!
//! ```text
//!               first mark, in step                link lost, record without the partner
//!   by record ─────────────────────► ahead, linked ──────────────────────────────────────► ahead, apart
//!       ▲                                                                                     │
//!       └───────────────────────────────────── EndAhead ──────────────────────────────────────┘
//! ```
//! It is safe because nobody outside sees what the guest does with an acknowledgement until the partner has the epoch, or a record is
//! without it. The partner keeps what is sent aside; once apart it is never taken up with again but by a copy.

use super::super::message::{Action, CloseReason, Message};
use super::Coordinator;
use super::partner::{Expected, Link};
use crate::checkpoint::{Epoch, Session};

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    session: Session,
    /// The newest epoch whose end was sent.
    marked: Epoch,
    /// The partner has not got all that was acknowledged, and will not.
    pub apart: bool,
}

impl Coordinator {
    pub(super) fn mark_epoch(&mut self, session: Session, epoch: Epoch, out: &mut Vec<Action>) {
        let ok = match &mut self.ahead {
            None => epoch == Epoch::FIRST && self.can_write_ahead(),
            Some(ahead) => ahead.session == session && epoch == ahead.marked.next() && !ahead.apart,
        };
        if ok {
            self.ahead = Some(Ahead { session, marked: epoch, apart: false });
            out.push(Action::Send(Message::EpochEnd { session, epoch }));
        }
        out.push(Action::Marked { session, epoch, ok });
    }

    /// Whether both replicas are alike in all that was acknowledged, and nothing but the guest changes them.
    fn can_write_ahead(&self) -> bool {
        let both = self.record.is_some_and(|record| record.good.local && record.good.partner);
        let quiet = self.next_record.is_none() && self.copier.is_none() && self.guest_ops_in_flight() == 0;
        both && quiet && !self.local.failed && matches!(self.partner.link, Link::InStep)
    }

    pub(super) fn end_ahead(&mut self, out: &mut Vec<Action>) {
        if self.ahead.is_some() {
            self.part_ahead(out);
            self.ahead = None;
            self.partner_legs_lost();
            self.reconsider_all(out);
        }
    }

    /// The partner lacks what was written ahead from now on, whatever its link says.
    pub(super) fn part_ahead(&mut self, out: &mut Vec<Action>) {
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| !ahead.apart) else { return };
        ahead.apart = true;
        self.partner.expected = Expected::Nothing;
        self.drop_link(CloseReason::EpochsOver, out);
    }

    /// Whether the guest's acknowledgements are given ahead of the partner.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether what is sent now is kept aside by the partner.
    pub(super) fn sends_ahead(&self) -> bool {
        self.ahead.is_some_and(|ahead| !ahead.apart) && matches!(self.partner.link, Link::InStep)
    }

    /// Whether the partner is linked and its replica has every acknowledged write.
    pub(super) fn partner_has_everything(&self) -> bool {
        self.ahead.is_none() && self.partner.has_everything()
    }
}
