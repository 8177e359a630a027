//! A client of QEMU's control socket (QMP): commands with time limits, and events.

mod connection;
mod direct;
mod message;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use connection::{Connection, Lines, REQUESTS_QUEUED_MAX, Request, lines};
pub(crate) use direct::{Awaited, CommandId, DirectQmp, READ_TIME};
use message::Message;
pub(crate) use message::run_state;

use crate::qemu::Version;

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
    /// The processors stand still; QEMU still waits for disk requests in flight, or for its own flush (the server
    /// withholds the answers), and does nothing else until they are answered.
    WaitingForDisks,
    /// QEMU has the command and says nothing. QEMU 9 and newer stop the processors, then wait for disk requests in
    /// flight, and only then tell; so that is most likely what it does. What follows the command (`cont`) is carried
    /// out after it.
    Unconfirmed,
}

/// A connection to one QEMU. Clones share it; it ends with the last one. QEMU serves one client at a time.
#[derive(Debug, Clone)]
pub struct Qmp {
    requests: mpsc::Sender<Request>,
    events: broadcast::WeakSender<Event>,
}

/// One disk's counters since QEMU started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DiskStatistics {
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_operations: u64,
    pub write_operations: u64,
    pub flush_operations: u64,
}

impl Qmp {
    /// Connects and negotiates, within `time_max`.
    ///
    /// # Errors
    /// Nobody listens, or no greeting came.
    pub async fn connect(path: &Path, time_max: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + time_max;
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| QmpError::Connect { path: path.to_owned(), kind: error.kind() })?;
        let (read, write) = stream.into_split();
        let mut lines = lines(read);
        match timeout_at(deadline, greeting(&mut lines)).await {
            Ok(result) => result?,
            Err(_) => return Err(QmpError::NoGreeting { path: path.to_owned(), waited: time_max }),
        }
        let (requests, receiver) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let (events, _) = broadcast::channel(EVENTS_QUEUED_MAX);
        let qmp = Self { requests, events: events.downgrade() };
        tokio::spawn(Connection::new(lines, write, events).run(receiver));
        let left = deadline.saturating_duration_since(Instant::now());
        qmp.execute_within(left, "qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Runs a command within [`COMMAND_TIME_MAX`]. No arguments: `Value::Null`.
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
        let deadline = Instant::now() + time_max;
        let answer = self.ask(deadline, command, arguments).await;
        wait_for(answer, deadline, time_max, command).await
    }

    /// Runs several commands, written in one go (QEMU still runs them one after the other). One result for each.
    pub async fn execute_all(&self, time_max: Duration, commands: &[(&str, Value)]) -> Vec<Result<Value, QmpError>> {
        let deadline = Instant::now() + time_max;
        let mut request = Vec::new();
        let mut answers = Vec::new();
        for (command, arguments) in commands {
            let (sender, receiver) = oneshot::channel();
            request.push((((*command).to_owned(), arguments.clone()), sender));
            answers.push((receiver, *command));
        }
        // If it is not sent, the senders are dropped with it, and each answer says so.
        let _ = timeout_at(deadline, self.requests.send(request)).await;
        let mut results = Vec::new();
        for (answer, command) in answers {
            results.push(wait_for(answer, deadline, time_max, command).await);
        }
        results
    }

    async fn ask(
        &self,
        deadline: Instant,
        command: &str,
        arguments: Value,
    ) -> oneshot::Receiver<Result<Value, QmpError>> {
        let (sender, receiver) = oneshot::channel();
        let request = vec![((command.to_owned(), arguments), sender)];
        // If it is not sent, the sender is dropped with it, and the receiver says so.
        let _ = timeout_at(deadline, self.requests.send(request)).await;
        receiver
    }

