//! Exactly one AM per VM and host: a lock on the pid file, held by the kernel for as long as this process lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How often, and at what distance, a held lock is tried again: whoever only looks whether an AM lives holds it for a
/// moment too.
const ATTEMPTS: u32 = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// Held for the life of the process; the kernel drops it, however the process ends.
#[derive(Debug)]
pub struct PidLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "another ev-am (process {pid}) already runs this VM on this host and holds {path}. Nothing to do; end that one first if it is stuck"
    )]
    Held { path: PathBuf, pid: String },
    #[error("cannot write the pid file {path}: {source}. Check that the run folder exists and is writable")]
    Io { path: PathBuf, source: io::Error },
}

/// Locks `path` and writes this process's number into it. The file is never removed: removing it would let a second
/// process lock a new file of the same name.
pub fn take(path: &Path) -> Result<PidLock, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    let mut locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    for _ in 0..ATTEMPTS {
        if locked != Err(rustix::io::Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(ATTEMPT_PAUSE);
        locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    }
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // The number is only for the message: an unreadable one must not hide that the lock is held.
            let _ = file.read_to_string(&mut pid);
            return Err(LockError::Held { path: path.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(errno) => return Err(io(errno.into())),
    }
    file.set_len(0).map_err(io)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io)?;
    Ok(PidLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_refused_until_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("am.pid");
        let first = take(&path).unwrap();
        let error = take(&path).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        take(&path).unwrap();
    }
}
