//! Storage that loses what it had taken: a file system on a thin disk that has no room when it is flushed. The page cache then holds
//! what the disk does not, and calls it clean. Needs root and a loop device.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use ev_core::report::ReplicaState;
use ev_mirror::{Disk, DiskEvent, Initial};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::client::Client;
use super::pair::{A, B, Pair};
use super::{MIB, pattern};

const SIZE_BYTES: u64 = 64 * MIB;
const WRITTEN: std::ops::Range<u64> = 16..32;

/// A file system on a disk that is a sparse file on another, small one. The mounts are this thread's and its children's.
struct ThinDisk {
    folder: tempfile::TempDir,
}

impl ThinDisk {
    fn new() -> Self {
        // SAFETY: no descriptor is unshared; what this thread mounts from here on is its own, as is its working folder.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("root is needed");
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        disk.run(
            "mount --make-rprivate /; mkdir full thin; mount -t tmpfs -o size=200M none full; truncate -s 190M full/image; \
             mkfs.ext4 -q -m 0 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard full/image; mount -o loop full/image thin",
        );
        disk
    }

    fn run(&self, lines: &str) {
        let status = Command::new("sh").args(["-ec", lines]).current_dir(self.folder.path()).status().unwrap();
        assert!(status.success(), "a loop device and e2fsprogs are needed: {lines}");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("thin").join(name)
    }

    /// Takes all room that is left under it, until the file is removed.
    fn fill(&self) -> PathBuf {
        let path = self.folder.path().join("full/filler");
        let file = File::create(&path).unwrap();
        let (mut length, mut step) = (0, 64 * MIB);
        while step >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), length, step) {
                Ok(()) => length += step,
                Err(_) => step /= 2,
            }
        }
        path
    }

    /// Its bytes, without those that only the page cache holds: it goes with the mount.
    fn read(&self, path: &Path) -> Vec<u8> {
        self.run("umount thin; mount -o loop full/image thin");
        std::fs::read(path).unwrap()
    }
}

impl Drop for ThinDisk {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.run("umount thin; umount full");
        }
    }
}

/// A copy that compared with the page cache would find nothing to move.
#[test]
fn what_the_disk_lost_although_the_page_cache_has_it_is_copied_again() {
    let thin = ThinDisk::new();
    let mut pair = Pair::new(SIZE_BYTES);
    pair.b.spec.replica = thin.path("disk-0.raw");
    pair.b.spec.metadata = thin.path("disk-0.meta");
    Disk::create(&pair.b.spec, Initial::Target).unwrap();
    // The file system needs no room for itself later.
    let replica = OpenOptions::new().write(true).open(&pair.b.spec.replica).unwrap();
    fallocate(&replica, FallocateFlags::empty(), 0, SIZE_BYTES).unwrap();
    replica.sync_all().unwrap();
    drop(replica);
    let mut pair = pair.into_step();

    let filler = thin.fill();
    let mut client = Client::connect(&pair.a.socket());
    for chunk in WRITTEN {
        client.write(chunk * MIB, &pattern(1, 1 << 20));
    }
    client.start_flush();
    pair.until_good(&[A]);
    assert_eq!(client.reply().unwrap(), 0, "one replica has it");
    pair.b.until_event("its storage's failure", |event| matches!(event, DiskEvent::Trouble { .. }));
    std::fs::remove_file(&filler).unwrap();

    pair.b.kill();
    pair.b.open();
    pair.commit();
    pair.connect();
    pair.until_good(&[A, B]);
    pair.until_report("the end of the copy", |report| report.partner == Some(ReplicaState::Online));
    let (a, of_b) = (pair.a.bytes(), pair.b.spec.replica.clone());
    drop(pair);
    let b = thin.read(&of_b);
    assert!(a == b, "the replicas differ first at {:?}", a.iter().zip(&b).position(|(a, b)| a != b));
}
