//! Debian packages that are unpacked into a folder, not installed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::quiet;

/// Between two tries at what needs the network.
const TRY_PAUSES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];

/// Brings apt's lists up to date. `options` go to apt.
pub fn update_lists(options: &[String]) -> Result<()> {
    let update = || quiet(Command::new("apt-get").args(options).args(["update", "--quiet"]));
    with_patience(update).context("bringing the package lists up to date")?;
    Ok(())
}

/// Does what needs the network, again after a pause when it failed: a package source may be away for a moment.
pub fn with_patience<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    for pause in TRY_PAUSES {
        match work() {
            Ok(done) => return Ok(done),
            Err(error) => eprintln!("{error:#}\ntrying again in {} s", pause.as_secs()),
        }
        std::thread::sleep(pause);
    }
    work()
}

/// Downloads packages (as `name` or `name/suite`) and unpacks them below `into`. `options` go to apt.
pub fn unpack(names: &[String], options: &[String], into: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("making a temporary folder")?;
    // As root in a folder of root's own: apt's unprivileged downloader could not write there.
    let mut download = Command::new("apt-get");
    download.args(["--option", "APT::Sandbox::User=root"]).args(options).arg("download").args(names);
    quiet(download.current_dir(scratch.path()))?;
    for entry in fs::read_dir(scratch.path())? {
        quiet(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(into))?;
    }
    Ok(())
}
