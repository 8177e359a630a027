//! `lab.json`: all that a lab may have made, written before it makes any of it, so that it can be removed after a crash.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::plan::Plan;

/// The record's format. 1: the first.
const RECORD_VERSION: u32 = 1;

/// What `lab.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    pub plan: Plan,
    /// The folder with `evd`, `ev` and the others.
    pub bin_dir: PathBuf,
    pub qemu: PathBuf,
    pub qemu_data_dir: Option<PathBuf>,
    /// Size of each host's storage disk; the image is sparse.
    pub storage_bytes: u64,
    /// The root of the control group file system, version 2.
    pub cgroup_root: PathBuf,
    pub daemons: Daemons,
}

/// Whether the lab starts the product's daemons in its machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Daemons {
    Started,
    /// Bare machines.
    Absent,
}

impl Record {
    pub fn new(plan: Plan, bin_dir: PathBuf, qemu: PathBuf, cgroup_root: PathBuf) -> Self {
        Self {
            version: RECORD_VERSION,
            plan,
            bin_dir,
            qemu,
            qemu_data_dir: None,
            storage_bytes: 0,
            cgroup_root,
            daemons: Daemons::Started,
        }
    }

    pub fn load(dir: &Path) -> Result<Self, LabError> {
        let path = Plan::record_path(dir);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(LabError::NoLab { dir: dir.to_owned() });
            }
            Err(cause) => return Err(LabError::File { action: "read", path, cause }),
        };
        serde_json::from_slice(&bytes).map_err(|cause| LabError::Record { path, cause })
    }

    /// Writes the record where none was; refuses where one is.
    pub fn create(&self) -> Result<(), LabError> {
        let dir = &self.plan.dir;
        fs::create_dir_all(dir).map_err(LabError::file("make the folder", dir))?;
        let path = Plan::record_path(dir);
        let already_up = || LabError::AlreadyUp { name: self.plan.name.to_string(), dir: dir.clone() };
        let file = match fs::File::create_new(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(already_up()),
            Err(cause) => return Err(LabError::File { action: "create", path, cause }),
        };
        serde_json::to_writer_pretty(file, self).map_err(|cause| LabError::Record { path, cause })
    }

    pub fn remove(&self) -> Result<(), LabError> {
        let path = Plan::record_path(&self.plan.dir);
        fs::remove_file(&path).map_err(LabError::file("remove", path))
    }
}
