//! The file that says that both replicas are in step, and what the copy before that took: one JSON object.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ev_core::report::{CopyProgress, ReplicaState};
use ev_mirror::Disk;

/// The report follows the disk within a twentieth of a second.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
const REPORT_INTERVAL: Duration = Duration::from_millis(10);

pub struct Ready {
    path: PathBuf,
}

impl Ready {
    pub fn beside(socket: &Path) -> Self {
        let mut path = socket.as_os_str().to_owned();
        path.push(".ready");
        Self { path: path.into() }
    }

    /// Appears whole, by a rename.
    pub fn tell(&self, disk: &Disk, copy_time: Duration) -> Result<()> {
        let copy = finished_copy(disk);
        let text = format!(
            r#"{{"full":{},"compared_bytes":{},"moved_bytes":{},"copy_ms":{}}}"#,
            copy.is_some_and(|copy| copy.full),
            copy.map_or(0, |copy| copy.done_bytes),
            copy.map_or(0, |copy| copy.moved_bytes),
            copy_time.as_millis(),
        );
        let new = self.path.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &self.path))
            .context("saying that both replicas are in step")
    }

    pub fn withdraw(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("saying that the replicas are no longer in step")
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Its numbers are whole in the first report that calls the partner good again.
fn finished_copy(disk: &Disk) -> Option<CopyProgress> {
    let deadline = Instant::now() + REPORT_TIMEOUT;
    loop {
        let report = disk.report();
        if report.partner == Some(ReplicaState::Online) || Instant::now() > deadline {
            return report.copy;
        }
        std::thread::sleep(REPORT_INTERVAL);
    }
}
