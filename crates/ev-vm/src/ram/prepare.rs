//! What QEMU inherits so that its memory can be tracked and its device state be taken: open files, and two variables.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::file::RamFile;
use super::sys;

/// Memory file into which QEMU writes its device state.
pub(crate) const STATE_FILE_NAME: &str = "evenkeel-device-state";
/// Memory file into which the preloaded library reports.
pub(crate) const REPORT_FILE_NAME: &str = "evenkeel-ram-report";
const UFFD_DEVICE: &str = "/dev/userfaultfd";
const LIBRARY_NAME: &str = "libev_ramtrack.so";
/// Where packages put it.
const LIBRARY_INSTALLED: &str = "/usr/lib/evenkeel/libev_ramtrack.so";

/// Guest memory that is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedMemory {
    /// The memory itself: new and empty, or the image that the guest is to continue from.
    pub file: RamFile,
    /// The library that is preloaded into QEMU.
    pub library: PathBuf,
}

/// The library beside the running program (as a build leaves it), or where packages put it.
#[must_use]
pub fn find_library() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join(LIBRARY_NAME)));
    beside.into_iter().chain([PathBuf::from(LIBRARY_INSTALLED)]).find(|path| path.exists())
}

/// Whether other RAM blocks (VGA, ROMs) are to be memory files too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherBlocks {
    /// QEMU 10.0 and newer: `aux-ram-share=on`.
    Shared,
    /// QEMU keeps them to itself.
    Private,
}

/// For the child process.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Number of the memory file's descriptor.
    pub ram: i32,
    pub environment: Vec<(&'static str, OsString)>,
}

/// Opens what QEMU is to inherit.
pub(crate) fn prepare(
    memory: &TrackedMemory,
    others: OtherBlocks,
    inherited: &mut Vec<OwnedFd>,
) -> Result<Prepared, (PathBuf, io::Error)> {
    let in_memory = |error| (PathBuf::from("(memory file)"), error);
    let mut keep = |file: OwnedFd| {
        let number = file.as_raw_fd();
        inherited.push(file);
        number
    };
    let ram = keep(memory.file.duplicate().map_err(in_memory)?);
    keep(sys::memory_file(STATE_FILE_NAME).map_err(in_memory)?);
    let report = sys::memory_file(REPORT_FILE_NAME).map_err(in_memory)?;
    rustix::fs::fcntl_setfl(&report, OFlags::APPEND).map_err(|error| in_memory(error.into()))?;
    let report = keep(report);
    let library = File::open(&memory.library).map_err(|error| (memory.library.clone(), error))?;
    let library = keep(library.into());
    let others = match others {
        OtherBlocks::Shared => "track",
        OtherBlocks::Private => "leave",
    };
    let id = memory.file.id();
    let mut told = format!("1 report={report} others={others} ram={}:{}", id.device, id.inode);
    // Where it can't be opened (no such device, not root), the library tries the system call, and reports.
    if let Ok(device) = OpenOptions::new().read(true).write(true).open(Path::new(UFFD_DEVICE)) {
        told.push_str(&format!(" uffd={}", keep(device.into())));
    }
    // By its descriptor, as QEMU's user need not be able to walk to it.
    let environment = vec![
        ("LD_PRELOAD", OsString::from(format!("/proc/self/fd/{library}"))),
        ("EVENKEEL_RAMTRACK", OsString::from(told)),
    ];
    Ok(Prepared { ram, environment })
}
