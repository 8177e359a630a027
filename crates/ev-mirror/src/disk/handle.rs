//! The AM's handle of a disk's thread.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ev_core::ids::Generation;
use ev_core::report::DiskReport;

use super::link::LinkStream;
use super::spec::{CreateError, DiskEvent, DiskRole, DiskSpec, Initial, OpenError};
use crate::gate::Gate;

/// A disk in service. Dropping it without [`Disk::flush_and_close`] leaves it as a killed process would.
#[derive(Debug)]
pub struct Disk {
    spec: DiskSpec,
}

/// The disk's thread does not answer: it has ended. Open the disk anew.
#[derive(Debug, thiserror::Error)]
#[error("the disk's thread has ended; the reason is in the log, open the disk anew")]
pub struct CommandError;

/// The disk was not closed cleanly; the next opening takes it as after a crash.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    #[error("the disk could not be flushed; it will be taken as after a crash")]
    Flush,
    #[error(transparent)]
    Ended(#[from] CommandError),
}

impl Disk {
    /// Creates the metadata durably, and the replica if there is none (sparse, reading as zeroes). An existing replica
    /// must have the right size; its content is kept.
    pub fn create(spec: &DiskSpec, initial: Initial) -> Result<(), CreateError> {
        let _ = (spec, initial);
        Err(CreateError::BadSize { size_bytes: spec.size_bytes })
    }

    /// Opens replica and metadata and starts the disk's thread, idle. The thread sends events to `events`; one that finds the
    /// channel full is sent again later.
    pub fn open(spec: DiskSpec, gate: Arc<Gate>, events: SyncSender<DiskEvent>) -> Result<Self, OpenError> {
        let _ = (gate, events);
        Ok(Self { spec })
    }

    /// The disk is to act by the record of `generation`. Records older than the one acted on are ignored. The NBD socket
    /// takes connections while the role is coordinator. `clean`: the record's start was a clean one.
    pub fn role(&self, generation: Generation, role: DiskRole, clean: bool) -> Result<(), CommandError> {
        let _ = (generation, role, clean);
        Ok(())
    }

    /// A stream to the partner; replaces the one in use, if any.
    pub fn link(&self, link: LinkStream) -> Result<(), CommandError> {
        let _ = link;
        Ok(())
    }

    /// What is so now.
    #[must_use]
    pub fn report(&self) -> DiskReport {
        DiskReport {
            disk: self.spec.disk,
            local: ev_core::report::ReplicaState::Stale,
            partner: None,
            copy: None,
            read_bytes: 0,
            write_bytes: 0,
            trouble: None,
        }
    }

    /// Compares both replicas by hash, and repairs the partner's from the good side if `repair`. The end is told by
    /// [`DiskEvent::Verified`].
    pub fn verify(&self, repair: bool) -> Result<(), CommandError> {
        let _ = repair;
        Ok(())
    }

    /// Most bytes per second that a copy looks at or moves, from now on.
    pub fn set_copy_rate_limit(&self, bytes_per_second: Option<u64>) -> Result<(), CommandError> {
        let _ = bytes_per_second;
        Ok(())
    }

    /// Flushes both replicas and clears the write-intent log; fails when the record's good replicas were not all flushed. To be
    /// called on the coordinator after the guest has ended, before `AuthorityChange::Ended { clean: true }`.
    pub fn flush(&self) -> Result<(), CloseError> {
        Ok(())
    }

    /// [`Disk::flush`], then ends the thread.
    pub fn flush_and_close(self) -> Result<(), CloseError> {
        Ok(())
    }
}
