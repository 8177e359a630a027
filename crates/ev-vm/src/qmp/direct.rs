//! A second connection to QEMU's control socket, for a thread that must hear each answer at once. It does not sleep on
//! the socket at first: a thread that does is woken on the processor that QEMU's main thread is busy on, and then hears
//! that `stop` was answered only when the next command is done too. It looks, and sleeps by a timer, which leaves it on
//! its own processor; to look without sleeping takes processor time from QEMU, and was slower.

use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::connection::LINE_BYTES_MAX;
use super::message::{Message, command_line, parse};
use super::{Event, QmpError};

/// How long QEMU takes to read a short command: it does so byte by byte, with some eight system calls each.
pub(crate) const READ_TIME: Duration = Duration::from_micros(200);
/// How long an answer is looked for again and again.
const LOOK_TIME_MAX: Duration = Duration::from_millis(20);
/// How often it is.
const LOOK_INTERVAL: Duration = Duration::from_micros(30);
/// How late a timer may wake this thread; the kernel's default is as long as the interval.
const TIMER_SLACK_NS: u64 = 1_000;
const READ_BYTES: usize = 16 << 10;

/// By which an answer is told to be a command's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommandId(u64);

#[derive(Debug)]
pub(crate) struct DirectQmp {
    stream: UnixStream,
    path: PathBuf,
    received: Vec<u8>,
    next_id: u64,
}

/// A command that waits for its answer, for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Awaited {
    pub id: CommandId,
    pub command: &'static str,
    pub time_max: Duration,
    pub deadline: Instant,
}

/// A line without what makes it a command.
fn most_of(line: &str) -> &str {
    line.trim_end().strip_suffix('}').unwrap_or(line)
}

impl DirectQmp {
    /// Connects and negotiates, within `time_max`.
    pub(crate) fn connect(path: &Path, time_max: Duration) -> Result<Self, QmpError> {
        let connect_error = |error: std::io::Error| QmpError::Connect { path: path.to_owned(), kind: error.kind() };
        let deadline = Instant::now() + time_max;
        let stream = UnixStream::connect(path).map_err(connect_error)?;
        stream.set_nonblocking(true).map_err(connect_error)?;
        let received = Vec::with_capacity(READ_BYTES);
        let mut qmp = Self { stream, path: path.to_owned(), received, next_id: 1 };
        match qmp.hear("greeting", deadline)? {
            Some(Message::Greeting) => {}
            Some(_) => return Err(QmpError::Protocol),
            None => return Err(QmpError::NoGreeting { path: path.to_owned(), waited: time_max }),
        }
        qmp.run("qmp_capabilities", json!({ "enable": ["oob"] }), time_max)?;
        Ok(qmp)
    }

