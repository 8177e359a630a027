//! Takes checkpoints of a running guest: its written pages and its device state, at one instant.
//!
//! ```text
//! precopy … precopy    while the guest runs: pages written up to now are copied, and looked for anew
//! checkpoint:
//!   QMP ► stop, xen-save-devices-state (one write)
//!   QMP ◄ stopped            ─► pass: copies what was written, while QEMU saves its devices
//!   QMP ◄ saved              ─► last pass: what QEMU itself wrote meanwhile; the device state is read
//!   QMP ► cont               ─► the pause is over
//! ```
//!
//! A failure leaves the guest running if it ran before, but what was written may then be lost to this capture
//! ([`CaptureError::Incomplete`] from then on): the standby needs the whole memory again.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use super::copier::Copier;
use super::stream::{DEVICE_STATE_BYTES_MAX, StateError, check_state};
use crate::guest::Guest;
use crate::qmp::{Event, EventKind, Qmp, QmpError, RunState};
use crate::ram::{PassError, PassReport, RamTracker, Staging, TrackError};

/// How long `stop` and the saving of devices may take together, before the checkpoint is given up.
pub const PAUSE_TIME_MAX: Duration = Duration::from_secs(1);
/// Room for the device state that is made ready before it is needed, in bytes.
const DEVICE_STATE_BYTES_USUAL: usize = 1 << 20;

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
    #[error("an earlier pass or checkpoint did not come to its end; start the capture anew, with the whole memory")]
    Incomplete,
}

/// What a checkpoint is made of.
#[derive(Debug)]
pub struct EpochBuffer {
    /// Written pages.
    pub pages: Staging,
    /// All devices, as QEMU saves them.
    pub device_state: Vec<u8>,
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
    pub devices_saved: Duration,
    /// The pass beside the saving of devices is over too.
    pub copied: Duration,
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
    /// How long the guest stood still.
    pub times: PauseTimes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// All written pages were handed out, or are still noted by the kernel.
    Whole,
    /// A pass or checkpoint is under way, or did not come to its end.
    Open,
}

/// Takes checkpoints of one guest. Nobody else may stop it or let it go on meanwhile.
#[derive(Debug)]
pub struct Capture {
    qmp: Qmp,
    tracker: Arc<RamTracker>,
    copier: Copier,
    state_path: String,
    threads: usize,
    completeness: Completeness,
}

impl Capture {
    /// Begins with a guest that was started with [`crate::Memory::Tracked`]. From here on its writes are noted, so the
    /// whole memory ([`Self::tracker`]) is to be copied after this, once. `threads` copy.
    ///
    /// # Errors
    /// The memory can't be tracked, or QEMU does not answer.
    pub async fn start(guest: &Guest, threads: usize) -> Result<Self, CaptureError> {
        let tracker = Arc::new(RamTracker::open(guest.pid())?);
        let copier = Copier::start(Arc::clone(&tracker)).map_err(|source| CaptureError::Room { source })?;
        let state_path = tracker.memory().state_path().to_owned();
        let qmp = guest.qmp().await?;
        Ok(Self { qmp, tracker, copier, state_path, threads, completeness: Completeness::Whole })
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

    fn begin(&mut self) -> Result<(), CaptureError> {
        match self.completeness {
            Completeness::Open => Err(CaptureError::Incomplete),
            Completeness::Whole => {
                self.completeness = Completeness::Open;
                Ok(())
            }
        }
    }

    /// A pass while the guest runs, so that the pause finds less.
    ///
    /// # Errors
    /// Pages were lost; see [`CaptureError::Incomplete`]. So they are if the future is dropped.
    pub async fn precopy(&mut self, mut epoch: EpochBuffer) -> Result<(EpochBuffer, PassReport), CaptureError> {
        self.begin()?;
        let (pages, report) = self.pass(epoch.pages).await?;
        epoch.pages = pages;
        self.completeness = Completeness::Whole;
        Ok((epoch, report))
    }

    async fn pass(&self, pages: Staging) -> Result<(Staging, PassReport), CaptureError> {
        let (pages, report) = self.copier.pass(pages).await.ok_or(CaptureError::Incomplete)?;
        Ok((pages, report?))
    }

    /// Stops the guest, takes its checkpoint, and lets it go on.
    ///
    /// # Errors
    /// The guest did not run: then all is as before. Otherwise pages were lost; see [`CaptureError::Incomplete`]. So
    /// they are if the future is dropped, and then nobody lets the guest go on.
    pub async fn checkpoint(&mut self, epoch: EpochBuffer) -> Result<Checkpoint, CaptureError> {
        self.begin()?;
        let start = Instant::now();
        let mut events = self.qmp.events();
        let save = json!({ "filename": self.state_path, "live": false });
        let [stop, saved] =
            self.qmp.begin(PAUSE_TIME_MAX, [("stop", Value::Null), ("xen-save-devices-state", save)]).await;
        let stopped = stop.await;
        if stopped.is_ok() && !has_stopped(&mut events) {
            // The state that was saved is no checkpoint: what came before the guest's end may not be in it.
            saved.await?;
            self.completeness = Completeness::Whole;
            return Err(CaptureError::NotRunning { state: self.qmp.status().await? });
        }
        let times = PauseTimes { stopped: start.elapsed(), ..PauseTimes::default() };
        let taken = match stopped {
            Ok(_) => self.take(epoch, saved, start, times).await,
            Err(error) => Err(error.into()),
        };
        // In any case: also a `stop` that was not answered will be carried out, and this after it.
        let running = self.qmp.cont().await;
        let mut checkpoint = taken?;
        running?;
        checkpoint.times.running = start.elapsed();
        self.completeness = Completeness::Whole;
        Ok(checkpoint)
    }

    /// While the guest stands still.
    async fn take(
        &self,
        epoch: EpochBuffer,
        saved: impl Future<Output = Result<Value, QmpError>>,
        start: Instant,
        mut times: PauseTimes,
    ) -> Result<Checkpoint, CaptureError> {
        let EpochBuffer { pages, mut device_state } = epoch;
        let saved = async {
            let answer = saved.await;
            (answer, start.elapsed())
        };
        let ((saved, devices_saved), copied) = tokio::join!(saved, self.pass(pages));
        saved?;
        let (pages, beside) = copied?;
        times.devices_saved = devices_saved;
        times.copied = start.elapsed();
        let last_pass = self.pass(pages);
        let read_state = async { self.read_state(&mut device_state) };
        let (last_pass, read_state) = tokio::join!(last_pass, read_state);
        let (pages, last) = last_pass?;
        read_state?;
        times.last_pass = start.elapsed();
        let epoch = EpochBuffer { pages, device_state };
        Ok(Checkpoint { epoch, pause_pages: beside.pages + last.pages, times })
    }

    fn read_state(&self, into: &mut Vec<u8>) -> Result<(), CaptureError> {
        let read_error = |source| CaptureError::ReadState { source };
        let file = self.tracker.memory().state_file();
        let length = file.metadata().map_err(read_error)?.len();
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes > DEVICE_STATE_BYTES_MAX {
            return Err(StateError::TooLong { bytes }.into());
        }
        into.clear();
        into.resize(bytes, 0);
        file.read_exact_at(into, 0).map_err(read_error)?;
        Ok(check_state(into)?)
    }
}

/// Whether QEMU said that it stopped the guest: it says so before it answers, and only if the guest ran.
fn has_stopped(events: &mut broadcast::Receiver<Event>) -> bool {
    loop {
        match events.try_recv() {
            Ok(Event { kind: EventKind::Stop, .. }) => return true,
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return false,
        }
    }
}
