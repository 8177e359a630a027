//! The first message in each direction, and whether the two sides can work together.

use ev_core::ids::{DiskId, Generation, MemberId, PoolId, VmId};
use ev_core::mirror::{Epochs, Health, Hello, History, ReplicaInfo};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::metadata::{health_from_number, health_number};

/// Versions of the link's protocol.
///
/// - 1 (2026-11): the first.
/// - 2 (2026-11): marks of epochs, and a hello that says whether any are held. A mark is not sent to a partner that speaks 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkVersion(pub u16);

impl LinkVersion {
    /// The newest that this program speaks.
    pub const NEWEST: Self = Self(2);
    /// The oldest that it still speaks.
    pub const OLDEST: Self = Self(1);
    /// The first with marks of epochs.
    pub const EPOCHS: Self = Self(2);
}

/// Which disk a link is for, as this side knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkIdentity {
    pub pool: PoolId,
    pub vm: VmId,
    pub disk: DiskId,
    pub size_bytes: u64,
    pub region_bytes: u32,
}

/// The first frame in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkHello {
    pub newest: LinkVersion,
    pub oldest: LinkVersion,
    pub identity: LinkIdentity,
    /// What the engine says.
    pub hello: Hello,
}

/// Why two sides cannot work together. `ours` is the refusing side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the partner speaks link protocol versions {} to {}, this host {} to {}; upgrade the host with the older programs",
        theirs_oldest.0, theirs_newest.0, ours_oldest.0, ours_newest.0
    )]
    Version {
        ours_oldest: LinkVersion,
        ours_newest: LinkVersion,
        theirs_oldest: LinkVersion,
        theirs_newest: LinkVersion,
    },
    #[error("the partner belongs to another pool; check the addresses of the private links")]
    OtherPool,
    #[error(
        "the partner offers another disk ({theirs}) than this one ({ours}); check the VM's configuration on both hosts"
    )]
    OtherDisk { ours: DiskId, theirs: DiskId },
    #[error("the partner's replica has {theirs} bytes, this one {ours}; the disk was resized on one host only")]
    OtherSize { ours: u64, theirs: u64 },
    #[error(
        "the partner's replica uses regions of {theirs} bytes, this one of {ours}; recreate the metadata of one of them"
    )]
    OtherRegions { ours: u32, theirs: u32 },
    #[error("the partner closed for a reason that this version does not know (number {0}); upgrade this host")]
    Unknown(u16),
}

impl LinkHello {
    /// With this program's versions.
    #[must_use]
    pub fn new(identity: LinkIdentity, hello: Hello) -> Self {
        Self { newest: LinkVersion::NEWEST, oldest: LinkVersion::OLDEST, identity, hello }
    }
}

impl LinkIdentity {
    /// The version to speak with the sender of `theirs`, if both can work together.
    pub fn check(&self, theirs: &LinkHello) -> Result<LinkVersion, Refusal> {
        let version = LinkVersion::NEWEST.min(theirs.newest);
        if version < LinkVersion::OLDEST || version < theirs.oldest {
            return Err(Refusal::Version {
                ours_oldest: LinkVersion::OLDEST,
                ours_newest: LinkVersion::NEWEST,
                theirs_oldest: theirs.oldest,
                theirs_newest: theirs.newest,
            });
        }
        let theirs = theirs.identity;
        if self.pool != theirs.pool {
            Err(Refusal::OtherPool)
        } else if self.vm != theirs.vm || self.disk != theirs.disk {
            Err(Refusal::OtherDisk { ours: self.disk, theirs: theirs.disk })
        } else if self.size_bytes != theirs.size_bytes {
            Err(Refusal::OtherSize { ours: self.size_bytes, theirs: theirs.size_bytes })
        } else if self.region_bytes != theirs.region_bytes {
            Err(Refusal::OtherRegions { ours: self.region_bytes, theirs: theirs.region_bytes })
        } else {
            Ok(version)
        }
    }
}

/// Body of a hello. The versions come first and keep their place in all versions to come; later versions append.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct HelloRecord {
    newest: U16,
    oldest: U16,
    region_bytes: U32,
    pool: [u8; 16],
    vm: [u8; 16],
    disk: [u8; 16],
    host: U64,
    instance: U64,
    generation: U64,
    size_bytes: U64,
    current: U64,
    bitmap_base: U64,
    /// As in the superblock.
    health: U32,
    /// 1: epochs of a session are held. Before version 2 always 0.
    epochs: U32,
}

/// Body of a refusal, with what the reason's text needs.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RefusalRecord {
    reason: U16,
    zero: [u8; 6],
    ours: [u8; 16],
    theirs: [u8; 16],
}