    /// Events from now on. Once the connection is lost, the receiver says so.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.events.upgrade() {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Returns when the connection is lost.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    /// Whether the connection is lost.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// State of the guest's processors.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn status(&self) -> Result<RunState, QmpError> {
        let answer = self.execute("query-status", Value::Null).await?;
        answer.get("status").and_then(Value::as_str).map(message::run_state).ok_or(QmpError::Protocol)
    }

    /// Version of the QEMU that runs, which need not be the one that is installed.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn version(&self) -> Result<Version, QmpError> {
        let answer = self.execute("query-version", Value::Null).await?;
        let qemu = answer.get("qemu").ok_or(QmpError::Protocol)?;
        let number = |key: &str| {
            let number = qemu.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
            number.ok_or(QmpError::Protocol)
        };
        Ok(Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
    }

    /// The host's threads that run the guest's processors; emulated ones share one.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn processor_threads(&self) -> Result<BTreeSet<u32>, QmpError> {
        let answer = self.execute("query-cpus-fast", Value::Null).await?;
        let thread = |processor: &Value| processor.get("thread-id")?.as_u64().and_then(|id| u32::try_from(id).ok());
        let threads = answer.as_array().ok_or(QmpError::Protocol)?.iter().map(thread);
        threads.collect::<Option<_>>().ok_or(QmpError::Protocol)
    }

    /// Stops the guest's processors. Returns as soon as they are known to stand still, and soon in any case.
    ///
    /// QEMU stops the processors first, then waits for its disks: for requests in flight, and for a flush that it sends
    /// each disk's server then, whether anything was written or not. It answers only after that. A disk server that
    /// withholds its answers (an AM without lease) therefore delays the answer, not the stop. QEMU before version 9
    /// tells of the stop by an event before it waits for anything; newer ones wait for requests in flight first, and
    /// tell before they flush.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn stop(&self) -> Result<Stopped, QmpError> {
        let mut events = self.events();
        let deadline = Instant::now() + COMMAND_TIME_MAX;
        let mut answer = self.ask(deadline, "stop", Value::Null).await;
        let stopped = async {
            loop {
                match events.recv().await {
                    Ok(Event { kind: EventKind::Stop, .. }) => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    // The answer will tell.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            biased;
            answer = wait_for(&mut answer, deadline, COMMAND_TIME_MAX, "stop") => return answer.map(|_| Stopped::Drained),
            () = stopped => {}
            () = tokio::time::sleep(STOP_SILENCE_TIME_MAX) => return Ok(Stopped::Unconfirmed),
        }
        match timeout(DRAIN_TIME_MAX, answer).await {
            Ok(Ok(answer)) => answer.map(|_| Stopped::Drained),
            Ok(Err(_)) => Err(QmpError::Closed { command: "stop".to_owned() }),
            Err(_) => Ok(Stopped::WaitingForDisks),
        }
    }

    /// Lets the guest's processors go on.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.execute("cont", Value::Null).await.map(drop)
    }

    /// Ends QEMU in an orderly way.
    ///
    /// # Errors
    /// As [`Self::execute`]; a connection closed instead of an answer is a success.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.execute("quit", Value::Null).await {
            Ok(_) | Err(QmpError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Presses the guest's power button (ACPI).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.execute("system_powerdown", Value::Null).await.map(drop)
    }

    /// Presses the guest's reset button.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.execute("system_reset", Value::Null).await.map(drop)
    }

    /// Has QEMU announce its NICs' addresses (RARP), and the guest too where its driver can
    /// (`VIRTIO_NET_F_GUEST_ANNOUNCE`): `rounds` times, the first after 50 ms, then 100 ms later each time.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn announce_self(&self, rounds: u32) -> Result<(), QmpError> {
        let arguments = json!({ "initial": 50, "max": 550, "rounds": rounds, "step": 100 });
        self.execute("announce-self", arguments).await.map(drop)
    }

    /// Counters of disk `index`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn disk_statistics(&self, index: usize) -> Result<DiskStatistics, QmpError> {
        let answer = self.execute("query-blockstats", Value::Null).await?;
        let node = crate::args::disk_node(index);
        let is_wanted = |disk: &&Value| disk.get("node-name").and_then(Value::as_str) == Some(node.as_str());
        let stats = answer
            .as_array()
            .and_then(|disks| disks.iter().find(is_wanted))
            .and_then(|disk| disk.get("stats"))
            .ok_or(QmpError::Protocol)?;
        let number = |key: &str| stats.get(key).and_then(Value::as_u64).unwrap_or_default();
        Ok(DiskStatistics {
            read_bytes: number("rd_bytes"),
            write_bytes: number("wr_bytes"),
            read_operations: number("rd_operations"),
            write_operations: number("wr_operations"),
            flush_operations: number("flush_operations"),
        })
    }
}

/// How long [`Qmp::stop`] waits for disks once the processors are known to stand still, before it returns
/// [`Stopped::WaitingForDisks`].
pub const DRAIN_TIME_MAX: Duration = Duration::from_millis(100);

/// How long [`Qmp::stop`] waits for any word of QEMU before it returns [`Stopped::Unconfirmed`].
pub const STOP_SILENCE_TIME_MAX: Duration = Duration::from_millis(500);

async fn greeting(lines: &mut Lines) -> Result<(), QmpError> {
    match lines.next().await {
        Some(Ok(line)) if message::parse(&line) == Some(Message::Greeting) => Ok(()),
        Some(_) => Err(QmpError::Protocol),
        None => Err(QmpError::Closed { command: "greeting".to_owned() }),
    }
}

async fn wait_for(
    answer: impl Future<Output = Result<Result<Value, QmpError>, oneshot::error::RecvError>>,
    deadline: Instant,
    waited: Duration,
    command: &str,
) -> Result<Value, QmpError> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(QmpError::Closed { command: command.to_owned() }),
        Err(_) => Err(QmpError::TimedOut { command: command.to_owned(), waited }),
    }
}
