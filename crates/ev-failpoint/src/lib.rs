//! Steps of the checkpoint protocol at which a test can stop a program exactly, to kill, freeze or thaw its host there.
//!
//! A program is at a step when it calls [`reach`]. If its host's folder of failpoints (named by [`FOLDER_VARIABLE`]) has a file with
//! the step's name, the process takes that file and stops itself, all threads at once, as by SIGSTOP; [`Failpoint::reached`] finds its number
//! then. Only debug builds do so: in a release build a step is nothing.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, getpid, kill_process};

/// The environment variable with a host's folder of failpoints.
pub const FOLDER_VARIABLE: &str = "EVENKEEL_FAILPOINTS";

/// A step. In the order in which an epoch passes them, the active side's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The guest still runs; its pause is the next thing.
    ActiveBeforeStop,
    /// The guest stands still, and its devices are saved.
    ActiveDevicesSaved,
    /// The epoch's pages are sent, its end is not.
    ActiveSending,
    /// All of the epoch is sent.
    ActiveSent,
    /// The standby has confirmed the epoch; nothing is let out yet.
    ActiveConfirmed,
    /// What belongs to the epoch is let out.
    ActiveReleased,
    /// The whole memory is on its way to a new standby.
    ActiveFilling,
    /// A checkpoint is due, and has to wait for what is being sent.
    ActiveCaptureWaits,
    /// The standby holds the memory, and the record is to say so.
    ActiveJoining,
    /// A QEMU waits; the memory is to come.
    StandbyPrepared,
    /// A part of the whole memory came.
    StandbyFilling,
    /// A part of an epoch came.
    StandbyReceiving,
    /// An epoch came whole; nothing is decided.
    StandbyStaged,
    /// An epoch is decided; the active side does not know.
    StandbyConfirming,
    /// The active side was told.
    StandbyConfirmed,
    /// A part of an epoch's pages is in the image.
    StandbyApplying,
    /// A disk was told to apply the epoch.
    StandbyApplyingDisk,
    /// The record lets this host go on; nothing is done yet.
    TakeoverBegun,
    /// Everything decided is applied.
    TakeoverApplied,
    /// QEMU has loaded the devices' state; the guest does not run yet.
    TakeoverLoaded,
}

impl Step {
    fn name(self) -> String {
        format!("{self:?}")
    }
}

/// To be called where a program comes to this step.
pub fn reach(step: Step) {
    if cfg!(debug_assertions) {
        static FOLDER: OnceLock<Option<OsString>> = OnceLock::new();
        if let Some(folder) = FOLDER.get_or_init(|| std::env::var_os(FOLDER_VARIABLE)) {
            stop_if_armed(&Failpoint::new(folder, step));
        }
    }
}

fn stop_if_armed(failpoint: &Failpoint) {
    let pid = getpid();
    let taken = failpoint.armed.with_extension(pid.as_raw_nonzero().to_string());
    // Of several programs or threads at the same step one gets the file.
    if fs::rename(&failpoint.armed, &taken).is_err() {
        return;
    }
    let told =
        fs::write(&taken, pid.as_raw_nonzero().to_string()).and_then(|()| fs::rename(&taken, &failpoint.reached));
    if told.is_ok() {
        let _ = kill_process(pid, Signal::STOP);
    }
}

/// The test's view of one step on one host.
#[derive(Debug, Clone)]
pub struct Failpoint {
    armed: PathBuf,
    reached: PathBuf,
}

impl Failpoint {
    /// In that host's folder.
    #[must_use]
    pub fn new(folder: impl AsRef<Path>, step: Step) -> Self {
        let armed = folder.as_ref().join(step.name());
        Self { reached: armed.with_extension("reached"), armed }
    }

    /// The next program that comes to the step stops there.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn arm(&self) -> io::Result<()> {
        if let Some(folder) = self.armed.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::remove_file(&self.reached) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::write(&self.armed, "")
    }

    /// The process that has stopped there, and stands still.
    #[must_use]
    pub fn reached(&self) -> Option<Pid> {
        self.taken_by().filter(|pid| is_stopped(*pid))
    }

    /// The process that stops there, or has done so.
    fn taken_by(&self) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(&self.reached).ok()?.parse().ok()?)
    }

    /// Nobody stops there any more; who has stopped goes on.
    ///
    /// # Errors
    /// The process can't be told; one that is gone by now is none.
    pub fn disarm(&self) -> io::Result<()> {
        let _ = fs::remove_file(&self.armed);
        let Some(pid) = self.taken_by() else { return Ok(()) };
        fs::remove_file(&self.reached)?;
        match kill_process(pid, Signal::CONT) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Told to go on before that, a process would stop afterwards.
fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Run again as a child: comes to the step, then to its end.
    #[test]
    fn comes_to_a_step() {
        reach(Step::ActiveSent);
    }

    fn until(what: &str, look: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !look() {
            assert!(Instant::now() < deadline, "{what} did not come");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_stops_at_an_armed_step_once_and_goes_on_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let failpoint = Failpoint::new(folder.path(), Step::ActiveSent);
        let other = Failpoint::new(folder.path(), Step::ActiveSending);
        other.arm().unwrap();
        let run = || {
            let own = std::env::current_exe().unwrap();
            let arguments = ["--exact", "tests::comes_to_a_step"];
            Command::new(own).args(arguments).env(FOLDER_VARIABLE, folder.path()).spawn().unwrap()
        };
        assert!(run().wait().unwrap().success(), "not armed");
        failpoint.arm().unwrap();
        assert_eq!(failpoint.reached(), None);
        let mut child = run();
        until("the step", || failpoint.reached().is_some());
        let pid = failpoint.reached().unwrap();
        assert_eq!(pid.as_raw_nonzero().get(), i32::try_from(child.id()).unwrap());
        assert!(run().wait().unwrap().success(), "the one that was armed is taken");
        assert_eq!(child.try_wait().unwrap(), None, "it stands still");
        failpoint.disarm().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(other.reached(), None);
    }
}
