//! A running guest: its QEMU process, from start to end.
//!
//! ```text
//!            start: lock qemu.pid, fork, exec, QMP answers
//!   absent ───────────────────────────────────────────────► running ──► ended
//!      ▲                                                     ▲   │        lock gone, pidfd readable
//!      └── attach: qemu.pid not locked      attach: locked ──┘   └── quit, kill, guest's own shutdown, a crash
//! ```
//!
//! QEMU outlives whoever started it. The lock on `qemu.pid` is QEMU's own (an inherited descriptor), so it can't be
//! stale, and the process id in the file is QEMU's as long as the lock is held.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::accelerator::Accelerator;
pub use crate::launch::{AllowError, allow_connect};
use crate::launch::{is_locked, launch, read_pid};
pub use crate::process::Exit;
use crate::process::Process;
use crate::qemu::{ProbeError, Qemu, Version};
use crate::qmp::{Qmp, QmpError};
use crate::spec::{GuestPaths, GuestSpec};
use crate::user::UserError;

/// How long QEMU may take from its start to its first QMP answer, disks connected.
pub const START_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a connection to the QMP of a running QEMU may take.
pub const QMP_CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// How often a starting QEMU is asked.
const START_ASK_INTERVAL: Duration = Duration::from_millis(10);
/// How often the logs' lengths are looked at.
const LOG_LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error("a QEMU of this VM already runs (process {pid}); take it up or end it first")]
    AlreadyRuns { pid: u32 },
    #[error("{what} {}: {source}; QEMU needs it", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} can't be read by QEMU's user; make it readable for everyone (chmod a+r)", path.display())]
    NotReadable { path: PathBuf },
    #[error("{} is too long or not text; a socket's path has at most 107 bytes: use a shorter folder", path.display())]
    SocketPath { path: PathBuf },
    #[error("{disks} disks and {nics} NICs are too many; at most 16 and 8: take some away")]
    TooManyDevices { disks: usize, nics: usize },
    #[error("the memory file has {file_bytes} bytes, the guest {guest_bytes}; they must be the same")]
    MemorySize { file_bytes: u64, guest_bytes: u64 },
    #[error(transparent)]
    User(#[from] UserError),
    #[error("no UEFI firmware that fits was found on this host; install it (Debian: apt install ovmf)")]
    NoFirmware,
    #[error(
        "QEMU {version} on this host has no machine type {machine}; install the version that the VM was made with, or a newer one"
    )]
    NoMachine { version: Version, machine: String },
    #[error("QEMU {version} on this host has no processor model {model}; choose one that all hosts have")]
    NoProcessorModel { version: Version, model: String },
    #[error("could not run {}: {source}; install QEMU, or correct the path", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("could not watch QEMU's process: {source}; it was not left running")]
    Watch { source: io::Error },
    #[error("QEMU ended at its start ({exit}); it said: {log}")]
    Ended { exit: Exit, log: String },
    #[error("QEMU did not answer ({source}) and was ended; it said: {log}; are the VM's disks being served?")]
    NoAnswer { source: QmpError, log: String },
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Ends a QEMU whose start did not come to its end.
struct KillOnDrop(Option<Arc<Process>>);

impl KillOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(process) = &self.0 else { return };
        if let Err(error) = process.kill() {
            tracing::error!(pid = process.pid(), %error, "could not end a half-started QEMU; end it by hand");
        }
    }
}

/// Why a running guest could not be taken up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AttachError {
    #[error("could not read {}: {source}; whether a QEMU runs is not known", path.display())]
    PidFile { path: PathBuf, source: io::Error },
    #[error("{} is locked by a live process but holds no process id; find that process (fuser) and end it", path.display())]
    NoPid { path: PathBuf },
    #[error("could not watch process {pid}: {source}")]
    Watch { pid: u32, source: io::Error },
}

/// A running QEMU. Clones share it. Dropping all of them leaves QEMU running.
#[derive(Debug, Clone)]
pub struct Guest {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    process: Arc<Process>,
    paths: GuestPaths,
    qmp: Mutex<Option<Qmp>>,
    /// Length of QEMU's log before this QEMU was started.
    log_start: u64,
}

