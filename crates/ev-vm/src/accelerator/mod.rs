//! Whether guests run on the processor itself (KVM) or are emulated (TCG), decided by running something.

mod payload;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use tokio::sync::Mutex;

use crate::child::{ChildSpec, spawn};
use crate::process::{Exit, Process};
use crate::qemu::Qemu;
use crate::user::{User, UserError};

/// How long the trial guest may take. It needs 0.1 s, emulated too; the rest is for a busy host.
pub const TRIAL_TIME_MAX: Duration = Duration::from_secs(5);
/// How often the trial's output is looked at, for a failure that QEMU reports without ending.
const TRIAL_LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Most of the trial's output that is looked at, in bytes.
const TRIAL_OUTPUT_BYTES_MAX: u64 = 16 << 10;
/// What the trial guest names on its way, in this order; `trial.s` says what they mean.
const STAGES: &str = "PLFMUT";
/// QEMU's exit code when the trial guest reports success: `(0x2a << 1) | 1`.
const SUCCESS: Exit = Exit::Code(85);

/// How guests are executed on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// On the processor.
    Kvm,
    /// Emulated: 10 to 50 times slower, and the guest's processors take turns on one of the host's.
    Tcg {
        /// Why KVM is not used.
        reason: WhyNotKvm,
    },
}

/// Why KVM is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyNotKvm {
    /// There is no device file.
    #[error("/dev/kvm does not exist: switch on virtualisation in the machine's firmware and load the kvm module")]
    NoDevice,
    /// QEMU's user may not use it.
    #[allow(missing_docs)]
    #[error(
        "the user {user} may not use /dev/kvm: let a group read and write it (chgrp kvm /dev/kvm; chmod 660 /dev/kvm; \
         udev does that on most systems)"
    )]
    NotPermitted { user: String },
    /// The trial guest did not get to its end.
    #[error(
        "/dev/kvm exists, but a trial guest did not run on it ({0}): on a virtual machine, switch on nested \
         virtualisation on its host"
    )]
    TrialFailed(TrialFailure),
}

/// What became of the trial guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialFailure {
    /// Still running after the limit.
    #[allow(missing_docs)]
    #[error("it did not end within {} s, having passed the stages {stages:?} of {STAGES:?}", TRIAL_TIME_MAX.as_secs())]
    TimedOut { stages: String },
    /// The processor, as KVM presents it, could not execute an instruction.
    #[allow(missing_docs)]
    #[error("KVM reported {error:?} after the stages {stages:?} of {STAGES:?}")]
    Kvm { stages: String, error: String },
    /// Ended otherwise than by reporting success.
    #[allow(missing_docs)]
    #[error("QEMU ended ({exit}): {error}")]
    Ended { exit: Exit, error: String },
    /// QEMU could not be started at all.
    #[error("QEMU could not be started: {0}")]
    NotStarted(std::io::ErrorKind),
    /// The user that guests run as can't be used.
    #[error(transparent)]
    User(#[from] UserError),
}

impl Accelerator {
    /// QEMU's name of it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg { .. } => "tcg",
        }
    }

    /// The value of QEMU's `-accel`.
    pub(crate) fn option(&self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            // On threads of their own, emulated processors may go on with code that another one has changed since (ADR 9).
            Self::Tcg { .. } => "tcg,thread=single",
        }
    }

    /// A sentence for people if guests are emulated.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::Kvm => None,
            Self::Tcg { reason } => {
                Some(format!("guests are emulated (TCG) and slow, their processors taking turns: {reason}"))
            }
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Qemu {
    /// How guests run on this host as `user`: KVM if a trial guest ran on it to its end, else TCG. Tried once per
    /// process, installation and user.
    pub async fn accelerator(&self, user: &str) -> Accelerator {
        static KNOWN: Mutex<BTreeMap<(PathBuf, String), Accelerator>> = Mutex::const_new(BTreeMap::new());
        let mut known = KNOWN.lock().await;
        let key = (self.program.clone(), user.to_owned());
        if let Some(accelerator) = known.get(&key) {
            return accelerator.clone();
        }
        let accelerator = self.try_kvm(user).await;
        known.insert(key, accelerator.clone());
        accelerator
    }

    async fn try_kvm(&self, user: &str) -> Accelerator {
        if !Path::new("/dev/kvm").exists() {
            return Accelerator::Tcg { reason: WhyNotKvm::NoDevice };
        }
        if User::find(user).is_ok_and(|found| !found.may_use(Path::new("/dev/kvm"))) {
            return Accelerator::Tcg { reason: WhyNotKvm::NotPermitted { user: user.to_owned() } };
        }
        let mut result = self.run_trial("kvm", user).await;
        if matches!(result, Err(TrialFailure::TimedOut { .. })) {
            // The host may just have been busy, and to be wrong makes guests slow for long.
            result = self.run_trial("kvm", user).await;
        }
        match result {
            Ok(()) => Accelerator::Kvm,
            Err(failure) => Accelerator::Tcg { reason: WhyNotKvm::TrialFailed(failure) },
        }
    }

    /// Runs the trial guest on the accelerator of this name.
    pub(crate) async fn run_trial(&self, accelerator: &str, user: &str) -> Result<(), TrialFailure> {
        let not_started = |error: std::io::Error| TrialFailure::NotStarted(error.kind());
        let user = User::find(user)?;
        let kernel = memfd("trial-kernel", &payload::TRIAL).map_err(not_started)?;
        let mut output = File::from(memfd("trial-output", &[]).map_err(not_started)?);
        let spec = ChildSpec {
            program: self.program.clone(),
            arguments: trial_arguments(self, accelerator, &kernel),
            environment: self.environment(),
            user: Some(user),
            directory: None,
            inherited: vec![kernel],
            pid_file: None,
            output: output.try_clone().map_err(not_started)?,
        };
        let process = spawn(spec).and_then(Process::watch).map_err(not_started)?;
        let exited = async {
            loop {
                let exit = tokio::time::timeout(TRIAL_LOOK_INTERVAL, process.exited()).await;
                if exit.is_ok() || kvm_error(&read_all(&mut output)).is_some() {
                    return exit.ok();
                }
            }
        };
        let exit = tokio::time::timeout(TRIAL_TIME_MAX, exited).await.ok().flatten();
        if exit.is_none() {
            process.kill().map_err(not_started)?;
            process.exited().await;
        }
        judge(exit, &read_all(&mut output))
    }
}

