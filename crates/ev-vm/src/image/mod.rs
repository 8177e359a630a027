//! Disk images that users bring along: looked at with suspicion, then copied into a replica.
//!
//! **What is raw?** The format that the user named counts, and then nothing is guessed: a raw disk whose content
//! begins like a qcow2 file is copied byte by byte. Without a name the content decides: the qcow2 magic means qcow2, the
//! magic of another format or archive is refused by its name, and what is left is raw. The classic attack on such
//! guessing is a guest that writes a qcow2 header with a backing file (`/etc/shadow`) to its raw disk and waits
//! for a host tool to follow it. Here it has no target: replicas are raw and are never probed, and no image that refers
//! to another file (backing file, data file) is taken in, whatever its format is said to be. That is decided on the
//! header's bytes by our own code, before `qemu-img` opens the file, with format and driver named, and `backing` null.

mod header;
mod tool;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ev_core::vm::SECTOR_BYTES;
use serde_json::Value;

use header::{HEAD_BYTES, Looks};

/// Largest disk that is taken in, in bytes.
pub const DISK_BYTES_MAX: u64 = 64 << 40;
/// Most internal snapshots of an image that is taken in. (They are left behind.)
pub const SNAPSHOTS_MAX: u32 = 1024;
/// `qemu-img check`'s exit code for clusters that belong to nothing, which costs space and harms nothing.
const CHECK_LEAKS_ONLY: i32 = 3;

/// Formats that can be taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// QEMU's own format, versions 2 and 3.
    Qcow2,
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its format.
    pub format: Format,
    /// Size of the disk in it.
    pub virtual_bytes: u64,
    /// Space that the file takes.
    pub allocated_bytes: u64,
}

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("it is a {format} file; convert it first (qemu-img convert -O qcow2), or unpack it if it is an archive")]
    Unsupported { format: &'static str },
    #[error("it is said to be qcow2 and does not begin like that; name its real format")]
    NotQcow2,
    #[error("it is qcow version {version}; convert it first (qemu-img convert -O qcow2)")]
    QcowVersion { version: u32 },
    #[error(
        "it builds on a backing file; make it complete first (qemu-img convert -O qcow2, or qemu-img rebase -b '')"
    )]
    BackingFile,
    #[error("it keeps its data in a second file; make it one file first (qemu-img convert -O qcow2)")]
    DataFile,
    #[error("it is encrypted; decrypt it first (qemu-img convert with its secret)")]
    Encrypted,
    #[error("it has {snapshots} internal snapshots, more than {SNAPSHOTS_MAX}; delete some (qemu-img snapshot -d)")]
    TooManySnapshots { snapshots: u32 },
    #[error("it is marked as corrupt; repair a copy of it (qemu-img check -r all) and look at what is left")]
    MarkedCorrupt,
    #[error("it ends in the middle of its header; copy it again from its source")]
    Truncated,
    #[error("it is corrupt ({errors} errors); copy it again from its source, or repair a copy (qemu-img check -r all)")]
    Corrupt { errors: u64 },
    #[error("it is empty; copy it again from its source")]
    Empty,
    #[error(
        "its disk has {bytes} bytes, which is no multiple of {SECTOR_BYTES}; if it is complete, pad it (truncate -s %{SECTOR_BYTES})"
    )]
    NotSectors { bytes: u64 },
    #[error("its disk has {bytes} bytes, more than {DISK_BYTES_MAX}; make it smaller (qemu-img resize --shrink)")]
    TooLarge { bytes: u64 },
    #[error("it is no ordinary file; name a file")]
    NotAFile,
}

/// Why an image could not be taken in.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ImageError {
    #[error("could not read {}: {source}; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the name {} is not text; rename the file", path.display())]
    Name { path: PathBuf },
    #[error("{} is refused: {reason}", path.display())]
    Refused { path: PathBuf, reason: Refusal },
    #[error("could not run qemu-img: {0}; install it (Debian: apt install qemu-utils)")]
    NoTool(io::Error),
    #[error("qemu-img made no progress for {} s and was ended; is the storage working?", waited.as_secs())]
    TimedOut { waited: Duration },
    #[error("the disk that the image is copied to is full; make room, or choose another storage")]
    NoSpace,
    #[error("qemu-img failed on {}: {said}", path.display())]
    Tool { path: PathBuf, said: String },
}

