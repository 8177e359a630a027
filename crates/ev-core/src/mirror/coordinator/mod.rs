//! The engine of the active host: takes the guest's operations, carries them out on both replicas, and acknowledges them.
//!
//! It is driven by levels, not edges: each input changes what is known, and then `advance` does all that has
//! become possible. One file per concern: `ops` an operation's way, `record` authority records, `partner` the link,
//! `prepare` the way to a copy, `copy` the copy, `ahead` writing ahead of the partner, `own` the way back of this host's own replica, `settle` flushes and the
//! write-intent log.

mod ahead;
mod copy;
mod op;
mod ops;
mod own;
mod partner;
mod prepare;
mod record;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::ahead::Ahead;
use self::copy::Copier;
use self::op::Op;
use self::own::Own;
use self::partner::{Partner, Proposed};
use self::settle::Settling;
use super::acknowledge::Required;
use super::extent::Extent;
use super::lock::RangeLocks;
use super::message::{Action, BlockHash, Message, OpId, Source, Trouble, Verified, Wish, Write};
use super::superblock::LocalReplica;
use crate::checkpoint::{Epoch, Session};
use crate::ids::{Generation, HostId};
use crate::report::{CopyProgress, ReplicaState};
use crate::time::Instant;

/// What the record says about this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub generation: Generation,
    /// The other host that holds, or is to hold, a replica.
    pub partner: Option<HostId>,
    /// Whose replica is good. `partner` only if there is one.
    pub good: Required,
}

/// What a coordinator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// From the guest. Not more than the caller's limit are under way at once.
    Write {
        op: OpId,
        write: Write,
    },
    Flush {
        op: OpId,
    },
    Read {
        op: OpId,
        extent: Extent,
    },
    /// A local operation other than a hash has ended.
    LocalDone {
        op: OpId,
        ok: bool,
    },
    /// `None`: the blocks could not be read.
    LocalHashes {
        op: OpId,
        hashes: Option<Vec<BlockHash>>,
    },
    Committed {
        ok: bool,
    },
    SuperblockStored {
        ok: bool,
    },
    LinkUp,
    LinkDown,
    Received(Message),
    /// A record that names this host active. Older ones than the last are ignored.
    Record(Record),
    /// Time has passed. To be sent several times in each partner timeout.
    Tick,
    /// Compare both replicas, at most so fast, and make the partner's like ours if `repair`. While a comparison is under way it
    /// only changes the rate. Answered by [`Action::Verified`] in any case.
    Verify {
        repair: bool,
        bytes_per_s: Option<u64>,
    },
    /// The guest stands still with nothing under way: this epoch ends. Answered by [`Action::Marked`].
    MarkEpoch {
        session: Session,
        epoch: Epoch,
    },
    /// The guest is no longer protected by checkpoints.
    EndAhead,
    /// An earlier process on this host may have answered the guest, which still runs, ahead of the partner. To be told before the first
    /// record.
    WasAhead,
    /// The guest has ended and everything was flushed: nothing needs to stay in the write-intent log.
    Tidy,
}

/// Times and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long the partner may be silent before a record without it is wished for.
    pub partner_timeout: Duration,
    /// Most bytes per second that a copy looks at.
    pub copy_bytes_per_s: Option<u64>,
}

/// The engine.
#[derive(Debug)]
pub struct Coordinator {
    settings: Settings,
    now: Instant,
    local: LocalReplica,
    /// The record acted on.
    record: Option<Record>,
    /// A newer one that is being put into effect. Until then both count.
    next_record: Option<Record>,
    partner: Partner,
    ops: BTreeMap<OpId, Op>,
    next_own: u64,
    locks: RangeLocks,
    /// Writes that wait for their regions to be marked.
    logging: BTreeSet<OpId>,
    /// Reads that wait for a replica that can be read.
    reads_held: BTreeSet<OpId>,
    settling: Settling,
    copier: Option<Copier>,
    last_copy: Option<CopyProgress>,
    own: Own,
    ahead: Ahead,
    /// Whether the guest has had an answer from us.
    served: bool,
    told: Told,
}

/// What was said already, so that it is not said at each step.
#[derive(Debug, Default)]
struct Told {
    wish: Option<(Wish, Instant)>,
    not_servable: bool,
    source_unreadable: bool,
}

/// A wish is repeated after this time, if it still holds.
const WISH_REPEAT: Duration = Duration::from_millis(1000);

impl Coordinator {
    /// A coordinator without a record: it serves nobody until it gets one.
    #[must_use]
    pub fn new(mut local: LocalReplica, settings: Settings, now: Instant) -> Self {
        // What it will be written now nobody confirmed: a partner that knew this replica must not take it for that one.
        local.instance = local.instance.wrapping_add(1);
        let partner = Partner::new(&local, now);
        Self {
            settings,
            now,
            local,
            record: None,
            next_record: None,
            partner,
            ops: BTreeMap::new(),
            next_own: OpId::OWN,
            locks: RangeLocks::default(),
            logging: BTreeSet::new(),
            reads_held: BTreeSet::new(),
            settling: Settling::default(),
            copier: None,
            last_copy: None,
            own: Own::new(),
            ahead: Ahead::Not,
            served: false,
            told: Told::default(),
        }
    }

