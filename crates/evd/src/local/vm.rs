//! One VM on this host.
//!
//! ```text
//!   Kept  -- the pool state says that this host has no part in the VM --> Leaving
//!   Leaving -- the state says otherwise again --> Kept
//!   Leaving -- for some seconds, by a state that is up to date; the AM has ended --> gone, files and all
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use ev_core::ids::VmId;
use ev_core::pool::PoolState;
use ev_core::vm::Vm;
use ev_wire::am::{AmAnswer, AmCall, AmConfig};

use super::am_config::am_config;
use super::{Shared, fetch, files, process};
use crate::{api, durable};

/// How often the VM is looked at, whether the state changed or not.
const INTERVAL: Duration = Duration::from_millis(500);
/// After a failed preparation or start, doubled up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// A started AM has so long to take its lock before another start is tried.
const START_GRACE: Duration = Duration::from_secs(5);
/// The pool state must say for so long, while it is up to date, that this host has no part in the VM.
const LEAVE_AFTER: Duration = Duration::from_secs(3);
/// MTU of bridges.
const BRIDGE_MTU: u32 = 1500;

struct Work {
    shared: Shared,
    id: VmId,
    /// What is in `am.json`.
    written: Option<AmConfig>,
    /// What the AM was told last.
    told: Option<Vm>,
    started: Option<Instant>,
    retry: Duration,
    not_before: Option<Instant>,
    leaving_since: Option<Instant>,
}

/// Until nothing of the VM is left on this host.
pub async fn run(shared: Shared, id: VmId) {
    let mut states = shared.member.states();
    let mut work = Work {
        shared,
        id,
        written: None,
        told: None,
        started: None,
        retry: RETRY_FIRST,
        not_before: None,
        leaving_since: None,
    };
    loop {
        let state = states.borrow_and_update().clone();
        let ours = state.vms.get(&id).filter(|vm| vm.hosts.contains(&work.shared.member.host));
        match ours {
            Some(vm) => {
                work.leaving_since = None;
                work.keep(&state, vm).await;
            }
            None => {
                if work.leave(&state).await {
                    return;
                }
            }
        }
        let _ = tokio::time::timeout(INTERVAL, states.changed()).await;
    }
}

impl Work {
    async fn keep(&mut self, state: &Arc<PoolState>, vm: &Vm) {
        if self.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        match self.try_keep(state, vm).await {
            Ok(()) => {
                self.retry = RETRY_FIRST;
                self.not_before = None;
            }
            Err(error) => {
                tracing::warn!(vm = %vm.name, error = %format!("{error:#}"), "a VM is not as it should be on this host");
                self.not_before = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(RETRY_LAST);
            }
        }
    }

    async fn try_keep(&mut self, state: &PoolState, vm: &Vm) -> anyhow::Result<()> {
        let written = self.write_config(state, vm);
        let run = self.shared.app.vm_run(self.id);
        let alive = process::is_alive(&files::am_pid(&run));
        // A running AM first: what it is told may be urgent; preparations can take long, and its storage may have failed.
        if alive {
            self.tell(vm, matches!(written, Ok(true))).await?;
        }
        let reload = written?;
        if !alive || reload {
            self.prepare(vm).await?;
        }
        if !alive {
            self.start(vm).await?;
        }
        Ok(())
    }

    /// Replaces `am.json` if something in it changed. `true`: something else than the VM's record.
    fn write_config(&mut self, state: &PoolState, vm: &Vm) -> anyhow::Result<bool> {
        let app = &self.shared.app;
        let config = am_config(app, &self.shared.member, state, vm);
        let folder = app.vm_state(self.id);
        // It can be gone: the storage may have been replaced.
        if self.written.as_ref() == Some(&config) && files::am_config(&folder).exists() {
            return Ok(false);
        }
        make_folder(&folder)?;
        make_folder(&app.vm_run(self.id))?;
        let path = files::am_config(&folder);
        let text = serde_json::to_vec_pretty(&config)?;
        let same = std::fs::read(&path).is_ok_and(|old| old == text);
        if !same {
            durable::replace(&path, &text)?;
        }
        let before = self.written.replace(config.clone());
        Ok(before.is_none_or(|before| AmConfig { vm: config.vm.clone(), ..before } != config) && !same)
    }

