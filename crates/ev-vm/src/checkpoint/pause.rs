//! What the capture's thread does: passes, and the pause. One owner, no lock; it blocks.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ev_failpoint::{Step, reach};
use serde_json::Value;

use super::capture::{AtStop, CaptureError, Checkpoint, EpochBuffer, NotTaken, PAUSE_TIME_MAX, PauseTimes};
use super::saving::Saving;
use super::stream::{DEVICE_STATE_BYTES_MAX, StateError, check_state};
use crate::qmp::{Awaited, DirectQmp, EventKind, QmpError, READ_TIME, run_state};
use crate::ram::{FaultCount, Found, PartlyDone, PassError, PassReport, RamTracker, Writes};

/// So long written pages are looked for before QEMU saves its devices, while all of it sleeps; the rest of a large memory is looked
/// through meanwhile.
const LOOK_FIRST_MAX: Duration = Duration::from_micros(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// All written pages were handed out, or are still noted by the kernel.
    Whole,
    /// A pass or checkpoint did not come to its end.
    Lost,
}

#[derive(Debug)]
pub(super) struct Checkpointer {
    /// Stops the guest and lets it go on.
    qmp: DirectQmp,
    save: Saving,
    tracker: Arc<RamTracker>,
    completeness: Completeness,
    /// QEMU's page faults right before the last thing that was done, which was a pass over the whole memory.
    before_pass: Option<FaultCount>,
}

/// What a pause found, beside what it put into the buffer.
struct Taken {
    pause_pages: u32,
    looked: bool,
    times: PauseTimes,
}

/// What is asked of a pause.
struct Order<'a> {
    copying_max: Option<Duration>,
    at_stop: &'a AtStop,
    before_pass: Option<FaultCount>,
}

fn scan_error(source: io::Error) -> PassError {
    PassError::Scan { source }
}

impl Checkpointer {
    pub(super) fn new(qmp: DirectQmp, save: DirectQmp, tracker: Arc<RamTracker>) -> Result<Self, QmpError> {
        let save = Saving::new(save, &tracker)?;
        Ok(Self { qmp, save, tracker, completeness: Completeness::Whole, before_pass: None })
    }

    /// What was handed out reached nobody.
    pub(super) fn lost(&mut self) {
        self.completeness = Completeness::Lost;
    }

    /// Returns the page faults before the last pass, if nothing has been done since.
    fn begin(&mut self) -> Result<Option<FaultCount>, CaptureError> {
        let before_pass = self.before_pass.take();
        match std::mem::replace(&mut self.completeness, Completeness::Lost) {
            Completeness::Whole => Ok(before_pass),
            Completeness::Lost => Err(CaptureError::Incomplete),
        }
    }

    pub(super) fn precopy(&mut self, epoch: &mut EpochBuffer) -> Result<PassReport, CaptureError> {
        self.begin()?;
        let before = self.tracker.now().map_err(scan_error)?;
        let report = self.tracker.copy_written(&mut epoch.pages)?;
        self.before_pass = Some(before);
        self.completeness = Completeness::Whole;
        Ok(report)
    }

    /// The same for a part of the memory, as much as goes while the guest stands still for about `time`.
    pub(super) fn precopy_standing(
        &mut self,
        epoch: &mut EpochBuffer,
        at: &mut PartlyDone,
        time: Duration,
    ) -> Result<PassReport, CaptureError> {
        self.begin()?;
        let report = self.standing(|checkpointer| {
            Ok(checkpointer.tracker.copy_written_until(&mut epoch.pages, at, Some(Instant::now() + time))?)
        })?;
        self.completeness = Completeness::Whole;
        Ok(report)
    }

    /// Lets the guest stand still for `time`.
    pub(super) fn brake(&mut self, time: Duration) -> Result<(), CaptureError> {
        self.standing(|_| {
            std::thread::sleep(time);
            Ok(())
        })
    }

