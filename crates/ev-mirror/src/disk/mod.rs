//! One disk of one VM on this host: the thread that serves it, and the handle by which the AM speaks to that thread.
//!
//! The thread owns the NBD sockets, the replica, its metadata and the partner's link, all around one io_uring; the
//! handle sends it commands and reads the last report. Decisions are `ev_core::mirror`'s.

mod handle;
mod link;
mod spec;

pub use handle::{CloseError, CommandError, Disk};
pub use link::{LinkStream, LinkTls};
pub use spec::{CreateError, DiskEvent, DiskRole, DiskSpec, Initial, OpenError, Verdict};
