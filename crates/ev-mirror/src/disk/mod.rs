//! One disk of one VM on this host: the thread that serves it, and the handle by which the AM speaks to that thread.
//!
//! The thread owns the NBD sockets, the replica, its metadata and the partner's link, all around one io_uring; the
//! handle sends it commands and reads the last report. Decisions are `ev_core::mirror`'s.

mod create;
mod epochs;
mod handle;
mod link;
mod revert;
mod spec;
mod thread;

pub use epochs::{MarkError, PendingMark};
pub use handle::{CloseError, CommandError, Disk};
pub use link::{LinkStream, LinkTls};
pub use revert::{RevertError, Reverted};
pub use spec::{CreateError, DiskEvent, DiskRole, DiskSpec, Initial, OpenError};

/// A number that no other opening of a replica has: what an earlier one had not flushed may be gone.
fn instance() -> u64 {
    let mut bytes = [0; 8];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes));
    read.expect("the kernel has random numbers");
    u64::from_ne_bytes(bytes)
}
