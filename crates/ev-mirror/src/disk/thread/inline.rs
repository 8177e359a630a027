//! Small writes that the thread does itself, straight into the page cache.
//!
//! Most file systems make io_uring hand a buffered write over to a kernel worker, and each such hand-over costs
//! two switches between threads: at depth 1 more than the write itself. So a small write, which is no more than a copy into the page
//! cache, is done at once, after what is to be sent has been handed to the kernel, so that the partner works meanwhile.
//!
//! The thread must not stand still, though: when a write has taken long (dirty pages are being throttled, the journal is
//! busy), writes go by the ring for a while.

use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::Thread;
use super::local::Stage;
use crate::buffer::IoBuffer;

/// Longest write that is done at once: a few ten microseconds of copying.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// Only whole blocks: others would have to be read first.
const BLOCK_BYTES: u64 = 4096;
/// A write that took so long was more than a copy; so is a round of them.
const SLOW: Duration = Duration::from_millis(2);
/// How long writes go by the ring after that.
const PAUSE: Duration = Duration::from_millis(500);

/// Writes that wait to be done at once, by their slots.
#[derive(Debug, Default)]
pub struct Inline {
    waiting: Vec<u32>,
    /// Not before then.
    resume: Option<Instant>,
}

impl Inline {
    /// Whether a write of these bytes is to be done at once.
    pub fn takes(&self, offset: u64, data: &IoBuffer) -> bool {
        let blocks = offset.is_multiple_of(BLOCK_BYTES)
            && u64::try_from(data.len()).is_ok_and(|length| length.is_multiple_of(BLOCK_BYTES));
        blocks && data.len() <= WRITE_BYTES_MAX && self.resume.is_none_or(|resume| Instant::now() >= resume)
    }

    pub fn push(&mut self, slot: u32) {
        self.waiting.push(slot);
    }
}

impl Thread {
    /// Does the writes that wait, and carries out what follows from them.
    pub fn write_inline(&mut self) -> io::Result<()> {
        while !self.inline.waiting.is_empty() {
            self.ring.submit_urgent()?;
            let began = Instant::now();
            for slot in std::mem::take(&mut self.inline.waiting) {
                if began.elapsed() < SLOW {
                    let result = self.write_now(slot);
                    self.local_completed(slot, result)?;
                } else {
                    self.inline.resume = Some(Instant::now() + PAUSE);
                    self.submit_local(slot)?;
                }
            }
            if began.elapsed() >= SLOW {
                self.inline.resume = Some(Instant::now() + PAUSE);
            }
            self.perform_all()?;
            self.pump_clients()?;
            self.perform_all()?;
            self.pump_link()?;
        }
        Ok(())
    }

    fn write_now(&mut self, slot: u32) -> io::Result<u32> {
        let Some(local) = self.locals.get_mut(slot) else { return Ok(0) };
        let Stage::Write { offset, .. } = local.stage else { return Ok(0) };
        let buffer = self.ops.get(&local.op).and_then(|op| op.data.as_ref()).expect("kept while it is written");
        loop {
            match self.store.replica_file().write_at(buffer.data(), offset) {
                Ok(count) => return Ok(u32::try_from(count).expect("at most the longest write")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
