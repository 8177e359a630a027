//! The standby's end of the memory stream: whole epochs, checked, kept aside until they are decided.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ev_core::checkpoint::{Epoch, Session};
use ev_failpoint::{Step, reach};
use ev_wire::frame::{Frame, FrameError, FrameKind};
use tokio::sync::mpsc;

use crate::entry::{self, BadEntry};
use crate::image::{Image, ImageError, lock, state_pages_max};
use crate::stream::{Cut, MemoryStream};
use crate::wire::{self, End, ReadError};

/// Bytes of staged epochs, together. Beyond that the session is refused: the active side sends faster than this host applies.
pub const STAGED_BYTES_MAX: u64 = 2 << 30;

/// Why the stream was closed. Nothing of the epoch that was on its way is applied.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the stream brings session {found}, which was not begun here; it is opened anew")]
    Session { found: Session },
    #[error("the stream brings epoch {found} where {due} was due; it is opened anew")]
    Epoch { found: Epoch, due: Epoch },
    #[error("epoch {epoch} did not arrive as it was sent (its hash differs); the stream is opened anew")]
    Hash { epoch: Epoch },
    #[error("a body of the memory stream is too short; the peer is faulty")]
    Short,
    #[error("the epochs that wait here have over {STAGED_BYTES_MAX} bytes; this host applies them too slowly")]
    TooMuch,
    #[error(transparent)]
    Entry(#[from] BadEntry),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("no thread for the memory stream: {0}")]
    Thread(io::Error),
}

/// The frames of an epoch, whole and checked, not applied.
pub struct Staged {
    bodies: Vec<(FrameKind, Vec<u8>)>,
    state_bytes: u32,
    bytes: u64,
    total: Arc<AtomicU64>,
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of an epoch", self.bytes)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Staged {
    pub(crate) fn apply(&self, image: &Mutex<Image>) -> Result<(), ImageError> {
        let mut image = lock(image);
        for (kind, body) in &self.bodies {
            let (_, _, entries) = wire::split_body(body).ok_or(BadEntry)?;
            image.apply(*kind, entries)?;
            reach(Step::StandbyApplying);
        }
        image.set_state_bytes(self.state_bytes)
    }
}

/// What the threads of the standby's side tell.
#[derive(Debug)]
pub enum StagedNotice {
    /// Memory and device state of this epoch are here. They are applied by [`crate::Applier::apply`], once that is decided.
    Staged {
        session: Session,
        epoch: Epoch,
        staged: Staged,
    },
    Applied {
        session: Session,
        epoch: Epoch,
    },
    /// This session can't go on here.
    Failed {
        session: Session,
        why: String,
    },
    /// The stream is over.
    Ended {
        why: String,
    },
}

/// The session that the stream may bring, and where its first epoch goes.
#[derive(Debug, Clone)]
struct Open {
    session: Session,
    image: Arc<Mutex<Image>>,
}

/// Reads one stream, on a thread of its own. Dropping this breaks the stream.
#[derive(Debug)]
pub struct Receiver {
    open: Arc<Mutex<Option<Open>>>,
    _cut: Cut,
}

impl Receiver {
    /// Begins to read. What comes before [`Self::open`] ends the stream.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(
        (stream, cut): (MemoryStream, Cut),
        notices: mpsc::Sender<StagedNotice>,
    ) -> Result<Self, ReceiveError> {
        let open = Arc::new(Mutex::new(None));
        let mut reader = Reader {
            stream,
            open: Arc::clone(&open),
            notices,
            epoch: Arriving::default(),
            pages: 0,
            total: Arc::default(),
        };
        std::thread::Builder::new()
            .name("receive".to_owned())
            .spawn(move || {
                let why = match reader.run() {
                    Ok(()) => "nobody listens any more".to_owned(),
                    Err(error) => error.to_string(),
                };
                // Nobody may be left to hear it.
                let _ = reader.notices.blocking_send(StagedNotice::Ended { why });
            })
            .map_err(ReceiveError::Thread)?;
        Ok(Self { open, _cut: cut })
    }

    /// The stream may bring this session from now on.
    pub fn open(&self, session: Session, image: Arc<Mutex<Image>>) {
        *self.open.lock().expect("nobody panics under this lock") = Some(Open { session, image });
    }
}

