//! The active host's end of the memory stream: a thread that sends what was captured, as differences.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ev_core::checkpoint::{Epoch, Session};
use ev_failpoint::{Step, reach};
use ev_vm::checkpoint::EpochBuffer;
use ev_vm::ram::{GuestMemory, PAGE_BYTES, PageBytes, PageNumber, StagedPage};
use ev_wire::frame::{Frame, FrameKind};
use tokio::sync::mpsc;

use crate::entry::{self, ENTRY_BYTES_MAX};
use crate::image::state_pages_max;
use crate::packing::{Packer, Packing};
use crate::shadow::Shadow;
use crate::stream::{Cut, MemoryStream};
use crate::wire::{self, BODY_BYTES_USUAL, End};

/// Jobs that may wait: parts of the first epoch, and two unconfirmed epochs.
const JOBS_MAX: usize = 8;
/// What sockets take at once, whatever the link carries: only behind that the time of writing tells how fast it is.
const BUFFERED_BYTES: usize = 8 << 20;
/// Pages that are read at once while the whole memory is sent.
const FILL_PAGES: usize = 64;

/// What the thread tells.
#[derive(Debug)]
pub enum ShipNotice {
    /// The whole memory is sent, as it was found.
    Filled { session: Session },
    /// What was in the buffer is sent; it is empty again.
    Sent { session: Session, buffer: Box<EpochBuffer> },
    /// The stream is broken. The thread has ended.
    Failed { session: Session, why: String },
}

/// What was sent since the session began.
#[derive(Debug, Default)]
pub struct ShipCounters {
    pages: AtomicU64,
    bytes: AtomicU64,
}

impl ShipCounters {
    /// Pages that differed.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Bytes on the wire, without TLS and below.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

enum Job {
    Fill(Arc<GuestMemory>, Option<u64>),
    Part(Box<EpochBuffer>),
    Epoch(Epoch, Box<EpochBuffer>),
}

/// The thread is busy or has ended.
#[derive(Debug, thiserror::Error)]
#[error("the thread that sends checkpoints takes no more; the session is to be begun anew")]
pub struct ShipError;

/// Sends one session's checkpoints. Dropping this breaks the stream.
#[derive(Debug)]
pub struct Shipper {
    jobs: SyncSender<Job>,
    counters: Arc<ShipCounters>,
    _cut: Cut,
}

impl Shipper {
    /// For a guest of so many pages.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(
        session: Session,
        pages: u32,
        (stream, cut): (MemoryStream, Cut),
        notices: mpsc::Sender<ShipNotice>,
    ) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let counters = Arc::new(ShipCounters::default());
        let sender = Sender::new(session, pages, stream, Packing::Measured, Arc::clone(&counters));
        std::thread::Builder::new().name("ship".to_owned()).spawn(move || run(sender, &queue, &notices))?;
        Ok(Self { jobs, counters, _cut: cut })
    }

    /// What was sent.
    #[must_use]
    pub fn counters(&self) -> &Arc<ShipCounters> {
        &self.counters
    }

    /// Sends all of the memory, as part of the first epoch; this and the passes after it at no more than `bytes_per_s`.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub fn fill(&self, memory: Arc<GuestMemory>, bytes_per_s: Option<u64>) -> Result<(), ShipError> {
        self.jobs.try_send(Job::Fill(memory, bytes_per_s)).map_err(|_| ShipError)
    }

    /// Sends the pages of a pass, as part of the present epoch.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub fn part(&self, buffer: Box<EpochBuffer>) -> Result<(), ShipError> {
        self.jobs.try_send(Job::Part(buffer)).map_err(|_| ShipError)
    }

    /// Sends pages and device state that end the epoch.
    ///
    /// # Errors
    /// See [`ShipError`].
    pub fn epoch(&self, epoch: Epoch, buffer: Box<EpochBuffer>) -> Result<(), ShipError> {
        self.jobs.try_send(Job::Epoch(epoch, buffer)).map_err(|_| ShipError)
    }
}

