//! Level 3 in the AM: what `ev_core::checkpoint` decides is carried out here, on each side by a task of its own.
//!
//! ```text
//!   active: Active ── capture (ev-vm), disks' marks, held frames ── Shipper, lane ══► standby: Waiting ── Receiver, image, waiting QEMU
//! ```
//! The AM's own task tells both what the record says and hands them their streams; it never waits for them.

pub mod active;
mod lane;
mod prepare;
mod stats;
mod turns;
pub mod waiting;

use std::sync::{Arc, Weak};

use ev_checkpoint::{Cut, MemoryStream};
use ev_core::ids::DiskId;
use ev_mirror::Disk;

use crate::links::Stream;

/// Messages that may wait for either task.
const QUEUE_MAX: usize = 256;

/// The disks in service, for as long as they are: one that is opened anew is handed over anew.
pub type DiskHandles = Vec<(DiskId, Weak<Disk>)>;

/// All disks, if all are in service.
fn all(handles: &DiskHandles) -> Option<Vec<(DiskId, Arc<Disk>)>> {
    handles.iter().map(|(id, disk)| Some((*id, disk.upgrade()?))).collect()
}

/// A connected stream for a thread that blocks on it.
fn memory_stream(stream: Stream) -> std::io::Result<(MemoryStream, Cut)> {
    match stream {
        Stream::Client(stream) => {
            let (tcp, tls) = stream.into_inner();
            MemoryStream::client(tls, tcp.into_std()?)
        }
        Stream::Server(stream) => {
            let (tcp, tls) = stream.into_inner();
            MemoryStream::server(tls, tcp.into_std()?)
        }
    }
}
