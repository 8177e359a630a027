//! The first message in each direction, and whether the two sides can work together.

use ev_core::ids::{DiskId, Generation, HostId, MemberId, PoolId, VmId};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::metadata::ReplicaHealth;

/// Versions of the link's protocol.
///
/// - 1 (2026-11): the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkVersion(pub u16);

impl LinkVersion {
    /// The newest that this program speaks.
    pub const NEWEST: Self = Self(1);
    /// The oldest that it still speaks.
    pub const OLDEST: Self = Self(1);
}

/// What the sender does with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRole {
    /// Serves the guest, decides what is copied where.
    Coordinator,
    /// Carries out what the coordinator sends.
    Replica,
}

/// Who speaks, about which disk, and what its replica holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub newest: LinkVersion,
    pub oldest: LinkVersion,
    pub pool: PoolId,
    pub vm: VmId,
    pub disk: DiskId,
    pub host: HostId,
    /// Drawn anew whenever the replica is opened: what an earlier instance had not flushed may be gone.
    pub instance: u64,
    pub role: LinkRole,
    /// Generation of the newest record that the sender has acted on.
    pub generation: Generation,
    pub size_bytes: u64,
    pub region_bytes: u32,
    pub health: ReplicaHealth,
    /// Generation of the record under which the replica's data history began.
    pub current: Generation,
    /// The partner's `current` from which the out-of-sync map counts.
    pub bitmap_base: Generation,
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
    #[error("the link leads back to the same host; check the addresses of the private links")]
    SameHost,
    #[error("both sides have the role {0:?} for the disk; wait until both have acted on the newest record")]
    SameRole(LinkRole),
    #[error("the partner closed for a reason that this version does not know (number {0}); upgrade this host")]
    Unknown(u16),
}

impl Hello {
    /// The version to speak, if both can work together. `self` is ours.
    pub fn check(&self, theirs: &Self) -> Result<LinkVersion, Refusal> {
        let version = self.newest.min(theirs.newest);
        if version < self.oldest || version < theirs.oldest {
            return Err(Refusal::Version {
                ours_oldest: self.oldest,
                ours_newest: self.newest,
                theirs_oldest: theirs.oldest,
                theirs_newest: theirs.newest,
            });
        }
        if self.pool != theirs.pool {
            Err(Refusal::OtherPool)
        } else if self.vm != theirs.vm || self.disk != theirs.disk {
            Err(Refusal::OtherDisk { ours: self.disk, theirs: theirs.disk })
        } else if self.host == theirs.host {
            Err(Refusal::SameHost)
        } else if self.size_bytes != theirs.size_bytes {
            Err(Refusal::OtherSize { ours: self.size_bytes, theirs: theirs.size_bytes })
        } else if self.region_bytes != theirs.region_bytes {
            Err(Refusal::OtherRegions { ours: self.region_bytes, theirs: theirs.region_bytes })
        } else if self.role == theirs.role {
            Err(Refusal::SameRole(self.role))
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
    generation: U64,
    size_bytes: U64,
    current: U64,
    bitmap_base: U64,
    /// 1 coordinator, 2 replica.
    role: U32,
    /// As in the superblock.
    health: U32,
    instance: U64,
}

/// Body of a refusal; `a` to `d` are what the reason's text needs.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RefusalRecord {
    reason: U16,
    zero: [u8; 6],
    ours: [u8; 16],
    theirs: [u8; 16],
}

impl From<&Hello> for HelloRecord {
    fn from(hello: &Hello) -> Self {
        Self {
            newest: hello.newest.0.into(),
            oldest: hello.oldest.0.into(),
            region_bytes: hello.region_bytes.into(),
            pool: hello.pool.0.into_bytes(),
            vm: hello.vm.0.into_bytes(),
            disk: hello.disk.0.into_bytes(),
            host: hello.host.0.into(),
            generation: hello.generation.0.into(),
            size_bytes: hello.size_bytes.into(),
            current: hello.current.0.into(),
            bitmap_base: hello.bitmap_base.0.into(),
            role: role_number(hello.role).into(),
            health: hello.health.number().into(),
            instance: hello.instance.into(),
        }
    }
}

impl HelloRecord {
    /// `None`: a role or health that this version does not know.
    pub(super) fn decode(&self) -> Option<Hello> {
        Some(Hello {
            newest: LinkVersion(self.newest.get()),
            oldest: LinkVersion(self.oldest.get()),
            pool: PoolId(Uuid::from_bytes(self.pool)),
            vm: VmId(Uuid::from_bytes(self.vm)),
            disk: DiskId(Uuid::from_bytes(self.disk)),
            host: MemberId(self.host.get()),
            instance: self.instance.get(),
            role: role_from_number(self.role.get())?,
            generation: Generation(self.generation.get()),
            size_bytes: self.size_bytes.get(),
            region_bytes: self.region_bytes.get(),
            health: ReplicaHealth::from_number(self.health.get())?,
            current: Generation(self.current.get()),
            bitmap_base: Generation(self.bitmap_base.get()),
        })
    }

    /// What another version's hello says before everything else.
    pub(super) fn versions(bytes: &[u8]) -> Option<(LinkVersion, LinkVersion)> {
        let (newest, rest) = U16::read_from_prefix(bytes).ok()?;
        let (oldest, _) = U16::read_from_prefix(rest).ok()?;
        Some((LinkVersion(newest.get()), LinkVersion(oldest.get())))
    }
}

fn role_number(role: LinkRole) -> u32 {
    match role {
        LinkRole::Coordinator => 1,
        LinkRole::Replica => 2,
    }
}

fn role_from_number(number: u32) -> Option<LinkRole> {
    match number {
        1 => Some(LinkRole::Coordinator),
        2 => Some(LinkRole::Replica),
        _ => None,
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
            Refusal::SameHost => (6, [0; 16], [0; 16]),
            Refusal::SameRole(role) => (7, wide(role_number(role).into()), [0; 16]),
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
            6 => Some(Refusal::SameHost),
            7 => narrow(self.ours)
                .and_then(|number| role_from_number(u32::try_from(number).ok()?))
                .map(Refusal::SameRole),
            _ => None,
        };
        known.unwrap_or(Refusal::Unknown(reason))
    }
}
