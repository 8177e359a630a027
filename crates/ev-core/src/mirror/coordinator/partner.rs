//! The partner's link: greeting, whether its replica is in step, loss.

use std::time::Duration;

use super::super::good;
use super::super::history::{Health, History};
use super::super::message::{Action, CloseReason, Epochs, Hello, Message, OpId, RegionMap, Trouble};
use super::super::region::RegionSet;
use super::super::superblock::LocalReplica;
use super::Coordinator;
use super::op::Task;
use super::prepare::Preparation;
use crate::ids::HostId;
use crate::report::ReplicaState;
use crate::time::Instant;

/// A replica that could not be read or written is tried again after this time.
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// What the partner has said of itself so far.
#[derive(Debug)]
pub(super) struct Greeting {
    hello: Option<Hello>,
    regions: RegionSet,
    intent_told: bool,
    out_of_sync_told: bool,
}

/// What the partner has said of itself.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub hello: Hello,
    /// What its two maps name.
    pub regions: RegionSet,
}

/// See the diagram in the module's parent.
#[derive(Debug)]
pub(super) enum Link {
    Down,
    Greeting(Greeting),
    Behind(Known),
    Preparing(Preparation),
    Copying,
    /// The copy can't go on: this host's replica can't be read everywhere. It is tried again later.
    Stalled {
        since: Instant,
    },
    InStep,
    /// Its storage failed. It is greeted again later: its process may have got working storage.
    Failed {
        since: Instant,
    },
    /// It is told that it alone is good.
    Entrusting(OpId),
    /// It alone is good, and marks what is written for our replica.
    Alone,
}

/// Which partner may take up where the last link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// None: it has to be brought in step.
    Nothing,
    /// One with the same history and empty maps: nothing was under way when the sides last parted.
    Clean,
    /// The same instance as before: it still has all that it confirmed.
    Instance(u64),
}

/// Who may have proposed, since the newest record, that the partner's replica be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proposed {
    Nothing,
    ByUs,
    /// An earlier process on this host; its proposal may still be on its way to the pool master. Any newer record makes it
    /// void, so one is asked for, even if it says nothing new. Until then the partner counts: nothing that it lacks is
    /// acknowledged, and no copy destroys what it holds.
    PerhapsEarlier,
}

#[derive(Debug)]
pub(super) struct Partner {
    pub link: Link,
    pub expected: Expected,
    /// When something came from it, or when waiting for it began.
    pub heard: Instant,
    /// When the present link came up: it is given the same time to say something.
    linked: Instant,
    /// Whether the record may come to call its replica good without a further word of ours.
    pub proposed: Proposed,
    /// Our logs named no region when this replica was opened.
    pub clean_at_open: bool,
    /// We were not closed cleanly and the record calls both good: until a record without the partner comes, what is
    /// read here may never have been on its replica.
    pub unresolved_start: bool,
    /// The partner's history, as last known.
    pub history: History,
    failure_told: bool,
}

impl Partner {
    pub fn new(local: &LocalReplica, now: Instant) -> Self {
        Self {
            link: Link::Down,
            expected: Expected::Nothing,
            heard: now,
            linked: now,
            proposed: Proposed::Nothing,
            clean_at_open: local.log.is_empty(),
            unresolved_start: false,
            history: History::NONE,
            failure_told: false,
        }
    }

    /// Whether it gets the guest's writes now.
    pub fn takes_part(&self) -> bool {
        match self.link {
            Link::Copying | Link::InStep | Link::Alone => true,
            Link::Down
            | Link::Greeting(_)
            | Link::Behind(_)
            | Link::Preparing(_)
            | Link::Stalled { .. }
            | Link::Failed { .. }
            | Link::Entrusting(_) => false,
        }
    }

    /// Whether it is linked and has every acknowledged write.
    pub fn has_everything(&self) -> bool {
        matches!(self.link, Link::InStep | Link::Alone)
    }

    /// Whether it marks what is written, so that we need not.
    pub fn tracks_for_us(&self) -> bool {
        matches!(self.link, Link::Alone)
    }

    pub fn start_is_unresolved(&self) -> bool {
        self.unresolved_start
    }
}

impl Coordinator {
    pub(super) fn link_up(&mut self, out: &mut Vec<Action>) {
        self.link_down(out);
        self.partner.linked = self.now;
        self.partner.link = Link::Greeting(Greeting {
            hello: None,
            regions: RegionSet::empty(self.local.log.geometry().regions()),
            intent_told: false,
            out_of_sync_told: false,
        });
        out.push(Action::Send(Message::Hello(self.local.hello(self.newest_generation(), Epochs::None))));
    }

    pub(super) fn link_down(&mut self, out: &mut Vec<Action>) {
        if matches!(self.partner.link, Link::Down) {
            return;
        }
        self.partner.link = Link::Down;
        self.settling.forget_flushes();
        self.abort_copy(out);
        self.own_interrupted();
        self.ops.retain(|_, op| op.task != Task::Control);
        self.partner_legs_lost();
        if !self.required().partner {
            self.partner.expected = Expected::Nothing;
            self.local.log.intent_is_out_of_sync();
        } else if self.was_ahead() {
            self.partner.expected = Expected::Nothing;
        } else if self.local.log.is_empty() && matches!(self.partner.expected, Expected::Instance(_)) {
            // Both have flushed everything; what the partner may lose by a crash now is nothing.
            self.partner.expected = Expected::Clean;
        }
        self.reconsider_all(out);
    }