    /// Takes one input; what is to be done goes to `out`, in order.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        let before = out.len();
        match input {
            Input::Write { op, write } => self.submit_write(op, write, out),
            Input::Flush { op } => self.submit_flush(op, out),
            Input::Read { op, extent } => self.submit_read(op, extent, out),
            Input::LocalDone { op, ok } => self.local_done(op, ok, out),
            Input::LocalHashes { op, hashes } => self.local_hashes(op, hashes, out),
            Input::Committed { ok: true } => self.local.log.committed(),
            Input::SuperblockStored { ok: true } => self.local.stored(),
            Input::Committed { ok: false } | Input::SuperblockStored { ok: false } => self.local_failed(out),
            Input::LinkUp => self.link_up(out),
            Input::LinkDown => self.link_down(out),
            Input::Received(message) => self.received(message, out),
            Input::Record(record) => self.take_record(record),
            Input::Tick => self.tick(out),
            Input::Verify { repair, bytes_per_s } => self.start_verify(repair, bytes_per_s, out),
            Input::MarkEpoch { session, epoch } => self.mark_epoch(session, epoch, out),
            Input::EndAhead => self.end_ahead(out),
            Input::WasAhead => self.may_have_been_ahead(),
            Input::Tidy => self.thin_out(0),
        }
        self.advance(out);
        let answers = |action: &Action| matches!(action, Action::Acknowledge(_) | Action::Answer { .. });
        self.served = self.served || out[before..].iter().any(answers);
    }

    /// Does what has become possible.
    fn advance(&mut self, out: &mut Vec<Action>) {
        self.advance_record(out);
        self.advance_partner(out);
        self.advance_own(out);
        self.advance_copy(out);
        self.start_logged(out);
        self.advance_settling(out);
        self.advance_wishes(out);
        self.local.advance(out);
    }

    /// This host's replica.
    #[must_use]
    pub fn local(&self) -> &LocalReplica {
        &self.local
    }

    /// Whether nothing of the guest's is under way, everything is on disk, and the logs name nothing that both replicas share. Never
    /// while the record counts on a partner that was written ahead of.
    #[must_use]
    pub fn is_tidy(&self) -> bool {
        self.guest_ops_in_flight() == 0 && !self.was_ahead() && (self.local.failed || self.local.log.is_settled())
    }

    /// Whether nothing of the local replica is under way, so that the role can change.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.values().all(|op| !op.is_running_locally()) && self.local.is_idle()
    }

    /// Hands the replica over to the next engine. Only when [`Coordinator::is_idle`]; operations under way are forgotten.
    #[must_use]
    pub fn into_local(self) -> LocalReplica {
        self.local
    }

    /// Number of operations under way, the engine's own included.
    #[must_use]
    pub fn ops_in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Number of the guest's operations under way.
    #[must_use]
    pub fn guest_ops_in_flight(&self) -> usize {
        self.ops.values().filter(|op| op.task.is_guests()).count()
    }

    /// Changes the rate of copies from now on.
    pub fn set_copy_rate(&mut self, bytes_per_s: Option<u64>) {
        self.settings.copy_bytes_per_s = bytes_per_s;
    }

    /// The record acted on.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        self.record
    }

    /// Whose replica is read; `None` if none can be. After an unclean end with two good replicas reads wait: what is here
    /// may never have reached the other one, which could still be the one that a guest is started on.
    #[must_use]
    pub fn reads_from(&self) -> Option<Source> {
        let record = self.record.filter(|_| !self.start_is_unresolved())?;
        if record.good.local && !self.local.failed {
            Some(Source::Local)
        } else {
            // One that has everything without counting may have more than that, which the next guest would not find again.
            (record.good.partner && self.partner_is_current()).then_some(Source::Partner)
        }
    }

    /// Whether a copy or comparison is under way.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.copier.is_some()
    }

    /// Progress of the copy under way, or of the last one.
    #[must_use]
    pub fn copy_progress(&self) -> Option<CopyProgress> {
        let copier = self.copier.as_ref().filter(|copier| copier.is_copy());
        copier.map_or(self.last_copy, |copier| Some(copier.progress(self.now)))
    }

    /// How far a comparison is that is under way.
    #[must_use]
    pub fn comparison(&self) -> Option<Verified> {
        self.copier.as_ref().filter(|copier| !copier.is_copy()).map(|copier| copier.compared(false))
    }

    /// Size of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.local.log.geometry().size_bytes()
    }

    /// State of this host's replica, for people.
    #[must_use]
    pub fn local_state(&self) -> ReplicaState {
        match self.record {
            _ if self.local.failed => ReplicaState::Failed,
            Some(record) if record.good.local => ReplicaState::Online,
            Some(_) if self.own.is_under_way() => ReplicaState::Copying,
            Some(_) | None => ReplicaState::Stale,
        }
    }

    /// Which replicas must have a write before it may be acknowledged.
    fn required(&self) -> Required {
        let none = Required { local: false, partner: false };
        let of = |record: Option<Record>| record.map_or(none, |record| record.good);
        let pending = Required { local: self.own.proposed, partner: self.partner.proposed != Proposed::Nothing };
        of(self.record).and(of(self.next_record)).and(pending)
    }

    /// Whether the guest has to wait until a newer record says what an earlier process may have left open.
    fn start_is_unresolved(&self) -> bool {
        self.partner.start_is_unresolved() || self.own.unresolved
    }

    /// The generation of the newest record known.
    fn newest_generation(&self) -> Generation {
        self.next_record.or(self.record).map_or(Generation::NONE, |record| record.generation)
    }

    fn own_op(&mut self) -> OpId {
        self.next_own += 1;
        OpId(self.next_own)
    }

    /// This host's replica can no longer be trusted to hold what is written to it.
    fn local_failed(&mut self, out: &mut Vec<Action>) {
        if self.local.failed {
            return;
        }
        self.local.failed = true;
        self.settling.forget_flushes();
        out.push(Action::Trouble(Trouble::LocalFailed));
        self.ahead_is_stuck(None, out);
        self.abort_copy(out);
        self.own_interrupted();
        self.reconsider_all(out);
    }
}
