//! Level 3 in the AM: which side this host is on, what each side is told, and going on from memory.

use std::sync::Arc;
use std::time::Duration;

use ev_core::authority::{Origin as RecordOrigin, Power};
use ev_core::availability::keeper::{Event as KeeperEvent, Role};
use ev_core::checkpoint::{Epoch, Proposal, Standing};
use ev_core::ids::Generation;
use ev_core::report::{EndCause, GuestState, Level3Report, ReplicaState};
use ev_core::vm::Level;
use ev_failpoint::{Step, reach};
use ev_net::OutputHold;
use ev_vm::ram::{RamFile, TrackedMemory, find_library};
use ev_vm::{GuestSpec, Memory};

use super::{Am, RunningGuest, Stay, WentOn};
use crate::checkpoint::active::{Active, ActiveNotice, ActiveSpec, Limits, Origin, Wish};
use crate::checkpoint::waiting::{DiskNotice, MakeSpec, Waiting, WaitingSpec};
use crate::guest::GuestTask;
use crate::links::{Channel, Stream};
use crate::nics::Nics;
use crate::started;

impl RunningGuest {
    pub(super) fn new(task: GuestTask, nics: Nics, hold: Arc<OutputHold>, origin: Origin) -> Self {
        Self { task, nics, hold, level3: None, wish: None, origin, blackout: None, accelerator: None, ending: None }
    }
}

/// Makes the guest's memory a file whose written pages the kernel notes.
pub fn track_memory(spec: &mut GuestSpec) -> Result<(), String> {
    let library = find_library().ok_or("the library libev_ramtrack.so is not installed on this host")?;
    let file = RamFile::create(spec.memory_bytes()).map_err(|error| format!("no memory file: {error}"))?;
    spec.memory = Memory::Tracked(TrackedMemory { file, library });
    Ok(())
}

impl Am {
    fn is_level3(&self) -> bool {
        self.vm().level == Level::System
    }

    /// A hold for a guest whose earlier AM may have left something that the standby does not have; the disks are told as much. To be called
    /// before they have a role.
    pub(super) fn hold_of_taken_up(&self) -> (Arc<OutputHold>, Origin) {
        let hold = OutputHold::new();
        if !self.is_level3() {
            return (hold, Origin::Begun);
        }
        hold.hold_from(Epoch::FIRST);
        for disk in self.disks.handles().iter().filter_map(|(_, disk)| disk.upgrade()) {
            if let Err(error) = disk.was_ahead() {
                tracing::error!(%error, "a disk takes no orders");
            }
        }
        (hold, Origin::TakenUp)
    }

    /// The guest runs: from now on it can be protected.
    pub(super) fn begin_level3(&mut self, up: ev_vm::Guest) {
        let disks = self.disks.handles();
        let machine = self.vm().config.machine.clone();
        let limits = self.level3_limits();
        let Some(guest) = &mut self.guest else { return };
        let (hold, origin, blackout) = (Arc::clone(&guest.hold), guest.origin, guest.blackout);
        let spec = ActiveSpec { guest: up, disks, hold, machine, origin, blackout, limits };
        guest.level3 = Some(Active::start(spec, self.outbox.level3.clone()));
        guest.wish = None;
        self.settle_level3();
    }

    fn level3_limits(&self) -> Limits {
        Limits {
            who: self.config.vm_id.to_string(),
            turns: self.config.turns.clone(),
            bytes_per_s: self.config.copy_rate_limit,
            blackout: Duration::from_millis(self.config.blackout_ms),
        }
    }

    /// The configuration was read anew.
    pub(super) fn set_level3_limits(&self) {
        if let Some(active) = self.guest.as_ref().and_then(|guest| guest.level3.as_ref()) {
            active.limits(self.level3_limits());
        }
    }

    /// Begins to be the standby where that is due, and tells the checkpoints' task what the record says, and whether all is there for it.
    pub(super) fn settle_level3(&mut self) {
        if let Some(waiting) = &self.waiting
            && !self.vm().authority.holds_all_good(self.config.host)
        {
            waiting.given_up();
        }
        if let Some(role) = self.role {
            self.become_standby(role);
        }
        let (standing, wish) = (self.standing(), self.level3_wish());
        let Some(guest) = &mut self.guest else { return };
        let Some(active) = &guest.level3 else { return };
        active.standing(standing);
        if guest.wish.as_ref() != Some(&wish) {
            active.wish(wish.clone());
            guest.wish = Some(wish);
        }
    }

