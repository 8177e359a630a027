//! Small writes that the thread does itself, straight into the page cache.
//!
//! Most file systems make io_uring hand a buffered write over to a kernel worker, and each such hand-over costs
//! two switches between threads: at depth 1 more than the write itself. So a small write, which is no more than a copy into the page
//! cache, is done at once, after what is to be sent has been handed to the kernel, so that the partner works meanwhile.
//!
//! The thread must not stand still, though: when a write has taken long (dirty pages are being throttled, the journal is
//! busy), writes go by the ring for a while: a short one at first, since it may just have been that another thread had the
//! processor, and twice as long each time the next attempt is slow as well.

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
/// How long writes go by the ring after that: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Writes that wait to be done at once, by their slots.
#[derive(Debug, Default)]
pub struct Inline {
    waiting: Vec<u32>,
    /// Not before then.
    resume: Option<Instant>,
    /// How long the last pause was; none since the last round that was quick.
    pause: Duration,
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

    /// A round of writes has taken so long.
    fn took(&mut self, time: Duration, now: Instant) {
        if time < SLOW {
            self.pause = Duration::ZERO;
            self.resume = None;
        } else {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.resume = Some(now + self.pause);
        }
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
                    self.submit_local(slot)?;
                }
            }
            self.inline.took(began.elapsed(), Instant::now());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_writes_in_a_row_make_longer_pauses_and_a_quick_one_ends_them() {
        let mut inline = Inline::default();
        let block = IoBuffer::new(4096);
        assert!(inline.takes(0, &block));
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            inline.took(SLOW, now);
            pauses.push(inline.resume.unwrap() - now);
        }
        assert_eq!(pauses[..3], [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
        assert_eq!(pauses[7], PAUSE_MAX);
        assert!(!inline.takes(0, &block));
        inline.took(SLOW / 2, now);
        assert!(inline.takes(0, &block));
        inline.took(SLOW, now);
        assert_eq!(inline.resume, Some(now + PAUSE_MIN));
    }

    #[test]
    fn only_short_writes_of_whole_blocks_are_done_at_once() {
        let inline = Inline::default();
        assert!(inline.takes(8192, &IoBuffer::new(WRITE_BYTES_MAX)));
        assert!(!inline.takes(8192, &IoBuffer::new(WRITE_BYTES_MAX + 4096)));
        assert!(!inline.takes(512, &IoBuffer::new(4096)));
        assert!(!inline.takes(0, &IoBuffer::new(512)));
    }
}
