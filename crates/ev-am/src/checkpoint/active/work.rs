//! One session's means: the capture, its buffers, and the thread that sends them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ev_checkpoint::{MemoryShape, Shipper};
use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::DiskId;
use ev_failpoint::{Step, reach};
use ev_mirror::Disk;
use ev_net::OutputHold;
use ev_vm::Guest;
use ev_vm::checkpoint::{AtStop, Capture, CaptureError, Checkpoint, EpochBuffer, Processors};
use ev_vm::ram::{PartlyDone, PassReport};

use crate::checkpoint::lane::LaneEvent;

/// Threads that copy pages in the pause.
const COPYING_THREADS: usize = 2;
/// Epochs that can be captured or on their way at once.
const BUFFERS: usize = 2;
/// Passes while the guest runs end when one finds fewer pages.
pub const PASS_PAGES_MIN: u32 = 256;
/// Of a busy guest an epoch with fewer pages than this is copied in the pause: that takes a millisecond or two. A pass before it would
/// have the guest take a fault once more for each page that it writes again.
const AHEAD_PAGES_MIN: usize = 2_500;
/// Passes before a pause.
const PASSES_MAX: usize = 2;
/// Passes after the whole memory was sent; then the rest is for the pause, however much it is.
pub const FILL_PASSES_MAX: usize = 5;
/// Of the time that the guest may stand still at once, a half goes into copying, or into waiting for a link that is behind. The rest is
/// for stopping it, for its devices and its disks.
const STANDING_PART: u32 = 2;
/// And so much it runs after each such time while its pages are copied: less with each try for a checkpoint.
const RUNNING_PARTS: [u32; 4] = [8, 16, 32, 64];
/// After these tries it stands still for longer, by a half with each one more, up to this.
const STANDING_MAX: Duration = Duration::from_millis(500);
/// How long a disk's thread may take to mark the end of an epoch.
const MARK_TIME_MAX: Duration = Duration::from_millis(300);

/// What a session works with, as far as it is there.
pub struct Work {
    pub session: Session,
    pub capture: Option<Capture>,
    pub processors: Option<Processors>,
    pub free: Vec<EpochBuffer>,
    pub shipper: Option<Shipper>,
    pub disks: Vec<(DiskId, Arc<Disk>)>,
    /// The standby has opened the session.
    pub opened: bool,
    pub passes: usize,
    pub pending: Option<Pending>,
    /// Pages of the last epoch.
    pub last_pages: usize,
    /// What is known of why it ends.
    pub why: Option<String>,
}

/// What waits for the capture and a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// A pass while the guest runs, as part of the first epoch.
    Pass,
    Checkpoint(Epoch),
}

/// The guest's writes are noted.
pub struct Started {
    pub capture: Capture,
    pub processors: Processors,
    pub buffers: Vec<EpochBuffer>,
    /// Version of the guest's QEMU, whatever is installed by now.
    pub version: String,
}

/// What came of it.
pub enum Done {
    Started(Result<Started, String>),
    Passed(Result<(Capture, EpochBuffer, PassReport), String>),
    /// For how long it stood still.
    Braked(Capture, Result<Duration, String>),
    /// The capture comes back if it is of further use.
    Captured(Epoch, Result<Captured, String>),
}

pub struct Captured {
    pub capture: Capture,
    pub checkpoint: Box<Checkpoint>,
    /// For how long the guest stood still before the pause.
    pub stood_still: Duration,
}

/// What the driver's own tasks tell it.
pub enum Inner {
    Lane(LaneEvent),
    Done(Session, Done),
}

impl From<LaneEvent> for Inner {
    fn from(event: LaneEvent) -> Self {
        Self::Lane(event)
    }
}

/// A QEMU that dies lets a checkpoint fail before its end is known. Then nothing is to be given up: the standby goes on.
const DYING_TIME_MAX: Duration = Duration::from_millis(500);

impl Work {
    pub fn new(session: Session, disks: Vec<(DiskId, Arc<Disk>)>) -> Self {
        Self {
            session,
            capture: None,
            processors: None,
            free: Vec::new(),
            shipper: None,
            disks,
            opened: false,
            passes: 0,
            pending: None,
            last_pages: 0,
            why: None,
        }
    }

    pub fn shape(&self) -> Option<MemoryShape> {
        self.capture.as_ref().map(|capture| MemoryShape::from(&capture.tracker().memory().layout()))
    }

    /// What is to be done now, if capture and a buffer are free for it.
    pub fn next(&mut self) -> Option<(Pending, Capture, EpochBuffer)> {
        let pending = self.pending?;
        if self.capture.is_none() || self.free.is_empty() {
            return None;
        }
        let (capture, buffer) = (self.capture.take()?, self.free.pop()?);
        self.pending = None;
        Some((pending, capture, buffer))
    }

    /// Whether the guest has nothing to do at this instant.
    pub fn processors_rest(&mut self) -> bool {
        self.processors.as_mut().is_some_and(Processors::rest)
    }

    /// Passes that are worth it before the pause. While the guest rests, one finds all there is, and the pause needs none.
    pub fn passes_ahead(&mut self) -> usize {
        if self.last_pages > AHEAD_PAGES_MIN { PASSES_MAX } else { usize::from(self.processors_rest()) }
    }

    /// What is done in the pause: from here on what the guest sends and writes belongs to the next epoch.
    pub fn at_stop(&self, hold: &Arc<OutputHold>, epoch: Epoch) -> AtStop {
        let (session, disks, hold) = (self.session, self.disks.clone(), Arc::clone(hold));
        Arc::new(move || {
            if epoch > Epoch::FIRST {
                hold.advance_to(epoch.next());
                return mark(&disks, session, epoch);
            }
            let marked = mark(&disks, session, epoch);
            if marked.is_ok() {
                hold.hold_from(epoch.next());
            } else {
                // Those that write ahead already are brought in step anew.
                disks.iter().try_for_each(|(_, disk)| disk.end_ahead()).map_err(io::Error::other)?;
            }
            marked
        })
    }
}

