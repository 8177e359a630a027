//! What is kept of before a copy when keeping it fails.

use std::path::Path;
use std::time::Duration;

use ev_core::ids::{DiskId, MemberId, PoolId, VmId};
use ev_core::mirror::History;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::disk::{Disk, Initial};
use crate::undo::UndoFile;

const SIZE_BYTES: u64 = 4 << 20;
const KEPT: Generation = Generation(7);
const BLOCK: Extent = Extent { offset: 0, length: 64 << 10 };
const NEXT: Extent = Extent { offset: 1 << 20, length: 64 << 10 };

fn spec(folder: &Path) -> DiskSpec {
    DiskSpec {
        pool: PoolId(Uuid::from_u128(1)),
        vm: VmId(Uuid::from_u128(2)),
        disk: DiskId(Uuid::from_u128(3)),
        host: MemberId(1),
        size_bytes: SIZE_BYTES,
        replica: folder.join("disk-0.raw"),
        metadata: folder.join("disk-0.meta"),
        nbd_socket: None,
        copy_rate_limit: None,
        partner_timeout: Duration::from_secs(1),
    }
}

fn info(health: Health) -> ReplicaInfo {
    ReplicaInfo { health, history: History { current: KEPT, bitmap_base: KEPT } }
}

/// A replica with data in it that a copy is about to overwrite, kept in an undo file whatever the file system can do.
fn copying() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(folder.path());
    Disk::create(&spec, Initial::Source).unwrap();
    std::fs::write(&spec.replica, vec![0x5a; usize::try_from(SIZE_BYTES).unwrap()]).unwrap();
    let (mut store, _) = Store::open(&spec, 1).unwrap();
    assert!(store.store(info(Health::Good)));
    UndoFile::open_or_create(&store.undo_paths().file, store.undo_identity(KEPT)).unwrap();
    assert!(store.store(info(Health::Copying)));
    assert!(store.undo.is_some() && store.metadata.superblock().kept.is_some());
    store.save_before_write(BLOCK);
    assert!(store.undo.as_ref().unwrap().is_saved(BLOCK));
    (folder, store)
}

fn nothing_is_kept(store: &Store) {
    let paths = store.undo_paths();
    assert!(store.undo.is_none() && store.metadata.superblock().kept.is_none());
    assert!(!paths.file.exists() && !paths.reflink.exists());
}

#[test]
fn what_can_not_be_kept_to_the_end_is_not_offered() {
    let (folder, mut store) = copying();
    // Reading what is about to be overwritten fails.
    store.replica = File::options().write(true).open(&store.spec.replica).unwrap();
    store.save_before_write(NEXT);
    nothing_is_kept(&store);
    drop(store);
    let (mut store, _) = Store::open(&spec(folder.path()), 2).unwrap();
    nothing_is_kept(&store);
    assert!(store.store(info(Health::Copying)), "the copy goes on, and begins to keep nothing");
    nothing_is_kept(&store);
}

#[test]
fn a_copy_that_is_taken_up_again_goes_on_with_what_was_kept() {
    let (folder, store) = copying();
    drop(store);
    let (store, _) = Store::open(&spec(folder.path()), 2).unwrap();
    assert!(store.undo.as_ref().unwrap().is_saved(BLOCK));
    assert_eq!(store.metadata.superblock().kept.unwrap().current, KEPT);
}

#[test]
fn kept_data_that_has_gone_is_not_begun_anew_in_the_middle_of_a_copy() {
    for rubbish in [None, Some(vec![0x41; 8192])] {
        let (folder, store) = copying();
        let file = store.undo_paths().file;
        drop(store);
        match rubbish {
            None => std::fs::remove_file(&file).unwrap(),
            Some(rubbish) => std::fs::write(&file, rubbish).unwrap(),
        }
        let (store, _) = Store::open(&spec(folder.path()), 2).unwrap();
        nothing_is_kept(&store);
    }
}