fn run(mut sender: Sender, jobs: &Receiver<Job>, notices: &mpsc::Sender<ShipNotice>) {
    let session = sender.session;
    while let Ok(job) = jobs.recv() {
        let done = match job {
            Job::Fill(memory, bytes_per_s) => {
                sender.rate = bytes_per_s.map(Rate::new);
                sender.fill(&memory).map(|()| ShipNotice::Filled { session })
            }
            Job::Part(mut buffer) => sender.pages(&buffer).map(|()| {
                buffer.clear();
                ShipNotice::Sent { session, buffer }
            }),
            Job::Epoch(epoch, mut buffer) => sender.epoch(epoch, &buffer).map(|()| {
                buffer.clear();
                ShipNotice::Sent { session, buffer }
            }),
        };
        let notice = done.unwrap_or_else(|error| ShipNotice::Failed { session, why: error.to_string() });
        let failed = matches!(notice, ShipNotice::Failed { .. });
        if notices.blocking_send(notice).is_err() || failed {
            return;
        }
    }
}

/// Keeps a mean rate.
#[derive(Debug)]
struct Rate {
    bytes_per_s: u64,
    bytes: u64,
    start: Instant,
}

impl Rate {
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), bytes: 0, start: Instant::now() }
    }

    /// How long to rest after so many bytes more.
    fn rest(&mut self, bytes: u64) -> Duration {
        self.bytes += bytes;
        let due = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / self.bytes_per_s);
        due.saturating_sub(self.start.elapsed())
    }
}

pub(crate) struct Sender {
    session: Session,
    stream: MemoryStream,
    memory: Shadow,
    state: Shadow,
    epoch: Epoch,
    hash: blake3::Hasher,
    body: Vec<u8>,
    packer: Packer,
    /// Written without a rest.
    burst_bytes: usize,
    /// While the whole memory is sent.
    rate: Option<Rate>,
    counters: Arc<ShipCounters>,
}

impl Sender {
    pub(crate) fn new(
        session: Session,
        pages: u32,
        stream: MemoryStream,
        packing: Packing,
        counters: Arc<ShipCounters>,
    ) -> Self {
        Self {
            session,
            stream,
            memory: Shadow::new(pages),
            state: Shadow::new(state_pages_max()),
            epoch: Epoch::FIRST,
            hash: blake3::Hasher::new(),
            body: Vec::with_capacity(BODY_BYTES_USUAL + ENTRY_BYTES_MAX),
            packer: Packer::new(packing),
            burst_bytes: 0,
            rate: None,
            counters,
        }
    }

