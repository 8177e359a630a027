//! One operation under way.

use super::super::acknowledge::Leg;
use super::super::extent::Extent;
use super::super::message::{OpId, Write};

/// What the operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Write(Write),
    /// The guest's flush.
    Flush,
    /// A guest's flush that it was told of while writing ahead; the partner has not done it yet.
    Trailing,
    /// A flush of our own, to be able to clear the logs.
    Settle,
    Read(Extent),
    /// Reads a block from the partner and writes it here, where it could not be read.
    Repair(Extent),
    /// Part of a copy: compares, and has children for what differs. Holds the range.
    Chunk,
    /// Brings a part that differs to the partner.
    CopyOut {
        chunk: OpId,
        extent: Extent,
    },
    /// Fetches a part that differs from the partner.
    CopyIn {
        chunk: OpId,
        extent: Extent,
    },
    /// The partner is to change its superblock.
    Control,
}

impl Task {
    /// Whether it belongs to the copy under way.
    pub fn is_copy(self) -> bool {
        match self {
            Self::Chunk | Self::CopyOut { .. } | Self::CopyIn { .. } => true,
            Self::Write(_)
            | Self::Flush
            | Self::Trailing
            | Self::Settle
            | Self::Read(_)
            | Self::Repair(_)
            | Self::Control => false,
        }
    }

    /// Whether the guest waits for it.
    pub fn is_guests(self) -> bool {
        match self {
            Self::Write(_) | Self::Flush | Self::Read(_) => true,
            Self::Trailing
            | Self::Settle
            | Self::Repair(_)
            | Self::Chunk
            | Self::CopyOut { .. }
            | Self::CopyIn { .. }
            | Self::Control => false,
        }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Behind an overlapping one.
    Queued,
    /// Its regions have to be marked first.
    Logging,
    /// Sent to the replicas that take part.
    Started,
}

#[derive(Debug)]
pub(super) struct Op {
    pub task: Task,
    pub stage: Stage,
    pub local: Leg,
    pub partner: Leg,
    /// For flushes: writes of this and earlier epochs are covered.
    pub epoch: u64,
}

impl Op {
    pub fn new(task: Task, stage: Stage) -> Self {
        Self { task, stage, local: Leg::Unneeded, partner: Leg::Unneeded, epoch: 0 }
    }

    pub fn is_running_locally(&self) -> bool {
        self.local == Leg::Running
    }
}