/// The epoch that is arriving.
#[derive(Default)]
struct Arriving {
    session: Option<Session>,
    /// The newest one that arrived as a whole.
    last: Epoch,
    hash: blake3::Hasher,
    bodies: Vec<(FrameKind, Vec<u8>)>,
    bytes: u64,
}

struct Reader {
    stream: MemoryStream,
    open: Arc<Mutex<Option<Open>>>,
    notices: mpsc::Sender<StagedNotice>,
    epoch: Arriving,
    /// Of the memory that the session is for.
    pages: u32,
    total: Arc<AtomicU64>,
}

impl Reader {
    fn run(&mut self) -> Result<(), ReceiveError> {
        loop {
            let frame = wire::read(&mut self.stream)?;
            match frame.kind {
                wire::PAGES | wire::STATE => self.take(frame)?,
                wire::END => {
                    let end = frame.message::<End>(wire::END).map_err(ReadError::Frame)?;
                    let notice = self.end(&end)?;
                    if self.notices.blocking_send(notice).is_err() {
                        return Ok(());
                    }
                }
                found => return Err(ReadError::Frame(FrameError::Kind { found, due: wire::PAGES }).into()),
            }
        }
    }

    /// The session must be the one that was begun; a first body of it makes it the stream's.
    fn check(&mut self, session: Session, epoch: Epoch) -> Result<Open, ReceiveError> {
        let open = self.open.lock().expect("nobody panics under this lock").clone();
        let open = open.filter(|open| open.session == session).ok_or(ReceiveError::Session { found: session })?;
        if self.epoch.session != Some(session) {
            self.epoch = Arriving { session: Some(session), ..Arriving::default() };
            self.pages = lock(&open.image).pages();
        }
        let due = self.epoch.last.next();
        if epoch == due { Ok(open) } else { Err(ReceiveError::Epoch { found: epoch, due }) }
    }

    fn take(&mut self, frame: Frame) -> Result<(), ReceiveError> {
        let (session, epoch, entries) = wire::split_body(&frame.body).ok_or(ReceiveError::Short)?;
        let open = self.check(session, epoch)?;
        // Of an epoch that can't be applied as a whole nothing is applied.
        entry::check(entries, if frame.kind == wire::STATE { state_pages_max() } else { self.pages })?;
        self.epoch.hash.update(&frame.body);
        if epoch == Epoch::FIRST {
            // Nothing of this session could be gone on from yet, so nothing is lost if it does not arrive as a whole.
            lock(&open.image).apply(frame.kind, entries)?;
            reach(Step::StandbyFilling);
            return Ok(());
        }
        let bytes = u64::try_from(frame.body.len()).unwrap_or(u64::MAX);
        self.epoch.bytes += bytes;
        self.epoch.bodies.push((frame.kind, frame.body));
        if self.total.load(Ordering::Relaxed) + self.epoch.bytes > STAGED_BYTES_MAX {
            return Err(ReceiveError::TooMuch);
        }
        reach(Step::StandbyReceiving);
        Ok(())
    }

    fn end(&mut self, end: &End) -> Result<StagedNotice, ReceiveError> {
        let End { session, epoch, state_bytes, hash } = *end;
        let open = self.check(session, epoch)?;
        if *self.epoch.hash.finalize().as_bytes() != hash {
            return Err(ReceiveError::Hash { epoch });
        }
        if epoch == Epoch::FIRST {
            lock(&open.image).set_state_bytes(state_bytes)?;
        }
        let Arriving { bodies, bytes, .. } = std::mem::take(&mut self.epoch);
        self.epoch = Arriving { session: Some(session), last: epoch, ..Arriving::default() };
        self.total.fetch_add(bytes, Ordering::Relaxed);
        let staged = Staged { bodies, state_bytes, bytes, total: Arc::clone(&self.total) };
        reach(Step::StandbyStaged);
        Ok(StagedNotice::Staged { session, epoch, staged })
    }
}
