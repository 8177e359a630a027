//! Small files that must be whole or not there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;

/// Make a folder that only the owner may enter, and those above it.
pub fn make_folder(path: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("making the folder {} failed", path.display()))
}

/// Write a file that only the owner may read: aside, durably, then in its place.
pub fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let aside = path.with_extension("new");
    let put = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    put().with_context(|| format!("writing {} failed: is there space on its disk?", path.display()))?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Make renames in a folder durable.
pub fn sync_folder(path: &Path) -> anyhow::Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("making changes in {} durable failed", path.display()))
}