    pub(super) fn drop_link(&mut self, reason: CloseReason, out: &mut Vec<Action>) {
        if !matches!(self.partner.link, Link::Down) {
            out.push(Action::CloseLink(reason));
            self.link_down(out);
        }
    }

    pub(super) fn received(&mut self, message: Message, out: &mut Vec<Action>) {
        if matches!(self.partner.link, Link::Down) {
            return;
        }
        self.partner.heard = self.now;
        match message {
            Message::Hello(hello) => self.hello(hello, out),
            Message::Regions { map, first_word, words, last } => self.regions(map, first_word, &words, last, out),
            Message::KeepAlive => {}
            Message::Ack { op, outcome } => self.partner_done(op, outcome, out),
            Message::ReadData { op } => self.read_data(op, out),
            Message::Hashes { op, hashes } => self.partner_hashes(op, hashes, out),
            Message::Write { .. }
            | Message::Flush { .. }
            | Message::EpochEnd { .. }
            | Message::Read { .. }
            | Message::History { .. }
            | Message::CopyBegin { .. }
            | Message::HashRequest { .. }
            | Message::CopyData { .. }
            | Message::CopyEnd { .. } => self.drop_link(CloseReason::OutOfPlace, out),
        }
    }

    fn hello(&mut self, hello: Hello, out: &mut Vec<Action>) {
        match &mut self.partner.link {
            Link::Greeting(greeting) if greeting.hello.is_none() => greeting.hello = Some(hello),
            _ => self.drop_link(CloseReason::OutOfPlace, out),
        }
    }

    fn regions(&mut self, map: RegionMap, first_word: u64, words: &[u64], last: bool, out: &mut Vec<Action>) {
        let Link::Greeting(greeting) = &mut self.partner.link else {
            self.drop_link(CloseReason::OutOfPlace, out);
            return;
        };
        let first = usize::try_from(first_word).unwrap_or(usize::MAX);
        for (index, bits) in words.iter().enumerate() {
            let word = first.saturating_add(index);
            if word < greeting.regions.words().len() {
                greeting.regions.union_word(word, *bits);
            }
        }
        match map {
            RegionMap::WriteIntent => greeting.intent_told |= last,
            RegionMap::OutOfSync => greeting.out_of_sync_told |= last,
        }
        self.greeted(out);
    }

    /// Once all is told: remembers it. What follows from it is for `advance_partner`, when a record is known.
    fn greeted(&mut self, out: &mut Vec<Action>) {
        let Link::Greeting(greeting) = &mut self.partner.link else { return };
        let (Some(hello), true, true) = (greeting.hello, greeting.intent_told, greeting.out_of_sync_told) else {
            return;
        };
        let regions = greeting.regions.clone();
        self.partner.history = hello.replica.history;
        if hello.replica.health == Health::Failed {
            self.partner_failed(out);
        } else {
            self.partner.failure_told = false;
            self.partner.link = Link::Behind(Known { hello, regions });
        }
    }

    /// Whether the partner may take up where the last link ended, without a copy.
    pub(super) fn is_resumable(&self, known: &Known) -> bool {
        let theirs = known.hello.replica;
        // Nothing was acknowledged or answered by us yet: whatever the only good replica holds is what counts.
        let at_first = !self.served && self.partner_alone_is_good();
        let fits = match self.partner.expected {
            _ if at_first => true,
            Expected::Nothing => false,
            Expected::Clean => good::in_step(self.local.info(), theirs, known.regions.is_empty()),
            Expected::Instance(instance) => known.hello.instance == instance,
        };
        // One that holds epochs may still be gone on from, and takes nothing before a copy.
        let plain = !self.was_ahead() && known.hello.epochs == Epochs::None;
        self.required().partner && theirs.health == Health::Good && plain && fits
    }

    /// The named partner of the newest record.
    pub(super) fn partner_host(&self) -> Option<HostId> {
        self.next_record.or(self.record).and_then(|record| record.partner)
    }

    /// The partner's storage failed.
    pub(super) fn partner_failed(&mut self, out: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.partner.failure_told, true) {
            out.push(Action::Trouble(Trouble::PartnerFailed));
        }
        self.partner.link = Link::Failed { since: self.now };
        self.partner.expected = Expected::Nothing;
        self.abort_copy(out);
        self.own_interrupted();
        if !self.required().partner {
            self.local.log.intent_is_out_of_sync();
        }
        self.reconsider_all(out);
    }

    /// Keeps the link alive and notices that the partner no longer does.
    pub(super) fn tick(&mut self, out: &mut Vec<Action>) {
        if !matches!(self.partner.link, Link::Down) {
            if self.now.since(self.partner.heard.max(self.partner.linked)) >= self.settings.partner_timeout {
                self.drop_link(CloseReason::Silent, out);
            } else if let Link::Stalled { since } | Link::Failed { since } = self.partner.link
                && self.now.since(since) >= RETRY
            {
                self.drop_link(CloseReason::CopyAgain, out);
            } else {
                out.push(Action::Send(Message::KeepAlive));
            }
        }
        self.settle_when_idle();
    }

    /// State of the partner's replica, for people; `None` if there is no partner.
    #[must_use]
    pub fn partner_state(&self) -> Option<ReplicaState> {
        self.partner_host()?;
        Some(match self.partner.link {
            Link::Down | Link::Greeting(_) => ReplicaState::Unreachable,
            Link::Behind(_) | Link::Stalled { .. } => ReplicaState::Stale,
            Link::Preparing(_) | Link::Copying => ReplicaState::Copying,
            Link::InStep | Link::Entrusting(_) | Link::Alone => ReplicaState::Online,
            Link::Failed { .. } => ReplicaState::Failed,
        })
    }
}
