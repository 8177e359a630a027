//! Preloaded (`LD_PRELOAD`) into QEMU: registers the mappings of guest memory with a userfaultfd in asynchronous
//! write-protect mode, so that another process can ask the kernel which pages were written (`PAGEMAP_SCAN`).
//!
//! It is told by `EVENKEEL_RAMTRACK` (see `config.rs`) which files are guest memory and where to report; without that
//! variable it does nothing. It never fails a call of QEMU's: what it can't do, it reports, and QEMU goes on untracked.
//!
//! ```text
//! load:   parse the variable ─► userfaultfd (inherited /dev/userfaultfd, else the system call) ─► report "loaded"
//! mmap:   the kernel's answer ─► one of the files, shared and writable? ─► register ─► report "tracked" ─► the answer
//! madvise: MADV_HUGEPAGE on a tracked mapping is left out: a written huge page that is unmapped leaves no trace
//! ```
//!
//! No allocation, no lock, no panic: it runs inside of calls that may come from anywhere.

mod config;
mod hooks;
mod report;
mod sys;
mod tracked;
