//! The state of a replica before a copy began to overwrite it, kept until the copy has ended.
//!
//! A copy turns its target from one consistent state into another one by way of many inconsistent ones. If the good side
//! dies halfway, a person can have the older state back: [`restore`].
//!
//! Two methods: where the file system shares blocks between files, a **reflink** made at the beginning, which costs
//! nothing more; else an **undo file**, to which each block is appended before it is overwritten for the first time.
//!
//! ```text
//! (superblock: good) --begin--> kept --superblock: copying--> saving --superblock: good--> finish --> nothing left
//!                                                                |  ^
//!                                                                +--+ process or host dies: begin finds what is kept
//! ```
//! - begin: nothing of the replica has changed yet; an undo file or reflink of an earlier attempt at the same copy goes on.
//! - saving: a block is durable in the undo file before it changes in the replica. Guest writes that come over the
//!   link during a copy change the target too, and are saved in the same way.
//! - finish: only after the superblock durably says good.

mod file;
mod record;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use ev_core::ids::{DiskId, Generation};

pub use file::UndoFile;
pub use record::UNDO_BLOCK_BYTES;

use crate::extent::Extent;
use crate::metadata::{UndoMethod, sync_folder};

/// Which state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UndoIdentity {
    pub disk: DiskId,
    pub size_bytes: u64,
    /// The history of the kept state.
    pub current: Generation,
}

/// Why a state could not be kept or had back.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    #[error("can't {doing} {}: {source}; check free space and the storage under it", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no undo file of this disk and state; move it away", path.display())]
    Other { path: PathBuf },
    #[error("{} has format version {version}, which is newer than this program; upgrade this host", path.display())]
    NewerVersion { path: PathBuf, version: u32 },
    #[error("neither {} nor {} exists: no older state of this replica was kept; copy it from its partner", reflink.display(), file.display())]
    NothingKept { reflink: PathBuf, file: PathBuf },
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UndoError {
    let path = path.to_owned();
    move |source| UndoError::Io { doing, path, source }
}

/// Where the older state is kept: beside the replica (or, for a device, beside its metadata).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoPaths {
    /// Shares blocks with the replica.
    pub reflink: PathBuf,
    /// Blocks that were overwritten.
    pub file: PathBuf,
}

impl UndoPaths {
    /// `<base>.before-copy` and `<base>.undo`.
    #[must_use]
    pub fn beside(base: &Path) -> Self {
        let with = |end: &str| {
            let mut name = base.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        Self { reflink: with(".before-copy"), file: with(".undo") }
    }
}

/// A kept state, while the copy goes on.
#[derive(Debug)]
pub enum Undo {
    Reflink { paths: UndoPaths },
    File { paths: UndoPaths, file: UndoFile },
}

impl Undo {
    /// Keeps the present state of `replica`, durably, or goes on with what an interrupted copy has kept. Blocks the
    /// caller: a reflink of a large, fragmented file takes seconds.
    pub fn begin(replica: &Path, paths: UndoPaths, identity: UndoIdentity) -> Result<Self, UndoError> {
        if paths.reflink.exists() {
            return Ok(Self::Reflink { paths });
        }
        if !paths.file.exists() && reflink(replica, &paths.reflink)? {
            return Ok(Self::Reflink { paths });
        }
        let file = UndoFile::open_or_create(&paths.file, identity)?;
        Ok(Self::File { paths, file })
    }

    /// Goes on with what an interrupted copy has kept; `None` if nothing is there. Nothing is begun anew: by now the replica
    /// is a mixture of two states.
    pub fn resume(paths: UndoPaths, identity: UndoIdentity) -> Result<Option<Self>, UndoError> {
        if paths.reflink.exists() {
            return Ok(Some(Self::Reflink { paths }));
        }
        if !paths.file.exists() {
            return Ok(None);
        }
        let file = UndoFile::open_or_create(&paths.file, identity)?;
        Ok(Some(Self::File { paths, file }))
    }

