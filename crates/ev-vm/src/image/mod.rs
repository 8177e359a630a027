//! Disk images that users bring along: looked at with suspicion, then copied into a replica.

use std::path::{Path, PathBuf};

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

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ImageError {
    #[error("could not read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
}

/// Looks at an image without trusting it. `named` is the format that the user named; without it the content decides.
///
/// # Errors
/// It can't be read, or is one of the kinds that are refused.
pub async fn inspect(path: &Path, named: Option<Format>) -> Result<ImageInfo, ImageError> {
    let _ = (path, named);
    unimplemented!()
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
    let _ = (path, info, destination, progress);
    unimplemented!()
}
