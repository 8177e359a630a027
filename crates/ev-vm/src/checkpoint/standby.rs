//! A second QEMU that waits, without using any processor time, to continue a guest from a checkpoint.
//!
//! ```text
//!   prepare ──────► waiting ──────────────► loading ─────────────► running
//!    started with    │ memory is written     │ device state sent    QEMU says "completed", cont
//!    -S -incoming    │ from outside          │
//!    defer, listens  └── dropped, killed     └── refused: QEMU ends, its log says why
//! ```

use std::io;
use std::time::{Duration, Instant};

use ev_failpoint::{Step, reach};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::stream::{IncomingStream, StateError, incoming_stream};
use crate::accelerator::Accelerator;
use crate::guest::{Guest, StartError};
use crate::process::Exit;
use crate::qemu::Qemu;
use crate::qmp::{Event, EventKind, Qmp, QmpError};
use crate::ram::{GuestMemory, TrackError};
use crate::spec::{GuestPaths, GuestSpec, INCOMING_SOCKET, StartState};

/// How long the loading of a device state may take.
pub const LOAD_TIME_MAX: Duration = Duration::from_secs(10);

/// Why no QEMU waits.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PrepareError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// Why a guest could not be continued. It must not be tried again with the same QEMU.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RestoreError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("could not send the device state to the waiting QEMU: {source}; it said: {log}")]
    Send { source: io::Error, log: String },
    #[error("QEMU did not take the device state and ended ({exit}); it said: {log}; are both hosts' QEMU the same?")]
    Ended { exit: Exit, log: String },
    #[error("QEMU did not take the device state; it said: {log}; are both hosts' QEMU the same?")]
    Refused { log: String },
    #[error("QEMU did not load the device state within {} s; it said: {log}", LOAD_TIME_MAX.as_secs())]
    TimedOut { log: String },
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// How long a continuation took, each from its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ResumeTimes {
    pub sent: Duration,
    pub loaded: Duration,
    pub running: Duration,
}

/// A waiting QEMU.
#[derive(Debug)]
pub struct Standby {
    guest: Guest,
    qmp: Qmp,
    memory: GuestMemory,
    paths: GuestPaths,
    machine: String,
}

impl Standby {
    /// Starts one for the guest of `spec`, whose memory must be [`crate::Memory::Tracked`]; it waits whatever the
    /// spec's start state says.
    ///
    /// # Errors
    /// QEMU does not start, or its memory can't be tracked. None is left running then.
    pub async fn prepare(qemu: &Qemu, accelerator: &Accelerator, spec: &GuestSpec) -> Result<Self, PrepareError> {
        let mut spec = spec.clone();
        spec.start = StartState::Waiting;
        let guest = Guest::start(qemu, accelerator, &spec).await?;
        match Self::listen(&guest, &spec).await {
            Ok((qmp, memory)) => Ok(Self { guest, qmp, memory, paths: spec.paths, machine: spec.machine }),
            Err(error) => {
                if let Err(kill) = guest.kill() {
                    tracing::error!(pid = guest.pid(), %kill, "could not end a half-prepared QEMU; end it by hand");
                }
                Err(error)
            }
        }
    }

    async fn listen(guest: &Guest, spec: &GuestSpec) -> Result<(Qmp, GuestMemory), PrepareError> {
        let memory = GuestMemory::of_process(guest.pid())?;
        let qmp = guest.qmp().await?;
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        qmp.execute("migrate-set-capabilities", events).await?;
        tracing::debug!(vm = spec.name, "a waiting QEMU listens");
        qmp.execute("migrate-incoming", json!({ "uri": format!("unix:{INCOMING_SOCKET}") })).await?;
        Ok((qmp, memory))
    }

    /// Its memory, to be brought to the checkpoint's before [`Self::resume`].
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The QEMU that waits.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Loads the device state and lets the guest run.
    ///
    /// # Errors
    /// The guest does not run; QEMU may have ended, or must be ended.
    pub async fn resume(self, device_state: &[u8]) -> Result<(Guest, ResumeTimes), RestoreError> {
        let start = Instant::now();
        let mut times = ResumeTimes::default();
        let mut events = self.qmp.events();
        self.send(device_state).await?;
        times.sent = start.elapsed();
        match timeout(LOAD_TIME_MAX, loaded(&mut events)).await {
            Ok(Loaded::Completed) => {}
            Ok(Loaded::Failed) => return Err(RestoreError::Refused { log: self.guest.log_tail() }),
            Ok(Loaded::Closed) => {
                let exit = self.guest.exited().await;
                return Err(RestoreError::Ended { exit, log: self.guest.log_tail() });
            }
            Err(_) => return Err(RestoreError::TimedOut { log: self.guest.log_tail() }),
        }
        times.loaded = start.elapsed();
        reach(Step::TakeoverLoaded);
        self.qmp.cont().await?;
        times.running = start.elapsed();
        Ok((self.guest, times))
    }

    async fn send(&self, device_state: &[u8]) -> Result<(), RestoreError> {
        let IncomingStream { head, sections, tail } = incoming_stream(&self.machine, device_state)?;
        let write = async {
            let mut stream = UnixStream::connect(self.paths.incoming()).await?;
            stream.write_all(&head).await?;
            stream.write_all(sections).await?;
            stream.write_all(&tail).await?;
            stream.shutdown().await
        };
        let sent = timeout(LOAD_TIME_MAX, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match sent {
            Ok(()) => Ok(()),
            // It refused what came before; its own words say more.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            Err(source) => Err(RestoreError::Send { source, log: self.guest.log_tail() }),
        }
    }
}

enum Loaded {
    Completed,
    Failed,
    Closed,
}

async fn loaded(events: &mut broadcast::Receiver<Event>) -> Loaded {
    loop {
        match events.recv().await {
            Ok(Event { kind: EventKind::Other(name), data }) if name == "MIGRATION" => {
                match data.get("status").and_then(Value::as_str) {
                    Some("completed") => return Loaded::Completed,
                    Some("failed") => return Loaded::Failed,
                    Some(_) | None => {}
                }
            }
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Loaded::Closed,
        }
    }
}
