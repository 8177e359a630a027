//! Names of the files of one VM, in its state folder (survives) and its run folder (gone after a reboot); `ev-am` has
//! the same names.

use std::path::{Path, PathBuf};

/// The guest's bytes on this host.
#[must_use]
pub fn replica(state: &Path, disk: usize) -> PathBuf {
    state.join(format!("disk-{disk}.raw"))
}

#[must_use]
pub fn am_config(state: &Path) -> PathBuf {
    state.join("am.json")
}

#[must_use]
pub fn am_socket(run: &Path) -> PathBuf {
    run.join("am.sock")
}

#[must_use]
pub fn am_pid(run: &Path) -> PathBuf {
    run.join("am.pid")
}

#[must_use]
pub fn serial_socket(run: &Path) -> PathBuf {
    run.join("serial.sock")
}
