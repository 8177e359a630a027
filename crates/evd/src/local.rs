//! What this host does for the VMs that the pool gave it: one task per VM keeps its files, its bridges and its AM as
//! the pool state says, and takes everything away once the state says that this host has no part in it.

mod am_config;
mod fetch;
pub mod files;
pub mod process;
mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ev_core::ids::VmId;
use ev_net::Links;
use tokio::task::JoinSet;

use crate::app::App;
use crate::member::Member;

/// How often everything is looked at, whether the state changed or not.
const INTERVAL: Duration = Duration::from_secs(1);
/// A folder without a configuration belongs to a VM that is about to be made; after this time it was not.
const ADOPTED_KEPT: Duration = Duration::from_secs(3600);

/// What the VMs' tasks share.
#[derive(Clone)]
struct Shared {
    app: Arc<App>,
    member: Arc<Member>,
    /// `None`: no netlink; bridges are tried again with each look.
    links: Option<Links>,
}

/// Runs until the task is ended; AMs go on without it.
pub async fn run(app: Arc<App>, member: Arc<Member>) {
    let links = Links::open().map_err(|error| tracing::error!(%error, "cannot set up bridges")).ok();
    if let Err(error) = close_run_folder(&app.config.run_dir.join("vms"), &app.config.qemu_user) {
        tracing::error!(error = %format!("{error:#}"), "guests cannot be started on this host");
    }
    let shared = Shared { app, member, links };
    let mut states = shared.member.states();
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<VmId, tokio::task::Id> = BTreeMap::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = states.changed() => if changed.is_err() { return },
        }
        while let Some(ended) = tasks.try_join_next_with_id() {
            let id = match ended {
                Ok((id, ())) => id,
                Err(error) => {
                    tracing::error!(%error, "the task of a VM failed; it is begun anew");
                    error.id()
                }
            };
            running.retain(|_, task| *task != id);
        }
        let state = states.borrow_and_update().clone();
        let mut ours: BTreeSet<VmId> = state.vms_on(shared.member.host).map(|vm| vm.id).collect();
        ours.extend(left_behind(&shared));
        for id in ours {
            running.entry(id).or_insert_with(|| tasks.spawn(vm::run(shared.clone(), id)).id());
        }
    }
}

/// The VMs' run folders lie in one that only root and QEMU's group can get into: the sockets in them ask nothing.
fn close_run_folder(folder: &Path, qemu_user: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let group = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == qemu_user).then(|| fields.nth(2)?.parse::<u32>().ok()).flatten()
    });
    let group = group.with_context(|| {
        format!("there is no user {qemu_user} on this host: make it (useradd --system {qemu_user}) or name another as qemu_user in evd.toml")
    })?;
    std::os::unix::fs::chown(folder, None, Some(group))?;
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o710))?;
    Ok(())
}

/// VMs that have a folder here.
fn left_behind(shared: &Shared) -> BTreeSet<VmId> {
    let folder = shared.app.config.state_dir.join("vms");
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = VmId(entry.file_name().to_str()?.parse().ok()?);
            let configured = files::am_config(&entry.path()).exists();
            let age = entry.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default();
            (configured || age > ADOPTED_KEPT).then_some(id)
        })
        .collect()
}
