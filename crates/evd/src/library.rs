//! This host's copies of library files (ISO images, kernels, initial RAM disks), named by their BLAKE3 hash. A file
//! appears under its name only when it is whole and its hash is right.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Most bytes of one part of a file, as peers ask for it.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// The folder.
#[derive(Debug, Clone)]
pub struct Library {
    folder: PathBuf,
}

/// Why a file was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("{0:?} is not a BLAKE3 hash: give 64 hexadecimal digits")]
    BadHash(String),
    #[error("what arrived has the hash {found}, not {expected}: it was changed or cut off on its way. Send it again")]
    WrongHash { expected: String, found: String },
    #[error("cannot keep the file in {}: {source}. Make room there or repair the disk", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A file on its way in. Dropped unfinished, it leaves nothing behind.
pub struct Incoming {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    expected: String,
    length_bytes: u64,
    kept: bool,
}

impl Library {
    /// # Errors
    /// The folder can't be made.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        // Guests run as another user and open these files by path.
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Self { folder })
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of the file with this hash, whether it is there or not.
    ///
    /// # Errors
    /// The text is not a hash (it may come from a peer: nothing but digits may get into a path).
    pub fn path(&self, blake3: &str) -> Result<PathBuf, LibraryError> {
        let plain =
            blake3.len() == 64 && blake3.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if plain { Ok(self.folder.join(blake3)) } else { Err(LibraryError::BadHash(blake3.to_owned())) }
    }

    #[must_use]
    pub fn has(&self, blake3: &str) -> bool {
        self.path(blake3).is_ok_and(|path| path.exists())
    }

    /// Begins to take in the file with this hash.
    ///
    /// # Errors
    /// A bad hash, or no file can be made.
    pub fn receive(&self, blake3: &str) -> Result<Incoming, LibraryError> {
        self.path(blake3)?;
        let path = self.folder.join(format!(".{}", Uuid::new_v4()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(|source| LibraryError::Io { path: path.clone(), source })?;
        Ok(Incoming {
            folder: self.folder.clone(),
            path,
            file,
            hasher: blake3::Hasher::new(),
            expected: blake3.to_owned(),
            length_bytes: 0,
            kept: false,
        })
    }

    /// A part of a file for a peer: at most [`PART_BYTES_MAX`]; empty at the end; `None` if the file is not here.
    ///
    /// # Errors
    /// A bad hash, or the file can't be read.
    pub fn read_part(&self, blake3: &str, offset: u64) -> Result<Option<Vec<u8>>, LibraryError> {
        let path = self.path(blake3)?;
        let fault = |source| LibraryError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(error)),
        };
        let mut part = vec![0; PART_BYTES_MAX];
        let mut filled = 0;
        while filled < part.len() {
            let at = offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
            match file.read_at(&mut part[filled..], at).map_err(fault)? {
                0 => break,
                length => filled += length,
            }
        }
        part.truncate(filled);
        Ok(Some(part))
    }
}

impl Incoming {
    /// The next bytes.
    ///
    /// # Errors
    /// The disk is full or faulty.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), LibraryError> {
        self.hasher.update(bytes);
        self.length_bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.file.write_all(bytes).map_err(|source| LibraryError::Io { path: self.path.clone(), source })
    }

    /// All is there: checks the hash, makes it durable, gives it its name. Answers the length.
    ///
    /// # Errors
    /// Another hash, or the disk is faulty.
    pub fn finish(mut self) -> Result<u64, LibraryError> {
        let found = self.hasher.finalize().to_hex().to_string();
        if found != self.expected {
            return Err(LibraryError::WrongHash { expected: self.expected.clone(), found });
        }
        let name = self.folder.join(&self.expected);
        self.file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.path, &name))
            .and_then(|()| crate::durable::sync_folder(&self.folder))
            .map_err(|source| LibraryError::Io { path: name, source })?;
        self.kept = true;
        Ok(self.length_bytes)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_whole_and_with_the_right_hash() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(folder.path().join("library")).unwrap();
        let hash = blake3::hash(b"kernel").to_hex().to_string();

        let mut cut_off = library.receive(&hash).unwrap();
        cut_off.write(b"ker").unwrap();
        assert!(matches!(cut_off.finish(), Err(LibraryError::WrongHash { .. })));
        assert!(!library.has(&hash));

        let mut whole = library.receive(&hash).unwrap();
        whole.write(b"ker").unwrap();
        whole.write(b"nel").unwrap();
        assert_eq!(whole.finish().unwrap(), 6);
        assert_eq!(library.read_part(&hash, 3).unwrap().as_deref(), Some(&b"nel"[..]));
        assert_eq!(library.read_part(&hash, 6).unwrap().as_deref(), Some(&b""[..]));
        assert!(library.has(&hash));
    }

    #[test]
    fn nothing_but_a_hash_becomes_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open(folder.path().to_owned()).unwrap();
        for bad in ["", "..", "../../etc/shadow", &"A".repeat(64), &"/".repeat(64)] {
            assert!(matches!(library.path(bad), Err(LibraryError::BadHash(_))), "{bad}");
        }
    }

    #[test]
    fn what_was_cut_off_by_a_crash_is_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".left"), "x").unwrap();
        Library::open(folder.path().to_owned()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
