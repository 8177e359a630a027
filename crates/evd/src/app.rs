//! What all parts of the daemon share: the configuration, the machine's facts, the stores, and the membership.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ev_api::{ApiError, ErrorCode};
use ev_core::pool::MemoryTracking;
use ev_vm::{Accelerator, Qemu, QemuInfo, Version, ram};
use tokio::sync::watch;

use crate::config::Config;
use crate::facts::Machine;
use crate::identity::PapersFolder;
use crate::images::Images;
use crate::library::Library;
use crate::member::Member;

/// After this, memory tracking that failed is tried again.
const TRIAL_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// One per process.
pub struct App {
    pub config: Config,
    pub machine: Machine,
    pub library: Library,
    pub images: Images,
    pub papers: PapersFolder,
    pub qemu: Qemu,
    member: watch::Sender<Option<Arc<Member>>>,
    memory_tracking: tokio::sync::Mutex<Option<Trial>>,
    /// Held while the membership changes: create, join and leave come one at a time.
    pub changing: tokio::sync::Mutex<()>,
}

/// What came of the last trial of memory tracking, and of what.
struct Trial {
    qemu: Version,
    library: Option<PathBuf>,
    tracking: MemoryTracking,
    ended: Instant,
}

impl Trial {
    fn still_holds(&self, qemu: Version, library: Option<&Path>) -> bool {
        let same = self.qemu == qemu && self.library.as_deref() == library;
        same && (self.tracking == MemoryTracking::Works || self.ended.elapsed() < TRIAL_AGAIN_AFTER)
    }
}

impl App {
    /// # Errors
    /// The state or run folder can't be used.
    pub fn new(config: Config) -> anyhow::Result<Arc<Self>> {
        for folder in [&config.state_dir, &config.run_dir] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let library = config.state_dir.join("library");
        // Beside the VMs' folders: an image becomes a replica by a change of its name, within one file system.
        let staging = config.state_dir.join("vms/.staging");
        Ok(Arc::new(Self {
            machine: Machine::here().context("cannot read /proc")?,
            library: Library::open(library.clone()).with_context(|| format!("cannot use {}", library.display()))?,
            images: Images::open(staging),
            papers: PapersFolder::new(&config.state_dir),
            qemu: Qemu::at(&config.qemu, config.qemu_data_dir.as_deref()),
            member: watch::Sender::new(None),
            memory_tracking: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            config,
        }))
    }

    /// The membership, or the refusal that tells the user to make or join a pool.
    ///
    /// # Errors
    /// This host belongs to no pool.
    pub fn member(&self) -> Result<Arc<Member>, ApiError> {
        self.member.borrow().clone().ok_or_else(|| {
            ApiError::new(ErrorCode::Uninitialised, format!("host {} belongs to no pool", self.config.name))
                .hint("make one with ev pool-create, or join one with ev host-join")
        })
    }

    /// Follows the membership.
    pub fn memberships(&self) -> watch::Receiver<Option<Arc<Member>>> {
        self.member.subscribe()
    }

    /// Puts a started membership into service, or takes it out.
    pub fn set_member(&self, member: Option<Arc<Member>>) {
        self.member.send_replace(member);
    }

    /// What the host's QEMU can do, and how guests run on it.
    ///
    /// # Errors
    /// QEMU is missing or unusable.
    pub async fn qemu_facts(&self) -> Result<(QemuInfo, Accelerator), ApiError> {
        let info = self.qemu.probe().await.map_err(|error| {
            ApiError::new(ErrorCode::Refused, format!("QEMU on host {} cannot be used: {error}", self.config.name))
        })?;
        Ok((info, self.qemu.accelerator(&self.config.qemu_user).await))
    }

    /// Whether level 3 can follow guests' memory here, tried with a guest once per process, version of QEMU and place of the
    /// library; again some time after a failure, which may have been that the host was busy.
    pub async fn memory_tracking(&self, qemu: Version, accelerator: &Accelerator) -> MemoryTracking {
        let library = ram::find_library();
        let mut known = self.memory_tracking.lock().await;
        if let Some(trial) = known.as_ref().filter(|trial| trial.still_holds(qemu, library.as_deref())) {
            return trial.tracking.clone();
        }
        let folder = self.config.run_dir.join("trial");
        let user = &self.config.qemu_user;
        let tracking = match ram::try_tracking(&self.qemu, accelerator, user, &folder, library.as_deref()).await {
            Ok(()) => MemoryTracking::Works,
            Err(error) => MemoryTracking::Fails(error.to_string()),
        };
        let is_news = known.as_ref().is_none_or(|trial| trial.tracking != tracking);
        if let (MemoryTracking::Fails(why), true) = (&tracking, is_news) {
            tracing::warn!(%why, "guests cannot be protected at level 3 on this host");
        }
        *known = Some(Trial { qemu, library, tracking: tracking.clone(), ended: Instant::now() });
        tracking
    }

    /// The AM's program: as configured, or beside this one.
    #[must_use]
    pub fn am_program(&self) -> PathBuf {
        if let Some(program) = &self.config.am_program {
            return program.clone();
        }
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/sbin/evd"));
        own.with_file_name("ev-am")
    }

    /// State folder of a VM on this host.
    #[must_use]
    pub fn vm_state(&self, vm: ev_core::ids::VmId) -> PathBuf {
        self.config.state_dir.join("vms").join(vm.to_string())
    }

    /// What a VM's AM logs. Not in the VM's state folder: that may lie on a disk whose failure the log is to tell of.
    #[must_use]
    pub fn vm_log(&self, vm: ev_core::ids::VmId) -> PathBuf {
        self.config.state_dir.join("logs").join(format!("{vm}.log"))
    }

    /// Run folder of a VM on this host.
    #[must_use]
    pub fn vm_run(&self, vm: ev_core::ids::VmId) -> PathBuf {
        self.config.run_dir.join("vms").join(vm.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_trial_holds_for_a_while_and_a_good_one_as_long_as_nothing_else_is_installed() {
        let qemu = Version { major: 10, minor: 0, micro: 2 };
        let (here, there) = (Path::new("/here/lib.so"), Path::new("/there/lib.so"));
        let now = Instant::now();
        let trial = |tracking, ended| Trial { qemu, library: Some(here.to_owned()), tracking, ended };
        let fails = || MemoryTracking::Fails("a busy host".to_owned());
        assert!(trial(fails(), now).still_holds(qemu, Some(here)));
        let long_ago = now.checked_sub(TRIAL_AGAIN_AFTER).unwrap();
        assert!(!trial(fails(), long_ago).still_holds(qemu, Some(here)));
        let works = trial(MemoryTracking::Works, long_ago);
        assert!(works.still_holds(qemu, Some(here)));
        assert!(!works.still_holds(Version { minor: 1, ..qemu }, Some(here)));
        assert!(!works.still_holds(qemu, Some(there)) && !works.still_holds(qemu, None));
    }
}
