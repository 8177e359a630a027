//! What follows from the partner's greeting: taking up where the last link ended, preparing a copy, or entrusting it with the disk.

use super::super::acknowledge::Leg;
use super::super::history::{History, Resync, before_copy, resync};
use super::super::message::{Action, CloseReason, CopyKind, Message, OpId, RegionMap};
use super::super::superblock::send_map;
use super::Coordinator;
use super::copy::Copier;
use super::op::{Op, Stage, Task};
use super::partner::{Expected, Link};
use crate::ids::Generation;

/// A copy that is being prepared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preparation {
    kind: CopyKind,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// All that may differ is made durable in our out-of-sync map.
    Marking,
    /// Our superblock is made to fit.
    Disowning,
    /// The partner marks its replica as the target of a copy, with this history.
    Begun { op: OpId, current: Generation },
    /// Our superblock notes that the partner holds that history, as far as the maps don't say otherwise.
    Sharing,
}

impl Coordinator {
    pub(super) fn advance_partner(&mut self, out: &mut Vec<Action>) {
        match &self.partner.link {
            Link::Behind(_) => self.advance_behind(out),
            Link::Preparing(preparation) => {
                let preparation = *preparation;
                self.advance_preparation(preparation, out);
            }
            Link::InStep if self.partner_alone_is_good() && !self.was_ahead() => self.entrust(out),
            Link::InStep
            | Link::Down
            | Link::Greeting(_)
            | Link::Copying
            | Link::Stalled { .. }
            | Link::Failed { .. }
            | Link::Entrusting(_)
            | Link::Alone => {}
        }
    }

    /// Whether the newest record calls the partner's replica good and ours not.
    pub(super) fn partner_alone_is_good(&self) -> bool {
        self.next_record.or(self.record).is_some_and(|record| record.good.partner && !record.good.local)
    }

    fn advance_behind(&mut self, out: &mut Vec<Action>) {
        let Link::Behind(known) = &self.partner.link else { return };
        if self.next_record.or(self.record).is_none() {
            return;
        }
        if self.partner_host() != Some(known.hello.host) {
            self.drop_link(CloseReason::OtherHost, out);
            return;
        }
        if self.is_resumable(known) {
            self.partner.expected = Expected::Instance(known.hello.instance);
            if self.partner_alone_is_good() {
                let known = known.clone();
                self.entrust(out);
                self.own_lacks(&known.regions);
            } else {
                self.partner.link = Link::InStep;
                self.resend(out);
            }
            return;
        }
        if !self.may_copy() {
            return;
        }
        let kind = match resync(self.local.history(), known.hello.replica) {
            Resync::Impossible => return,
            Resync::Delta => CopyKind::Delta,
            Resync::Full => CopyKind::Full,
        };
        match kind {
            CopyKind::Delta => {
                self.local.log.merge_out_of_sync(&known.regions);
                self.local.log.intent_is_out_of_sync();
            }
            CopyKind::Full => self.local.log.all_out_of_sync(),
        }
        self.partner.expected = Expected::Instance(known.hello.instance);
        let preparation = Preparation { kind, step: Step::Marking };
        self.advance_preparation(preparation, out);
    }

    /// Whether ours is the good replica, and the partner's is not and can't become it.
    fn may_copy(&self) -> bool {
        let source_is_good = self.record.is_some_and(|record| record.good.local) && !self.local.failed;
        source_is_good && !self.required().partner && self.next_record.is_none()
    }

    fn advance_preparation(&mut self, mut preparation: Preparation, out: &mut Vec<Action>) {
        if let Step::Marking = preparation.step
            && self.local.log.out_of_sync_is_sure()
        {
            let history = before_copy(self.local.history(), preparation.kind, self.newest_generation());
            self.local.want_history(history);
            preparation.step = Step::Disowning;
        }
        if let Step::Disowning = preparation.step
            && self.local.is_stored()
        {
            let op = self.own_op();
            let current = self.local.history().current;
            self.control(op);
            out.push(Action::Send(Message::CopyBegin { op, kind: preparation.kind, current }));
            preparation.step = Step::Begun { op, current };
        }
        if let Step::Sharing = preparation.step
            && self.local.is_stored()
        {
            self.partner.link = Link::Copying;
            self.copier = Some(Copier::new(preparation.kind, self.local.log.out_of_sync(), self.now));
            return;
        }
        self.partner.link = Link::Preparing(preparation);
    }

    /// An operation that only the partner has to do.
    pub(super) fn control(&mut self, op: OpId) {
        let mut entry = Op::new(Task::Control, Stage::Started);
        entry.partner = Leg::Running;
        self.ops.insert(op, entry);
    }

    /// The partner's superblock says what was asked for.
    pub(super) fn control_done(&mut self, op: OpId, out: &mut Vec<Action>) {
        self.ops.remove(&op);
        match self.partner.link {
            Link::Preparing(Preparation { kind, step: Step::Begun { op: asked, current } }) if asked == op => {
                self.partner_holds(current);
                self.partner.link = Link::Preparing(Preparation { kind, step: Step::Sharing });
            }
            Link::Copying => self.copy_ended(op),
            Link::Entrusting(asked) if asked == op => {
                self.partner.link = Link::Alone;
                self.resend(out);
            }
            Link::Alone => {
                self.own_closed(op);
            }
            _ => {}
        }
    }

    /// The partner holds this history now, as far as our maps don't say otherwise.
    pub(super) fn partner_holds(&mut self, current: Generation) {
        self.partner.history = History { current, bitmap_base: current };
        let history = History { bitmap_base: current, ..self.local.history() };
        self.local.want_history(history);
    }

    /// Tells the partner that its replica alone is good, and what ours lacks.
    fn entrust(&mut self, out: &mut Vec<Action>) {
        let ours = self.local.history().current;
        let theirs = self.partner.history;
        let in_step = matches!(self.partner.link, Link::InStep) || theirs.current == ours;
        let history = if in_step {
            History { current: self.newest_generation(), bitmap_base: ours }
        } else if theirs.bitmap_base == ours {
            theirs
        } else {
            // Its map does not count from our history: ours needs a full copy.
            History { current: self.newest_generation(), bitmap_base: Generation::NONE }
        };
        let mut lacking = self.local.log.intent().clone();
        lacking.union(self.local.log.out_of_sync());
        send_map(RegionMap::OutOfSync, lacking.words(), out);
        self.own_lacks(&lacking);
        let op = self.own_op();
        self.control(op);
        let History { current, bitmap_base } = history;
        self.partner.history = history;
        out.push(Action::Send(Message::History { op, current, bitmap_base }));
        self.partner.link = Link::Entrusting(op);
    }
}