    /// To be called on the thread that will use it.
    pub(crate) fn prepare_thread() {
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
            tracing::warn!(%error, "checkpoints' timers are late: could not set the timer slack");
        }
    }

    /// Runs one command.
    pub(crate) fn run(
        &mut self,
        command: &'static str,
        arguments: Value,
        time_max: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.write(command, &arguments)?;
        self.answer(Awaited { id, command, time_max, deadline: Instant::now() + time_max }, |_| {})
    }

    /// Forgets what QEMU said up to now: events of before.
    pub(crate) fn forget(&mut self) -> Result<(), QmpError> {
        while self.hear("events", Instant::now())?.is_some() {}
        Ok(())
    }

    fn number(&mut self) -> CommandId {
        let id = CommandId(self.next_id);
        self.next_id += 1;
        id
    }

    /// Writes a command, all of it.
    fn write(&mut self, command: &'static str, arguments: &Value) -> Result<CommandId, QmpError> {
        let id = self.number();
        self.put(&command_line(id.0, command, arguments), command)?;
        Ok(id)
    }

    /// Writes a command but for its last byte. QEMU takes some microseconds for each byte that it reads, so this is done
    /// while nobody waits. [`Self::finish`] is needed next, or [`Self::cancel`].
    pub(crate) fn write_most(&mut self, command: &'static str, arguments: &Value) -> Result<CommandId, QmpError> {
        let id = self.number();
        self.put(most_of(&command_line(id.0, command, arguments)), command)?;
        Ok(id)
    }

    /// Writes the last byte of a command, which QEMU then runs, and most of the next one.
    pub(crate) fn finish_and_write_most(&mut self, next: &'static str) -> Result<CommandId, QmpError> {
        let id = self.number();
        let line = command_line(id.0, next, &Value::Null);
        self.put(&format!("}}{}", most_of(&line)), next)?;
        Ok(id)
    }

    /// Writes the last byte of a command; QEMU runs it.
    pub(crate) fn finish(&mut self, command: &'static str) -> Result<(), QmpError> {
        self.put("}", command)
    }

    /// Makes the command that was begun one that QEMU does not know; it refuses it.
    pub(crate) fn cancel(&mut self, command: &'static str) -> Result<(), QmpError> {
        self.put(",\"cancel\":0}", command)
    }

    fn put(&mut self, text: &str, command: &str) -> Result<(), QmpError> {
        // A few hundred bytes into an empty socket: they fit, or QEMU is stuck.
        match self.stream.write(text.as_bytes()) {
            Ok(count) if count == text.len() => Ok(()),
            Ok(_) | Err(_) => Err(self.closed(command)),
        }
    }

    /// The answer to a command; what happens meanwhile goes to `event`.
    pub(crate) fn answer(&mut self, awaited: Awaited, mut event: impl FnMut(&Event)) -> Result<Value, QmpError> {
        let Awaited { id, command, time_max, deadline } = awaited;
        loop {
            match self.hear(command, deadline)? {
                Some(Message::Answer { id: answered, result }) if CommandId(answered) == id => {
                    return result.map_err(|refusal| QmpError::Refused {
                        command: command.to_owned(),
                        class: refusal.class,
                        description: refusal.desc,
                    });
                }
                Some(Message::Event(heard)) => event(&heard),
                // To a command that nobody waits for any more.
                Some(Message::Answer { .. } | Message::Greeting) => {}
                Some(Message::NotUnderstood(_)) => return Err(QmpError::Protocol),
                None => return Err(QmpError::TimedOut { command: command.to_owned(), waited: time_max }),
            }
        }
    }

    fn closed(&self, command: &str) -> QmpError {
        tracing::debug!(path = %self.path.display(), "the checkpoints' QMP connection ended");
        QmpError::Closed { command: command.to_owned() }
    }

    /// The next line; `None`: the time is over.
    fn hear(&mut self, command: &str, deadline: Instant) -> Result<Option<Message>, QmpError> {
        let look_until = Instant::now() + LOOK_TIME_MAX;
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let text = std::str::from_utf8(&line).map_err(|_| QmpError::Protocol)?;
                return parse(text.trim_end()).map(Some).ok_or(QmpError::Protocol);
            }
            if self.read(command)? {
                continue;
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            if now < look_until {
                std::thread::sleep(LOOK_INTERVAL);
            } else {
                self.sleep(deadline - now);
            }
        }
    }

    /// Whether anything came.
    fn read(&mut self, command: &str) -> Result<bool, QmpError> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(self.closed(command)),
            Ok(count) => {
                self.received.extend_from_slice(bytes.get(..count).unwrap_or_default());
                if self.received.len() > LINE_BYTES_MAX { Err(QmpError::Protocol) } else { Ok(true) }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(_) => Err(self.closed(command)),
        }
    }

    fn sleep(&self, time_max: Duration) {
        let fd = self.stream.as_fd();
        let time_max = Timespec::try_from(time_max).ok();
        // An error is met again, and told, by the next read.
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], time_max.as_ref());
    }
}
