//! A client of QEMU's control socket (QMP): commands with time limits, and events.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast;

/// How long a command may take unless said otherwise.
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(10);
/// Events that a subscriber may lag behind; it then misses the oldest (`RecvError::Lagged`).
pub const EVENTS_QUEUED_MAX: usize = 256;

/// Why a command failed.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs)]
pub enum QmpError {
    #[error("could not connect to QEMU at {}: {kind}; is the guest running?", path.display())]
    Connect { path: PathBuf, kind: std::io::ErrorKind },
    #[error("no QMP greeting from {} within {} ms; another client may hold the socket", path.display(), waited.as_millis())]
    NoGreeting { path: PathBuf, waited: Duration },
    #[error("{command}: no answer within {} ms; it may still be carried out", waited.as_millis())]
    TimedOut { command: String, waited: Duration },
    #[error("{command}: QEMU refused it: {description} ({class})")]
    Refused { command: String, class: String, description: String },
    #[error("{command}: QEMU closed the connection; whether it was carried out is not known")]
    Closed { command: String },
    #[error("QEMU sent something that is not QMP; end it and start the guest anew")]
    Protocol,
}

/// State of the guest's processors (QEMU's `RunState`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// They run.
    Running,
    /// Stopped by `stop`, or not started yet (`-S`).
    Paused,
    /// The guest has shut itself down.
    Shutdown,
    /// Stopped by a disk error (`werror=stop`).
    IoError,
    /// The guest's kernel gave up.
    GuestPanicked,
    /// QEMU or KVM can't go on.
    InternalError,
    /// Any other, by QEMU's name.
    Other(String),
}

/// Why QEMU ends or has ended the guest (QEMU's `ShutdownCause`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShutdownReason {
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest asked for a reset where resets end it.
    GuestReset,
    /// The guest's kernel gave up.
    GuestPanic,
    /// `quit`.
    HostQmpQuit,
    /// SIGTERM, SIGINT or SIGHUP.
    HostSignal,
    /// Any other, by QEMU's name.
    Other(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The guest is being ended; QEMU exits next.
    Shutdown(ShutdownReason),
    /// The guest was asked to power down.
    Powerdown,
    /// The guest was reset.
    Reset,
    /// Its processors stopped.
    Stop,
    /// Its processors go on.
    Resume,
    /// A disk failed; with `stopped` the guest's processors were stopped for it.
    #[allow(missing_docs)]
    BlockIoError { device: String, operation: String, stopped: bool, reason: String },
    /// The guest's kernel gave up.
    GuestPanicked,
    /// A NIC's socket got a client.
    NicConnected(String),
    /// A NIC's socket lost its client.
    NicDisconnected(String),
    /// Any other, by QEMU's name.
    Other(String),
}

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// All that QEMU said of it.
    pub data: Value,
}

/// How [`Qmp::stop`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The processors stand still, and no disk request is in flight.
    Drained,
    /// The processors stand still; QEMU still waits for disk requests in flight (their server withholds the answers)
    /// and does nothing else until they are answered.
    WaitingForDisks,
}

/// A connection to one QEMU. Clones share it. QEMU serves one client at a time.
#[derive(Debug, Clone)]
pub struct Qmp {}

impl Qmp {
    /// Connects and negotiates, within `time_max`.
    ///
    /// # Errors
    /// Nobody listens, or no greeting came.
    pub async fn connect(path: &Path, time_max: Duration) -> Result<Self, QmpError> {
        let _ = (path, time_max);
        unimplemented!()
    }

    /// Runs a command within [`COMMAND_TIME_MAX`].
    ///
    /// # Errors
    /// QEMU refused, did not answer in time, or is gone.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(COMMAND_TIME_MAX, command, arguments).await
    }

    /// Runs a command within `time_max`.
    ///
    /// # Errors
    /// QEMU refused, did not answer in time, or is gone.
    pub async fn execute_within(&self, time_max: Duration, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let _ = (time_max, command, arguments);
        unimplemented!()
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        unimplemented!()
    }

    /// Returns when the connection is lost.
    pub async fn closed(&self) {
        unimplemented!()
    }

    /// State of the guest's processors.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn status(&self) -> Result<RunState, QmpError> {
        unimplemented!()
    }

    /// Stops the guest's processors. Returns as soon as they stand still, even if disk requests are in flight.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn stop(&self) -> Result<Stopped, QmpError> {
        unimplemented!()
    }

    /// Lets the guest's processors go on.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn cont(&self) -> Result<(), QmpError> {
        unimplemented!()
    }

    /// Ends QEMU in an orderly way.
    ///
    /// # Errors
    /// As [`Self::execute`]; a connection closed instead of an answer is a success.
    pub async fn quit(&self) -> Result<(), QmpError> {
        unimplemented!()
    }

    /// Presses the guest's power button (ACPI).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        unimplemented!()
    }

    /// Presses the guest's reset button.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        unimplemented!()
    }
}
