//! The `started` marker: under which record this host last started the guest, and how that ended.
//!
//! It is what makes "once per record" hold through crashes: it is durable before QEMU is launched, and an AM that finds
//! it at the record's `since` never launches a second QEMU under that record.
//!
//! Format: JSON. Version 1: `{"version":1,"since":G}` or, when the end is known,
//! `{"version":1,"since":G,"end":{"cause":…,"clean":…}}`.

use std::io;
use std::path::{Path, PathBuf};

use ev_core::ids::Generation;
use ev_core::report::EndCause;
use serde::{Deserialize, Serialize};

use crate::durable;

const VERSION: u32 = 1;

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    version: u32,
    /// The record under which QEMU was, or was about to be, launched.
    pub since: Generation,
    /// How it ended; `None`: it runs, or nobody was there to see its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub cause: EndCause,
    /// All replicas were flushed afterwards.
    pub clean: bool,
}

/// Why the marker can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    #[error("cannot read the marker {path}: {source}. Check the disk that holds the state folder")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the marker {path} is damaged ({source}): it can't be told whether a guest was started here. It will count as started and lost"
    )]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the marker {path} has version {found}, this program knows {VERSION}. Upgrade ev-am on this host")]
    Version { path: PathBuf, found: u32 },
    #[error(
        "cannot write the marker {path}: {source}. The guest is not started; check the disk that holds the state folder"
    )]
    Write { path: PathBuf, source: io::Error },
}

/// Reads the marker; `None`: this host has never started the guest.
pub fn read(path: &Path) -> Result<Option<Started>, MarkerError> {
    let path_buf = || path.to_owned();
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MarkerError::Read { path: path_buf(), source }),
    };
    let started: Started =
        serde_json::from_slice(&text).map_err(|source| MarkerError::Damaged { path: path_buf(), source })?;
    if started.version != VERSION {
        return Err(MarkerError::Version { path: path_buf(), found: started.version });
    }
    Ok(Some(started))
}

/// Says, durably, that the guest is started under `since` (with `end`: and has ended).
pub fn write(path: &Path, since: Generation, end: Option<End>) -> Result<(), MarkerError> {
    let started = Started { version: VERSION, since, end };
    let text = serde_json::to_vec(&started).expect("the marker is plain data");
    durable::replace(path, &text).map_err(|source| MarkerError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_with_and_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("started");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, Generation(7), None).unwrap();
        let started = read(&path).unwrap().unwrap();
        assert_eq!((started.since, started.end), (Generation(7), None));
        let end = End { cause: EndCause::Crashed("killed by signal 9".into()), clean: false };
        write(&path, Generation(7), Some(end.clone())).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().end, Some(end));
    }

    #[test]
    fn version_1_bytes_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("started");
        std::fs::write(&path, br#"{"version":1,"since":12,"end":{"cause":"guest-shutdown","clean":true}}"#).unwrap();
        let started = read(&path).unwrap().unwrap();
        assert_eq!(started.since, Generation(12));
        assert_eq!(started.end, Some(End { cause: EndCause::GuestShutdown, clean: true }));
    }

    #[test]
    fn damage_and_other_versions_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("started");
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(read(&path), Err(MarkerError::Damaged { .. })));
        std::fs::write(&path, br#"{"version":9,"since":1}"#).unwrap();
        assert!(matches!(read(&path), Err(MarkerError::Version { found: 9, .. })));
    }
}
