//! A QEMU installation: where its program and data are, and what it can do.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::accelerator::Accelerator;

/// How long a question to the program (`-version`, `-machine help`) may take.
pub const QUESTION_TIME_MAX: Duration = Duration::from_secs(20);

/// The oldest version that works.
pub const VERSION_MIN: Version = Version { major: 7, minor: 2, micro: 0 };

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QEMU installation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Qemu {
    /// `qemu-system-x86_64`.
    pub program: PathBuf,
    /// Folders with firmware and option ROMs; empty: the program's own.
    pub data_dirs: Vec<PathBuf>,
    /// Folder of the program's modules, if not the one built in.
    pub module_dir: Option<PathBuf>,
}

/// What an installation can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuInfo {
    /// Its version.
    pub version: Version,
    /// Machine types, aliases left out.
    pub machines: BTreeSet<String>,
    /// Processor models.
    pub cpu_models: BTreeSet<String>,
    /// Device types.
    pub devices: BTreeSet<String>,
}

/// Why an installation can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be run.
    #[allow(missing_docs)]
    #[error("could not run {}: {source}; install QEMU (Debian: apt install qemu-system-x86)", program.display())]
    Run { program: PathBuf, source: std::io::Error },
    /// It did not answer in time.
    #[allow(missing_docs)]
    #[error("{} {question} did not end within {} s; run it by hand to see why", program.display(), QUESTION_TIME_MAX.as_secs())]
    TimedOut { program: PathBuf, question: &'static str },
    /// It failed, or answered something else.
    #[allow(missing_docs)]
    #[error("{} {question} answered unexpectedly: {answer}; is it a QEMU system emulator for x86_64?", program.display())]
    Answer { program: PathBuf, question: &'static str, answer: String },
    /// Too old.
    #[allow(missing_docs)]
    #[error("{} is version {found}; at least {VERSION_MIN} is needed: install a newer one", program.display())]
    TooOld { program: PathBuf, found: Version },
    /// A part is missing.
    #[allow(missing_docs)]
    #[error("{} has no {missing}; install the distribution's full package of it", program.display())]
    Lacks { program: PathBuf, missing: &'static str },
}

impl Qemu {
    /// The installation with this program; `data_dir` if its data is not where the program was built to look.
    #[must_use]
    pub fn at(program: &Path, data_dir: Option<&Path>) -> Self {
        let _ = data_dir;
        Self { program: program.to_owned(), data_dirs: Vec::new(), module_dir: None }
    }

    /// Packages unpacked below `root` (so that `root/usr/bin/qemu-system-x86_64` exists).
    #[must_use]
    pub fn unpacked(root: &Path) -> Self {
        Self::at(&root.join("usr/bin/qemu-system-x86_64"), Some(&root.join("usr/share/qemu")))
    }

    /// What it can do. Asked once per process and program; later calls answer from memory.
    ///
    /// # Errors
    /// It can't be run, is too old, or lacks something that every guest needs.
    pub async fn probe(&self) -> Result<QemuInfo, ProbeError> {
        unimplemented!()
    }

    /// How guests run on this host: KVM if a trial guest ran on it to its end, else TCG. Tried once per process and
    /// program.
    pub async fn accelerator(&self) -> Accelerator {
        unimplemented!()
    }
}