    /// What the record leaves to the partner.
    fn standing(&self) -> Standing {
        let (vm, host) = (self.vm(), self.config.host);
        let record = &vm.authority;
        if record.active != Some(host) {
            return Standing::Everything;
        }
        let Some(partner) = vm.hosts.iter().find(|other| **other != host) else { return Standing::Nothing };
        if record.memory == Some(*partner) {
            Standing::MayGoOn
        } else if record.good.values().any(|good| good.contains(partner)) {
            // Also with a part of its replicas: a copy could make it whole before the others were given up.
            Standing::MayStart
        } else {
            Standing::Nothing
        }
    }

    fn level3_wish(&self) -> Wish {
        let no = |why: &str| Wish::No(why.to_owned());
        if !self.is_level3() {
            return no("the VM is not at level 3");
        }
        if !matches!(self.keeper.guest_state(), GuestState::Running { .. }) {
            return no("the guest does not run");
        }
        if self.vm().config.disks.is_empty() {
            return no("the VM has no disk, so that nothing tells the standby from one that was lost");
        }
        for (index, disk) in self.disks.reports().iter().enumerate() {
            if disk.local != ReplicaState::Online || disk.partner != Some(ReplicaState::Online) {
                return Wish::No(format!("disk {index} is not in step on both hosts"));
            }
        }
        let record = &self.vm().authority;
        let partner = self.vm().hosts.iter().find(|other| **other != self.config.host);
        if !partner.is_some_and(|partner| record.holds_all_good(*partner)) {
            return no("the record does not count on the partner's replicas yet");
        }
        if !self.partner_heard {
            return no("the partner's AM is not heard");
        }
        Wish::Yes
    }

    /// Whether the record lets the partner go on from the guest's memory.
    pub(super) fn standby_may_go_on(&self) -> bool {
        self.vm().authority.memory.is_some() && self.standing() == Standing::MayGoOn
    }

    /// The guest has ended: its disks wait again for whom the record calls good, and what was written ahead is copied.
    pub(super) fn end_ahead(&self) {
        for disk in self.disks.handles().iter().filter_map(|(_, disk)| disk.upgrade()) {
            if let Err(error) = disk.end_ahead() {
                tracing::error!(%error, "a disk takes no orders");
            }
        }
    }

    pub(super) fn level3_report(&self) -> Option<Level3Report> {
        let guest = self.guest.as_ref().filter(|_| self.is_level3())?;
        guest.level3.as_ref().map(Active::report)
    }

    pub(super) async fn on_level3(&mut self, notice: ActiveNotice) -> Stay {
        match notice {
            ActiveNotice::StreamDown(channel) => {
                if let Some(links) = &self.links {
                    links.stream_down(channel);
                }
                Stay::Yes
            }
            ActiveNotice::Propose(proposal) => {
                let Some(host) = self.config.partner else { return Stay::Yes };
                self.step(match proposal {
                    Proposal::StandbyHolds => KeeperEvent::MemoryHeld { host },
                    Proposal::StandbyLost => KeeperEvent::StandbyLost { host },
                })
                .await
            }
        }
    }

    pub(super) fn level3_stream(&self, channel: Channel, stream: Box<Stream>) {
        if let Some(active) = self.guest.as_ref().and_then(|guest| guest.level3.as_ref()) {
            active.stream(channel, stream);
        } else if let Some(waiting) = &self.waiting {
            waiting.stream(channel, stream);
        }
    }

    /// Disks that were opened anew take the place of the old ones.
    pub(super) fn hand_over_disks(&self) {
        if let Some(active) = self.guest.as_ref().and_then(|guest| guest.level3.as_ref()) {
            active.disks(self.disks.handles());
        }
        if let Some(waiting) = &self.waiting {
            waiting.disks(self.disks.handles());
        }
    }

    pub(super) fn on_epoch(&self, notice: DiskNotice) {
        for waiting in self.waiting.iter().chain(&self.taken_from) {
            waiting.disk(notice);
        }
    }

    pub(super) fn level3_disk_link_down(&self) {
        if let Some(active) = self.guest.as_ref().and_then(|guest| guest.level3.as_ref()) {
            active.disk_link_down();
        }
    }

