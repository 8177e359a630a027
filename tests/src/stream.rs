//! A client of the tiny guest that keeps one TCP connection whatever happens, and would see if anything on it were lost, doubled,
//! out of order or altered; it also looks at the guest's verification of its memory, over the same connection.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ev_lab::Lab;

use crate::client::{enter, namespace};
use crate::tiny::PORT;
use crate::wait::eventually;

/// Between two messages.
const MESSAGE_INTERVAL: Duration = Duration::from_millis(5);
/// Every so many messages the client asks for the guest's count of verified memory.
const MEMORY_EVERY: u64 = 20;
/// With more that were not answered, the client sends none: they would only wait in its own buffers.
const UNANSWERED_MAX: usize = 1_000;
/// The connection may be silent for so long; a guest that did not notice the death of its host is back far earlier.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Before another try at a guest that is still booting.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Answers whose latency is kept: more than an hour of them.
const TRACE_MAX: usize = 1_000_000;

/// What must not happen on a connection that nobody broke.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamFault {
    #[error("the connection was lost: {0}")]
    Lost(String),
    #[error("nothing came for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("{expected:?} was to come, and {found:?} came")]
    Answer { expected: String, found: String },
    #[error("the guest's memory went wrong: {0:?}")]
    BadMemory(MemoryCount),
    #[error("the guest went back in time: after {before:?} came {after:?}")]
    WentBack { before: MemoryCount, after: MemoryCount },
}

/// How far the guest's verification is, by its own count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryCount {
    pub threads: u64,
    /// Of the slowest thread.
    pub rounds: u64,
    pub pages: u64,
    pub bad_pages: u64,
}

/// When an answer came, and how long after its message.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// Since the stream's beginning.
    pub at: Duration,
    pub latency: Duration,
}

/// The client, on a thread of its own in the client's network.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<StreamReport>>,
}

#[derive(Debug, Default)]
struct Shared {
    asked: AtomicU64,
    answered: AtomicU64,
    stop: AtomicBool,
    memory: Mutex<MemoryCount>,
    fault: Mutex<Option<StreamFault>>,
    /// The longest silence so far, in microseconds.
    longest_gap_us: AtomicU64,
}

/// What a stream saw.
#[derive(Debug, Clone)]
pub struct StreamReport {
    /// Answers, each to the message of its number.
    pub answered: u64,
    pub memory: MemoryCount,
    /// The longest time without an answer: the blackout, as this client saw it.
    pub longest_gap: Duration,
    /// In order; those of the first hour and more.
    pub trace: Vec<Answered>,
}

impl StreamReport {
    /// The latency that so many percent of the answers did not exceed.
    pub fn latency(&self, percent: usize) -> Duration {
        let mut sorted: Vec<Duration> = self.trace.iter().map(|answer| answer.latency).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
    }
}

