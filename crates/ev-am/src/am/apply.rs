//! Carrying out what the keeper decided.

use std::sync::Arc;
use std::time::Duration;

use ev_core::availability::keeper::{Action, Gate as GateState, Role, in_order};
use ev_core::ids::Generation;
use ev_core::report::EndCause;
use ev_net::OutputHold;
use ev_vm::{GuestPaths, GuestSpec};

use super::{Am, RunningGuest, Stay};
use crate::checkpoint::active::Origin;
use crate::guest::GuestTask;
use crate::links::{Links, LinksSpec, Side};
use crate::nics::Nics;
use crate::started;

impl Am {
    /// Carries out the actions.
    pub(super) async fn apply(&mut self, actions: Vec<Action>) -> Stay {
        for action in in_order(actions) {
            match action {
                Action::Gate(state) => self.set_gate(state),
                Action::SetRoles { role, .. } => self.set_roles(role).await,
                Action::Start { since } => self.start(since).await,
                Action::Continue { since } => self.go_on(since).await,
                Action::PowerDown => self.with_guest(|guest| guest.task.powerdown()),
                Action::Pause => {
                    tracing::warn!("the lease ran out: the guest is paused");
                    self.with_guest(|guest| guest.task.pause());
                }
                Action::Resume => {
                    tracing::info!("the lease is back: the guest goes on");
                    self.with_guest(|guest| guest.task.resume());
                }
                Action::End { cause } => self.end(cause),
                Action::Propose { seen, change } => {
                    tracing::info!(%seen, ?change, "asking for a change of the record");
                    if !self.master.propose(self.config.vm_id, seen, change) {
                        tracing::warn!("too many proposals wait; this one will be made again");
                    }
                }
                Action::Leave => {
                    tracing::info!("this VM has no business on this host any more");
                    return Stay::No;
                }
            }
        }
        Stay::Yes
    }

    fn with_guest(&self, order: impl FnOnce(&RunningGuest)) {
        if let Some(guest) = &self.guest {
            order(guest);
        }
    }

    fn set_gate(&self, state: GateState) {
        match state {
            GateState::Closed => self.gate.close(),
            GateState::OpenUntil(deadline) => self.gate.open_until(deadline),
            GateState::Open => self.gate.open_always(),
        }
    }

    pub(super) async fn set_roles(&mut self, role: Role) {
        let vm = self.keeper.vm();
        tracing::info!(generation = %vm.authority.generation, ?role, power = ?vm.authority.power, "acting on a record");
        // Before the disks change their role: what of it was decided is applied, and the old active side has no say any more.
        self.leave_standby(role).await;
        self.act_on_disks();
        self.role = Some(role);
        self.set_links(role);
    }

    /// Brings the disks in line with the newest record, and makes what is missing as far as that allows.
    pub(super) fn act_on_disks(&mut self) {
        let vm = self.keeper.vm().clone();
        for change in self.disks.act(&vm) {
            let sent = self.master.propose(self.config.vm_id, vm.authority.generation, change.clone());
            tracing::warn!(?change, sent, "a replica on this host is lost; asking for a record without it");
        }
        self.hand_over_disks();
    }

    /// The active side dials, the other one accepts; without a partner there are no links.
    pub(super) fn set_links(&mut self, role: Role) {
        let side = match role {
            Role::Coordinator { .. } => Side::Dials,
            Role::Replica { .. } => Side::Accepts,
        };
        let Some(partner) = self.config.partner else {
            self.links = None;
            return;
        };
        match &self.links {
            Some(links) if links.partner() == partner => links.set_side(side),
            Some(_) | None => {
                let spec = LinksSpec {
                    tls: self.tls.clone(),
                    vm: self.config.vm_id,
                    partner,
                    listen: self.config.link_listen.clone(),
                    dial: self.config.link_partner.clone(),
                    disks: self.disks.ids(),
                };
                self.links = Some(Links::start(spec, side, self.outbox.links.clone()));
            }
        }
    }

    /// Starts the guest: once per record, whatever happens.
    async fn start(&mut self, since: Generation) {
        if let Err(why) = self.ready_to_start(since) {
            tracing::error!(%since, why, "the guest can't be started");
            self.flush_then_end(since, EndCause::StartFailed(why));
            return;
        }
        tracing::info!(%since, "starting the guest");
        let paths = self.guest_paths();
        let gate = Arc::clone(&self.gate);
        let hold = OutputHold::new();
        let nics = Nics::connect(self.vm(), &paths, Arc::new(move || gate.is_open()), Arc::clone(&hold)).await;
        let mut spec = GuestSpec::of_vm(self.vm(), paths, &self.config.qemu_user);
        if let Err(why) = super::level3::track_memory(&mut spec) {
            tracing::warn!(why, "the guest's memory can't be tracked, so that this start of it can't be at Level 3");
        }
        let task = GuestTask::start(since, self.qemu.clone(), spec, self.outbox.guest.clone());
        self.guest = Some(RunningGuest::new(task, nics, hold, Origin::Begun));
    }

    fn ready_to_start(&self, since: Generation) -> Result<(), String> {
        if self.disks.all_open().is_none() {
            return Err("a disk's replica on this host can't be used (see its trouble)".into());
        }
        started::write(&self.paths.started(), since, None).map_err(|error| error.to_string())
    }

    pub(super) fn guest_paths(&self) -> GuestPaths {
        GuestPaths {
            run_dir: self.config.run_dir.clone(),
            state_dir: self.config.state_dir.clone(),
            library_dir: self.config.library_dir.clone(),
        }
    }

    pub(super) fn end(&mut self, cause: EndCause) {
        tracing::warn!(?cause, "ending the guest");
        match &mut self.guest {
            Some(guest) => {
                guest.ending = Some(cause);
                guest.task.kill();
            }
            None => self.end_wanted = Some(cause),
        }
    }

    /// Reads the configuration anew and takes over what can change while running. The record in it is the caller's
    /// to look at.
    pub(super) fn reload(&mut self) -> anyhow::Result<()> {
        let new = crate::config::load(&self.config_path)?;
        if new.vm_id != self.config.vm_id || new.host != self.config.host {
            anyhow::bail!("the configuration is now that of another VM or host; start another ev-am for it");
        }
        self.master.reconfigure(&new.members, Duration::from_millis(new.times.report_interval_ms));
        if new.copy_rate_limit != self.config.copy_rate_limit {
            self.disks.set_copy_rate_limit(new.copy_rate_limit);
        }
        let links_changed = new.partner != self.config.partner
            || new.link_listen != self.config.link_listen
            || new.link_partner != self.config.link_partner;
        self.config = new;
        self.set_level3_limits();
        if links_changed {
            self.links = None;
            if let Some(role) = self.role {
                self.set_links(role);
            }
        }
        Ok(())
    }
}
