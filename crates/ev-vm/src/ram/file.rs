//! The file that is a guest's memory: made here, mapped by QEMU and by us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Stat, fstat};

use super::sys;

/// Names of the memory files, by which they are found again in QEMU's table of descriptors.
pub(crate) const RAM_FILE_NAME: &str = "evenkeel-ram";

/// A file whatever its name: `st_dev` and `st_ino`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl FileId {
    pub(crate) fn of(file: impl AsFd) -> io::Result<Self> {
        let Stat { st_dev: device, st_ino: inode, .. } = fstat(file)?;
        Ok(Self { device, inode })
    }
}

/// A file (memfd) of a guest's memory. Its length never changes, whatever QEMU does. Clones are the same file.
#[derive(Debug, Clone)]
pub struct RamFile {
    file: Arc<OwnedFd>,
    id: FileId,
    bytes: u64,
}

impl PartialEq for RamFile {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for RamFile {}

impl RamFile {
    /// A new one, all zeroes, that takes no memory yet.
    ///
    /// # Errors
    /// The kernel refuses (no memory, too many open files).
    pub fn create(bytes: u64) -> io::Result<Self> {
        let file = sys::memory_file(RAM_FILE_NAME)?;
        rustix::fs::ftruncate(&file, bytes)?;
        sys::seal(&file)?;
        Self::new(file)
    }

    /// One that was made before, by this or an earlier process.
    ///
    /// # Errors
    /// It can't be looked at, or its length can change: QEMU could then end this process.
    pub(crate) fn new(file: OwnedFd) -> io::Result<Self> {
        if !sys::is_sealed(&file) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let bytes = u64::try_from(fstat(&file)?.st_size).map_err(io::Error::other)?;
        let id = FileId::of(&file)?;
        Ok(Self { file: Arc::new(file), id, bytes })
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it is, whatever it is called.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }
}

impl AsFd for RamFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