impl Stream {
    /// Connects to the tiny guest at that address as soon as it is there, once, and begins.
    pub fn start(lab: &Lab, address: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let address = SocketAddr::new(address.parse().expect("an address"), PORT);
        let (namespace, of_thread) = (namespace(lab), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            let connection = connect(&of_thread, address);
            connection.map(|connection| converse(&of_thread, connection)).unwrap_or_else(StreamReport::empty)
        });
        Self { shared, thread: Some(thread) }
    }

    /// Answers so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Acquire)
    }

    /// Waits until this client has asked anew, and has read what came before: called when nothing answers any more, its
    /// silence has begun when this returns.
    ///
    /// # Panics
    /// At once when something is wrong with the stream; or if it takes longer than `limit`.
    #[track_caller]
    pub fn wait_for_silence(&self, limit: Duration) {
        let asked = || self.shared.asked.load(Ordering::Acquire);
        // Before each question but the first of these, what has come was read.
        let wanted = asked() + 3;
        self.wait("questions", limit, || {
            let now = asked();
            if now >= wanted { Ok(()) } else { Err(format!("{} are missing", wanted - now)) }
        });
    }

    /// The newest count that this client has seen.
    pub fn memory(&self) -> MemoryCount {
        *self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest time without an answer since the last call of this.
    pub fn take_longest_gap(&self) -> Duration {
        Duration::from_micros(self.shared.longest_gap_us.swap(0, Ordering::AcqRel))
    }

    /// Waits for so many more answers.
    ///
    /// # Panics
    /// At once when something is wrong with the stream; or if it takes longer than `limit`.
    #[track_caller]
    pub fn wait_for_more(&self, count: u64, limit: Duration) {
        let wanted = self.answered() + count;
        self.wait(&format!("{count} more answers"), limit, || {
            let now = self.answered();
            if now >= wanted { Ok(()) } else { Err(format!("{} are missing", wanted - now)) }
        });
    }

    /// Waits until each of the guest's threads has gone over its memory so many times more.
    ///
    /// # Panics
    /// At once when something is wrong with the stream; or if it takes longer than `limit`.
    #[track_caller]
    pub fn wait_for_rounds(&self, count: u64, limit: Duration) {
        let wanted = self.memory().rounds + count;
        self.wait(&format!("{count} more rounds through the memory"), limit, || {
            let now = self.memory();
            if now.rounds >= wanted { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    #[track_caller]
    fn wait(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Result<(), String>) {
        eventually(what, limit, || {
            self.assert_unbroken();
            look()
        });
    }

    /// # Panics
    /// If anything was wrong so far.
    #[track_caller]
    pub fn assert_unbroken(&self) {
        if let Some(fault) = self.fault() {
            panic!("after {} answers: {fault}", self.answered());
        }
    }

    /// What was wrong, if anything was.
    pub fn fault(&self) -> Option<StreamFault> {
        self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the answers under way and stops.
    ///
    /// # Panics
    /// If anything was wrong.
    #[track_caller]
    pub fn stop(mut self) -> StreamReport {
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("stopped once");
        let report = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.assert_unbroken();
        report
    }
}

impl Drop for Stream {
    /// A failed test must not leave its client behind in a lab that goes down.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl StreamReport {
    fn empty() -> Self {
        Self { answered: 0, memory: MemoryCount::default(), longest_gap: Duration::ZERO, trace: Vec::new() }
    }
}

/// `None`: stopped before the guest was there.
fn connect(shared: &Shared, address: SocketAddr) -> Option<TcpStream> {
    while !shared.stop.load(Ordering::Acquire) {
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Ok(connection) => return Some(connection),
            Err(_) => std::thread::sleep(RETRY_PAUSE),
        }
    }
    None
}

fn converse(shared: &Shared, connection: TcpStream) -> StreamReport {
    let mut conversation = Conversation::new(shared, connection);
    if let Err(fault) = conversation.run() {
        *shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }
    conversation.report
}

/// An answer that has to come next.
struct Expected {
    sent: Instant,
    /// The whole line; `None`: the count of verified memory.
    line: Option<String>,
}

struct Conversation<'a> {
    shared: &'a Shared,
    connection: TcpStream,
    start: Instant,
    next_message: u64,
    next_at: Instant,
    expected: VecDeque<Expected>,
    /// Bytes that came and are no whole line yet.
    came: Vec<u8>,
    last_answer: Instant,
    report: StreamReport,
}

impl<'a> Conversation<'a> {
    fn new(shared: &'a Shared, connection: TcpStream) -> Self {
        let now = Instant::now();
        Self {
            shared,
            connection,
            start: now,
            next_message: 0,
            next_at: now,
            expected: VecDeque::new(),
            came: Vec::new(),
            last_answer: now,
            report: StreamReport::empty(),
        }
    }

    fn run(&mut self) -> Result<(), StreamFault> {
        self.connection.set_nodelay(true).map_err(lost)?;
        self.connection.set_write_timeout(Some(SILENCE_MAX)).map_err(lost)?;
        loop {
            let stopped = self.shared.stop.load(Ordering::Acquire);
            if stopped && self.expected.is_empty() {
                return Ok(());
            }
            if !stopped && Instant::now() >= self.next_at && self.expected.len() < UNANSWERED_MAX {
                self.send()?;
            }
            self.receive()?;
            if !self.expected.is_empty() && self.last_answer.elapsed() > SILENCE_MAX {
                return Err(StreamFault::Silent);
            }
        }
    }

    fn send(&mut self) -> Result<(), StreamFault> {
        if self.expected.is_empty() {
            // Nobody was waiting: a gap begins with a question.
            self.last_answer = Instant::now();
        }
        let (number, text) = (self.next_message.to_string(), text(self.next_message));
        let sum = checksum(&number, &text);
        let sent = Instant::now();
        let mut lines = format!("echo {number} {sum} {text}\n");
        let answer = format!("echo {number} {} {sum} {text}", self.next_message + 1);
        self.expected.push_back(Expected { sent, line: Some(answer) });
        if self.next_message.is_multiple_of(MEMORY_EVERY) {
            lines += "memory\n";
            self.expected.push_back(Expected { sent, line: None });
        }
        self.next_message += 1;
        // After a blackout not all that was left out is sent at once.
        self.next_at = sent.max(self.next_at) + MESSAGE_INTERVAL;
        self.connection.write_all(lines.as_bytes()).map_err(lost)?;
        self.shared.asked.store(self.next_message, Ordering::Release);
        Ok(())
    }

    /// Takes what comes until the next message is due.
    fn receive(&mut self) -> Result<(), StreamFault> {
        let pause = self.next_at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.connection.set_read_timeout(Some(pause)).map_err(lost)?;
        let mut bytes = [0; 16 << 10];
        let count = match self.connection.read(&mut bytes) {
            Ok(0) => return Err(StreamFault::Lost("the guest closed it".to_owned())),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(()),
            Err(error) => return Err(lost(error)),
        };
        self.came.extend_from_slice(&bytes[..count]);
        while let Some(end) = self.came.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.came.drain(..=end).collect();
            self.take(String::from_utf8_lossy(&line).trim_end())?;
        }
        Ok(())
    }

    fn take(&mut self, found: &str) -> Result<(), StreamFault> {
        let now = Instant::now();
        let gap = now - self.last_answer;
        self.last_answer = now;
        self.report.longest_gap = self.report.longest_gap.max(gap);
        let gap_us = u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
        self.shared.longest_gap_us.fetch_max(gap_us, Ordering::AcqRel);
        let wrong = |expected: &str| StreamFault::Answer { expected: expected.to_owned(), found: found.to_owned() };
        let expected = self.expected.pop_front().ok_or_else(|| wrong("nothing"))?;
        let Some(line) = expected.line else {
            return self.take_memory(MemoryCount::parse(found).ok_or_else(|| wrong("memory …"))?);
        };
        if found != line {
            return Err(wrong(&line));
        }
        self.report.answered += 1;
        if self.report.trace.len() < TRACE_MAX {
            self.report.trace.push(Answered { at: now - self.start, latency: now - expected.sent });
        }
        self.shared.answered.store(self.report.answered, Ordering::Release);
        Ok(())
    }

    fn take_memory(&mut self, after: MemoryCount) -> Result<(), StreamFault> {
        let before = std::mem::replace(&mut self.report.memory, after);
        *self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner) = after;
        if after.bad_pages > 0 {
            Err(StreamFault::BadMemory(after))
        } else if after.rounds < before.rounds || after.pages < before.pages {
            Err(StreamFault::WentBack { before, after })
        } else {
            Ok(())
        }
    }
}

fn lost(error: std::io::Error) -> StreamFault {
    StreamFault::Lost(error.to_string())
}

impl MemoryCount {
    /// `memory THREADS LOWEST-ROUND PAGES BAD-PAGES`
    fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.strip_prefix("memory ")?.split(' ').map_while(|word| word.parse().ok()).collect();
        let [threads, rounds, pages, bad_pages] = numbers[..] else { return None };
        Some(Self { threads, rounds, pages, bad_pages })
    }
}

/// A few dozen letters that are another message's only by chance.
fn text(number: u64) -> String {
    let mixed = |salt: u64| {
        (number ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    };
    format!("{:016x}{:016x}", mixed(1), mixed(2))
}

/// As in `guests/tiny/src/record.rs`.
fn checksum(number: &str, text: &str) -> u64 {
    let fold = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    number.bytes().chain(text.bytes()).fold(0xcbf2_9ce4_8422_2325, fold)
}
