//! This host's replica and its metadata, as files. What is done here blocks the thread and is rare: superblocks, pages of the
//! maps (into the page cache; their flush is the ring's), what a copy is about to overwrite.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use ev_core::ids::Generation;
use ev_core::mirror::{Extent, Geometry, Health, LocalReplica, MapWord, RegionLog, ReplicaInfo};

use super::super::spec::{DiskSpec, OpenError};
use crate::cache;
use crate::link::codec::HASH_BLOCK_BYTES;
use crate::metadata::{KeptState, MapStore, MetadataFile, Superblock, UndoMethod};
use crate::undo::{self, Undo, UndoIdentity, UndoPaths};

#[cfg(test)]
mod tests;

pub struct Store {
    replica: File,
    metadata: MetadataFile,
    maps: MapStore,
    spec: DiskSpec,
    undo: Option<Undo>,
}

impl Store {
    /// Opens both files and what an interrupted copy has kept.
    pub fn open(spec: &DiskSpec, instance: u64) -> Result<(Self, LocalReplica), OpenError> {
        let replica_error = |source| OpenError::Replica { path: spec.replica.clone(), source };
        let replica = File::options().read(true).write(true).open(&spec.replica).map_err(replica_error)?;
        // A copy moves what differs from it.
        cache::forget_clean(&replica).map_err(replica_error)?;
        let found = replica.metadata().map_err(replica_error)?.len();
        if found != spec.size_bytes {
            let path = spec.replica.clone();
            return Err(OpenError::OtherSize { path, found, expected: spec.size_bytes });
        }
        let identity = (spec.pool, spec.vm, spec.disk, spec.host);
        let (metadata, _) = MetadataFile::open(&spec.metadata, identity, spec.size_bytes)?;
        let superblock = *metadata.superblock();
        let maps = metadata.load_maps();
        if maps.damaged_pages > 0 {
            tracing::warn!(
                disk = %spec.disk,
                pages = maps.damaged_pages,
                "pages of the region maps failed their check and count as all set: a copy will compare more than it need"
            );
        }
        let geometry = Geometry::new(spec.size_bytes, superblock.region_bytes, HASH_BLOCK_BYTES);
        let log = RegionLog::new(geometry, &maps.write_intent, &maps.out_of_sync);
        let local = LocalReplica::new(spec.host, instance, superblock.info, log);
        let maps = MapStore::new(spec.disk, metadata.layout(), maps);
        let mut store = Self { replica, metadata, maps, spec: spec.clone(), undo: None };
        store.resume_undo(&superblock);
        Ok((store, local))
    }

    /// An interrupted copy goes on keeping what it overwrites; a finished one leaves nothing.
    fn resume_undo(&mut self, superblock: &Superblock) {
        let Some(kept) = superblock.kept else { return self.discard_undo() };
        match Undo::resume(self.undo_paths(), self.undo_identity(kept.current)) {
            Ok(Some(undo)) => self.undo = Some(undo),
            Ok(None) => {
                tracing::warn!(disk = %self.spec.disk, "the state before the copy is gone; the copy goes on without it");
                self.give_up_undo();
            }
            Err(error) => {
                tracing::warn!(disk = %self.spec.disk, %error, "the state before the copy can't be used any longer; the copy goes on without it");
                self.give_up_undo();
            }
        }
    }

    fn undo_identity(&self, current: Generation) -> UndoIdentity {
        UndoIdentity { disk: self.spec.disk, size_bytes: self.spec.size_bytes, current }
    }

    fn discard_undo(&self) {
        if let Err(error) = undo::discard(&self.undo_paths()) {
            tracing::warn!(disk = %self.spec.disk, %error, "what was kept of before a copy can't be removed");
        }
    }

    /// What was kept so far no longer leads back to one state: nobody may be offered it. The superblock stops speaking of it
    /// first; a crash before the files are gone leaves files that nobody asks for, and the next opening removes them.
    fn give_up_undo(&mut self) {
        self.undo = None;
        let old = *self.metadata.superblock();
        if old.kept.is_some()
            && let Err(error) = self.metadata.update(Superblock { kept: None, ..old })
        {
            tracing::error!(disk = %self.spec.disk, %error, "the replica's state can't be stored: replace its storage");
        }
        self.discard_undo();
    }

    fn undo_paths(&self) -> UndoPaths {
        UndoPaths::beside(&self.spec.replica)
    }

    /// Begins to keep the present state. Without room for it the copy goes on all the same: the older state is a
    /// convenience for the day when the good side dies in the middle.
    fn keep(&mut self, current: Generation) {
        match Undo::begin(&self.spec.replica, self.undo_paths(), self.undo_identity(current)) {
            Ok(undo) => self.undo = Some(undo),
            Err(error) => {
                tracing::warn!(disk = %self.spec.disk, %error, "the state before the copy can't be kept; the copy goes on without it");
                self.discard_undo();
            }
        }
    }

    pub fn replica(&self) -> RawFd {
        self.replica.as_raw_fd()
    }

    /// The replica, for asking which parts of it are holes.
    pub fn replica_file(&self) -> &File {
        &self.replica
    }

    pub fn metadata(&self) -> RawFd {
        self.metadata.file().as_raw_fd()
    }

    pub fn region_bytes(&self) -> u32 {
        self.metadata.superblock().region_bytes
    }

    /// Writes the pages that these words stand in. Durable after the next flush of the metadata file.
    pub fn write_words(&mut self, words: &[MapWord]) -> std::io::Result<()> {
        for write in self.maps.commit(words) {
            self.metadata.file().write_all_at(&write.page.0, write.offset)?;
        }
        Ok(())
    }

    /// Makes the replica's state durable. A copy's target first keeps what it is.
    pub fn store(&mut self, info: ReplicaInfo) -> bool {
        let old = *self.metadata.superblock();
        let begins_copy = info.health == Health::Copying && self.undo.is_none() && old.kept.is_none();
        if begins_copy && old.info.health == Health::Good {
            self.keep(old.info.history.current);
        }
        let kept = match (&self.undo, info.health) {
            (Some(undo), Health::Copying) => {
                Some(old.kept.unwrap_or_else(|| kept_now(undo.method(), old.info.history.current)))
            }
            (None, Health::Copying) => old.kept,
            (_, Health::Empty | Health::Good | Health::Failed) => None,
        };
        let superblock = Superblock { info, kept, ..old };
        if let Err(error) = self.metadata.update(superblock) {
            tracing::error!(disk = %self.spec.disk, %error, "the replica's state can't be stored: replace its storage");
            return false;
        }
        if info.health == Health::Good
            && let Some(undo) = self.undo.take()
            && let Err(error) = undo.finish()
        {
            tracing::warn!(disk = %self.spec.disk, %error, "what was kept of before the copy can't be removed");
        }
        true
    }

    /// Before `extent` is overwritten: keeps what it holds, if a copy is under way that keeps it so.
    pub fn save_before_write(&mut self, extent: Extent) {
        let Some(undo) = &mut self.undo else { return };
        if undo.is_saved(extent) {
            return;
        }
        if let Err(error) = undo.save(&self.replica, &[extent]) {
            tracing::warn!(disk = %self.spec.disk, %error, "the state before the copy can't be kept any longer; the copy goes on without it");
            self.give_up_undo();
        }
    }
}

fn kept_now(method: UndoMethod, current: Generation) -> KeptState {
    let kept_at_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    KeptState { method, current, kept_at_unix_s }
}
