//! Takes checkpoints of a running guest: its written pages and its device state, at one instant.
//!
//! ```text
//! precopy … precopy    while the guest runs: pages written up to now are copied, and looked for anew
//! checkpoint:
//!   QMP ► stop
//!   QMP ◄ stopped            ─► most of a pass: looks for what was written, while all of QEMU sleeps
//!   QMP ► xen-save-devices-state ─► copies it, and the rest of the pass, while QEMU saves its devices
//!   QMP ◄ saved              ─► last pass, if QEMU may have written meanwhile; the device state is read
//!   QMP ► cont               ─► the pause is over
//! ```
//!
//! All of it happens on a thread of its own, which ends what it has begun: a caller that gives up leaves the guest
//! running. A failure leaves it running too, if it ran before. If what was written is then lost to this capture
//! ([`NotTaken::epoch`], [`CaptureError::Incomplete`] from then on), the standby needs the whole memory again.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::pause::{CONNECT_TIME_MAX, Checkpointer};
use super::stream::StateError;
use crate::guest::Guest;
use crate::qmp::{DirectQmp, QmpError, RunState};
use crate::ram::{PartlyDone, PassError, PassReport, RamTracker, Staging, TrackError};

/// How long `stop` and the saving of devices may take together, before the checkpoint is given up.
pub const PAUSE_TIME_MAX: Duration = Duration::from_secs(1);
/// Room for the device state that is made ready before it is needed, in bytes.
const DEVICE_STATE_BYTES_USUAL: usize = 1 << 20;
/// Requests that may wait for the thread: there is one at a time, as they need `&mut`, and one whose caller gave up.
const REQUESTS_QUEUED_MAX: usize = 2;

/// Why checkpoints can't be taken, or one failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CaptureError {
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error("could not make room for the copies of the guest's memory: {source}; free some of the host's memory")]
    Room { source: io::Error },
    #[error("the guest does not run ({state:?}), so it has no checkpoint; it was left so")]
    NotRunning { state: RunState },
    #[error("the guest did not stop, or not save its devices: {0}; it was let go on")]
    Qmp(#[from] QmpError),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error("could not read the device state: {source}")]
    ReadState { source: io::Error },
    #[error("QEMU saved no proper device state: {0}")]
    State(#[from] StateError),
    #[error(
        "what belongs to the checkpoint beside memory and devices was not ready for it: {source}; the guest was let go on"
    )]
    AtStop { source: io::Error },
    #[error("the guest had written more than could be copied in time; it was let go on after {stood_still:?}")]
    TooMuch { stood_still: Duration },
    #[error("an earlier pass or checkpoint did not come to its end; start the capture anew, with the whole memory")]
    Incomplete,
}

/// A checkpoint that was not taken.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotTaken {
    /// Why.
    #[source]
    pub error: CaptureError,
    /// The buffer, if no page was lost: the next checkpoint goes on with it as it is, and is as good as this one would
    /// have been. Without it the capture is of no use any more.
    pub epoch: Option<Box<EpochBuffer>>,
}

/// What a checkpoint is made of.
pub struct EpochBuffer {
    /// Written pages.
    pub pages: Staging,
    /// All devices, as QEMU saves them.
    pub device_state: Vec<u8>,
}

impl fmt::Debug for EpochBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, device_state } = self;
        write!(f, "{pages:?} and {} bytes of device state", device_state.len())
    }
}

impl EpochBuffer {
    /// Forgets what is in it, and keeps its room for a later epoch.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.device_state.clear();
    }
}

/// Where the time of a pause went. Each from the instant at which the commands were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PauseTimes {
    pub stopped: Duration,
    /// The pass beside the saving of devices is over.
    pub copied: Duration,
    pub devices_saved: Duration,
    pub last_pass: Duration,
    /// QEMU said that the guest runs: the whole pause, and a little more.
    pub running: Duration,
}

/// A checkpoint that was taken.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its content.
    pub epoch: EpochBuffer,
    /// Pages copied in the pause.
    pub pause_pages: u32,
    /// Written pages were looked for in the pause: not if QEMU had no page fault since the pass right before it.
    pub looked: bool,
    /// How long the guest stood still.
    pub times: PauseTimes,
}

type Answer<T, E> = oneshot::Sender<Result<T, E>>;

/// Done while the guest stands still, its disks drained, once it is sure that the checkpoint has all pages: marks the end of the epoch
/// wherever else something of the guest passes. It must be quick, as it is part of the pause.
pub type AtStop = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

enum Request {
    Precopy(EpochBuffer, Answer<(EpochBuffer, PassReport), CaptureError>),
    PrecopyStanding(EpochBuffer, PartlyDone, Duration, Answer<(EpochBuffer, PartlyDone, PassReport), CaptureError>),
    Brake(Duration, Answer<(), CaptureError>),
    Checkpoint(EpochBuffer, Option<Duration>, AtStop, Answer<Checkpoint, NotTaken>),
}

/// Takes checkpoints of one guest. Nobody else may stop it or let it go on meanwhile.
#[derive(Debug)]
pub struct Capture {
    requests: SyncSender<Request>,
    tracker: Arc<RamTracker>,
    threads: usize,
}

