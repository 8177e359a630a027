//! The machines' disks: XFS (with reflinks) on sparse image files, which can lose power, fail, fill up and be replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::LabError;
use crate::plan::{DiskKind, Node, Plan};
use crate::tool::{run, text, wait_until};

/// Size of a system disk. XFS makes no smaller one than 300 MiB.
const SYSTEM_BYTES: u64 = 2 << 30;
/// How long the kernel may take to let go of a file system that nobody uses any more.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);
/// The file that takes up the room of a disk that is to be full.
const FILLER: &str = "ev-lab-filler";

/// Filling stops when not even a block of this size fits any more.
const FILL_STEP_BYTES_MIN: u64 = 4096;

/// What comes back when a failed disk is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairKind {
    /// The same disk, with what had reached it before it failed.
    Same,
    /// A new, empty one.
    Blank,
}

/// Makes a machine's images and file systems.
pub fn create_disks(plan: &Plan, node: &Node, storage_bytes: u64) -> Result<(), LabError> {
    for disk in node.disks() {
        format(&plan.image(node, *disk), size(*disk, storage_bytes))?;
    }
    Ok(())
}

fn size(disk: DiskKind, storage_bytes: u64) -> u64 {
    match disk {
        DiskKind::System => SYSTEM_BYTES,
        DiskKind::Storage => storage_bytes,
    }
}

/// A new sparse image with an empty file system.
fn format(image: &Path, bytes: u64) -> Result<(), LabError> {
    let file = fs::File::create(image).map_err(LabError::file("create", image))?;
    file.set_len(bytes).map_err(LabError::file("size", image))?;
    run("mkfs.xfs", &["-q", "-f", "-K", "-m", "reflink=1", &text(image)]).map(|_| ())
}

/// A folder as a mount point of its own, whose later mounts are seen in the daemons' mount namespaces too.
pub fn share_dir(dir: &Path) -> Result<(), LabError> {
    let dir = text(dir);
    run("mount", &["--bind", &dir, &dir])?;
    run("mount", &["--make-shared", &dir]).map(|_| ())
}

/// Mounts all disks, the outer ones first, and the volatile folder.
pub fn mount_all(plan: &Plan, node: &Node) -> Result<(), LabError> {
    for disk in node.disks() {
        let point = plan.mount_point(node, *disk);
        fs::create_dir_all(&point).map_err(LabError::file("make the folder", &point))?;
        mount(&plan.image(node, *disk), &point)?;
    }
    run("mount", &["-t", "tmpfs", "-o", "mode=0755", "ev-lab", &text(&plan.run_dir(node))]).map(|_| ())
}

/// The image may still be held, failed and silent, by processes that had files open when the disk was repaired. Therefore
/// `nouuid`, and always a new loop device: `mount -o loop` would take the image's old one, and the failed file system with it.
fn mount(image: &Path, point: &Path) -> Result<(), LabError> {
    let device = run("losetup", &["--find", "--show", &text(image)])?;
    let device = device.trim();
    let mounted = run("mount", &["-t", "xfs", "-o", "nouuid,discard", device, &text(point)]);
    // It goes when the last user does, the mount among them.
    let detached = run("losetup", &["--detach", device]);
    mounted.and(detached).map(|_| ())
}

/// Mount points at or below `dir`, the innermost first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, LabError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(LabError::file("read", path))?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    Ok(below)
}

/// Unmounts everything of a machine; what had not reached its disks is lost, as when the power goes.
pub fn lose_power(plan: &Plan, node: &Node) -> Result<(), LabError> {
    for disk in node.disks() {
        shut_down(&plan.mount_point(node, *disk))?;
    }
    unmount_below(&plan.state_dir(node))?;
    unmount_below(&plan.run_dir(node))?;
    node.disks().iter().try_for_each(|disk| release(&plan.image(node, *disk)))
}

pub fn unmount_below(dir: &Path) -> Result<(), LabError> {
    mounts_below(dir)?.iter().try_for_each(|point| run("umount", &["--lazy", &text(point)]).map(|_| ()))
}

/// Waits until no loop device uses the image any more; then its file system is closed.
fn release(image: &Path) -> Result<(), LabError> {
    let name = text(image);
    wait_until(&format!("{name} to be released"), RELEASE_LIMIT, || {
        run("losetup", &["--associated", &name]).is_ok_and(|list| list.trim().is_empty())
    })
}

/// Ends all I/O of a mounted file system with EIO from now on, without writing out what is still in memory.
fn shut_down(point: &Path) -> Result<(), LabError> {
    let mounted = mounts_below(point)?.iter().any(|mounted| mounted == point);
    let failed_already =
        fs::metadata(point).err().and_then(|error| error.raw_os_error()) == Some(rustix::io::Errno::IO.raw_os_error());
    if !mounted || failed_already {
        return Ok(());
    }
    run("xfs_io", &["-x", "-c", "shutdown", &text(point)]).map(|_| ())
}

pub fn fail(plan: &Plan, node: &Node, disk: DiskKind) -> Result<(), LabError> {
    shut_down(&plan.mount_point(node, disk))
}

/// Puts the disk, or a new one, in the failed one's place. Files that processes hold open stay failed.
pub fn repair(plan: &Plan, node: &Node, disk: DiskKind, kind: RepairKind, storage_bytes: u64) -> Result<(), LabError> {
    let (image, point) = (plan.image(node, disk), plan.mount_point(node, disk));
    shut_down(&point)?;
    unmount_below(&point)?;
    if kind == RepairKind::Blank {
        // The old image stays with those who hold it open, under no name.
        fs::remove_file(&image).map_err(LabError::file("remove", &image))?;
        format(&image, size(disk, storage_bytes))?;
    }
    mount(&image, &point)?;
    if disk == DiskKind::System && node.disks().contains(&DiskKind::Storage) {
        let storage = plan.mount_point(node, DiskKind::Storage);
        fs::create_dir_all(&storage).map_err(LabError::file("make the folder", &storage))?;
        mount(&plan.image(node, DiskKind::Storage), &storage)?;
    }
    Ok(())
}

/// Takes up all room of a disk but `leave` bytes.
pub fn fill(plan: &Plan, node: &Node, disk: DiskKind, leave: u64) -> Result<(), LabError> {
    let point = plan.mount_point(node, disk);
    let filler = point.join(FILLER);
    let stat = rustix::fs::statvfs(&point).map_err(|error| LabError::File {
        action: "measure",
        path: point.clone(),
        cause: error.into(),
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Space that the file system keeps for its own tables cannot be had: halve what is asked for until nothing more fits.
    let want = free.saturating_sub(leave);
    let (mut taken, mut step) = (0, want);
    while step >= FILL_STEP_BYTES_MIN && taken < want {
        let (offset, length) = (taken.to_string(), step.min(want - taken).to_string());
        match run("fallocate", &["--offset", &offset, "--length", &length, &text(&filler)]) {
            Ok(_) => taken += step,
            Err(LabError::Tool { .. }) => step /= 2,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives the room of [`fill`] back.
pub fn unfill(plan: &Plan, node: &Node, disk: DiskKind) -> Result<(), LabError> {
    let filler = plan.mount_point(node, disk).join(FILLER);
    match fs::remove_file(&filler) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(LabError::File { action: "remove", path: filler, cause }),
    }
}