    /// The guest runs meanwhile; what it writes is found by the passes after this.
    fn fill(&mut self, memory: &GuestMemory) -> io::Result<()> {
        self.begin();
        let mut pages = vec![0; FILL_PAGES * PAGE_BYTES];
        let mut first = 0;
        for block in memory.layout().blocks {
            let end = PageNumber(first + block.pages);
            let mut from = PageNumber(first);
            while from < end
                && let Some(data) = memory.next_data(from, end)?
            {
                let count = usize::try_from(end.0 - data.0).map_err(io::Error::other)?.min(FILL_PAGES);
                let room = pages.get_mut(..count * PAGE_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
                memory.read(data, room)?;
                let (room, _) = room.as_chunks::<PAGE_BYTES>();
                for (number, page) in (data.0..).zip(room) {
                    self.page(number, page)?;
                }
                from = PageNumber(data.0 + u32::try_from(count).map_err(io::Error::other)?);
            }
            first = end.0;
        }
        reach(Step::ActiveFilling);
        self.send(wire::PAGES)
    }

    fn begin(&mut self) {
        wire::begin_body(&mut self.body, self.session, self.epoch);
    }

    fn pages(&mut self, buffer: &EpochBuffer) -> io::Result<()> {
        let pages = buffer.pages.pages().map(|(number, page)| {
            let bytes = match page {
                StagedPage::Bytes(bytes) => bytes,
                StagedPage::Zero => &[0; PAGE_BYTES],
            };
            (number.0, bytes)
        });
        self.pages_of(pages)
    }

    pub(crate) fn pages_of<'a>(&mut self, pages: impl Iterator<Item = (u32, &'a PageBytes)>) -> io::Result<()> {
        self.begin();
        for (number, page) in pages {
            self.page(number, page)?;
        }
        self.send(wire::PAGES)
    }

    fn page(&mut self, number: u32, new: &PageBytes) -> io::Result<()> {
        let old = self.memory.page(number).ok_or(io::ErrorKind::InvalidInput)?;
        let before = self.body.len();
        entry::encode(number, old, new, &mut self.packer, &mut self.body);
        if self.body.len() == before {
            return Ok(());
        }
        *old = *new;
        self.counters.pages.fetch_add(1, Ordering::Relaxed);
        if self.body.len() >= BODY_BYTES_USUAL {
            self.send(wire::PAGES)?;
            self.begin();
        }
        Ok(())
    }

    /// The device state as pages, the last one filled up.
    fn device_state(&mut self, state: &[u8]) -> io::Result<()> {
        self.begin();
        for (number, chunk) in (0_u32..).zip(state.chunks(PAGE_BYTES)) {
            let mut page = [0; PAGE_BYTES];
            page[..chunk.len()].copy_from_slice(chunk);
            let old = self.state.page(number).ok_or(io::ErrorKind::InvalidInput)?;
            entry::encode(number, old, &page, &mut self.packer, &mut self.body);
            *old = page;
            if self.body.len() >= BODY_BYTES_USUAL {
                self.send(wire::STATE)?;
                self.begin();
            }
        }
        self.send(wire::STATE)
    }

    fn epoch(&mut self, epoch: Epoch, buffer: &EpochBuffer) -> io::Result<()> {
        if epoch != self.epoch {
            return Err(io::Error::other(format!("epoch {epoch} was to be sent where {} was due", self.epoch)));
        }
        // Output waits for this one.
        self.rate = None;
        self.pages(buffer)?;
        if epoch > Epoch::FIRST {
            reach(Step::ActiveSending);
        }
        self.end(&buffer.device_state)?;
        reach(Step::ActiveSent);
        Ok(())
    }

    pub(crate) fn end(&mut self, device_state: &[u8]) -> io::Result<()> {
        self.device_state(device_state)?;
        let epoch = self.epoch;
        let state_bytes = u32::try_from(device_state.len()).map_err(io::Error::other)?;
        let hash = *self.hash.finalize().as_bytes();
        let end = End { session: self.session, epoch, state_bytes, hash };
        let frame = Frame::of(wire::END, &end).map_err(io::Error::other)?;
        self.write(wire::END, &frame.body)?;
        self.stream.flush()?;
        self.hash = blake3::Hasher::new();
        self.epoch = epoch.next();
        self.burst_bytes = 0;
        Ok(())
    }

    /// Sends the body, unless nothing is in it.
    fn send(&mut self, kind: FrameKind) -> io::Result<()> {
        if self.body.len() <= wire::PREFIX_BYTES {
            return Ok(());
        }
        let body = std::mem::take(&mut self.body);
        self.hash.update(&body);
        let written = self.write(kind, &body);
        self.body = body;
        self.body.clear();
        written
    }

    fn write(&mut self, kind: FrameKind, body: &[u8]) -> io::Result<()> {
        let start = Instant::now();
        wire::write(&mut self.stream, kind, body)?;
        self.burst_bytes += body.len();
        if self.burst_bytes > BUFFERED_BYTES {
            self.packer.written(body.len(), start.elapsed());
        }
        let bytes = u64::try_from(body.len()).map_err(io::Error::other)?;
        if let Some(rate) = &mut self.rate {
            std::thread::sleep(rate.rest(bytes));
        }
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}
