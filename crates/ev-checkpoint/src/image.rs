//! What the standby could go on from: the memory of a QEMU that waits, and a device state; and the thread that applies epochs to it.

use std::fmt;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use ev_core::checkpoint::{Epoch, Session};
use ev_vm::ram::{GuestMemory, PAGE_BYTES, PageBytes, PageNumber};
use ev_wire::frame::FrameKind;
use tokio::sync::mpsc;

use crate::entry::{self, BadEntry, Form};
use crate::receive::{Staged, StagedNotice};
use crate::wire;

/// Longest device state; `ev-vm` takes no longer one either.
pub(crate) const STATE_BYTES_MAX: usize = ev_vm::checkpoint::DEVICE_STATE_BYTES_MAX;
/// Epochs that may wait to be applied: more than can be unconfirmed.
const EPOCHS_QUEUED_MAX: usize = 64;

/// Most pages of a device state.
pub(crate) fn state_pages_max() -> u32 {
    u32::try_from(STATE_BYTES_MAX.div_ceil(PAGE_BYTES)).expect("a device state is short")
}

/// Why the image can't be brought to the next epoch. It can't be gone on from any more.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("writing the waiting guest's memory failed: {0}; free some of the host's memory")]
    Memory(#[from] io::Error),
    #[error(transparent)]
    Entry(#[from] BadEntry),
    #[error("a device state of over {STATE_BYTES_MAX} bytes was announced; remove devices")]
    StateTooLong,
}

/// Memory that an image is made of: that of a QEMU that waits.
pub trait ImageMemory: Send + fmt::Debug {
    /// Name and pages of each block, in order.
    fn blocks(&self) -> Vec<(String, u32)>;

    /// Reads one page.
    ///
    /// # Errors
    /// There is no such page, or it can't be read.
    fn read(&self, page: PageNumber, into: &mut PageBytes) -> io::Result<()>;

    /// Writes one page.
    ///
    /// # Errors
    /// There is no such page, or it can't be written.
    fn write(&self, page: PageNumber, bytes: &PageBytes) -> io::Result<()>;

    /// The first page from `page` on and below `end`, in one block, that may hold anything but zeroes.
    ///
    /// # Errors
    /// There is no such page.
    fn next_data(&self, page: PageNumber, end: PageNumber) -> io::Result<Option<PageNumber>>;
}

impl ImageMemory for GuestMemory {
    fn blocks(&self) -> Vec<(String, u32)> {
        self.layout().blocks.into_iter().map(|block| (block.name, block.pages)).collect()
    }

    fn read(&self, page: PageNumber, into: &mut PageBytes) -> io::Result<()> {
        self.read(page, into)
    }

    fn write(&self, page: PageNumber, bytes: &PageBytes) -> io::Result<()> {
        self.write(page, bytes)
    }

    fn next_data(&self, page: PageNumber, end: PageNumber) -> io::Result<Option<PageNumber>> {
        self.next_data(page, end)
    }
}

/// The image. Behind a lock, as two threads write it: the first epoch is applied as it comes, the others by the [`Applier`].
#[derive(Debug)]
pub struct Image {
    memory: Box<dyn ImageMemory>,
    /// Whole pages; the last one may be longer than the state.
    state: Vec<u8>,
    state_bytes: usize,
}

impl Image {
    /// Of a QEMU that waits. All of its memory is cleared, as differences are counted from zeroes.
    ///
    /// # Errors
    /// The memory can't be written.
    pub fn new(memory: impl ImageMemory + 'static) -> Result<Self, ImageError> {
        let image = Self { memory: Box::new(memory), state: Vec::new(), state_bytes: 0 };
        let mut first = 0;
        for (_, pages) in image.memory.blocks() {
            let end = PageNumber(first + pages);
            let mut from = PageNumber(first);
            while from < end
                && let Some(page) = image.memory.next_data(from, end)?
            {
                image.memory.write(page, &[0; PAGE_BYTES])?;
                from = PageNumber(page.0 + 1);
            }
            first = end.0;
        }
        Ok(image)
    }

    /// The device state.
    #[must_use]
    pub fn state(&self) -> &[u8] {
        self.state.get(..self.state_bytes).unwrap_or_default()
    }

    /// Applies the entries of one body of the stream.
    pub(crate) fn apply(&mut self, kind: FrameKind, entries: &[u8]) -> Result<(), ImageError> {
        let mut rest = entries;
        while !rest.is_empty() {
            let (number, form, next) = entry::decode(rest)?;
            if kind == wire::STATE {
                self.apply_state(number, form)?
            } else {
                self.apply_page(PageNumber(number), form)?
            }
            rest = next;
        }
        Ok(())
    }

    fn apply_page(&self, page: PageNumber, form: Form<'_>) -> Result<(), ImageError> {
        match form {
            Form::Whole(bytes) => self.memory.write(page, bytes)?,
            Form::Patch(patch) => {
                let mut bytes: PageBytes = [0; PAGE_BYTES];
                self.memory.read(page, &mut bytes)?;
                patch.apply(&mut bytes);
                self.memory.write(page, &bytes)?;
            }
            Form::Packed(packed) => {
                let mut bytes: PageBytes = [0; PAGE_BYTES];
                packed.unpack(&mut bytes)?;
                self.memory.write(page, &bytes)?;
            }
            Form::PackedDifference(packed) => {
                let mut bytes: PageBytes = [0; PAGE_BYTES];
                self.memory.read(page, &mut bytes)?;
                packed.apply_difference(&mut bytes)?;
                self.memory.write(page, &bytes)?;
            }
            // A page that was never written takes no memory, and shall not.
            Form::Zero => {
                if self.memory.next_data(page, PageNumber(page.0.saturating_add(1)))?.is_some() {
                    self.memory.write(page, &[0; PAGE_BYTES])?;
                }
            }
        }
        Ok(())
    }

    fn apply_state(&mut self, number: u32, form: Form<'_>) -> Result<(), ImageError> {
        let end = usize::try_from(number).map_err(io::Error::other)?.saturating_add(1).saturating_mul(PAGE_BYTES);
        if end > STATE_BYTES_MAX + PAGE_BYTES {
            return Err(ImageError::StateTooLong);
        }
        if self.state.len() < end {
            self.state.resize(end, 0);
        }
        let page = self.state.get_mut(..end).and_then(|state| state.last_chunk_mut::<PAGE_BYTES>());
        let page = page.ok_or(BadEntry)?;
        match form {
            Form::Zero => page.fill(0),
            Form::Whole(bytes) => *page = *bytes,
            Form::Patch(patch) => patch.apply(page),
            Form::Packed(packed) => packed.unpack(page)?,
            Form::PackedDifference(packed) => packed.apply_difference(page)?,
        }
        Ok(())
    }

    /// Pages of the memory.
    pub(crate) fn pages(&self) -> u32 {
        self.memory.blocks().iter().map(|(_, pages)| pages).sum()
    }

    /// How long the device state is from now on.
    pub(crate) fn set_state_bytes(&mut self, bytes: u32) -> Result<(), ImageError> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        if bytes > self.state.len() {
            return Err(ImageError::Entry(BadEntry));
        }
        self.state_bytes = bytes;
        Ok(())
    }
}

