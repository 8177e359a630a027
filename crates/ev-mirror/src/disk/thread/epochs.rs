//! Checkpoints (Level 3) as the thread sees them: marks on the way out, staged data, and a replica's own NBD clients.

use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::mirror::{Action, Health, Input, LocalIo, MarkRefusal, Message, OpId, ReplicaInput, Write, WriteKind};

use super::clients::Verdict;
use super::engine::Engine;
use super::{Op, Origin, Thread};
use crate::buffer::IoBuffer;
use crate::disk::epochs::MarkError;
use crate::disk::spec::DiskEvent;
use crate::link::codec::LinkVersion;

/// With so much queued for the partner while writing ahead, no more of the guest's requests are taken until it has got some. A partner
/// that takes nothing for as long as the partner timeout is given up with its link.
const AHEAD_QUEUE_BYTES_MAX: u64 = 64 << 20;
/// With so much staged nothing more is received while decided epochs are being written, so that the active side waits instead of
/// losing its standby. Below the engine's own limit by more than one window of the link and one request.
const STAGED_PAUSE_BYTES: u64 = 192 << 20;

/// A mark on its way through the engine.
pub struct Marking {
    epoch: Epoch,
    marked: SyncSender<Result<(), MarkError>>,
}

impl Thread {
    pub fn mark_epoch(&mut self, session: Session, epoch: Epoch, marked: SyncSender<Result<(), MarkError>>) {
        let version = self.link.as_ref().and_then(|link| link.session.version());
        let refusal = match &self.engine {
            Engine::Coordinator(_) if !self.role_set => Some(MarkError::NotInStep),
            Engine::Coordinator(_) if version.is_some_and(|version| version < LinkVersion::EPOCHS) => {
                Some(MarkError::PartnerTooOld)
            }
            Engine::Coordinator(_) => None,
            Engine::Idle(_) | Engine::Replica(_) => Some(MarkError::NotInStep),
        };
        if let Some(refusal) = refusal {
            let _ = marked.try_send(Err(refusal));
            return;
        }
        self.marking.push_back(Marking { epoch, marked });
        self.coordinate(Input::MarkEpoch { session, epoch });
    }

    /// The engine has answered a mark, and it is queued on the link.
    pub fn marked(&mut self, outcome: Result<(), MarkRefusal>) {
        let Some(Marking { epoch, marked }) = self.marking.pop_front() else { return };
        let outcome = match outcome {
            Ok(()) if self.link.is_none() => Err(MarkError::NotInStep),
            Ok(()) => Ok(()),
            Err(MarkRefusal::NotInStep) => Err(MarkError::NotInStep),
            Err(MarkRefusal::Copying) => Err(MarkError::Copying),
            Err(MarkRefusal::OutOfOrder) => Err(MarkError::OutOfOrder),
        };
        if outcome.is_ok() && epoch == Epoch::FIRST {
            self.bytes_ahead.store(0, Ordering::Relaxed);
        }
        let _ = marked.try_send(outcome);
    }

    /// Marks that the engine of an old role will not answer.
    pub fn refuse_marks(&mut self) {
        for Marking { marked, .. } in self.marking.drain(..) {
            let _ = marked.try_send(Err(MarkError::NotInStep));
        }
    }

    pub fn is_ahead(&self) -> bool {
        matches!(&self.engine, Engine::Coordinator(coordinator) if coordinator.ahead().is_some())
    }

    /// Counts what is sent to the partner ahead of its confirmation.
    pub fn count_ahead(&self, message: &Message) {
        if let Message::Write { write: Write { kind: WriteKind::Data, extent, .. }, .. } = message
            && self.is_ahead()
        {
            self.bytes_ahead.fetch_add(u64::from(extent.length), Ordering::Relaxed);
        }
    }

    /// Whether the guest has to wait because the partner is too slow for what it writes ahead.
    pub fn is_too_far_ahead(&self) -> bool {
        let queued = || self.link.as_ref().map_or(0, |link| link.session.queued_bytes());
        self.is_ahead() && queued() > AHEAD_QUEUE_BYTES_MAX
    }

