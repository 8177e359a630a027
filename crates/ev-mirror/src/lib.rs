//! One disk on two hosts: what carries out the decisions of `ev_core::mirror` — NBD server, link, replica, metadata.

pub mod buffer;
mod cache;
pub mod disk;
pub mod extent;
pub mod gate;
pub mod link;
mod memory;
pub mod metadata;
pub mod nbd;
pub mod receive;
pub mod undo;

pub use disk::{
    CloseError, CommandError, CreateError, Disk, DiskEvent, DiskRole, DiskSpec, Initial, LinkStream, LinkTls,
    MarkError, OpenError, PendingMark, RevertError, Reverted,
};
pub use gate::Gate;
