//! A process held by its pidfd: watched, signalled and, where it is our child, reaped, with no danger of meeting
//! another process that got the same number. One of the files that may hold unsafe code.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;
use tokio::sync::OnceCell;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited by itself with this code. QEMU: 0 after `quit` and after the guest switched itself off.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It was started by an earlier process of ours, so the kernel does not tell.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("exit code not known"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    exit: OnceCell<Exit>,
}

impl Process {
    /// Holds the process that has this number now. Fails if there is none.
    pub(crate) fn watch(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        // SAFETY: an `OwnedFd` is always open and always the same descriptor, and this one is given to nobody else.
        // The safe constructor is deprecated, for types of which that is not true.
        let pidfd = unsafe { AsyncFd::register(pidfd) }.map_err(io::Error::from)?;
        Ok(Self { pid, pidfd, exit: OnceCell::new() })
    }

    /// Ends and reaps a child of ours for which [`Self::watch`] failed. As nobody has reaped it, the number is its own.
    pub(crate) fn kill_unwatched_child(pid: u32) {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
        let killed = rustix::process::kill_process(raw, Signal::KILL);
        let reaped = waitid(WaitId::Pid(raw), WaitIdOptions::EXITED);
        if killed.is_err() || reaped.is_err() {
            tracing::error!(pid, ?killed, ?reaped, "could not end a child process; end it by hand");
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns when it has ended.
    pub(crate) async fn exited(&self) -> Exit {
        *self.exit.get_or_init(|| self.reap()).await
    }

    async fn reap(&self) -> Exit {
        // A pidfd becomes readable when its process ends, and stays so.
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(pid = self.pid, %error, "can't watch a process any more");
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            // Not our child: init reaps it.
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }

    /// Ends it at once. One that is gone already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
