//! A QEMU installation: where its program and data are, and what it can do.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;

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
    /// The installation with this program; `data_dir` if its data is not where the program was built to look. For
    /// packages unpacked below a folder of their own, the modules are found beside the data.
    #[must_use]
    pub fn at(program: &Path, data_dir: Option<&Path>) -> Self {
        let Some(data_dir) = data_dir else {
            return Self { program: program.to_owned(), data_dirs: Vec::new(), module_dir: None };
        };
        // Debian keeps SeaBIOS and the VGA BIOSes in a package and folder of their own.
        let mut data_dirs = vec![data_dir.to_owned()];
        let share = data_dir.parent();
        data_dirs.extend(share.map(|share| share.join("seabios")).filter(|dir| dir.is_dir()));
        data_dirs.push(PathBuf::from("/usr/share/seabios"));
        let module_dir =
            share.and_then(Path::parent).map(|usr| usr.join("lib/x86_64-linux-gnu/qemu")).filter(|dir| dir.is_dir());
        Self { program: program.to_owned(), data_dirs, module_dir }
    }

    /// Packages unpacked below `root` (so that `root/usr/bin/qemu-system-x86_64` exists).
    #[must_use]
    pub fn unpacked(root: &Path) -> Self {
        Self::at(&root.join("usr/bin/qemu-system-x86_64"), Some(&root.join("usr/share/qemu")))
    }

    /// What it can do. Later calls answer from memory for as long as the program's file stays what it is: an upgrade replaces it
    /// under daemons that run on.
    ///
    /// # Errors
    /// It can't be run, is too old, or lacks something that every guest needs.
    pub async fn probe(&self) -> Result<QemuInfo, ProbeError> {
        static KNOWN: Mutex<BTreeMap<PathBuf, (FileStamp, QemuInfo)>> = Mutex::const_new(BTreeMap::new());
        let mut known = KNOWN.lock().await;
        let stamp = FileStamp::of(&self.program);
        if let Some((_, info)) = known.get(&self.program).filter(|(at, _)| Some(at) == stamp.as_ref()) {
            return Ok(info.clone());
        }
        let info = self.probe_now().await?;
        if let Some(stamp) = stamp {
            known.insert(self.program.clone(), (stamp, info.clone()));
        }
        Ok(info)
    }

    async fn probe_now(&self) -> Result<QemuInfo, ProbeError> {
        let answer = self.ask("-version", &["-version"]).await?;
        let version = parse_version(&answer).ok_or_else(|| self.unexpected("-version", &answer))?;
        if version < VERSION_MIN {
            return Err(ProbeError::TooOld { program: self.program.clone(), found: version });
        }
        let info = QemuInfo {
            version,
            machines: parse_machines(&self.ask("-machine help", &["-machine", "help"]).await?),
            cpu_models: parse_cpu_models(&self.ask("-cpu help", &["-cpu", "help"]).await?),
        };
        let lacks = |missing| ProbeError::Lacks { program: self.program.clone(), missing };
        for device in DEVICES_NEEDED {
            // `-device help` would load every module, and a second QEMU beside the distribution's own then meets the
            // modules of the other and aborts.
            match self.ask("-device …,help", &["-device", &format!("{device},help")]).await {
                Err(ProbeError::Answer { .. }) => return Err(lacks(device)),
                other => drop(other?),
            }
        }
        if !self.ask("-netdev help", &["-netdev", "help"]).await?.lines().any(|line| line.trim() == "stream") {
            return Err(lacks("stream network backend"));
        }
        Ok(info)
    }

    async fn ask(&self, question: &'static str, arguments: &[&str]) -> Result<String, ProbeError> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(arguments).envs(self.environment()).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(QUESTION_TIME_MAX, command.output())
            .await
            .map_err(|_| ProbeError::TimedOut { program: self.program.clone(), question })?
            .map_err(|source| ProbeError::Run { program: self.program.clone(), source })?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(self.unexpected(question, &String::from_utf8_lossy(&output.stderr)));
        }
        Ok(answer)
    }

    fn unexpected(&self, question: &'static str, answer: &str) -> ProbeError {
        let answer = answer.lines().last().unwrap_or("nothing").chars().take(200).collect();
        ProbeError::Answer { program: self.program.clone(), question, answer }
    }

    /// Environment that the program needs.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        self.module_dir.iter().map(|dir| ("QEMU_MODULE_DIR", dir.clone().into_os_string())).collect()
    }
}

