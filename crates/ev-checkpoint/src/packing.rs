//! LZ4 for pages, and when it is worth its time: not for content that does not shrink, and not where writing the bytes takes less time
//! than to shrink them.

use std::fmt;
use std::time::{Duration, Instant};

use ev_vm::ram::{PAGE_BYTES, PageBytes};
use lz4_flex::block::{compress_into, decompress_into};

/// Longest that LZ4 makes of a page: what `get_maximum_output_size` says, and some.
const PACKED_BYTES_MAX: usize = PAGE_BYTES + PAGE_BYTES / 8 + 64;
/// After so many attempts they are looked at.
const ATTEMPTS: u32 = 64;
/// Pages that go without an attempt after attempts that were not worth it.
const PAGES_SKIPPED: u32 = 1024;
/// The least that attempts have to save, in percent.
const SAVED_PERCENT_MIN: u64 = 10;
/// What is taken for the time to write 1 KiB until it is known: that of a link of 1 Gbit/s.
const WRITE_TIME_ASSUMED: Duration = Duration::from_nanos(8_192);
/// Bytes that are behind an estimate of the link; then they count half.
const WRITTEN_BYTES_MAX: u64 = 64 << 20;

/// The bytes are not LZ4 of exactly one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAPage;

/// The page that was packed.
///
/// # Errors
/// Anything but exactly one page comes out.
pub fn unpack(packed: &[u8], page: &mut PageBytes) -> Result<(), NotAPage> {
    match decompress_into(packed, page) {
        Ok(PAGE_BYTES) => Ok(()),
        Ok(_) | Err(_) => Err(NotAPage),
    }
}

/// Whether attempts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// While they are worth their time.
    Measured,
    #[cfg(test)]
    Always,
    #[cfg(test)]
    Never,
}

/// Packs pages.
pub struct Packer {
    packing: Packing,
    worth: Worth,
    packed: Box<[u8; PACKED_BYTES_MAX]>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").field("packing", &self.packing).field("worth", &self.worth).finish_non_exhaustive()
    }
}

impl Packer {
    pub fn new(packing: Packing) -> Self {
        Self { packing, worth: Worth::default(), packed: Box::new([0; PACKED_BYTES_MAX]) }
    }

    /// Whether an attempt is to be made with the next page.
    pub fn attempts(&mut self) -> bool {
        match self.packing {
            Packing::Measured => self.worth.attempts(),
            #[cfg(test)]
            Packing::Always => true,
            #[cfg(test)]
            Packing::Never => false,
        }
    }

    /// The page packed, if that has at most `bytes_max` bytes. `otherwise` is what would be sent without it.
    pub fn pack(&mut self, page: &PageBytes, bytes_max: usize, otherwise: usize) -> Option<&[u8]> {
        let start = Instant::now();
        let bytes = compress_into(page, self.packed.as_mut_slice()).unwrap_or(usize::MAX);
        let fits = bytes <= bytes_max;
        let sent = if fits { bytes } else { otherwise };
        self.worth.tried(start.elapsed(), otherwise, otherwise.saturating_sub(sent));
        self.packed.get(..bytes).filter(|_| fits)
    }

    /// So much was written in that time while the link was busy.
    pub fn written(&mut self, bytes: usize, time: Duration) {
        self.worth.written(bytes, time);
    }
}

/// What attempts cost and bring.
#[derive(Debug, Default)]
struct Worth {
    attempts: u32,
    time: Duration,
    tried_bytes: u64,
    saved_bytes: u64,
    /// Pages that still go without.
    skips: u32,
    written_bytes: u64,
    write_time: Duration,
}

impl Worth {
    fn attempts(&mut self) -> bool {
        if self.skips > 0 {
            self.skips -= 1;
            return false;
        }
        true
    }

    fn tried(&mut self, time: Duration, bytes: usize, saved: usize) {
        self.attempts += 1;
        self.time += time;
        self.tried_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.saved_bytes += u64::try_from(saved).unwrap_or(u64::MAX);
        if self.attempts >= ATTEMPTS {
            if !self.was_worth_it() {
                self.skips = PAGES_SKIPPED;
            }
            (self.attempts, self.time, self.tried_bytes, self.saved_bytes) = (0, Duration::ZERO, 0, 0);
        }
    }

    fn was_worth_it(&self) -> bool {
        self.saved_bytes * 100 >= self.tried_bytes * SAVED_PERCENT_MIN
            && self.write_time_of(self.saved_bytes) > self.time
    }

    fn write_time_of(&self, bytes: u64) -> Duration {
        let (time, of) =
            if self.written_bytes == 0 { (WRITE_TIME_ASSUMED, 1024) } else { (self.write_time, self.written_bytes) };
        let nanoseconds = time.as_nanos() * u128::from(bytes) / u128::from(of);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn written(&mut self, bytes: usize, time: Duration) {
        self.written_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.write_time += time;
        if self.written_bytes > WRITTEN_BYTES_MAX {
            self.written_bytes /= 2;
            self.write_time /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Attempts, out of so many pages, that save that much each in that time.
    fn attempts(worth: &mut Worth, pages: u32, saved: usize, time: Duration) -> u32 {
        let mut made = 0;
        for _ in 0..pages {
            if worth.attempts() {
                made += 1;
                worth.tried(time, PAGE_BYTES, saved);
            }
        }
        made
    }

    #[test]
    fn content_that_does_not_shrink_is_tried_seldom() {
        let mut worth = Worth::default();
        assert_eq!(attempts(&mut worth, 10 * (ATTEMPTS + PAGES_SKIPPED), PAGE_BYTES / 11, MICROSECOND), 10 * ATTEMPTS);
        assert_eq!(attempts(&mut worth, 500, PAGE_BYTES / 9, MICROSECOND), 500, "it is noticed when it does");
    }

    #[test]
    fn a_link_that_is_faster_than_the_packing_gets_the_bytes_as_they_are() {
        let (pages, saved, time) = (5000, 2048, 4 * MICROSECOND);
        let mut worth = Worth::default();
        assert_eq!(attempts(&mut worth, pages, saved, time), pages, "16 microseconds on the link that is assumed");
        // 1 ns a byte: 2 microseconds.
        worth.written(8 << 20, Duration::from_nanos(8 << 20));
        assert!(attempts(&mut worth, pages, saved, time) < 500);
        // It has become slow: 100 Mbit/s.
        for _ in 0..10 {
            worth.written(32 << 20, Duration::from_nanos(80 * (32 << 20)));
        }
        attempts(&mut worth, PAGES_SKIPPED, saved, time);
        assert_eq!(attempts(&mut worth, pages, saved, time), pages);
    }

    #[test]
    fn what_is_not_one_page_is_not_unpacked() {
        let mut packed = [0; 2 * PACKED_BYTES_MAX];
        for (bytes, fits) in [(PAGE_BYTES, true), (PAGE_BYTES - 1, false), (PAGE_BYTES + 1, false), (0, false)] {
            let length = compress_into(&vec![7; bytes], &mut packed).unwrap();
            let mut page = [0; PAGE_BYTES];
            let unpacked = unpack(&packed[..length], &mut page);
            assert_eq!(unpacked.is_ok(), fits, "{bytes}");
            assert!(!fits || page == [7; PAGE_BYTES]);
        }
        let mut page = [0; PAGE_BYTES];
        for rubbish in [&[][..], &[0xff; 40], &[0x0f, 0, 0], &[0xf0]] {
            assert_eq!(unpack(rubbish, &mut page), Err(NotAPage));
        }
    }
}