    async fn prepare(&self, vm: &Vm) -> anyhow::Result<()> {
        for file in api::library::of_vm(vm) {
            fetch::ensure(&self.shared, file).await?;
        }
        let Some(links) = &self.shared.links else { return Ok(()) };
        for nic in &vm.config.nics {
            links.ensure_bridge(&nic.bridge, BRIDGE_MTU).await?;
            if let Some(uplink) = self.uplink_of(&nic.bridge) {
                links.attach_uplink(&nic.bridge, &uplink).await?;
            }
        }
        Ok(())
    }

    fn uplink_of(&self, bridge: &str) -> Option<String> {
        let state = self.shared.member.state();
        let network = state.networks.values().find(|network| network.bridge == bridge)?;
        self.shared.app.config.networks.get(&network.name)?.uplink.clone()
    }

    async fn start(&mut self, vm: &Vm) -> anyhow::Result<()> {
        if self.started.is_some_and(|time| time.elapsed() < START_GRACE) {
            return Ok(());
        }
        let app = &self.shared.app;
        let folder = app.vm_state(self.id);
        tracing::info!(vm = %vm.name, "starting the Availability Manager");
        process::start(&app.am_program(), &files::am_config(&folder), &app.vm_log(self.id)).await?;
        self.started = Some(Instant::now());
        self.told = None;
        Ok(())
    }

    async fn tell(&mut self, vm: &Vm, reload: bool) -> anyhow::Result<()> {
        let socket = files::am_socket(&self.shared.app.vm_run(self.id));
        if reload {
            process::call(&socket, &AmCall::Reload, process::CALL_TIMEOUT).await?;
        }
        if self.told.as_ref() != Some(vm) {
            process::call(&socket, &AmCall::Vm(Box::new(vm.clone())), process::CALL_TIMEOUT).await?;
            self.told = Some(vm.clone());
        }
        Ok(())
    }

    /// `true`: nothing is left. Only a state that is up to date counts: right after the daemon's start it may be older than the
    /// files.
    async fn leave(&mut self, state: &PoolState) -> bool {
        let member = &self.shared.member;
        let certain = member.node.is_up_to_date() && state.members.contains_key(&member.host);
        if !certain {
            self.leaving_since = None;
            return false;
        }
        if self.leaving_since.get_or_insert_with(Instant::now).elapsed() < LEAVE_AFTER {
            return false;
        }
        let app = &self.shared.app;
        let run = app.vm_run(self.id);
        if process::is_alive(&files::am_pid(&run)) {
            match process::call(&files::am_socket(&run), &AmCall::Quit, process::CALL_TIMEOUT).await {
                Ok(AmAnswer::Refused(why)) => {
                    tracing::warn!(vm = %self.id, why, "the AM of a VM that left is still busy")
                }
                Ok(AmAnswer::Done | AmAnswer::Status(_) | AmAnswer::Reverted { .. }) => {}
                Err(error) => tracing::debug!(vm = %self.id, %error, "the AM of a VM that left does not answer"),
            }
            return false;
        }
        let removed = [&run, &app.vm_state(self.id), &app.vm_log(self.id)]
            .into_iter()
            .try_for_each(|path| durable::remove_all(path));
        match removed {
            Ok(()) => {
                tracing::info!(vm = %self.id, "removed all files of a VM that has left this host");
                true
            }
            Err(error) => {
                tracing::warn!(vm = %self.id, %error, "cannot remove the files of a VM that has left this host");
                false
            }
        }
    }
}

/// Guests run as another user and must be able to reach their sockets.
fn make_folder(path: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)
}
