//! How the C library keeps memory that was freed.
//!
//! A busy link frees and asks again for a megabyte of ciphertext many times a second. By default the C library gives it back to
//! the kernel each time, which then clears it page by page: measured, a fifth of the processor time of sequential writes.

use std::sync::Once;

/// Freed memory at the end of the heap that is kept for reuse.
const KEPT_BYTES: i32 = 8 << 20;
/// Pieces from this size on are always given back at once.
const OWN_MAPPING_BYTES: i32 = 4 << 20;

/// Lets the process keep some freed memory. Only the first call does anything.
pub fn keep_freed() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (parameter, value) in [(libc::M_TRIM_THRESHOLD, KEPT_BYTES), (libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)] {
            // SAFETY: mallopt takes numbers, changes only the allocator's own limits, and locks what it changes.
            let set = unsafe { libc::mallopt(parameter, value) };
            if set != 1 {
                tracing::debug!(parameter, value, "the C library does not take this limit; its own holds");
            }
        }
    });
}
