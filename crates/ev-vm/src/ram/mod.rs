//! The memory of a running guest, followed from outside of QEMU: which pages were written, and copies of them.
//!
//! ```text
//! QEMU: libev_ramtrack.so ── registers the memory's mappings with the kernel, reports their addresses
//!                                        │
//! here: GuestMemory (the files) ◄────────┘     RamTracker (PAGEMAP_SCAN) ─► Staging (copies of one epoch)
//! ```
//!
//! Guest memory is a file (memfd) that QEMU and this process have mapped. It outlives neither, and is found again in
//! QEMU's table of descriptors after this process was replaced.

mod blocks;
mod faults;
mod file;
pub(crate) mod prepare;
mod report;
mod staging;
mod sys;
mod tracker;
mod trial;

pub use blocks::{BlockLayout, GuestMemory, PAGES_MAX, PageNumber, RamLayout, TrackError};
pub use file::{FileId, RamFile};
pub use prepare::{TrackedMemory, find_library};
pub use staging::{PARTS_MAX, StagedPage, Staging};
pub use sys::{PAGE_BYTES, PageBytes};
pub use tracker::{FaultCount, Found, PartlyDone, PassError, PassReport, RamTracker, Writes};
pub use trial::{TrialError, try_tracking};
