//! Having back what a replica held before a copy began to overwrite it, or before it fell behind.
//!
//! ```text
//! superblock: copying, kept ──undo::restore──► replica as it was ──superblock: good, no history──► undo discarded
//!        ▲                                        │
//!        └──── a crash: the same again ◄──────────┘
//! ```
//! The history is dropped: what the partner's maps name counts from a state that is no more, so whichever side is brought in
//! step with the other later is compared as a whole.

use ev_core::mirror::{Health, History, ReplicaInfo};

use super::spec::DiskSpec;
use crate::metadata::{MetadataFile, OpenError, Superblock, UpdateError};
use crate::undo::{self, UndoError, UndoIdentity, UndoPaths};

/// Which state the replica has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reverted {
    /// The one before a copy that began at this time, in seconds since 1970.
    BeforeCopy { kept_at_unix_s: u64 },
    /// No copy had begun: as it was when it fell behind.
    AsItLay,
}

/// Why a replica has no older state to go back to. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RevertError {
    #[error(transparent)]
    Metadata(#[from] OpenError),
    #[error(
        "a copy was overwriting this replica and nothing of before was kept (no room for it, or its storage failed): bring back the other host"
    )]
    NothingKept,
    #[error("this replica never held anything: bring back the other host")]
    Empty,
    #[error("the storage of this replica has failed: bring back the other host")]
    Failed,
    #[error(transparent)]
    Undo(#[from] UndoError),
    #[error(transparent)]
    Superblock(#[from] UpdateError),
}

/// See [`super::Disk::revert`].
pub fn revert(spec: &DiskSpec) -> Result<Reverted, RevertError> {
    let (mut metadata, _) =
        MetadataFile::open(&spec.metadata, (spec.pool, spec.vm, spec.disk, spec.host), spec.size_bytes)?;
    let old = *metadata.superblock();
    let paths = UndoPaths::beside(&spec.replica);
    let reverted = match (old.info.health, old.kept) {
        (Health::Copying, Some(kept)) => {
            let identity = UndoIdentity { disk: spec.disk, size_bytes: spec.size_bytes, current: kept.current };
            undo::restore(&spec.replica, &paths, identity)?;
            Reverted::BeforeCopy { kept_at_unix_s: kept.kept_at_unix_s }
        }
        (Health::Copying, None) => return Err(RevertError::NothingKept),
        (Health::Good, _) => Reverted::AsItLay,
        (Health::Empty, _) => return Err(RevertError::Empty),
        (Health::Failed, _) => return Err(RevertError::Failed),
    };
    let info = ReplicaInfo { health: Health::Good, history: History::NONE };
    metadata.update(Superblock { info, kept: None, ..old })?;
    undo::discard(&paths)?;
    Ok(reverted)
}
