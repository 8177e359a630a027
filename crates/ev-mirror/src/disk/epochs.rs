//! What the AM asks of a disk when the guest is protected by checkpoints, and what it is answered.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use ev_core::checkpoint::{Epoch, Session};

use super::handle::{CommandError, Disk};
use super::thread::Command;

/// Why an epoch was not marked. The disk goes on as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    #[error("the partner's replica is not in step, or not both replicas count; wait until the mirror is whole")]
    NotInStep,
    #[error("a copy to one of the replicas is under way; wait until it has ended")]
    Copying,
    #[error("the epoch does not follow the last one of the session; begin a new session")]
    OutOfOrder,
    #[error("the partner's programs are too old for checkpoints; upgrade that host")]
    PartnerTooOld,
    #[error("the disk's thread did not answer in time; give the standby up")]
    Timeout,
    #[error("the disk's thread has ended; the reason is in the log, open the disk anew")]
    Ended,
}

/// A mark that is on its way through the disk's thread.
#[derive(Debug)]
#[must_use]
pub struct PendingMark {
    answer: Receiver<Result<(), MarkError>>,
}

impl PendingMark {
    /// Waits until the mark is behind every earlier write on the partner's link: what was acknowledged before belongs to the
    /// marked epoch or an earlier one, what is asked for after it to the next. After [`MarkError::Timeout`] it may be marked all the
    /// same: the session has to end.
    pub fn wait(self, limit: Duration) -> Result<(), MarkError> {
        match self.answer.recv_timeout(limit) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(MarkError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Err(MarkError::Ended),
        }
    }
}

impl Disk {
    /// Ends an epoch here, while the guest stands still and QEMU has no request under way. The first mark of a session begins writing
    /// ahead: from then on the guest's writes are acknowledged when this host has them, whatever the gate says, and the partner
    /// holds them back until the epoch is applied there.
    pub fn mark_epoch(&self, session: Session, epoch: Epoch) -> Result<PendingMark, CommandError> {
        let (marked, answer) = sync_channel(1);
        self.send(Command::MarkEpoch { session, epoch, marked })?;
        Ok(PendingMark { answer })
    }

    /// The rules without checkpoints hold again. To be called when the record no longer counts on the partner's replica; before that
    /// the guest's writes wait for such a record. No-op if the disk does not write ahead.
    pub fn end_ahead(&self) -> Result<(), CommandError> {
        self.send(Command::EndAhead)
    }

    /// This process takes up a guest that an earlier one may have protected: the partner's replica may be older than what the guest was
    /// told, so nothing is acknowledged, nor is this host's replica given up, before a record that does not count on the partner's. To be
    /// called before the first [`Disk::role`].
    pub fn was_ahead(&self) -> Result<(), CommandError> {
        self.send(Command::WasAhead)
    }

    /// On the standby: everything up to this epoch is decided and is to be written, in order. An epoch that is not staged is left out.
    pub fn apply_epoch(&self, session: Session, epoch: Epoch) -> Result<(), CommandError> {
        self.send(Command::ApplyEpoch { session, epoch })
    }

    /// On the standby: drops what is staged and was not told to be applied; nobody goes on from it. The replica takes no more of the
    /// session, and no plain writes before a copy.
    pub fn discard_epochs(&self) -> Result<(), CommandError> {
        self.send(Command::DiscardEpochs)
    }

    /// Bytes of data sent to the partner since the first mark of the session.
    #[must_use]
    pub fn bytes_ahead(&self) -> u64 {
        self.bytes_ahead.load(Ordering::Relaxed)
    }
}
