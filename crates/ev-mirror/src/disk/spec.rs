//! What a disk is told when it is created or opened, the roles it is given, and what it tells the AM.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::{DiskId, Generation, HostId, PoolId, VmId};

use crate::metadata;

/// Where a disk's replica is on this host and how it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    pub pool: PoolId,
    pub vm: VmId,
    pub disk: DiskId,
    /// This host.
    pub host: HostId,
    /// A multiple of 512.
    pub size_bytes: u64,
    /// The guest's bytes and nothing else; `size_bytes` long.
    pub replica: PathBuf,
    /// Superblock, write-intent log and out-of-sync map.
    pub metadata: PathBuf,
    /// Where QEMU connects: the guest's while this host is the coordinator, and on a replica one that waits to go on from the guest's
    /// memory, which may read. A socket file left there by an earlier process is replaced. `None`: the disk is never served
    /// from here.
    pub nbd_socket: Option<PathBuf>,
    /// Most bytes per second that a copy looks at or moves; `None`: as fast as it goes.
    pub copy_rate_limit: Option<u64>,
    /// How long the partner may be silent before a record without it is asked for. A link that is silent for seven tenths of it is given
    /// up, and another one asked for.
    pub partner_timeout: Duration,
}

/// What a new replica is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// Its content is the disk: an empty disk of a new VM, or an imported image. Only for the replica that a new VM's
    /// first record calls good, and only once: a replica that was lost must be made as [`Initial::Target`].
    Source,
    /// Nothing yet; it waits for a full copy from the partner.
    Target,
}

/// What this host does for the disk, by the VM's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskRole {
    /// Serves the guest (or would, while it is off) and keeps the partner's replica in step.
    Coordinator {
        /// The other host that holds, or is to hold, a replica.
        partner: Option<HostId>,
        /// Whose replicas the record calls good.
        good: BTreeSet<HostId>,
    },
    /// Carries out what the coordinator sends.
    Replica { coordinator: HostId },
    /// Nothing: no record is known yet.
    Idle,
}

/// What a disk's thread tells the AM. The same wish comes again, about once a second, until a record grants it or it
/// no longer holds. What concerns epochs comes once, in order, and is kept while the channel is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskEvent {
    /// Acknowledgements wait for a record without `host`'s replica: propose `AuthorityChange::ReplicaLost`.
    /// `seen` is the newest record that the disk has acted on; propose against no later one.
    ReplicaLost { disk: DiskId, host: HostId, seen: Generation },
    /// The copy to `host` has ended, flushed and durable: propose `AuthorityChange::ReplicaGood`.
    ReplicaGood { disk: DiskId, host: HostId, seen: Generation },
    /// The partner's link is gone, or none has come yet: connect, and hand it over by [`super::Disk::link`].
    LinkDown { disk: DiskId },
    /// The link is up and both sides can work together.
    LinkUp { disk: DiskId },
    /// Something that a person should know; the text says what to do.
    Trouble { disk: DiskId, text: String },
    /// All writes of this epoch to the disk are here, in memory. `flushed`: the guest asked in it that something be durable, so
    /// it may be confirmed only when [`DiskEvent::EpochApplied`] comes.
    EpochStaged { disk: DiskId, session: Session, epoch: Epoch, flushed: bool },
    /// Everything up to this epoch is written, and durable up to the last flush of the guest in it.
    EpochApplied { disk: DiskId, session: Session, epoch: Epoch },
    /// This replica can't go on with the session: too much was staged, its storage failed, or a copy has begun. Nothing that was
    /// not told to be applied will be.
    EpochsLost { disk: DiskId, session: Session },
    /// While writing ahead this host's replica failed, or a block of it can't be read. The guest's requests wait; they are
    /// answered where the guest goes on from the standby's memory, or fail after a record without the standby.
    AheadStuck { disk: DiskId, session: Session },
}

/// Why a disk was not created. Nothing that was there before is changed.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("can't create a disk of {size_bytes} bytes: the size must be a multiple of 512 and not 0")]
    BadSize { size_bytes: u64 },
    #[error("can't create the replica {}: {source}; check the folder's free space and permissions", path.display())]
    Replica { path: PathBuf, source: io::Error },
    #[error("the replica {} has {found} bytes instead of {expected}; give the image's own size", path.display())]
    OtherSize { path: PathBuf, found: u64, expected: u64 },
    #[error(transparent)]
    Metadata(#[from] metadata::CreateError),
}

/// Why a disk can't be opened. Nothing is changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("can't open the replica {}: {source}; if its storage is lost, remove its metadata and create it anew as a target", path.display())]
    Replica { path: PathBuf, source: io::Error },
    #[error("the replica {} has {found} bytes instead of {expected}; it was changed from outside, create it anew as a target", path.display())]
    OtherSize { path: PathBuf, found: u64, expected: u64 },
    #[error(transparent)]
    Metadata(#[from] metadata::OpenError),
    #[error("can't set up an io_uring: {0}; kernel.io_uring_disabled must be 0 and the kernel 5.19 or newer")]
    Ring(io::Error),
    #[error("can't listen on the disk's NBD socket {}: {source}; check the run folder", path.display())]
    NbdSocket { path: PathBuf, source: io::Error },
    #[error("can't start the disk's thread: {0}; check the limits on threads")]
    Thread(io::Error),
}
