//! The superblock: what a replica is and what it holds.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `EVKREPL` and a zero |
//! | 8..12 | version, 1 |
//! | 12..16 | health: 1 empty, 2 good, 3 copying, 4 failed |
//! | 16..24 | sequence: rises with each update; the higher one of two whole slots counts |
//! | 24..40, 40..56, 56..72 | pool, VM, disk (UUIDs) |
//! | 72..80 | host |
//! | 80..88 | size of the disk in bytes |
//! | 88..92 | size of a region in bytes |
//! | 92..96 | undo method of a copy under way: 0 none, 1 reflink, 2 undo file |
//! | 96..104 | `current`: generation of the record that began this data history |
//! | 104..112 | `bitmap_base`: the partner's `current` that the out-of-sync map counts from |
//! | 112..120 | `current` of the state kept by the undo method |
//! | 120..128 | when it was kept, seconds since 1970 |
//! | 128..4092 | zero |
//! | 4092..4096 | CRC-32C of all before |
//!
//! Magic, version and checksum keep their places in all versions to come. All numbers little-endian.

use ev_core::ids::{DiskId, Generation, HostId, MemberId, PoolId, VmId};
use ev_core::mirror::{Health, History, ReplicaInfo};
use uuid::Uuid;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Layout, Page};

const MAGIC: [u8; 8] = *b"EVKREPL\0";

/// Versions of the metadata file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetadataVersion {
    /// 2026-11: the first.
    V1 = 1,
}

impl MetadataVersion {
    /// What is written.
    pub const NEWEST: Self = Self::V1;

    fn number(self) -> u32 {
        match self {
            Self::V1 => 1,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            _ => None,
        }
    }
}

/// How metadata and link write a replica's health.
pub(crate) fn health_number(health: Health) -> u32 {
    match health {
        Health::Empty => 1,
        Health::Good => 2,
        Health::Copying => 3,
        Health::Failed => 4,
    }
}

/// The reverse.
pub(crate) fn health_from_number(number: u32) -> Option<Health> {
    match number {
        1 => Some(Health::Empty),
        2 => Some(Health::Good),
        3 => Some(Health::Copying),
        4 => Some(Health::Failed),
        _ => None,
    }
}

/// How the state before a copy is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UndoMethod {
    /// A second file that shares the old blocks (FICLONE).
    Reflink,
    /// A file of old blocks, each saved before it is overwritten.
    File,
}

/// The older state that a copy under way can be undone to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptState {
    pub method: UndoMethod,
    /// The history that it belongs to.
    pub current: Generation,
    /// When it was kept, in seconds since 1970: tells a person how old that state is.
    pub kept_at_unix_s: u64,
}

/// A replica's superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with each update; [`super::MetadataFile::update`] sees to it.
    pub sequence: u64,
    pub pool: PoolId,
    pub vm: VmId,
    pub disk: DiskId,
    pub host: HostId,
    pub size_bytes: u64,
    pub region_bytes: u32,
    /// What the replica's bytes are worth, and which history they are.
    pub info: ReplicaInfo,
    /// Present while `health` is `Copying`, if the state before could be kept.
    pub kept: Option<KeptState>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SuperblockRecord {
    magic: [u8; 8],
    version: U32,
    health: U32,
    sequence: U64,
    pool: [u8; 16],
    vm: [u8; 16],
    disk: [u8; 16],
    host: U64,
    size_bytes: U64,
    region_bytes: U32,
    undo_method: U32,
    current: U64,
    bitmap_base: U64,
    kept_current: U64,
    kept_at_unix_s: U64,
}

/// Why a slot holds no superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    #[error("it is no superblock")]
    NotSuperblock,
    #[error("it fails its checksum")]
    Checksum,
    #[error("it has format version {0}, newer than {newest}", newest = MetadataVersion::NEWEST.number())]
    NewerVersion(u32),
    #[error("it passes its checksum and yet has an impossible value")]
    BadValue,
}

impl Superblock {
    /// Writes the slot's page.
    pub fn encode(&self, page: &mut Page) {
        *page = Page::ZERO;
        let record = SuperblockRecord {
            magic: MAGIC,
            version: MetadataVersion::NEWEST.number().into(),
            health: health_number(self.info.health).into(),
            sequence: self.sequence.into(),
            pool: self.pool.0.into_bytes(),
            vm: self.vm.0.into_bytes(),
            disk: self.disk.0.into_bytes(),
            host: self.host.0.into(),
            size_bytes: self.size_bytes.into(),
            region_bytes: self.region_bytes.into(),
            undo_method: match self.kept.map(|kept| kept.method) {
                None => 0,
                Some(UndoMethod::Reflink) => 1,
                Some(UndoMethod::File) => 2,
            }
            .into(),
            current: self.info.history.current.0.into(),
            bitmap_base: self.info.history.bitmap_base.0.into(),
            kept_current: self.kept.map_or(0, |kept| kept.current.0).into(),
            kept_at_unix_s: self.kept.map_or(0, |kept| kept.kept_at_unix_s).into(),
        };
        record.write_to_prefix(&mut page.0).expect("the record is shorter than a page");
        page.seal();
    }

    /// Reads a slot's page.
    pub fn decode(page: &Page) -> Result<Self, SuperblockError> {
        let (record, _) = SuperblockRecord::ref_from_prefix(&page.0).map_err(|_| SuperblockError::NotSuperblock)?;
        if record.magic != MAGIC {
            return Err(SuperblockError::NotSuperblock);
        }
        if !page.is_sealed() {
            return Err(SuperblockError::Checksum);
        }
        let number = record.version.get();
        match MetadataVersion::from_number(number) {
            Some(MetadataVersion::V1) => {}
            None => return Err(SuperblockError::NewerVersion(number)),
        }
        let method = match record.undo_method.get() {
            0 => None,
            1 => Some(UndoMethod::Reflink),
            2 => Some(UndoMethod::File),
            _ => return Err(SuperblockError::BadValue),
        };
        let superblock = Self {
            sequence: record.sequence.get(),
            pool: PoolId(Uuid::from_bytes(record.pool)),
            vm: VmId(Uuid::from_bytes(record.vm)),
            disk: DiskId(Uuid::from_bytes(record.disk)),
            host: MemberId(record.host.get()),
            size_bytes: record.size_bytes.get(),
            region_bytes: record.region_bytes.get(),
            info: ReplicaInfo {
                health: health_from_number(record.health.get()).ok_or(SuperblockError::BadValue)?,
                history: History {
                    current: Generation(record.current.get()),
                    bitmap_base: Generation(record.bitmap_base.get()),
                },
            },
            kept: method.map(|method| KeptState {
                method,
                current: Generation(record.kept_current.get()),
                kept_at_unix_s: record.kept_at_unix_s.get(),
            }),
        };
        superblock.layout().ok_or(SuperblockError::BadValue)?;
        Ok(superblock)
    }

    /// Where things are in this replica's file; `None` for impossible sizes.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        Layout::new(self.size_bytes, self.region_bytes)
    }
}
