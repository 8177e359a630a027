//! Whether a guest's memory can be followed on this host, found out by following that of a trial guest.

use std::io;
use std::path::Path;
use std::time::Duration;

use ev_core::vm::Firmware;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::TrackError;
use super::file::RamFile;
use super::prepare::TrackedMemory;
use super::staging::{StagedPage, Staging};
use super::tracker::{PassError, RamTracker};
use crate::accelerator::Accelerator;
use crate::guest::{AttachError, Guest, StartError};
use crate::qemu::{ProbeError, Qemu};
use crate::qmp::QmpError;
use crate::spec::{BootSource, GuestPaths, GuestSpec, Memory, StartState};

/// How long the trial guest may run without a written page being seen. Its firmware writes in the first milliseconds;
/// the rest is for a busy host.
const WRITE_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The trial guest's memory.
const MEMORY_MIB: u32 = 32;

/// Why a guest's memory can't be followed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrialError {
    #[error("libev_ramtrack.so is neither beside the daemon nor in /usr/lib/evenkeel: install Evenkeel anew")]
    NoLibrary,
    #[error("no memory or folder for a trial guest: {0}; make some, it is tried again within minutes")]
    Room(#[source] io::Error),
    #[error("this QEMU has no machine type pc-q35: install QEMU for x86 PCs (Debian: qemu-system-x86)")]
    NoMachine,
    #[error(transparent)]
    Left(#[from] AttachError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("a trial guest could not be started: {0}")]
    Start(#[from] StartError),
    #[error("a trial guest did not run: {0}")]
    Run(#[from] QmpError),
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error(
        "a trial guest ran for {} s and the kernel named no page that it wrote; Linux 6.7 or newer is needed",
        WRITE_TIME_MAX.as_secs()
    )]
    NothingSeen,
}

/// Runs a guest without disks in `folder`, which is made for it and removed, and looks whether the pages that its firmware
/// writes are seen. Takes less than a second. `library` is what [`super::find_library`] says.
///
/// # Errors
/// Memory can't be followed, or it could not be tried.
pub async fn try_tracking(
    qemu: &Qemu,
    accelerator: &Accelerator,
    user: &str,
    folder: &Path,
    library: Option<&Path>,
) -> Result<(), TrialError> {
    let library = library.ok_or(TrialError::NoLibrary)?;
    let info = qemu.probe().await?;
    let machine = info.machines.into_iter().rfind(|name| name.starts_with("pc-q35-")).ok_or(TrialError::NoMachine)?;
    let file = RamFile::create(u64::from(MEMORY_MIB) << 20).map_err(TrialError::Room)?;
    let spec = GuestSpec {
        name: "evenkeel-trial".to_owned(),
        uuid: Uuid::nil(),
        machine,
        cpu_model: "qemu64".to_owned(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        memory: Memory::Tracked(TrackedMemory { file, library: library.to_owned() }),
        firmware: Firmware::Bios,
        boot: BootSource::Disk,
        disks: Vec::new(),
        nics: Vec::new(),
        start: StartState::Stopped,
        paths: paths(folder),
        user: user.to_owned(),
    };
    clear(&spec.paths).await?;
    std::fs::create_dir_all(folder).map_err(TrialError::Room)?;
    let outcome = run(qemu, accelerator, &spec).await;
    clear(&spec.paths).await?;
    outcome
}

fn paths(folder: &Path) -> GuestPaths {
    GuestPaths { run_dir: folder.to_owned(), state_dir: folder.to_owned(), library_dir: folder.to_owned() }
}

/// Ends the trial guest, if there is one, of this process or of one that was killed, and removes its folder.
async fn clear(paths: &GuestPaths) -> Result<(), TrialError> {
    if let Some(guest) = Guest::attach(paths).await? {
        guest.kill().map_err(TrialError::Room)?;
        guest.exited().await;
    }
    match std::fs::remove_dir_all(&paths.run_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TrialError::Room(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn run(qemu: &Qemu, accelerator: &Accelerator, spec: &GuestSpec) -> Result<(), TrialError> {
    let guest = Guest::start(qemu, accelerator, spec).await?;
    let tracker = RamTracker::open(guest.pid())?;
    let mut staging = Staging::new(&tracker.memory().layout(), 1).map_err(TrialError::Room)?;
    guest.qmp().await?.cont().await?;
    let until = Instant::now() + WRITE_TIME_MAX;
    while !seen(&tracker, &mut staging)? {
        if Instant::now() >= until {
            return Err(TrialError::NothingSeen);
        }
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Whether a written page was seen and is not all zeroes, so that it is the guest's writing that was seen.
fn seen(tracker: &RamTracker, staging: &mut Staging) -> Result<bool, TrialError> {
    staging.clear();
    tracker.copy_written(staging)?;
    let is_written = |page: StagedPage<'_>| match page {
        StagedPage::Bytes(bytes) => bytes.iter().any(|byte| *byte != 0),
        StagedPage::Zero => false,
    };
    Ok(staging.pages().any(|(_, page)| is_written(page)))
}
