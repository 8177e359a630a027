//! The AM processes of this host: started so that they outlive `evd`, and found again by the lock on their pid file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ev_wire::am::{AmAnswer, AmCall};
use ev_wire::local;
use rustix::fs::{FlockOperation, flock};

/// How long an AM may take to answer a call that it answers from memory.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a process holds the lock on this pid file.
#[must_use]
pub fn is_alive(pid_file: &Path) -> bool {
    // A shared lock, let go at once: the AM takes an exclusive one for its whole life.
    File::open(pid_file)
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK))
}

/// Why an AM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start {}: {source}. Is Evenkeel installed completely on this host?", program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("cannot write {}: {source}. Make room there", path.display())]
    Log { path: PathBuf, source: std::io::Error },
}

/// Starts an AM in a session of its own (by `setsid --fork`, so that it is nobody's child and neither a signal to
/// `evd`'s group nor `evd`'s end reaches it).
///
/// # Errors
/// A program is missing or the log can't be written.
pub async fn start(program: &Path, config: &Path, log: &Path) -> Result<(), StartError> {
    let fault = |source| StartError::Log { path: log.to_owned(), source };
    log.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(fault)?;
    let out = std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(fault)?;
    let err = out.try_clone().map_err(fault)?;
    let spawn = |source| StartError::Spawn { program: program.to_owned(), source };
    if !program.exists() {
        return Err(spawn(std::io::ErrorKind::NotFound.into()));
    }
    let mut child = tokio::process::Command::new("setsid")
        .arg("--fork")
        .arg(program)
        .arg("--config")
        .arg(config)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(spawn)?;
    child.wait().await.map_err(spawn)?;
    Ok(())
}

/// Asks the AM behind `socket`.
///
/// # Errors
/// There is none, or it does not answer.
pub async fn call(socket: &Path, question: &AmCall, timeout: Duration) -> Result<AmAnswer, local::LocalCallError> {
    local::call(socket, question, timeout).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_tells_life_by_its_lock_and_not_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("am.pid");
        assert!(!is_alive(&path));
        std::fs::write(&path, "1\n").unwrap();
        assert!(!is_alive(&path));
        let held = File::open(&path).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_alive(&path));
    }
}