impl From<&LinkHello> for HelloRecord {
    fn from(from: &LinkHello) -> Self {
        let LinkHello { newest, oldest, identity, hello } = from;
        Self {
            newest: newest.0.into(),
            oldest: oldest.0.into(),
            region_bytes: identity.region_bytes.into(),
            pool: identity.pool.0.into_bytes(),
            vm: identity.vm.0.into_bytes(),
            disk: identity.disk.0.into_bytes(),
            host: hello.host.0.into(),
            instance: hello.instance.into(),
            generation: hello.generation.0.into(),
            size_bytes: identity.size_bytes.into(),
            current: hello.replica.history.current.0.into(),
            bitmap_base: hello.replica.history.bitmap_base.0.into(),
            health: health_number(hello.replica.health).into(),
            epochs: u32::from(hello.epochs == Epochs::Held).into(),
        }
    }
}

impl HelloRecord {
    /// `None`: something that this version does not know.
    pub(super) fn decode(&self) -> Option<LinkHello> {
        let health: Health = health_from_number(self.health.get())?;
        let epochs = match self.epochs.get() {
            0 => Epochs::None,
            1 => Epochs::Held,
            _ => return None,
        };
        let history =
            History { current: Generation(self.current.get()), bitmap_base: Generation(self.bitmap_base.get()) };
        Some(LinkHello {
            newest: LinkVersion(self.newest.get()),
            oldest: LinkVersion(self.oldest.get()),
            identity: LinkIdentity {
                pool: PoolId(Uuid::from_bytes(self.pool)),
                vm: VmId(Uuid::from_bytes(self.vm)),
                disk: DiskId(Uuid::from_bytes(self.disk)),
                size_bytes: self.size_bytes.get(),
                region_bytes: self.region_bytes.get(),
            },
            hello: Hello {
                host: MemberId(self.host.get()),
                instance: self.instance.get(),
                generation: Generation(self.generation.get()),
                replica: ReplicaInfo { health, history },
                epochs,
            },
        })
    }

    /// What another version's hello says before everything else.
    pub(super) fn versions(bytes: &[u8]) -> Option<(LinkVersion, LinkVersion)> {
        let (newest, rest) = U16::read_from_prefix(bytes).ok()?;
        let (oldest, _) = U16::read_from_prefix(rest).ok()?;
        Some((LinkVersion(newest.get()), LinkVersion(oldest.get())))
    }
}

fn wide(low: u64) -> [u8; 16] {
    u128::from(low).to_le_bytes()
}

fn versions(oldest: LinkVersion, newest: LinkVersion) -> [u8; 16] {
    wide(u64::from(oldest.0) | u64::from(newest.0) << 16)
}

impl From<&Refusal> for RefusalRecord {
    fn from(refusal: &Refusal) -> Self {
        let (reason, ours, theirs) = match *refusal {
            Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest } => {
                (1, versions(ours_oldest, ours_newest), versions(theirs_oldest, theirs_newest))
            }
            Refusal::OtherPool => (2, [0; 16], [0; 16]),
            Refusal::OtherDisk { ours, theirs } => (3, ours.0.into_bytes(), theirs.0.into_bytes()),
            Refusal::OtherSize { ours, theirs } => (4, wide(ours), wide(theirs)),
            Refusal::OtherRegions { ours, theirs } => (5, wide(ours.into()), wide(theirs.into())),
            Refusal::Unknown(reason) => (reason, [0; 16], [0; 16]),
        };
        Self { reason: reason.into(), zero: [0; 6], ours, theirs }
    }
}

impl RefusalRecord {
    /// As the refused side tells it: what was "ours" to the sender is "theirs" here.
    pub(super) fn decode(&self) -> Refusal {
        let reason = self.reason.get();
        let narrow = |bytes: [u8; 16]| u64::try_from(u128::from_le_bytes(bytes)).ok();
        let version = |bytes: [u8; 16]| {
            let [a, b, c, d, ..] = bytes;
            (LinkVersion(u16::from_le_bytes([a, b])), LinkVersion(u16::from_le_bytes([c, d])))
        };
        let known = match reason {
            1 => {
                let (theirs_oldest, theirs_newest) = version(self.ours);
                let (ours_oldest, ours_newest) = version(self.theirs);
                Some(Refusal::Version { ours_oldest, ours_newest, theirs_oldest, theirs_newest })
            }
            2 => Some(Refusal::OtherPool),
            3 => Some(Refusal::OtherDisk {
                ours: DiskId(Uuid::from_bytes(self.theirs)),
                theirs: DiskId(Uuid::from_bytes(self.ours)),
            }),
            4 => narrow(self.theirs).zip(narrow(self.ours)).map(|(ours, theirs)| Refusal::OtherSize { ours, theirs }),
            5 => narrow(self.theirs)
                .zip(narrow(self.ours))
                .and_then(|(ours, theirs)| u32::try_from(ours).ok().zip(u32::try_from(theirs).ok()))
                .map(|(ours, theirs)| Refusal::OtherRegions { ours, theirs }),
            _ => None,
        };
        known.unwrap_or(Refusal::Unknown(reason))
    }
}
