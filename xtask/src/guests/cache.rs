//! Guests are made anew only when what they are made of changed: a hash of the inputs lies beside each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::folder;
use crate::run::{heading, workspace};

/// The inputs of a guest.
#[derive(Debug, Default)]
pub struct Inputs {
    hasher: blake3::Hasher,
}

impl Inputs {
    pub fn text(mut self, text: &str) -> Self {
        self.hasher.update(&text.len().to_le_bytes());
        self.hasher.update(text.as_bytes());
        self
    }

    /// A file, or all files of a folder, by name and content; paths from the checkout's root.
    pub fn path(self, relative: &str) -> Result<Self> {
        let path = workspace().join(relative);
        if path.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
            names.sort();
            return names.into_iter().try_fold(self.text(relative), |inputs, name| {
                inputs.path(&format!("{relative}/{}", name.to_string_lossy()))
            });
        }
        let mut inputs = self.text(relative);
        let bytes = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        inputs.hasher.update(&bytes);
        Ok(inputs)
    }
}

/// The folder of the guest `name`, made by `build` in a fresh folder unless it is there already with the same inputs.
pub fn ensure(name: &str, inputs: &Inputs, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let made = folder().join(name);
    let stamp = made.join("inputs");
    let hash = inputs.hasher.finalize().to_hex().to_string();
    if fs::read_to_string(&stamp).is_ok_and(|found| found == hash) {
        return Ok(made);
    }
    heading(&format!("making the guest {name}"));
    let fresh = folder().join(format!("{name}.new"));
    remove(&fresh)?;
    fs::create_dir_all(&fresh)?;
    build(&fresh)?;
    fs::write(fresh.join("inputs"), &hash)?;
    remove(&made)?;
    fs::rename(&fresh, &made).with_context(|| format!("putting {} in its place", made.display()))?;
    Ok(made)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    Ok(())
}