fn judge(exit: Option<Exit>, output: &str) -> Result<(), TrialFailure> {
    let stages: String = output.chars().take_while(|c| STAGES.contains(*c)).collect();
    if exit == Some(SUCCESS) && stages == STAGES {
        return Ok(());
    }
    if let Some(error) = kvm_error(output) {
        return Err(TrialFailure::Kvm { stages, error });
    }
    let Some(exit) = exit else {
        return Err(TrialFailure::TimedOut { stages });
    };
    let error = output.lines().last().unwrap_or("it said nothing").chars().take(300).collect();
    Err(TrialFailure::Ended { exit, error })
}

/// QEMU stops the guest then, and stays.
fn kvm_error(output: &str) -> Option<String> {
    let line = output.lines().find_map(|line| line.find("KVM internal error").and_then(|start| line.get(start..)))?;
    Some(line.trim_end().to_owned())
}

fn trial_arguments(qemu: &Qemu, accelerator: &str, kernel: &OwnedFd) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    for dir in &qemu.data_dirs {
        arguments.extend(["-L".into(), dir.clone().into_os_string()]);
    }
    let kernel = format!("/proc/self/fd/{}", kernel.as_raw_fd());
    let rest = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35",
        "-accel",
        accelerator,
        "-cpu",
        "qemu64",
        "-m",
        "32",
        "-no-reboot",
        "-kernel",
        &kernel,
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=4",
        "-chardev",
        "file,id=stages,path=/dev/stdout",
        "-device",
        "isa-debugcon,iobase=0xe9,chardev=stages",
    ];
    arguments.extend(rest.map(OsString::from));
    arguments
}

fn memfd(name: &str, content: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    std::io::Write::write_all(&mut file, content)?;
    Ok(file.into())
}

fn read_all(output: &mut File) -> String {
    // The offset is shared with QEMU's standard output: put back where QEMU writes on, which is the end.
    let mut bytes = Vec::new();
    let read = output
        .seek(SeekFrom::Start(0))
        .and_then(|_| output.take(TRIAL_OUTPUT_BYTES_MAX).read_to_end(&mut bytes))
        .and_then(|_| output.seek(SeekFrom::End(0)));
    if let Err(error) = read {
        tracing::warn!(%error, "could not read the output of the trial guest");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_way_counts() {
        assert_eq!(judge(Some(SUCCESS), "PLFMUT"), Ok(()));
        assert!(judge(Some(SUCCESS), "PLFMU").is_err());
        assert!(judge(Some(Exit::Code(1)), "PLFMUT").is_err());
        assert_eq!(judge(None, "PL"), Err(TrialFailure::TimedOut { stages: "PL".to_owned() }));
        assert!(matches!(
            judge(None, "PLKVM internal error. Suberror: 1\nRAX=0"),
            Err(TrialFailure::Kvm { stages, error }) if stages == "PL" && error == "KVM internal error. Suberror: 1"
        ));
    }

    #[tokio::test]
    async fn the_trial_guest_passes_where_guests_run() {
        let qemu = Qemu::at(Path::new("/usr/bin/qemu-system-x86_64"), None);
        assert_eq!(qemu.run_trial("tcg", "nobody").await, Ok(()));
    }

    #[tokio::test]
    async fn kvm_is_used_exactly_if_the_trial_guest_passes_on_it() {
        let qemu = Qemu::at(Path::new("/usr/bin/qemu-system-x86_64"), None);
        let trial = qemu.run_trial("kvm", "nobody").await;
        let accelerator = qemu.accelerator("nobody").await;
        eprintln!("{trial:?}, so {accelerator:?}: {:?}", accelerator.notice());
        assert_eq!(accelerator == Accelerator::Kvm, trial.is_ok());
        assert_eq!(accelerator.notice().is_none(), trial.is_ok());
    }

    #[test]
    fn the_bytes_are_those_of_the_source() {
        let folder = tempfile::tempdir().unwrap();
        let (object, binary) = (folder.path().join("trial.o"), folder.path().join("trial.bin"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/accelerator/trial.s");
        let mut assembler = std::process::Command::new("as");
        let Ok(status) = assembler.arg("--64").arg("-o").arg(&object).arg(source).status() else {
            return; // No assembler on this machine.
        };
        assert!(status.success());
        let mut linker = std::process::Command::new("ld");
        linker.args(["-m", "elf_x86_64", "--oformat", "binary", "-Ttext", "0x100000", "-e", "start", "-o"]);
        assert!(linker.arg(&binary).arg(&object).status().unwrap().success());
        assert_eq!(std::fs::read(&binary).unwrap(), payload::TRIAL);
    }
}
