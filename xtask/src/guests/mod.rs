//! Guests for the tests and the demo, made from Debian packages and cached below `target/guests`.

mod boot_sector;
mod cache;
mod cpio;
pub mod debian;
mod kernel;
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::run::{heading, target};

/// Where the made guests lie.
pub fn folder() -> PathBuf {
    target().join("guests")
}

/// Makes the guests that are not there yet.
pub fn make() -> Result<()> {
    fs::create_dir_all(folder())?;
    boot_sector::ensure()?;
    tiny::ensure()?;
    let image = folder().join(format!("debian-{}.qcow2", debian::RECIPE_VERSION));
    if !image.exists() {
        heading("making the Debian guest (one to three minutes)");
        debian::check_tools()?;
        debian::build(&image, &folder().join("debian.work"))?;
    }
    remove_older(&image)
}

/// Images of earlier recipes: the scenarios take the one that there is.
fn remove_older(image: &Path) -> Result<()> {
    for entry in fs::read_dir(folder())? {
        let path = entry?.path();
        if path != image && path.extension().is_some_and(|extension| extension == "qcow2") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
