//! Debian's kernel for virtual machines, unpacked from its package, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::folder;
use crate::packages;
use crate::run::{heading, quiet};

/// Depends on the newest kernel of its kind.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    root: PathBuf,
    /// As in `/lib/modules/RELEASE`.
    pub release: String,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// A module by its path below `kernel/`.
    pub fn module(&self, path: &str) -> PathBuf {
        self.root.join("lib/modules").join(&self.release).join("kernel").join(path)
    }
}

/// The kernel that was unpacked before, or the newest there is.
pub fn ensure() -> Result<Kernel> {
    let root = folder().join("kernel");
    if let Some(release) = release_in(&root) {
        return Ok(Kernel { root, release });
    }
    heading("unpacking Debian's kernel for guests");
    let fresh = tempfile::tempdir_in(folder())?;
    unpack_newest(fresh.path())?;
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::rename(fresh.keep(), &root)?;
    let release = release_in(&root).context("the kernel's package holds no kernel; another one is needed")?;
    Ok(Kernel { root, release })
}

fn release_in(root: &Path) -> Option<String> {
    let names = fs::read_dir(root.join("boot")).ok()?;
    names.flatten().find_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
}

/// What apt's lists name may have been replaced since: then they are brought up to date first.
fn unpack_newest(into: &Path) -> Result<()> {
    if newest().and_then(|name| packages::unpack(&[name], &[], into)).is_ok() {
        return Ok(());
    }
    packages::update_lists(&[])?;
    let name = newest()?;
    packages::with_patience(|| packages::unpack(std::slice::from_ref(&name), &[], into))
}

fn newest() -> Result<String> {
    let text = quiet(Command::new("apt-cache").args(["depends", META_PACKAGE]).env("LC_ALL", "C"))?;
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = package.filter(|name| name.starts_with("linux-image-")).map(str::to_owned);
    kernel.with_context(|| format!("no package source offers {META_PACKAGE}: check /etc/apt/sources.list.d"))
}
