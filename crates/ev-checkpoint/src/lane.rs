//! What the engines of both sides say to each other while a session is on. Never behind memory: a stream of its own.

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::DiskId;
use ev_core::time::Instant;
use ev_vm::ram::RamLayout;
use ev_wire::frame::FrameKind;
use serde::{Deserialize, Serialize};

/// A frame that carries a [`LaneMessage`].
pub const LANE: FrameKind = FrameKind(49);

/// Name and pages of each memory block: both QEMUs must number their pages alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryShape(pub Vec<(String, u32)>);

impl From<&RamLayout> for MemoryShape {
    fn from(layout: &RamLayout) -> Self {
        Self(layout.blocks.iter().map(|block| (block.name.clone(), block.pages)).collect())
    }
}

/// Both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneMessage {
    /// Active: from now on checkpoints of this session come. Answered by `Confirm` of [`Epoch::NONE`] once a QEMU waits, or by `Refuse`.
    Begin {
        session: Session,
        disks: Vec<DiskId>,
        shape: MemoryShape,
        /// Version of the active side's QEMU: another one may not understand its device state.
        qemu: String,
        machine: String,
    },
    /// Active: a reading of its clock, several times a second.
    Clock { session: Session, reading: Instant },
    /// Active: the session is over.
    End { session: Session },
    /// Standby: it has decided this epoch. Repeated with each `Clock`, with the newest reading that it had.
    Confirm { session: Session, epoch: Epoch, echo: Instant },
    /// Standby: it can't go on with this session, and why, in words.
    Refuse { session: Session, why: String },
}
