//! What two AMs of one VM say to each other before a link is handed to a disk, and on the control links.

use std::net::IpAddr;

use ev_core::ids::{DiskId, VmId};
use ev_wire::frame::FrameKind;
use serde::{Deserialize, Serialize};

/// A frame that carries a [`Control`]. The kinds from 64 on are the disks' links.
pub const LINK_CONTROL: FrameKind = FrameKind(48);

/// First message of the side that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkHello {
    pub vm: VmId,
    pub purpose: Purpose,
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// [`Control`] messages: it shows that the path works.
    Control,
    /// The replica of this disk.
    Disk(DiskId),
    /// What the engines of Level 3 say to each other.
    Lane,
    /// The guest's memory, for Level 3.
    Memory,
}

/// A stream that goes over the best path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    Disk(DiskId),
    Lane,
    Memory,
}

impl Channel {
    /// What its hello says.
    #[must_use]
    pub fn purpose(self) -> Purpose {
        match self {
            Self::Disk(disk) => Purpose::Disk(disk),
            Self::Lane => Purpose::Lane,
            Self::Memory => Purpose::Memory,
        }
    }
}

/// The listening side's answer, in a frame of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkReply {
    Welcome,
    Refused(Refusal),
}

/// Why a link is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("the AM at this address belongs to another VM")]
    OtherVm,
    #[error("the partner does not have this disk (yet)")]
    NoSuchDisk,
    #[error("the partner counts itself as the active side (its record may be older or newer)")]
    NotStandby,
    #[error("the partner does not expect this host")]
    OtherHost,
}

/// On a control link, both ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// "I am here", several times a second.
    Ping,
    /// The active side: the guest's NIC of this number uses these addresses.
    Learned { nic: u16, addresses: Vec<IpAddr> },
}