/// Looks at an image without trusting it. `named` is the format that the user named; without it the content decides.
///
/// # Errors
/// It can't be read, or is one of the kinds that are refused.
pub async fn inspect(path: &Path, named: Option<Format>) -> Result<ImageInfo, ImageError> {
    let refuse = |reason| ImageError::Refused { path: path.to_owned(), reason };
    let head = read_head(path)?;
    let format = match (named, header::looks(&head)) {
        (Some(format), _) => format,
        (None, Looks::Raw) => Format::Raw,
        (None, Looks::Qcow2) => Format::Qcow2,
        (None, Looks::Other(format)) => return Err(refuse(Refusal::Unsupported { format })),
    };
    let metadata = std::fs::metadata(path).map_err(|source| ImageError::Read { path: path.to_owned(), source })?;
    let virtual_bytes = match format {
        // QEMU's tools would round it up.
        Format::Raw => metadata.len(),
        Format::Qcow2 => {
            header::check_qcow2(&head).map_err(refuse)?;
            ask_virtual_bytes(path).await?
        }
    };
    if virtual_bytes == 0 {
        return Err(refuse(Refusal::Empty));
    }
    if virtual_bytes % SECTOR_BYTES != 0 {
        return Err(refuse(Refusal::NotSectors { bytes: virtual_bytes }));
    }
    if virtual_bytes > DISK_BYTES_MAX {
        return Err(refuse(Refusal::TooLarge { bytes: virtual_bytes }));
    }
    // `st_blocks` counts 512 bytes, whatever the file system's blocks are.
    Ok(ImageInfo { format, virtual_bytes, allocated_bytes: metadata.blocks() * 512 })
}

/// Checks the image and copies its disk into `destination`, an existing sparse file (all zeroes) of the same or a
/// larger size. `progress` is called with per mille done.
///
/// # Errors
/// As [`inspect`]; or it is corrupt, or the copy failed: then `destination` holds part of it.
pub async fn import_to_raw(
    path: &Path,
    info: &ImageInfo,
    destination: &Path,
    progress: impl FnMut(u16) + Send,
) -> Result<(), ImageError> {
    let source = tool::source(path, info.format)?;
    if info.format == Format::Qcow2 {
        // Once more, as the file may have been changed since.
        header::check_qcow2(&read_head(path)?)
            .map_err(|reason| ImageError::Refused { path: path.to_owned(), reason })?;
        check(path, &source).await?;
    }
    let destination = tool::source(destination, Format::Raw)?;
    // `-n`: into the existing file; zeroes need not be written, it has them already.
    let options = ["convert", "-p", "-n", "--target-is-zero", "-S", "4k", "-O", "raw"];
    let mut arguments: Vec<_> = options.map(Into::into).into();
    arguments.extend([source, destination]);
    let run = tool::watch(&arguments, progress).await?;
    if run.status.success() {
        return Ok(());
    }
    if run.error.contains("No space left on device") {
        return Err(ImageError::NoSpace);
    }
    Err(failed(path, &run))
}

async fn check(path: &Path, source: &std::ffi::OsStr) -> Result<(), ImageError> {
    let run = tool::work(&["check".into(), "--output=json".into(), source.to_owned()]).await?;
    if run.status.success() || run.status.code() == Some(CHECK_LEAKS_ONLY) {
        return Ok(());
    }
    let answer: Value = serde_json::from_str(&run.output).unwrap_or_default();
    let errors = tool::number(&answer, "corruptions").unwrap_or_default()
        + tool::number(&answer, "check-errors").unwrap_or_default();
    if errors == 0 {
        return Err(failed(path, &run));
    }
    Err(ImageError::Refused { path: path.to_owned(), reason: Refusal::Corrupt { errors } })
}

async fn ask_virtual_bytes(path: &Path) -> Result<u64, ImageError> {
    let source = tool::source(path, Format::Qcow2)?;
    let run = tool::ask(&["info".into(), "--output=json".into(), source]).await?;
    let answer: Value = serde_json::from_str(&run.output).unwrap_or_default();
    let bytes = tool::number(&answer, "virtual-size").filter(|_| run.status.success());
    bytes.ok_or_else(|| failed(path, &run))
}

fn failed(path: &Path, run: &tool::Run) -> ImageError {
    let said = run.error.lines().last().unwrap_or_default();
    let said = if said.is_empty() { run.status.to_string() } else { said.chars().take(300).collect() };
    ImageError::Tool { path: path.to_owned(), said }
}

fn read_head(path: &Path) -> Result<Vec<u8>, ImageError> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        // A FIFO or a device would block or be endless.
        if !std::fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        let mut head = Vec::new();
        File::open(path)?.take(u64::try_from(HEAD_BYTES).unwrap_or_default()).read_to_end(&mut head)?;
        Ok(Some(head))
    };
    match read() {
        Ok(Some(head)) => Ok(head),
        Ok(None) => Err(ImageError::Refused { path: path.to_owned(), reason: Refusal::NotAFile }),
        Err(source) => Err(ImageError::Read { path: path.to_owned(), source }),
    }
}