/// Has each disk put the end of the epoch behind what was written.
fn mark(disks: &[(DiskId, Arc<Disk>)], session: Session, epoch: Epoch) -> io::Result<()> {
    let marks = disks.iter().map(|(_, disk)| disk.mark_epoch(session, epoch));
    let marks = marks.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    marks.into_iter().try_for_each(|mark| mark.wait(MARK_TIME_MAX).map_err(io::Error::other))
}

/// Begins to note what the guest writes.
pub async fn start(guest: Guest) -> Done {
    let begun = async {
        let version = async { guest.qmp().await?.version().await };
        let version = version.await.map_err(|error| error.to_string())?.to_string();
        let processors = Processors::of(&guest).await.map_err(|error| error.to_string())?;
        let prepared = tokio::task::spawn_blocking(move || prepare(&guest)).await.map_err(|error| error.to_string())?;
        let (capture, buffers) = prepared.map_err(|error| error.to_string())?;
        Ok(Started { capture, processors, buffers, version })
    };
    Done::Started(begun.await)
}

/// Blocks for some milliseconds.
fn prepare(guest: &Guest) -> Result<(Capture, Vec<EpochBuffer>), CaptureError> {
    let capture = Capture::start(guest, COPYING_THREADS)?;
    let buffers = (0..BUFFERS).map(|_| capture.buffer()).collect::<Result<_, _>>()?;
    Ok((capture, buffers))
}

pub async fn pass(mut capture: Capture, buffer: EpochBuffer) -> Done {
    let passed = capture.precopy(buffer).await;
    Done::Passed(passed.map(|(buffer, report)| (capture, buffer, report)).map_err(|error| error.to_string()))
}

/// Lets the guest stand still for a part of `blackout`.
pub async fn brake(mut capture: Capture, blackout: Duration) -> Done {
    let time = blackout / STANDING_PART;
    let braked = capture.brake(time).await.map(|()| time).map_err(|error| error.to_string());
    Done::Braked(capture, braked)
}

/// Copies written pages while the guest runs, so that there are few in the pause.
async fn copy_ahead(
    capture: &mut Capture,
    mut buffer: EpochBuffer,
    passes: usize,
) -> Result<EpochBuffer, CaptureError> {
    for _ in 0..passes {
        let report;
        (buffer, report) = capture.precopy(buffer).await?;
        if report.pages < PASS_PAGES_MIN {
            break;
        }
    }
    Ok(buffer)
}

/// Copies written pages while the guest mostly stands still; for how long it did.
async fn copy_standing(
    capture: &mut Capture,
    mut buffer: EpochBuffer,
    standing: Duration,
    running: Duration,
) -> Result<(EpochBuffer, Duration), CaptureError> {
    let (mut at, mut stood_still) = (PartlyDone::default(), Duration::ZERO);
    while !capture.tracker().is_over(at) {
        tokio::time::sleep(running).await;
        let report;
        (buffer, at, report) = capture.precopy_standing(buffer, at, standing).await?;
        stood_still += report.time;
    }
    tokio::time::sleep(running).await;
    Ok((buffer, stood_still))
}

/// Takes a checkpoint in a pause of about `blackout` at most. A guest that writes faster than its pages are copied stands still
/// several times before it, and runs less and less in between.
async fn take(
    capture: &mut Capture,
    mut buffer: EpochBuffer,
    blackout: Duration,
    at_stop: AtStop,
) -> Result<(Checkpoint, Duration), CaptureError> {
    let (mut standing, mut stood_still) = (blackout / STANDING_PART, Duration::ZERO);
    let mut running_parts = RUNNING_PARTS.into_iter();
    let mut running = Duration::ZERO;
    loop {
        let refused = match capture.checkpoint(buffer, Some(standing), Arc::clone(&at_stop)).await {
            Ok(checkpoint) => return Ok((checkpoint, stood_still)),
            Err(refused) => refused,
        };
        let (CaptureError::TooMuch { stood_still: lasted }, Some(epoch)) = (&refused.error, refused.epoch) else {
            return Err(refused.error);
        };
        match running_parts.next() {
            Some(part) => running = blackout / part,
            None => standing = (standing * 3 / 2).min(STANDING_MAX),
        }
        tracing::debug!(
            ?standing,
            ?running,
            ?lasted,
            "the guest writes faster than its pages are copied: it is slowed"
        );
        let standing_then;
        (buffer, standing_then) = copy_standing(capture, *epoch, standing, running).await?;
        stood_still += *lasted + standing_then;
    }
}

/// With so many passes before the pause.
pub async fn checkpoint(
    mut capture: Capture,
    buffer: EpochBuffer,
    epoch: Epoch,
    passes: usize,
    blackout: Duration,
    at_stop: AtStop,
) -> Done {
    let buffer = match copy_ahead(&mut capture, buffer, passes).await {
        Ok(buffer) => buffer,
        Err(error) => return Done::Captured(epoch, Err(error.to_string())),
    };
    reach(Step::ActiveBeforeStop);
    let taken = take(&mut capture, buffer, blackout, at_stop).await.map_err(|error| error.to_string());
    let captured = |(checkpoint, stood_still)| Captured { capture, checkpoint: Box::new(checkpoint), stood_still };
    Done::Captured(epoch, taken.map(captured))
}

/// Whether QEMU is gone, or about to be.
pub async fn has_died(guest: &Guest) -> bool {
    tokio::time::timeout(DYING_TIME_MAX, guest.exited()).await.is_ok()
}
