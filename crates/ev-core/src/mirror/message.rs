//! What the engines are told and what they ask for: operations, link messages, actions.

use crate::checkpoint::{Epoch, Session};
use crate::ids::{Generation, HostId};

use super::acknowledge::Proof;
use super::extent::Extent;
use super::history::ReplicaInfo;

/// Names an operation from its beginning to its end, here and on the link. The caller numbers the guest's operations, rising,
/// below [`OpId::BESIDE`]; the engine numbers its own from [`OpId::OWN`] on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

impl OpId {
    /// First number of the engine's own operations.
    pub const OWN: u64 = 1 << 63;
    /// First number under which a replica keeps what it has staged: numbers of another process of the coordinator may be the same as
    /// those under which it came.
    pub const STAGED: u64 = 1 << 62;
    /// First number of what a caller does on a replica beside the engine.
    pub const BESIDE: u64 = 1 << 61;

    /// Whether a replica keeps staged data under it.
    #[must_use]
    pub fn is_staged(self) -> bool {
        (Self::STAGED..Self::OWN).contains(&self.0)
    }

    /// Whether an engine does not know it.
    #[must_use]
    pub fn is_beside(self) -> bool {
        (Self::BESIDE..Self::STAGED).contains(&self.0)
    }
}

/// When a write has to be on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// At the next flush.
    AtFlush,
    /// Before it is acknowledged (FUA).
    BeforeReply,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// Bytes that the caller keeps under the operation's number until it is acknowledged or forgotten.
    Data,
    /// Zeroes; the space may be given back.
    Zeroes,
    /// Zeroes, with the space kept allocated.
    ZeroesAllocated,
    /// Whatever; reads as zeroes on both replicas, so that they stay the same.
    Trim,
}

/// A write of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub extent: Extent,
    pub kind: WriteKind,
    pub durability: Durability,
}

/// BLAKE3 of a block.
pub type BlockHash = [u8; 32];

/// How an operation on a replica ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The storage failed.
    Failed,
    /// The replica's state does not allow it.
    NotNow,
}

/// Which of the two maps of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegionMap {
    /// Regions that may have been written since both replicas were last flushed.
    WriteIntent,
    /// Regions that the partner's replica lacks.
    OutOfSync,
}

/// How much a copy looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    /// The regions that the logs name.
    Delta,
    /// All of the disk: there is no common history.
    Full,
}

/// Whether a replica has a session of checkpoints on. Then it takes no writes but those of the session, before a copy begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epochs {
    None,
    Held,
}

/// What a side says of itself when a link comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub host: HostId,
    /// Drawn anew whenever the replica is opened: what an earlier instance had not flushed may be gone.
    pub instance: u64,
    /// Newest record that the sender has acted on.
    pub generation: Generation,
    pub replica: ReplicaInfo,
    pub epochs: Epochs,
}

/// Messages of the link, without the data, which travels under the operation's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Hello(Hello),
    /// Part of the sender's map: `words` from word `first_word` on.
    Regions {
        map: RegionMap,
        first_word: u64,
        words: Vec<u64>,
        last: bool,
    },
    KeepAlive,

    Write {
        op: OpId,
        write: Write,
    },
    Flush {
        op: OpId,
    },
    /// Everything before it belongs to this epoch or an earlier one. From the first one of a session on, writes and flushes are
    /// staged until they are told to be applied.
    EpochEnd {
        session: Session,
        epoch: Epoch,
    },
    Read {
        op: OpId,
        extent: Extent,
    },
    Ack {
        op: OpId,
        outcome: Outcome,
    },
    ReadData {
        op: OpId,
    },

    /// From now on the receiver's replica alone is good: it began history `current` and counts from `bitmap_base`.
    History {
        op: OpId,
        current: Generation,
        bitmap_base: Generation,
    },
    CopyBegin {
        op: OpId,
        kind: CopyKind,
        current: Generation,
    },
    HashRequest {
        op: OpId,
        extent: Extent,
    },
    Hashes {
        op: OpId,
        hashes: Vec<BlockHash>,
    },
    CopyData {
        op: OpId,
        extent: Extent,
    },
    CopyEnd {
        op: OpId,
        current: Generation,
    },
}

/// What is to be done on this host's replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalIo {
    /// Into the operation's data.
    Read { extent: Extent },
    /// From the operation's data, if the kind has any.
    Write(Write),
    /// All completed writes become durable.
    Flush,
    /// The hash of each block of the extent.
    Hash { extent: Extent },
}

