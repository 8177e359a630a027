//! The address ranges that are tracked: added to by `mmap`, looked up by `madvise`, from any thread, without a lock.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Mappings that are remembered; of further ones huge pages are not kept away (they are still tracked by the kernel).
const RANGES_MAX: usize = 64;

struct Range {
    start: AtomicUsize,
    /// Zero: not used, or not complete yet.
    length: AtomicUsize,
}

static RANGES: [Range; RANGES_MAX] =
    [const { Range { start: AtomicUsize::new(0), length: AtomicUsize::new(0) } }; RANGES_MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn add(start: usize, length: usize) {
    let index = COUNT.fetch_add(1, Ordering::Relaxed);
    let Some(range) = RANGES.get(index) else { return };
    range.start.store(start, Ordering::Relaxed);
    range.length.store(length, Ordering::Release);
}

/// Whether any tracked mapping has a byte in the given range.
pub(crate) fn overlaps(start: usize, length: usize) -> bool {
    RANGES.iter().any(|range| {
        let tracked_length = range.length.load(Ordering::Acquire);
        let tracked_start = range.start.load(Ordering::Relaxed);
        tracked_length > 0
            && start < tracked_start.saturating_add(tracked_length)
            && tracked_start < start.saturating_add(length)
    })
}