    /// Ends what this host did as a standby, if it is none any more.
    pub(super) async fn leave_standby(&mut self, role: Role) {
        let stays = matches!(role, Role::Replica { coordinator: Some(_) }) && self.is_level3();
        let Some(waiting) = self.waiting.take_if(|_| !stays) else { return };
        let record = &self.vm().authority;
        let goes_on = matches!(role, Role::Coordinator { .. })
            && record.origin == RecordOrigin::Memory
            && matches!(record.power, Power::On { .. });
        if goes_on {
            tracing::info!("taking over from the guest's memory");
            reach(Step::TakeoverBegun);
            self.taking_over = Some(waiting.take_over().await);
            self.taken_from = Some(waiting);
        } else {
            waiting.end().await;
        }
    }

    /// Begins to be the standby of a guest at Level 3. One that this host kept until now may end long after the record, so this is looked at after
    /// each event.
    fn become_standby(&mut self, role: Role) {
        let is_one = matches!(role, Role::Replica { coordinator: Some(_) }) && self.is_level3();
        if !is_one || self.waiting.is_some() || self.guest.is_some() {
            return;
        }
        self.taken_from = None;
        let (vm, paths, user) = (self.vm().clone(), self.guest_paths(), self.config.qemu_user.clone());
        let make_spec: MakeSpec = Box::new(move || {
            let mut spec = GuestSpec::of_vm(&vm, paths.clone(), &user);
            track_memory(&mut spec)?;
            Ok(spec)
        });
        let spec = WaitingSpec { qemu: self.qemu.clone(), make_spec, disks: self.disks.handles() };
        self.waiting = Some(Waiting::start(spec, self.outbox.wanted.clone()));
    }

    /// Lets the guest go on from the memory that this host holds: once per record, whatever happens.
    pub(super) async fn go_on(&mut self, since: Generation) {
        let Some(taking_over) = self.taking_over.take() else {
            let why = "this host does not hold the guest's memory: it is started from its disks instead";
            return self.flush_then_end(since, EndCause::StartFailed(why.into()));
        };
        if let Err(error) = started::write(&self.paths.started(), since, None) {
            tracing::error!(%since, %error, "the guest can't go on here");
            return self.flush_then_end(since, EndCause::StartFailed(error.to_string()));
        }
        let (gate, hold) = (Arc::clone(&self.gate), OutputHold::new());
        let (paths, went_on) = (self.guest_paths(), self.outbox.went_on.clone());
        tokio::spawn(async move {
            let taken = taking_over.await.unwrap_or_else(|_| Err("the standby's task has ended".to_owned()));
            let result = match taken {
                Ok(taken) => {
                    tracing::info!(%since, epoch = %taken.epoch, "the guest goes on");
                    let guest = taken.qemu.guest().clone();
                    match taken.qemu.resume(&taken.state).await {
                        Ok((guest, times)) => {
                            let blackout = taken.whole_since.elapsed();
                            Ok(Box::new(WentOn { guest, times, blackout }))
                        }
                        Err(error) => {
                            // It must not run on beside the one that is started next.
                            let _ = guest.kill();
                            guest.exited().await;
                            Err(error.to_string())
                        }
                    }
                }
                Err(why) => Err(why),
            };
            let _ = went_on.send((since, result)).await;
        });
        let nics = Nics::connect(self.vm(), &paths, Arc::new(move || gate.is_open()), Arc::clone(&hold)).await;
        self.ready_nics = Some((nics, hold));
    }

    pub(super) async fn went_on(&mut self, since: Generation, result: Result<Box<WentOn>, String>) -> Stay {
        self.taken_from = None;
        let ready = self.ready_nics.take();
        match (result, ready) {
            (Ok(went_on), Some((nics, hold))) => {
                let WentOn { guest, times, blackout } = *went_on;
                tracing::info!(%since, ?times, ?blackout, "the guest went on from its memory");
                let task = GuestTask::attach(since, guest, self.outbox.guest.clone());
                let running = RunningGuest::new(task, nics, hold, Origin::Begun);
                self.guest = Some(RunningGuest { blackout: Some(blackout), ..running });
                if let Some(cause) = self.end_wanted.take() {
                    self.end(cause);
                }
                Stay::Yes
            }
            (Ok(went_on), None) => {
                let _ = went_on.guest.kill();
                self.flush_then_end(since, EndCause::StartFailed("its NICs are gone".into()));
                Stay::Yes
            }
            (Err(why), _) => {
                tracing::error!(%since, why, "the guest could not go on from its memory");
                self.flush_then_end(since, EndCause::StartFailed(why));
                Stay::Yes
            }
        }
    }

    /// Nothing of the standby's is left behind by this process.
    pub(super) async fn end_standby(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.end().await;
        }
    }
}