/// A word of a region map as it is to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapWord {
    pub map: RegionMap,
    pub word: usize,
    pub bits: u64,
}

/// Which source has the data of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Local,
    Partner,
}

/// A change of the authority record that is to be proposed against the record of `seen`, and no later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    ReplicaLost { host: HostId, seen: Generation },
    ReplicaGood { host: HostId, seen: Generation },
}

/// Why a link is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the partner was silent for longer than the partner timeout")]
    Silent,
    #[error("the partner's host is not the one that the record names; wait until both hosts know the newest record")]
    OtherHost,
    #[error("the partner acts by an older record; it will connect again when it knows the newest")]
    OlderRecord,
    #[error("the partner sent what this side's role cannot receive")]
    OutOfPlace,
    #[error("a copy that stood still is tried again")]
    CopyAgain,
    #[error("this side's role in the record has changed")]
    RoleChanged,
    #[error("the guest is no longer protected by checkpoints; the partner is brought in step by a copy")]
    EpochsEnded,
    #[error("the partner marked an epoch that does not follow its last one; protection by checkpoints begins anew")]
    EpochOutOfOrder,
    #[error("the epochs that were staged here are lost; protection by checkpoints begins anew after a copy")]
    EpochsLost,
}

/// What a person should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error(
        "this host's replica failed: reading or writing it, or its metadata, gave an error; the disk goes on from the partner's replica, replace the storage"
    )]
    LocalFailed,
    #[error("the partner's replica failed: it reported a storage error; replace the storage on that host")]
    PartnerFailed,
    #[error(
        "a block of this host's replica could not be read; it was read from the partner and is being rewritten, check the storage"
    )]
    Repaired,
    #[error(
        "the copy to the partner stands still because this host's replica can't be read everywhere; check the storage"
    )]
    CopySourceUnreadable,
    #[error(
        "this host's replica can't be brought back because the partner's can't be read everywhere; check the storage there"
    )]
    PartnerUnreadable,
    #[error(
        "the record calls this host's replica good, but it holds no complete state of the disk; it can't be served from here"
    )]
    NotServable,
    #[error(
        "a block of this host's replica can't be read, and the standby's replica is older; the guest waits until it goes on from the standby's memory, check the storage"
    )]
    ReadWaits,
}

/// Why an epoch can't be marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkRefusal {
    /// The partner is not linked in step, or not both replicas count and work.
    NotInStep,
    /// One of the replicas is being brought back.
    Copying,
    /// It does not follow the last one of the session.
    OutOfOrder,
}

/// Outcome of a comparison of both replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    pub compared_bytes: u64,
    pub different_bytes: u64,
    pub repaired_bytes: u64,
    /// Whether it got to the end.
    pub complete: bool,
}

/// What the caller has to do. Actions are to be carried out in order, as far as they begin something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answered by `Input::LocalDone` or `Input::LocalHashes`.
    Local {
        op: OpId,
        io: LocalIo,
    },
    /// Over the present link, in order.
    Send(Message),
    /// These words are to be durable; answered by `Input::Committed`. One at a time.
    Commit(Vec<MapWord>),
    /// The replica's state is to be durable; answered by `Input::SuperblockStored`. One at a time.
    Superblock(ReplicaInfo),
    /// The guest's write or flush is done.
    Acknowledge(Proof),
    /// The guest's read is done; the data is the operation's.
    Answer {
        op: OpId,
        source: Source,
    },
    /// The guest's operation failed: no good replica can do it.
    Fail {
        op: OpId,
    },
    /// The engine's own operation is over; its data is no longer needed.
    Forget {
        op: OpId,
    },
    CloseLink(CloseReason),
    Wish(Wish),
    Trouble(Trouble),
    /// The comparison that was asked for is over.
    Verified(Verified),
    /// The answer to a mark: whether it is sent.
    Marked(Result<(), MarkRefusal>),
    /// While writing ahead this host's replica failed, or can't be read somewhere: the guest's operations wait.
    AheadStuck {
        session: Session,
    },
    /// The data of `op`, if it has any, is kept under `staged` from now on.
    Stage {
        op: OpId,
        staged: OpId,
    },
    /// This epoch is staged whole. `flushed`: the guest asked in it that something be durable.
    EpochStaged {
        session: Session,
        epoch: Epoch,
        flushed: bool,
    },
    /// Everything up to this epoch is written, and durable as far as it was flushed.
    EpochApplied {
        session: Session,
        epoch: Epoch,
    },
    /// What was staged and not told to be applied is dropped: there was too much of it, the storage failed, or a copy begins.
    EpochsLost {
        session: Session,
    },
}