impl Capture {
    /// Begins with a guest that was started with [`crate::Memory::Tracked`]. From here on its writes are noted, so the
    /// whole memory ([`Self::tracker`]) is to be copied after this, once. `threads` copy. Blocks for some milliseconds.
    ///
    /// # Errors
    /// The memory can't be tracked, or QEMU does not answer.
    pub fn start(guest: &Guest, threads: usize) -> Result<Self, CaptureError> {
        let tracker = Arc::new(RamTracker::open(guest.pid())?);
        let connect = |path: PathBuf| DirectQmp::connect(&path, CONNECT_TIME_MAX);
        let (qmp, save) = (connect(guest.paths().checkpoint_qmp())?, connect(guest.paths().save_qmp())?);
        let checkpointer = Checkpointer::new(qmp, save, Arc::clone(&tracker))?;
        let (requests, receiver) = sync_channel(REQUESTS_QUEUED_MAX);
        std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || serve(checkpointer, &receiver))
            .map_err(|source| CaptureError::Room { source })?;
        Ok(Self { requests, tracker, threads })
    }

    /// The memory, for its layout and for copying it as a whole.
    #[must_use]
    pub fn tracker(&self) -> &Arc<RamTracker> {
        &self.tracker
    }

    /// Room for one epoch. Two are needed for shipping one while the next is filled.
    ///
    /// # Errors
    /// No room.
    pub fn buffer(&self) -> Result<EpochBuffer, CaptureError> {
        let layout = self.tracker.memory().layout();
        let pages = Staging::new(&layout, self.threads).map_err(|source| CaptureError::Room { source })?;
        Ok(EpochBuffer { pages, device_state: Vec::with_capacity(DEVICE_STATE_BYTES_USUAL) })
    }

    /// A pass while the guest runs, so that the pause finds less.
    ///
    /// # Errors
    /// Pages were lost; see [`CaptureError::Incomplete`]. So they are if the future is dropped.
    pub async fn precopy(&mut self, epoch: EpochBuffer) -> Result<(EpochBuffer, PassReport), CaptureError> {
        self.ask(|answer| Request::Precopy(epoch, answer)).await.ok_or(CaptureError::Incomplete)?
    }

    /// Goes on with a pass in parts: as much as can be copied while the guest stands still for about `time`, so that pages are found
    /// faster than they are written. [`RamTracker::is_over`] tells when all was looked at.
    ///
    /// # Errors
    /// As of [`Self::precopy`], or the guest did not run, or did not stop in time.
    pub async fn precopy_standing(
        &mut self,
        epoch: EpochBuffer,
        at: PartlyDone,
        time: Duration,
    ) -> Result<(EpochBuffer, PartlyDone, PassReport), CaptureError> {
        self.ask(|answer| Request::PrecopyStanding(epoch, at, time, answer)).await.ok_or(CaptureError::Incomplete)?
    }

    /// Lets the guest stand still for `time`, and go on.
    ///
    /// # Errors
    /// It did not run, or did not stop in time.
    pub async fn brake(&mut self, time: Duration) -> Result<(), CaptureError> {
        self.ask(|answer| Request::Brake(time, answer)).await.ok_or(CaptureError::Incomplete)?
    }

    /// Stops the guest, takes the checkpoint, calls `at_stop`, and lets the guest go on. If the guest has rested since the begin of a
    /// [`Self::precopy`] right before, the pause doesn't depend on the size of its memory. With more pages than can be copied within
    /// `copying_max` it is let go on as if nothing had been, and [`Self::precopy_standing`] has to come before the next attempt.
    ///
    /// # Errors
    /// The guest did not run, or did not stop in time, or `at_stop` failed, or there was too much to copy; see [`NotTaken`]. If the
    /// future is dropped, pages are lost.
    pub async fn checkpoint(
        &mut self,
        epoch: EpochBuffer,
        copying_max: Option<Duration>,
        at_stop: AtStop,
    ) -> Result<Checkpoint, NotTaken> {
        let gone = || NotTaken { error: CaptureError::Incomplete, epoch: None };
        let request = |answer| Request::Checkpoint(epoch, copying_max, at_stop, answer);
        self.ask(request).await.ok_or_else(gone)?
    }

    /// `None`: the thread is gone, or still busy with what nobody waits for.
    async fn ask<T, E>(&self, request: impl FnOnce(Answer<T, E>) -> Request) -> Option<Result<T, E>> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(request(answer)).ok()?;
        answered.await.ok()
    }
}

fn serve(mut checkpointer: Checkpointer, requests: &Receiver<Request>) {
    DirectQmp::prepare_thread();
    while let Ok(request) = requests.recv() {
        let heard = match request {
            Request::Precopy(mut epoch, answer) => {
                let report = checkpointer.precopy(&mut epoch);
                answer.send(report.map(|report| (epoch, report))).is_ok()
            }
            Request::PrecopyStanding(mut epoch, mut at, time, answer) => {
                let report = checkpointer.precopy_standing(&mut epoch, &mut at, time);
                answer.send(report.map(|report| (epoch, at, report))).is_ok()
            }
            // Nothing is lost by it.
            Request::Brake(time, answer) => {
                let _ = answer.send(checkpointer.brake(time));
                true
            }
            Request::Checkpoint(epoch, copying_max, at_stop, answer) => {
                answer.send(checkpointer.checkpoint(epoch, copying_max, &at_stop)).is_ok()
            }
        };
        if !heard {
            checkpointer.lost();
        }
    }
}