    /// For the superblock.
    #[must_use]
    pub fn method(&self) -> UndoMethod {
        match self {
            Self::Reflink { .. } => UndoMethod::Reflink,
            Self::File { .. } => UndoMethod::File,
        }
    }

    /// Whether `extent` may be overwritten at once; if not, [`Undo::save`] it first.
    #[must_use]
    pub fn is_saved(&self, extent: Extent) -> bool {
        match self {
            Self::Reflink { .. } => true,
            Self::File { file, .. } => file.is_saved(extent),
        }
    }

    /// Saves what `extents` hold now, durably. Blocks the caller for reads, an append and one flush; many
    /// extents in one call are cheaper.
    pub fn save(&mut self, replica: &File, extents: &[Extent]) -> Result<(), UndoError> {
        match self {
            Self::Reflink { .. } => Ok(()),
            Self::File { file, .. } => file.save(replica, extents),
        }
    }

    /// The copy has ended and the superblock says so: the older state is no longer needed.
    pub fn finish(self) -> Result<(), UndoError> {
        match self {
            Self::Reflink { paths } | Self::File { paths, .. } => discard(&paths),
        }
    }
}

/// Removes what is kept, if anything is, and what was begun. For a replica whose superblock does not speak of it: it is good
/// (a crash before [`Undo::finish`]), or the older state could not be kept to the end.
pub fn discard(paths: &UndoPaths) -> Result<(), UndoError> {
    let begun = [temporary(&paths.reflink), temporary(&paths.file)];
    for path in [&paths.reflink, &paths.file].into_iter().chain(&begun) {
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", path)(error)),
        }
    }
    Ok(())
}

/// Brings the replica back to the state that was kept; nobody may use it meanwhile. Can be repeated after a crash in the
/// middle. The superblock is then to be set good with the history of the kept state, and the rest to be [`discard`]ed.
pub fn restore(replica: &Path, paths: &UndoPaths, identity: UndoIdentity) -> Result<(), UndoError> {
    if paths.reflink.exists() {
        return share_back(replica, &paths.reflink);
    }
    if !paths.file.exists() {
        return Err(UndoError::NothingKept { reflink: paths.reflink.clone(), file: paths.file.clone() });
    }
    let target = OpenOptions::new().write(true).open(replica).map_err(io_error("write", replica))?;
    file::restore(&paths.file, identity, &target, replica)
}

/// The replica shares the blocks of the reflink again. The reflink stays, so that a crash in the middle is repeated.
fn share_back(replica: &Path, reflink: &Path) -> Result<(), UndoError> {
    let kept = File::open(reflink).map_err(io_error("read", reflink))?;
    let target = OpenOptions::new().write(true).open(replica).map_err(io_error("write", replica))?;
    rustix::fs::ioctl_ficlone(&target, &kept).map_err(|errno| io_error("put back", reflink)(errno.into()))?;
    target.sync_all().map_err(io_error("flush", replica))
}

/// The name of a file that is not whole yet.
fn temporary(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    PathBuf::from(temporary)
}

/// Makes a reflink durably; `false` where the file system has none.
fn reflink(replica: &Path, reflink: &Path) -> Result<bool, UndoError> {
    use rustix::io::Errno;

    let temporary = temporary(reflink);
    let source = File::open(replica).map_err(io_error("read", replica))?;
    let clone = File::create(&temporary).map_err(io_error("create", &temporary))?;
    let made = match rustix::fs::ioctl_ficlone(&clone, &source) {
        Ok(()) => clone
            .sync_all()
            .and_then(|()| std::fs::rename(&temporary, reflink))
            .and_then(|()| sync_folder(reflink))
            .map(|()| true)
            .map_err(io_error("create", reflink)),
        // What file systems and devices without shared blocks answer.
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::PERM) => Ok(false),
        Err(errno) => Err(io_error("create", reflink)(errno.into())),
    };
    if !matches!(made, Ok(true)) {
        // It was never given its name, so that nobody relies on it.
        let _ = std::fs::remove_file(&temporary);
    }
    made
}