    /// A partner that lives and takes nothing must not stop a guest that could go on without it.
    pub fn give_up_stuck_link(&mut self) {
        let (ahead, limit) = (self.is_ahead(), self.spec.partner_timeout);
        if ahead && self.link.as_mut().is_some_and(|link| link.stuck_for() >= limit) {
            tracing::warn!(disk = %self.spec.disk, "the partner takes nothing of what the guest writes; its link is given up");
            self.drop_link();
        }
    }

    /// Whether nothing more is to be received now: there will be room when what is decided is written.
    pub fn is_staging_full(&self) -> bool {
        matches!(&self.engine, Engine::Replica(replica)
            if replica.is_applying() && replica.staged_bytes() > STAGED_PAUSE_BYTES)
    }

    /// While nothing is received because of that, silence says nothing about the partner.
    pub fn excuse_silence(&mut self) {
        if self.is_staging_full()
            && let Some(link) = &mut self.link
        {
            link.heard = Instant::now();
        }
    }

    pub fn tell_replica(&mut self, input: ReplicaInput) {
        if let Engine::Replica(replica) = &mut self.engine {
            replica.step(input, &mut self.actions);
        }
    }

    /// Moves data that the engine has staged to its own number at once: the next message may use the old one again.
    pub fn keep_staged(&mut self, first_action: usize) {
        if !matches!(self.engine, Engine::Replica(_)) {
            return;
        }
        for action in self.actions.split_off(first_action) {
            match action {
                Action::Stage { op, staged } => self.stage(op, staged),
                other => self.actions.push(other),
            }
        }
    }

    pub fn stage(&mut self, op: OpId, staged: OpId) {
        if let Some(entry) = self.ops.remove(&op) {
            self.ops.insert(staged, entry);
        }
    }

    /// What must not be lost: kept while the AM does not take it. At most one for each epoch that the engine holds, and each that it
    /// applies, which the AM itself has to ask for.
    pub fn event_kept(&mut self, event: DiskEvent) {
        self.kept_events.push_back(event);
        self.send_kept_events();
    }

    pub fn send_kept_events(&mut self) {
        while let Some(event) = self.kept_events.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(std::sync::mpsc::TrySendError::Full(event)) => {
                    self.kept_events.push_front(event);
                    return;
                }
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return,
            }
        }
    }

    /// A request of a replica's own client: a QEMU that waits to take over looks at its disk. The bytes are those of this host.
    pub fn serve_beside(&mut self, input: Input) {
        let local = self.engine.local();
        let readable = local.info().health == Health::Good && !local.is_failed();
        match input {
            Input::Read { op, extent } if readable => {
                self.actions.push(Action::Local { op, io: LocalIo::Read { extent } });
            }
            // It has written nothing; the AM, though, would want both replicas flushed.
            Input::Flush { op } => {
                let of_client = matches!(self.ops.get(&op), Some(Op { origin: Origin::Guest { .. }, .. }));
                self.conclude(op, if of_client { Verdict::Done } else { Verdict::Failed });
            }
            Input::Read { op, .. } | Input::Write { op, .. } => self.actions.push(Action::Fail { op }),
            Input::LocalDone { .. }
            | Input::LocalHashes { .. }
            | Input::Committed { .. }
            | Input::SuperblockStored { .. }
            | Input::LinkUp
            | Input::LinkDown
            | Input::Received(_)
            | Input::Record(_)
            | Input::Tick
            | Input::Verify { .. }
            | Input::MarkEpoch { .. }
            | Input::EndAhead
            | Input::WasAhead
            | Input::Tidy => {}
        }
    }

    /// A read of a replica's own client has ended.
    pub fn read_beside(&mut self, op: OpId, ok: bool) {
        let data: Option<IoBuffer> = self.ops.get_mut(&op).and_then(|entry| entry.data.take()).filter(|_| ok);
        self.conclude(op, data.map_or(Verdict::Failed, Verdict::Data));
    }
}
