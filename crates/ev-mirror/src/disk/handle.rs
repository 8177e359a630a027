//! The AM's handle of a disk's thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ev_core::ids::Generation;
use ev_core::report::{DiskReport, ReplicaState};
use rustix::event::{EventfdFlags, eventfd};

use super::create;
use super::link::LinkStream;
use super::revert::{self, RevertError, Reverted};
use super::spec::{CreateError, DiskEvent, DiskRole, DiskSpec, Initial, OpenError};
use super::thread::{Command, Shared, Thread};
use crate::gate::Gate;

/// Commands that wait for the thread; a caller that finds so many waits itself.
const COMMANDS_MAX: usize = 64;
/// A flush of both replicas that takes longer has failed for the caller.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// A disk in service. Dropping it without [`Disk::flush`] before leaves it as a killed process would.
#[derive(Debug)]
pub struct Disk {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
    report: Arc<Mutex<DiskReport>>,
    pub(super) bytes_ahead: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
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
        create::create(spec, initial)
    }

    /// Opens replica and metadata and starts the disk's thread, idle. The thread sends events to `events`; one that finds the
    /// channel full is sent again later.
    pub fn open(spec: DiskSpec, gate: Arc<Gate>, events: SyncSender<DiskEvent>) -> Result<Self, OpenError> {
        crate::memory::keep_freed();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| OpenError::Ring(error.into()))?;
        let wake = Arc::new(wake);
        let (commands, received) = sync_channel(COMMANDS_MAX);
        let report = Arc::new(Mutex::new(first_report(&spec)));
        let bytes_ahead = Arc::new(AtomicU64::new(0));
        let shared = Shared {
            gate,
            report: Arc::clone(&report),
            events,
            commands: received,
            wake: Arc::clone(&wake),
            bytes_ahead: Arc::clone(&bytes_ahead),
        };
        let thread = start(spec, shared)?;
        Ok(Self { commands, wake, report, bytes_ahead, thread: Some(thread) })
    }

    /// Brings a closed disk's replica back to what it held before a copy began, durably, or leaves one that only fell behind as
    /// it lies. Either way it is a consistent older state that shares no history with the partner's. Blocks: as long
    /// as it takes to write back what the copy had overwritten. Can be repeated after a crash in the middle.
    pub fn revert(spec: &DiskSpec) -> Result<Reverted, RevertError> {
        revert::revert(spec)
    }

    pub(super) fn send(&self, command: Command) -> Result<(), CommandError> {
        self.commands.send(command).map_err(|_| CommandError)?;
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).map_err(|_| CommandError)?;
        Ok(())
    }

    /// The disk is to act by the record of `generation`. Records older than the one acted on are ignored. The NBD socket
    /// takes connections in any role but idle, and a replica's clients stay when it becomes the coordinator. After an unclean end
    /// (`clean` false) the record calls only one replica good; the write-intent log on disk says where the other may differ.
    pub fn role(&self, generation: Generation, role: DiskRole, _clean: bool) -> Result<(), CommandError> {
        self.send(Command::Role { generation, role })
    }

    /// A stream to the partner; replaces the one in use, if any.
    pub fn link(&self, link: LinkStream) -> Result<(), CommandError> {
        self.send(Command::Link(link))
    }

    /// What is so now (as of the last twentieth of a second).
    #[must_use]
    pub fn report(&self) -> DiskReport {
        self.report.lock().expect("a report is only copied under the lock").clone()
    }

    /// Compares both replicas by hash, at most so many bytes a second, and repairs the partner's from the good side if `repair`.
    /// [`Disk::report`] has the progress and the outcome.
    pub fn verify(&self, repair: bool, bytes_per_s: Option<u64>) -> Result<(), CommandError> {
        self.send(Command::Verify { repair, bytes_per_s })
    }

    /// Most bytes per second that a copy looks at or moves, from now on.
    pub fn set_copy_rate_limit(&self, bytes_per_second: Option<u64>) -> Result<(), CommandError> {
        self.send(Command::CopyRate(bytes_per_second))
    }

    /// Flushes both replicas and clears the write-intent log; fails when the record's good replicas were not all flushed, and at once
    /// while the guest is answered ahead of the partner: first [`Disk::end_ahead`], and a record without it. Should the link be lost
    /// after the partner has flushed and before this host has, the log stays, and what it names is compared at the next start although
    /// it is the same. To be called on the coordinator after the guest has ended, before `AuthorityChange::Ended { clean: true }`. Blocks.
    pub fn flush(&self) -> Result<(), CloseError> {
        let (done, answer): (_, Receiver<bool>) = sync_channel(1);
        self.send(Command::Flush(done))?;
        match answer.recv_timeout(FLUSH_TIMEOUT) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(CloseError::Flush),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.send(Command::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The ring belongs to the thread that makes it, so files and ring are opened there, and the outcome comes back.
fn start(spec: DiskSpec, shared: Shared) -> Result<JoinHandle<()>, OpenError> {
    let (opened, outcome) = sync_channel(1);
    let disk = spec.disk;
    let body = move || {
        let guard = AbortOnPanic;
        match Thread::open(spec, super::instance(), shared) {
            Ok(thread) => {
                let _ = opened.send(Ok(()));
                if let Err(error) = thread.run() {
                    tracing::error!(%disk, %error, "the disk's io_uring failed; the process ends and the next one begins from the files");
                    std::process::abort();
                }
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        }
        std::mem::forget(guard);
    };
    let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(body).map_err(OpenError::Ring)?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(OpenError::Ring(std::io::Error::other("the disk's thread ended at once"))),
    }
}

/// Unwinding would free memory that the kernel still writes to, and leave a guest without its disk: the process ends instead.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn first_report(spec: &DiskSpec) -> DiskReport {
    DiskReport {
        disk: spec.disk,
        local: ReplicaState::Stale,
        partner: None,
        copy: None,
        comparison: None,
        read_bytes: 0,
        write_bytes: 0,
        trouble: None,
    }
}