/// Nobody panics while holding the image; if so, the process has ended already.
pub(crate) fn lock(image: &Mutex<Image>) -> MutexGuard<'_, Image> {
    image.lock().expect("the image's lock is held by code that does not panic")
}

/// The image can take no more epochs.
#[derive(Debug, thiserror::Error)]
#[error("the thread that applies epochs has ended; begin a new session")]
pub struct ApplyError;

struct Job {
    epoch: Epoch,
    staged: Staged,
}

/// Applies epochs in the order in which they are handed to it, on a thread of its own.
pub struct Applier {
    jobs: SyncSender<Job>,
}

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").finish_non_exhaustive()
    }
}

impl Applier {
    /// For one session. Tells each epoch that is applied. Ends when this is dropped and all is applied.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(session: Session, image: Arc<Mutex<Image>>, notices: mpsc::Sender<StagedNotice>) -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(EPOCHS_QUEUED_MAX);
        std::thread::Builder::new().name("apply".to_owned()).spawn(move || {
            while let Ok(Job { epoch, staged }) = queue.recv() {
                let notice = match staged.apply(&image) {
                    Ok(()) => StagedNotice::Applied { session, epoch },
                    Err(error) => StagedNotice::Failed { session, why: error.to_string() },
                };
                let failed = matches!(notice, StagedNotice::Failed { .. });
                if notices.blocking_send(notice).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { jobs })
    }

    /// Has an epoch applied after those before it.
    ///
    /// # Errors
    /// An earlier one could not be applied.
    pub fn apply(&self, epoch: Epoch, staged: Staged) -> Result<(), ApplyError> {
        self.jobs.try_send(Job { epoch, staged }).map_err(|_| ApplyError)
    }
}
