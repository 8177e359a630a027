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
    packages::unpack(&[newest()?], &[], fresh.path())?;
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

fn newest() -> Result<String> {
    let depends = || quiet(Command::new("apt-cache").args(["depends", META_PACKAGE]).env("LC_ALL", "C"));
    let find = |text: &str| {
        let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "))?;
        package.starts_with("linux-image-").then(|| package.to_owned())
    };
    if let Some(package) = depends().ok().and_then(|text| find(&text)) {
        return Ok(package);
    }
    packages::update_lists()?;
    find(&depends()?).with_context(|| format!("no package source offers {META_PACKAGE}: check /etc/apt/sources.list.d"))
}
