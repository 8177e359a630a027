//! Names of the files of one VM, in its state folder (survives) and its run folder (gone after a reboot).

use std::path::{Path, PathBuf};

/// The two folders of a VM on this host.
#[derive(Debug, Clone)]
pub struct Paths {
    state: PathBuf,
    run: PathBuf,
}

impl Paths {
    #[must_use]
    pub fn new(state: &Path, run: &Path) -> Self {
        Self { state: state.to_owned(), run: run.to_owned() }
    }

    pub fn replica(&self, disk: usize) -> PathBuf {
        self.state.join(format!("disk-{disk}.raw"))
    }

    pub fn metadata(&self, disk: usize) -> PathBuf {
        self.state.join(format!("disk-{disk}.meta"))
    }

    pub fn started(&self) -> PathBuf {
        self.state.join("started")
    }

    /// IP addresses that the guest was seen to use, per NIC.
    pub fn learned(&self) -> PathBuf {
        self.state.join("learned.json")
    }

    pub fn am_socket(&self) -> PathBuf {
        self.run.join("am.sock")
    }

    pub fn am_pid(&self) -> PathBuf {
        self.run.join("am.pid")
    }

    pub fn nbd_socket(&self, disk: usize) -> PathBuf {
        self.run.join(format!("nbd-{disk}.sock"))
    }
}