/// What tells a program's file from the one that an upgrade puts in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl FileStamp {
    /// `None`: there is no such file, as for a name that is looked up in `PATH`.
    fn of(program: &Path) -> Option<Self> {
        let file = std::fs::metadata(program).ok()?;
        Some(Self { inode: file.ino(), bytes: file.len(), modified: file.modified().ok() })
    }
}

impl QemuInfo {
    /// The newest versioned q35 machine type: the one for a new VM, if all hosts of the pool have it.
    #[must_use]
    pub fn newest_machine(&self) -> Option<&str> {
        self.machines
            .iter()
            .filter_map(|name| Some((machine_version(name)?, name)))
            .max()
            .map(|(_, name)| name.as_str())
    }
}

/// Version in the name of a q35 machine type: `pc-q35-7.2` has (7, 2).
#[must_use]
pub fn machine_version(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.strip_prefix("pc-q35-")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Devices that every guest has, or may have.
const DEVICES_NEEDED: [&str; 5] = ["virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci", "VGA", "ide-cd"];

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
fn parse_version(answer: &str) -> Option<Version> {
    let text = answer.split_once("version ")?.1;
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text.get(..end)?.split('.').map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok);
    Some(Version { major: next()?, minor: next()?, micro: next().unwrap_or_default() })
}

/// A heading, then `pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)` for each; aliases say `(alias of …)`.
fn parse_machines(answer: &str) -> BTreeSet<String> {
    answer
        .lines()
        .skip(1)
        .filter(|line| !line.contains("(alias of "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// `x86 Nehalem               (alias configured by machine type)` (7.2) or `  Nehalem  …` (10.0), up to an empty line;
/// then flags.
fn parse_cpu_models(answer: &str) -> BTreeSet<String> {
    answer
        .lines()
        .skip(1)
        .take_while(|line| !line.trim().is_empty())
        .filter_map(|line| line.split_whitespace().find(|word| *word != "x86"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let version = |major, minor, micro| Some(Version { major, minor, micro });
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\nCopyright"), version(7, 2, 22));
        assert_eq!(parse_version("QEMU emulator version 10.0.2\n"), version(10, 0, 2));
        assert_eq!(parse_version("QEMU emulator version 11.0"), version(11, 0, 0));
        assert_eq!(parse_version("bash, whatever"), None);
    }

    /// A program that answers as QEMU does.
    fn install(program: &Path, version: &str) {
        let new = program.with_extension("new");
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in\n-version) echo 'QEMU emulator version {version}';;\n'-netdev help') echo stream;;\nesac\n"
        );
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&new, program).unwrap();
    }

    #[tokio::test]
    async fn an_upgrade_under_a_daemon_that_runs_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = Qemu::at(&folder.path().join("qemu"), None);
        for version in ["7.2.22", "10.0.2", "10.0.10"] {
            install(&qemu.program, version);
            for _ in 0..2 {
                assert_eq!(qemu.probe().await.unwrap().version.to_string(), version);
            }
        }
        std::fs::remove_file(&qemu.program).unwrap();
        assert!(qemu.probe().await.is_err());
    }

    #[test]
    fn aliases_are_no_machines_and_the_newest_is_by_number() {
        let machines = parse_machines(
            "Supported machines are:\nq35 Standard PC (alias of pc-q35-10.0)\npc-q35-10.0 Standard PC\npc-q35-9.2 Standard PC\n\
             pc-q35-4.0.1 Standard PC\npc-i440fx-10.0 Standard PC (default)\n",
        );
        assert!(!machines.contains("q35"));
        let info = QemuInfo { version: VERSION_MIN, machines, cpu_models: BTreeSet::new() };
        assert_eq!(info.newest_machine(), Some("pc-q35-10.0"));
    }

    #[test]
    fn processor_models_of_both_layouts_are_read() {
        let old = parse_cpu_models(
            "Available CPUs:\nx86 486                   (alias)\nx86 Nehalem  x\n\nRecognized CPUID flags:\n  3dnow\n",
        );
        let new = parse_cpu_models("Available CPUs:\n  486  (alias)\n  Nehalem\n\nRecognized CPUID flags:\n  3dnow\n");
        assert_eq!(old, new);
        assert_eq!(old, BTreeSet::from(["486".to_owned(), "Nehalem".to_owned()]));
    }
}