    /// Stops the guest for as long as `work` takes.
    fn standing<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, CaptureError>) -> Result<T, CaptureError> {
        self.qmp.forget()?;
        let stop = self.qmp.write_most("stop", &Value::Null)?;
        self.qmp.finish("stop")?;
        let awaited =
            |id, command| Awaited { id, command, time_max: PAUSE_TIME_MAX, deadline: Instant::now() + PAUSE_TIME_MAX };
        let mut heard_stop = false;
        let stopped = self.qmp.answer(awaited(stop, "stop"), |event| heard_stop |= event.kind == EventKind::Stop);
        if stopped.is_ok() && !heard_stop {
            return Err(self.not_running()?);
        }
        let done = stopped.map_err(CaptureError::from).and_then(|_| work(self));
        // In any case: also a `stop` that was not answered will be carried out, and this after it.
        let cont = self.qmp.write_most("cont", &Value::Null)?;
        self.qmp.finish("cont")?;
        let running = self.qmp.answer(awaited(cont, "cont"), |_| {});
        let done = done?;
        running?;
        Ok(done)
    }

    pub(super) fn checkpoint(
        &mut self,
        mut epoch: EpochBuffer,
        copying_max: Option<Duration>,
        at_stop: &AtStop,
    ) -> Result<Checkpoint, NotTaken> {
        let order = |before_pass| Order { copying_max, at_stop, before_pass };
        let taken = self.begin().and_then(|before_pass| self.pause(&mut epoch, &order(before_pass)));
        match taken {
            Ok(Taken { pause_pages, looked, times }) => {
                self.completeness = Completeness::Whole;
                Ok(Checkpoint { epoch, pause_pages, looked, times })
            }
            Err(error @ (CaptureError::Pass(_) | CaptureError::Incomplete)) => Err(NotTaken { error, epoch: None }),
            // Whatever else failed: each page that was written is in the buffer, or still noted by the kernel.
            Err(error) => {
                self.completeness = Completeness::Whole;
                Err(NotTaken { error, epoch: Some(Box::new(epoch)) })
            }
        }
    }

    fn pause(&mut self, epoch: &mut EpochBuffer, order: &Order<'_>) -> Result<Taken, CaptureError> {
        self.qmp.forget()?;
        self.save.be_ready()?;
        // While the guest still runs; `cont` is written likewise while QEMU carries out `stop`.
        let stop = self.qmp.write_most("stop", &Value::Null)?;
        std::thread::sleep(READ_TIME);
        let start = Instant::now();
        let deadline = start + PAUSE_TIME_MAX;
        let awaited = |id, command, deadline| Awaited { id, command, time_max: PAUSE_TIME_MAX, deadline };
        let cont = self.qmp.finish_and_write_most("cont")?;
        // QEMU says so before it answers, and only if the guest ran.
        let mut heard_stop = false;
        let stopped =
            self.qmp.answer(awaited(stop, "stop", deadline), |event| heard_stop |= event.kind == EventKind::Stop);
        if stopped.is_ok() && !heard_stop {
            self.qmp.cancel("cont")?;
            return Err(self.not_running()?);
        }
        let taken = match stopped {
            Ok(_) => self.take(epoch, order, start),
            Err(error) => Err(error.into()),
        };
        // In any case: also a `stop` that was not answered will be carried out, and this after it.
        self.qmp.finish("cont")?;
        let running = self.qmp.answer(awaited(cont, "cont", Instant::now() + PAUSE_TIME_MAX), |_| {});
        let taken = taken?;
        running?;
        let stood_still = start.elapsed();
        let mut taken = taken.ok_or(CaptureError::TooMuch { stood_still })?;
        taken.times.running = stood_still;
        self.save.be_ready()?;
        Ok(taken)
    }

    /// Why there was nothing to stop.
    fn not_running(&mut self) -> Result<CaptureError, CaptureError> {
        let status = self.qmp.run("query-status", Value::Null, PAUSE_TIME_MAX)?;
        let name = status.get("status").and_then(Value::as_str).ok_or(QmpError::Protocol)?;
        Ok(CaptureError::NotRunning { state: run_state(name) })
    }

    /// While the guest stands still. `None`: copying takes too long, and the epoch goes on.
    fn take(
        &mut self,
        epoch: &mut EpochBuffer,
        order: &Order<'_>,
        start: Instant,
    ) -> Result<Option<Taken>, CaptureError> {
        let mut times = PauseTimes { stopped: start.elapsed(), ..PauseTimes::default() };
        let before = self.tracker.now().map_err(scan_error)?;
        let looked = self.may_have_written_since(order.before_pass)?;
        let deadline = order.copying_max.map(|time| Instant::now() + time);
        let look_first = order.copying_max.map_or(LOOK_FIRST_MAX, |time| time.min(LOOK_FIRST_MAX));
        let mut at = PartlyDone::default();
        let found = if looked { self.tracker.find_written(&mut at, look_first)? } else { Found::default() };
        let saved = self.save.begin(start + PAUSE_TIME_MAX);
        let copied = self.tracker.copy_found(&found, &mut epoch.pages).and_then(|pages| {
            if !looked {
                return Ok(pages);
            }
            Ok(pages + self.tracker.copy_written_until(&mut epoch.pages, &mut at, deadline)?.pages)
        });
        times.copied = start.elapsed();
        let is_whole = copied.is_ok() && (!looked || self.tracker.is_over(at));
        let marked = if is_whole { (order.at_stop)() } else { Ok(()) };
        // In any case: `cont` comes by another connection, and must not overtake this.
        let saved = saved.and_then(|saved| self.save.end(saved));
        times.devices_saved = start.elapsed();
        // First of all whether pages were lost.
        let mut pause_pages = copied?;
        marked.map_err(|source| CaptureError::AtStop { source })?;
        saved?;
        if !is_whole {
            return Ok(None);
        }
        reach(Step::ActiveDevicesSaved);
        if self.tracker.writes_since(before).map_err(scan_error)? == Writes::Possible {
            pause_pages += self.tracker.copy_written(&mut epoch.pages)?.pages;
        }
        self.read_state(&mut epoch.device_state)?;
        times.last_pass = start.elapsed();
        Ok(Some(Taken { pause_pages, looked, times }))
    }

    /// If not, the pass that began at that instant found everything, and none is needed: it takes time by the memory's size.
    fn may_have_written_since(&self, before_pass: Option<FaultCount>) -> Result<bool, PassError> {
        let Some(before) = before_pass else { return Ok(true) };
        Ok(self.tracker.processors_writes_since(before).map_err(scan_error)? == Writes::Possible)
    }

    fn read_state(&self, into: &mut Vec<u8>) -> Result<(), CaptureError> {
        let read_error = |source| CaptureError::ReadState { source };
        let file = self.tracker.memory().state_file();
        let length = file.metadata().map_err(read_error)?.len();
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes > DEVICE_STATE_BYTES_MAX {
            return Err(StateError::TooLong { bytes }.into());
        }
        into.resize(bytes, 0);
        file.read_exact_at(into, 0).map_err(read_error)?;
        Ok(check_state(into)?)
    }
}

/// How long QEMU may take to answer a new connection.
pub(super) const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
