//! A client that goes on writing numbered things while hosts die, and knows what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ev_lab::Lab;

use crate::client::{ClientError, enter, namespace};
use crate::wait::eventually;

/// Before another try at a service that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A guest's service, on one connection.
pub trait Service: Sized {
    /// Returns when number `number` is stored for good. Asked again with the same number if the answer was lost.
    fn write(&mut self, number: u64) -> Result<(), ClientError>;

    /// Which of the numbers below `acknowledged` are not there.
    fn missing(&mut self, acknowledged: u64) -> Result<Vec<u64>, ClientError>;
}

/// Writes 0, 1, 2, … in the client's network until it is stopped; each number until it is acknowledged.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<LoadReport>>,
}

#[derive(Debug, Default)]
struct Shared {
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// What a load saw.
#[derive(Debug, Clone)]
pub struct LoadReport {
    /// All numbers below this one were acknowledged; this one perhaps not.
    pub acknowledged: u64,
    /// The longest time between two acknowledgements, and the number at its end.
    pub longest_gap: Duration,
    pub longest_gap_before: u64,
    /// How often the connection was lost.
    pub reconnects: u64,
}

impl Load {
    /// Starts writing at number `first`.
    pub fn start<S: Service>(
        lab: &Lab,
        first: u64,
        connect: impl Fn() -> Result<S, ClientError> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { acknowledged: AtomicU64::new(first), ..Shared::default() });
        let (namespace, of_thread) = (namespace(lab), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            write_on(&of_thread, &connect)
        });
        Self { shared, thread: Some(thread) }
    }

    /// All numbers below this one were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until `count` more were acknowledged.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    #[track_caller]
    pub fn wait_for_more(&self, count: u64, limit: Duration) {
        let wanted = self.acknowledged() + count;
        eventually(&format!("{count} more acknowledged writes"), limit, || {
            let now = self.acknowledged();
            if now >= wanted { Ok(()) } else { Err(format!("{} are missing", wanted - now)) }
        });
    }

    /// Stops after the write under way, or gives that one up.
    ///
    /// # Panics
    /// If the writing thread did.
    pub fn stop(mut self) -> LoadReport {
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("stopped once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Load {
    /// A failed test must not leave its load behind in a lab that goes down.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn write_on<S: Service>(shared: &Shared, connect: &impl Fn() -> Result<S, ClientError>) -> LoadReport {
    let mut service: Option<S> = None;
    let mut last = Instant::now();
    let first = shared.acknowledged.load(Ordering::Acquire);
    let mut report =
        LoadReport { acknowledged: first, longest_gap: Duration::ZERO, longest_gap_before: first, reconnects: 0 };
    while !shared.stop.load(Ordering::Acquire) {
        let Some(connection) = service.as_mut() else {
            service = connect().ok();
            if service.is_none() {
                std::thread::sleep(RETRY_PAUSE);
            }
            continue;
        };
        if connection.write(report.acknowledged).is_err() {
            service = None;
            report.reconnects += 1;
            continue;
        }
        let gap = last.elapsed();
        if gap > report.longest_gap && report.acknowledged > first {
            (report.longest_gap, report.longest_gap_before) = (gap, report.acknowledged);
        }
        last = Instant::now();
        report.acknowledged += 1;
        shared.acknowledged.store(report.acknowledged, Ordering::Release);
    }
    report
}
