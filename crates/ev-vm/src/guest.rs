//! A running guest: its QEMU process, from start to end.

use std::path::{Path, PathBuf};

use crate::accelerator::Accelerator;
use crate::qemu::Qemu;
use crate::qmp::{Qmp, QmpError};
use crate::spec::{GuestPaths, GuestSpec};

/// How QEMU ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited by itself with this code; 0 after `quit` and after the guest switched itself off.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It was started by an earlier process, so the kernel does not tell.
    Unknown,
}

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error("a QEMU of this VM already runs (process {pid}); take it up or end it first")]
    AlreadyRuns { pid: u32 },
    #[error("{what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the user {0} does not exist; create it (adduser --system) or name another one for QEMU")]
    NoUser(String),
    #[error("QEMU must not run as root; name an unprivileged user for it")]
    RootUser,
    #[error("no UEFI firmware at {}; install it (Debian: apt install ovmf)", looked_for.display())]
    NoFirmware { looked_for: PathBuf },
    #[error("this QEMU ({version}) has no machine type {machine}; the VM's hosts need one that has it")]
    NoMachine { version: crate::Version, machine: String },
    #[error("could not run {}: {source}", program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("QEMU ended at once ({exit:?}); the last it said: {log}")]
    Ended { exit: Exit, log: String },
    #[error("QEMU did not answer ({source}) and was ended; the last it said: {log}")]
    NoAnswer { source: QmpError, log: String },
    #[error(transparent)]
    Probe(#[from] crate::qemu::ProbeError),
}

/// Why a running guest could not be taken up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AttachError {
    #[error("could not read {}: {source}", path.display())]
    PidFile { path: PathBuf, source: std::io::Error },
    #[error("{} is locked by a live process but holds no process id; end that process (fuser {0})", path.display())]
    NoPid { path: PathBuf },
    #[error("could not watch process {pid}: {source}")]
    Watch { pid: u32, source: std::io::Error },
}

/// A running QEMU process. Dropping this leaves QEMU running.
#[derive(Debug)]
pub struct Guest {}

impl Guest {
    /// Starts QEMU and returns when its QMP answers.
    ///
    /// # Errors
    /// Anything that keeps QEMU from running; then none is left running.
    pub async fn start(qemu: &Qemu, accelerator: &Accelerator, spec: &GuestSpec) -> Result<Self, StartError> {
        let _ = (qemu, accelerator, spec);
        unimplemented!()
    }

    /// Takes up the QEMU that an earlier process started in these folders; `None` if none runs.
    ///
    /// # Errors
    /// One runs, but can't be watched.
    pub async fn attach(paths: &GuestPaths) -> Result<Option<Self>, AttachError> {
        let _ = paths;
        unimplemented!()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        unimplemented!()
    }

    /// A QMP connection; the present one if it lives, else a new one.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn qmp(&self) -> Result<Qmp, QmpError> {
        unimplemented!()
    }

    /// Returns when QEMU has ended. Also keeps its logs within their limits, so keep it polled.
    pub async fn exited(&self) -> Exit {
        unimplemented!()
    }

    /// Ends QEMU at once (SIGKILL). [`Self::exited`] tells when it is gone.
    ///
    /// # Errors
    /// Not permitted; a process that is gone already is no error.
    pub fn kill(&self) -> std::io::Result<()> {
        unimplemented!()
    }

    /// The last lines of QEMU's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        unimplemented!()
    }
}

/// Lets QEMU's user connect to the unix socket at `path` (of an NBD server), and no other one.
///
/// # Errors
/// No such user, or ownership can't be changed.
pub fn allow_connect(path: &Path, user: &str) -> Result<(), StartError> {
    let _ = (path, user);
    unimplemented!()
}
