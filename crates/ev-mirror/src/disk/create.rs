//! Creating a replica and its metadata.

use std::fs::File;
use std::path::Path;

use ev_core::mirror::{Health, History, ReplicaInfo};

use super::spec::{CreateError, DiskSpec, Initial};
use crate::metadata::{MetadataFile, REGION_BYTES_DEFAULT, Superblock, sync_folder};

/// See [`super::Disk::create`].
pub fn create(spec: &DiskSpec, initial: Initial) -> Result<(), CreateError> {
    if spec.size_bytes == 0 || !spec.size_bytes.is_multiple_of(512) {
        return Err(CreateError::BadSize { size_bytes: spec.size_bytes });
    }
    let replica_error = |source| CreateError::Replica { path: spec.replica.clone(), source };
    match std::fs::metadata(&spec.replica) {
        Ok(meta) if meta.len() != spec.size_bytes => {
            let path = spec.replica.clone();
            return Err(CreateError::OtherSize { path, found: meta.len(), expected: spec.size_bytes });
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            make_sparse(&spec.replica, spec.size_bytes).map_err(replica_error)?;
        }
        Err(error) => return Err(replica_error(error)),
    }
    let health = match initial {
        Initial::Source => Health::Good,
        Initial::Target => Health::Empty,
    };
    let superblock = Superblock {
        sequence: 0,
        pool: spec.pool,
        vm: spec.vm,
        disk: spec.disk,
        host: spec.host,
        size_bytes: spec.size_bytes,
        region_bytes: REGION_BYTES_DEFAULT,
        info: ReplicaInfo { health, history: History::NONE },
        kept: None,
    };
    MetadataFile::create(&spec.metadata, superblock)?;
    Ok(())
}

fn make_sparse(path: &Path, size_bytes: u64) -> std::io::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(size_bytes)?;
    file.sync_all()?;
    sync_folder(path)
}
