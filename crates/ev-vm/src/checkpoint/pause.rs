//! What the capture's thread does: passes, and the pause. One owner, no lock; it blocks.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ev_failpoint::{Step, reach};
use serde_json::{Value, json};

use super::capture::{AtStop, CaptureError, Checkpoint, EpochBuffer, NotTaken, PAUSE_TIME_MAX, PauseTimes};
use super::stream::{DEVICE_STATE_BYTES_MAX, StateError, check_state};
use crate::qmp::{Awaited, DirectQmp, EventKind, QmpError, READ_TIME, run_state};
use crate::ram::{PartlyDone, PassError, PassReport, RamTracker, Writes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// All written pages were handed out, or are still noted by the kernel.
    Whole,
    /// A pass or checkpoint did not come to its end.
    Lost,
}

#[derive(Debug)]
pub(super) struct Checkpointer {
    qmp: DirectQmp,
    tracker: Arc<RamTracker>,
    completeness: Completeness,
}

/// What a pause found, beside what it put into the buffer.
struct Taken {
    pause_pages: u32,
    times: PauseTimes,
}

impl Checkpointer {
    pub(super) fn new(qmp: DirectQmp, tracker: Arc<RamTracker>) -> Self {
        Self { qmp, tracker, completeness: Completeness::Whole }
    }

    /// What was handed out reached nobody.
    pub(super) fn lost(&mut self) {
        self.completeness = Completeness::Lost;
    }

    fn begin(&mut self) -> Result<(), CaptureError> {
        match std::mem::replace(&mut self.completeness, Completeness::Lost) {
            Completeness::Whole => Ok(()),
            Completeness::Lost => Err(CaptureError::Incomplete),
        }
    }

    pub(super) fn precopy(&mut self, epoch: &mut EpochBuffer) -> Result<PassReport, CaptureError> {
        self.begin()?;
        let report = self.tracker.copy_written(&mut epoch.pages)?;
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
        let stop = self.qmp.write_most("stop")?;
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
        let cont = self.qmp.write_most("cont")?;
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
        let taken = self.begin().and_then(|()| self.pause(&mut epoch, copying_max, at_stop));
        match taken {
            Ok(Taken { pause_pages, times }) => {
                self.completeness = Completeness::Whole;
                Ok(Checkpoint { epoch, pause_pages, times })
            }
            Err(error @ (CaptureError::Pass(_) | CaptureError::Incomplete)) => Err(NotTaken { error, epoch: None }),
            // Whatever else failed: each page that was written is in the buffer, or still noted by the kernel.
            Err(error) => {
                self.completeness = Completeness::Whole;
                Err(NotTaken { error, epoch: Some(Box::new(epoch)) })
            }
        }
    }

    fn pause(
        &mut self,
        epoch: &mut EpochBuffer,
        copying_max: Option<Duration>,
        at_stop: &AtStop,
    ) -> Result<Taken, CaptureError> {
        self.qmp.forget()?;
        // While the guest still runs; `cont` is written likewise while QEMU saves its devices.
        let stop = self.qmp.write_most("stop")?;
        std::thread::sleep(READ_TIME);
        let start = Instant::now();
        let awaited = |id, command| Awaited { id, command, time_max: PAUSE_TIME_MAX, deadline: start + PAUSE_TIME_MAX };
        let save = json!({ "filename": self.tracker.memory().state_path(), "live": false });
        let (save, cont) = self.qmp.finish_and_write(("xen-save-devices-state", &save), "cont")?;
        let saved = awaited(save, "xen-save-devices-state");
        // QEMU says so before it answers, and only if the guest ran.
        let mut heard_stop = false;
        let stopped = self.qmp.answer(awaited(stop, "stop"), |event| heard_stop |= event.kind == EventKind::Stop);
        if stopped.is_ok() && !heard_stop {
            return Err(self.was_not_running(saved)?);
        }
        let taken = match stopped {
            Ok(_) => self.take(epoch, copying_max, at_stop, saved, start),
            Err(error) => Err(error.into()),
        };
        // In any case: also a `stop` that was not answered will be carried out, and this after it.
        self.qmp.finish("cont")?;
        let deadline = Instant::now() + PAUSE_TIME_MAX;
        let running = self.qmp.answer(Awaited { deadline, ..awaited(cont, "cont") }, |_| {});
        let taken = taken?;
        running?;
        let stood_still = start.elapsed();
        let mut taken = taken.ok_or(CaptureError::TooMuch { stood_still })?;
        taken.times.running = stood_still;
        Ok(taken)
    }

    /// The state that was saved is no checkpoint then: the guest's last instant was before this.
    fn was_not_running(&mut self, saved: Awaited) -> Result<CaptureError, CaptureError> {
        self.qmp.answer(saved, |_| {})?;
        self.qmp.cancel("cont")?;
        self.not_running()
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
        copying_max: Option<Duration>,
        at_stop: &AtStop,
        saved: Awaited,
        start: Instant,
    ) -> Result<Option<Taken>, CaptureError> {
        let scan_error = |source| PassError::Scan { source };
        let mut times = PauseTimes { stopped: start.elapsed(), ..PauseTimes::default() };
        let before = self.tracker.now().map_err(scan_error)?;
        let deadline = copying_max.map(|time| Instant::now() + time);
        let mut at = PartlyDone::default();
        let mut pause_pages = self.tracker.copy_written_until(&mut epoch.pages, &mut at, deadline)?.pages;
        times.copied = start.elapsed();
        if !self.tracker.is_over(at) {
            self.qmp.answer(saved, |_| {})?;
            return Ok(None);
        }
        at_stop().map_err(|source| CaptureError::AtStop { source })?;
        self.qmp.answer(saved, |_| {})?;
        reach(Step::ActiveDevicesSaved);
        times.devices_saved = start.elapsed();
        if self.tracker.writes_since(before).map_err(scan_error)? == Writes::Possible {
            pause_pages += self.tracker.copy_written(&mut epoch.pages)?.pages;
        }
        self.read_state(&mut epoch.device_state)?;
        times.last_pass = start.elapsed();
        Ok(Some(Taken { pause_pages, times }))
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
