//! Epochs of a checkpointed guest (Level 3) in the disk's thread: marks on the coordinator, events on the standby.

use std::io;
use std::sync::mpsc::{SyncSender, TrySendError};

use ev_core::checkpoint::{Epoch, Session};
use ev_core::mirror::{Input, ReplicaInput};

use super::super::epochs::MarkError;
use super::super::spec::DiskEvent;
use super::Thread;
use super::engine::Engine;

impl Thread {
    /// What the guest has been answered up to now is on the link before the mark; its next request is taken up after this.
    pub fn mark_epoch(
        &mut self,
        session: Session,
        epoch: Epoch,
        marked: SyncSender<Result<(), MarkError>>,
    ) -> io::Result<()> {
        self.marking = Some(marked);
        self.coordinate(Input::MarkEpoch { session, epoch });
        self.perform_all()?;
        // No coordinator: nobody has answered.
        self.marked(false);
        Ok(())
    }

    pub fn marked(&mut self, ok: bool) {
        if let Some(done) = self.marking.take() {
            // Who asked may have given up.
            let _ = done.try_send(if ok { Ok(()) } else { Err(MarkError::NotInStep) });
        }
    }

    /// An input that only a replica takes.
    pub fn follow(&mut self, input: ReplicaInput) {
        if let Engine::Replica(replica) = &mut self.engine {
            replica.step(input, &mut self.actions);
        }
    }

    /// Whether the guest's acknowledgements pass without a lease: what it does with them is held back elsewhere.
    pub fn is_ahead(&self) -> bool {
        matches!(&self.engine, Engine::Coordinator(coordinator) if coordinator.is_ahead())
    }

    /// Whether a replica keeps epochs, whose data must outlive the link.
    pub fn keeps_epochs(&self) -> bool {
        matches!(&self.engine, Engine::Replica(replica) if replica.keeps_epochs())
    }

    pub fn epoch_event(&mut self, event: DiskEvent) {
        self.epoch_events.push_back(event);
        self.tell_epoch_events();
    }

    /// In order, as far as the AM takes them.
    pub fn tell_epoch_events(&mut self) {
        while let Some(event) = self.epoch_events.pop_front() {
            if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
                self.epoch_events.push_front(event);
                return;
            }
        }
    }
}
