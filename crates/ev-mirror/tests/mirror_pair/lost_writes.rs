//! Storage that loses what it had taken: a file system on a thin disk that has no room when it is flushed. The page cache then holds
//! what the disk does not, and calls it clean. Needs root and a loop device.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use ev_core::report::ReplicaState;
use ev_mirror::{Disk, Initial};
use rustix::fs::{FallocateFlags, fallocate};

use super::client::Client;
use super::pair::{A, B, Pair};
use super::{MIB, pattern};

/// Set for the test that runs in a namespace of its own: a folder with the file system `thin` and the disk under it, `full`.
const FOLDER: &str = "EVENKEEL_THIN_DISK";
const TEST: &str = "lost_writes::in_the_namespace";
const SIZE_BYTES: u64 = 64 * MIB;
const WRITTEN: std::ops::Range<u64> = 16..32;

/// Takes all room that is left there.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
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

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().expect("it is installed");
    assert!(status.success(), "{program} {arguments:?}");
}

/// A copy that compared with the page cache would find nothing to move.
#[test]
fn in_the_namespace() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let (thin, disk) = (folder.join("thin"), folder.join("full"));
    let mut pair = Pair::new(SIZE_BYTES);
    pair.b.spec.replica = thin.join("disk-0.raw");
    pair.b.spec.metadata = thin.join("disk-0.meta");
    Disk::create(&pair.b.spec, Initial::Target).unwrap();
    // The file system needs no room for itself later.
    let replica = OpenOptions::new().write(true).open(&pair.b.spec.replica).unwrap();
    fallocate(&replica, FallocateFlags::empty(), 0, SIZE_BYTES).unwrap();
    replica.sync_all().unwrap();
    let mut pair = pair.into_step();

    let filler = fill(&disk);
    let mut client = Client::connect(&pair.a.socket());
    for chunk in WRITTEN {
        client.write(chunk * MIB, &pattern(1, 1 << 20));
    }
    client.start_flush();
    pair.until_good(&[A]);
    assert_eq!(client.reply().unwrap(), 0, "one replica has it");
    std::fs::remove_file(&filler).unwrap();

    let deadline = std::time::Instant::now() + super::pair::WAIT_TIMEOUT;
    while pair.b.disk().report().local != ReplicaState::Failed {
        assert!(std::time::Instant::now() < deadline, "its storage failed");
        std::thread::yield_now();
    }
    pair.b.kill();
    pair.b.open();
    pair.commit();
    pair.connect();
    pair.until_good(&[A, B]);
    let copy = pair.until_report("the end of the copy", |report| report.partner == Some(ReplicaState::Online)).copy;
    println!("{copy:?}");
    drop(replica);
    let (a, b) = (pair.a.bytes(), pair.b.spec.replica.clone());
    drop(pair);
    // What the page cache holds goes with the mount.
    run("umount", &[&thin]);
    run("mount", &[Path::new("-oloop"), &disk.join("image"), &thin]);
    let b = std::fs::read(b).unwrap();
    assert!(a == b, "the replicas differ first at {:?}", a.iter().zip(&b).position(|(a, b)| a != b));
}

#[test]
fn what_the_disk_lost_although_the_page_cache_has_it_is_copied_again() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; mkdir full thin; mount -t tmpfs -o size=200M none full; truncate -s 190M full/image; \
         mkfs.ext4 -q -m 0 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard full/image; mount -o loop full/image thin; \
         {FOLDER}=$PWD \"$0\" --exact {TEST} --nocapture"
    );
    let test = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(test)
        .current_dir(folder.path())
        .output()
        .unwrap_or_else(|error| panic!("can't run unshare: {error}; run `cargo xtask setup`"));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "root and a loop device are needed: {text}");
}
