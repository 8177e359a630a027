//! Debian packages that are unpacked into a folder, not installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::quiet;

/// Brings apt's lists up to date.
pub fn update_lists() -> Result<()> {
    quiet(Command::new("apt-get").args(["update", "--quiet"])).context("bringing the package lists up to date")?;
    Ok(())
}

/// Downloads packages (as `name` or `name/suite`) and unpacks them below `into`. `options` go to apt.
pub fn unpack(names: &[String], options: &[String], into: &Path) -> Result<()> {
    let scratch = tempfile::tempdir().context("making a temporary folder")?;
    // As root in a folder of root's own: apt's unprivileged downloader could not write there.
    quiet(
        Command::new("apt-get")
            .args(["--option", "APT::Sandbox::User=root"])
            .args(options)
            .arg("download")
            .args(names)
            .current_dir(scratch.path()),
    )?;
    for entry in fs::read_dir(scratch.path())? {
        quiet(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(into))?;
    }
    Ok(())
}