impl Guest {
    /// Starts QEMU and returns when its QMP answers.
    ///
    /// # Errors
    /// Anything that keeps QEMU from running; then none is left running. Nor is one if the future is dropped.
    pub async fn start(qemu: &Qemu, accelerator: &Accelerator, spec: &GuestSpec) -> Result<Self, StartError> {
        let info = qemu.probe().await?;
        if !info.machines.contains(&spec.machine) {
            return Err(StartError::NoMachine { version: info.version, machine: spec.machine.clone() });
        }
        if !info.cpu_models.contains(&spec.cpu_model) {
            return Err(StartError::NoProcessorModel { version: info.version, model: spec.cpu_model.clone() });
        }
        let log_start = crate::log::length(&spec.paths.log());
        let pid = launch(qemu, info.version, accelerator, spec)?;
        let process = Process::watch(pid).map_err(|source| {
            Process::kill_unwatched_child(pid);
            StartError::Watch { source }
        })?;
        let process = Arc::new(process);
        let shared = Shared { process, paths: spec.paths.clone(), qmp: Mutex::new(None), log_start };
        let guest = Self { shared: Arc::new(shared) };
        let unfinished = KillOnDrop(Some(Arc::clone(&guest.shared.process)));
        guest.answers().await?;
        unfinished.disarm();
        guest.tend_logs();
        Ok(guest)
    }

    /// Takes up the QEMU that an earlier process started in these folders; `None` if none runs.
    ///
    /// # Errors
    /// One runs, or may run, but can't be watched.
    pub async fn attach(paths: &GuestPaths) -> Result<Option<Self>, AttachError> {
        let path = paths.pid_file();
        let locked = || is_locked(&path).map_err(|source| AttachError::PidFile { path: path.clone(), source });
        if !locked()? {
            return Ok(None);
        }
        let pid = read_pid(&path).ok_or_else(|| AttachError::NoPid { path: path.clone() })?;
        let process = Process::watch(pid).map_err(|source| AttachError::Watch { pid, source });
        // If the lock is still held now, the process behind the pidfd is the one that holds it.
        if !locked()? {
            return Ok(None);
        }
        let shared = Shared { process: Arc::new(process?), paths: paths.clone(), qmp: Mutex::new(None), log_start: 0 };
        let guest = Self { shared: Arc::new(shared) };
        guest.tend_logs();
        Ok(Some(guest))
    }

    /// Waits for QEMU's first answer. If there is none, QEMU is ended.
    async fn answers(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + START_TIME_MAX;
        let error = loop {
            tokio::select! {
                biased;
                exit = self.exited() => return Err(StartError::Ended { exit, log: self.log_tail() }),
                qmp = self.qmp_within(deadline.saturating_duration_since(Instant::now())) => match qmp {
                    Ok(_) => return Ok(()),
                    Err(QmpError::Connect { .. }) if Instant::now() < deadline => sleep(START_ASK_INTERVAL).await,
                    Err(error) => break error,
                }
            }
        };
        // It may be ending by itself, and then says more in its exit code and log.
        if let Ok(exit) = timeout(Duration::from_millis(200), self.exited()).await {
            return Err(StartError::Ended { exit, log: self.log_tail() });
        }
        if let Err(source) = self.kill() {
            return Err(StartError::Watch { source });
        }
        self.exited().await;
        Err(StartError::NoAnswer { source: error, log: self.log_tail() })
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.process.pid()
    }

    /// Its files and sockets.
    #[must_use]
    pub fn paths(&self) -> &GuestPaths {
        &self.shared.paths
    }

    /// A QMP connection; the present one if it lives, else a new one.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn qmp(&self) -> Result<Qmp, QmpError> {
        self.qmp_within(QMP_CONNECT_TIME_MAX).await
    }

    async fn qmp_within(&self, time_max: Duration) -> Result<Qmp, QmpError> {
        let mut present = self.shared.qmp.lock().await;
        if let Some(qmp) = present.as_ref().filter(|qmp| !qmp.is_closed()) {
            return Ok(qmp.clone());
        }
        let qmp = Qmp::connect(&self.shared.paths.qmp(), time_max).await?;
        *present = Some(qmp.clone());
        Ok(qmp)
    }

    /// Returns when QEMU has ended.
    pub async fn exited(&self) -> Exit {
        self.shared.process.exited().await
    }

    /// Ends QEMU at once (SIGKILL). [`Self::exited`] tells when it is gone.
    ///
    /// # Errors
    /// Not permitted; a process that is gone already is no error.
    pub fn kill(&self) -> io::Result<()> {
        self.shared.process.kill()
    }

    /// The last lines of QEMU's log, joined.
    #[must_use]
    pub fn log_tail(&self) -> String {
        crate::log::tail(&self.shared.paths.log(), self.shared.log_start)
    }

    /// Keeps the logs short for as long as QEMU lives and this process watches it.
    fn tend_logs(&self) {
        let process = Arc::clone(&self.shared.process);
        let logs = [self.shared.paths.log(), self.shared.paths.serial_log()];
        tokio::spawn(async move {
            let mut looks = interval(LOG_LOOK_INTERVAL);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = process.exited() => return,
                    _ = looks.tick() => {}
                }
                for path in &logs {
                    if let Err(error) = crate::log::bound(path) {
                        tracing::warn!(path = %path.display(), %error, "could not cut a log of QEMU");
                    }
                }
            }
        });
    }
}
