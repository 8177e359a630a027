//! The standby of a guest that is protected by checkpoints, and the record's changes that concern it.

use std::collections::BTreeSet;

use ev_core::checkpoint::{Epoch, StandbyAction, StandbyEvent};
use ev_core::ids::{Generation, HostId};
use ev_core::mirror::ReplicaInput;

use super::host::{Host, Process, Role};
use super::protect::{DISK, GoesOn, LaneMessage};
use super::world::{HOSTS, World, place};

impl World {
    /// Tells the standby's engine at that place something, and does what it wants.
    pub fn standby(&mut self, place: usize, event: StandbyEvent) {
        let Some(process) = &mut self.hosts[place].process else { return };
        if let StandbyEvent::Begin { session, .. } = &event {
            process.standby_session = Some(*session);
        }
        let mut actions = Vec::new();
        process.standby.step(event, &mut actions);
        for action in actions {
            self.tell(|| format!("host {place}: {action:?}"));
            self.perform(place, action);
        }
    }

    fn perform(&mut self, place: usize, action: StandbyAction) {
        let Host { process, disk, .. } = &mut self.hosts[place];
        let Some(process) = process else { return };
        match action {
            StandbyAction::Discard => process.tell_replica(disk, ReplicaInput::DiscardEpochs),
            StandbyAction::ApplyDisk { epoch, .. } => {
                let session = process.standby_session.expect("set by its beginning");
                process.tell_replica(disk, ReplicaInput::ApplyEpoch { session, epoch });
            }
            StandbyAction::ApplyMemory { epoch } => {
                let session = process.standby_session.expect("set by its beginning");
                self.standby(place, StandbyEvent::MemoryApplied { session, epoch });
            }
            StandbyAction::Confirm { session, epoch, .. } => {
                self.lane.to_active.push_back(LaneMessage::Confirm(session, epoch));
            }
            StandbyAction::Refuse { session } => self.lane.to_active.push_back(LaneMessage::Refuse(session)),
            StandbyAction::GoOn { epoch } => process.goes_on = Some(GoesOn::From(epoch)),
            StandbyAction::CannotGoOn => process.goes_on = Some(GoesOn::Nothing),
        }
    }

    /// Something of the active side's arrives at the standby.
    pub fn hear_active(&mut self) {
        let place = 1 - place(self.active);
        if self.is_frozen(place) {
            return;
        }
        let Some(message) = self.lane.to_standby.pop_front() else { return };
        let is_standby = |process: &Process| matches!(process.role, Some(Role::Replica { .. }));
        if !self.hosts[place].process.as_ref().is_some_and(is_standby) {
            return self.lane_ends();
        }
        match message {
            LaneMessage::Begin(session) => {
                self.standby(place, StandbyEvent::Begin { session, disks: BTreeSet::from([DISK]) });
            }
            LaneMessage::Memory(session, epoch) => {
                self.standby(place, StandbyEvent::MemoryStaged { session, epoch });
            }
            LaneMessage::Confirm(..) | LaneMessage::Refuse(_) => unreachable!("the standby says it"),
        }
        self.after(place);
    }

    /// A host learns its role: a standby may become the host of the guest, and the other way round.
    pub fn learn(&mut self, place: usize, role: Role) {
        let takes_up = self.protected && self.guest_runs && !self.recovering;
        let goes_on = self.continuing;
        let Some(process) = &mut self.hosts[place].process else { return };
        if process.role.is_some_and(|known| known.generation() >= role.generation()) {
            return;
        }
        process.takes_up = takes_up && process.role.is_none();
        let was_coordinator = matches!(process.role, Some(Role::Coordinator(_)));
        match role {
            Role::Coordinator(_) if was_coordinator => {}
            Role::Coordinator(_) if goes_on => {
                self.standby(place, StandbyEvent::TakeOver);
                self.after(place);
            }
            Role::Coordinator(_) => process.standby = ev_core::checkpoint::Standby::default(),
            Role::Replica { .. } => {
                process.protector = None;
                if was_coordinator {
                    process.standby = ev_core::checkpoint::Standby::default();
                }
            }
        }
    }

    /// The guest goes on from memory once the disk has its new role and everything decided is applied.
    pub fn try_go_on(&mut self, place: usize) {
        if !self.continuing || self.active != HOSTS[place] {
            return;
        }
        let Some(process) = &mut self.hosts[place].process else { return };
        let served = process.coordinator().is_some_and(|engine| engine.record().is_some());
        if !served || process.next_role.is_some() {
            return;
        }
        let goes_on = process.goes_on.take().expect("it is known when what was decided is applied");
        self.continuing = false;
        match goes_on {
            GoesOn::From(epoch) => self.go_on(place, epoch),
            GoesOn::Nothing => {
                self.tell(|| format!("host {place} has nothing to go on from"));
                self.is_started_from(HOSTS[place]);
                self.recovering = true;
            }
        }
    }

    /// The guest goes on as it was at the end of this epoch, and so must its disk be.
    fn go_on(&mut self, place: usize, epoch: Epoch) {
        self.tell(|| format!("the guest goes on on host {place} from epoch {epoch}"));
        let mut ahead = self.ahead.take().expect("who goes on was written ahead of");
        let process = self.hosts[place].process.as_ref().expect("it has just said so");
        assert_eq!(process.standby_session, Some(ahead.session), "of another session");
        assert!(epoch >= ahead.confirmed, "epoch {epoch} was seen from outside, and is undone");
        let checkpoint = ahead.checkpoints.remove(&epoch).expect("it was marked, and not confirmed before");
        for (sector, (here, then)) in self.hosts[place].disk.content().iter().zip(&checkpoint.content).enumerate() {
            assert_eq!(here, then, "the guest goes on from epoch {epoch}, and sector {sector} is not of it");
        }
        self.oracle = checkpoint.oracle;
        self.behind = None;
        self.now += 1;
        self.guest.clear();
        self.guest_runs = true;
        self.guest_since = self.now;
        self.summary.went_on += 1;
    }

    /// The record names the other host, which goes on from the guest's memory.
    pub fn continue_guest(&mut self) {
        assert!(self.memory, "nobody holds the guest's memory");
        // The old active host finds out when it learns of this record.
        self.active = HOSTS[1 - place(self.active)];
        self.good = BTreeSet::from([self.active]);
        self.memory = false;
        self.continuing = true;
        self.recovering = false;
        self.closing = None;
        self.guest_runs = false;
        self.guest.clear();
        self.generation = self.generation.next();
        self.tell(|| format!("record {}: the guest goes on on host {}", self.generation, self.active));
    }

    /// The guest is started from this host's disk, whatever its memory.
    pub fn is_started_from(&mut self, host: HostId) {
        for process in self.hosts.iter_mut().filter_map(|host| host.process.as_mut()) {
            process.protector = None;
        }
        if let Some(ahead) = self.ahead.take().filter(|ahead| HOSTS[ahead.standby] == host) {
            self.behind = Some(ahead.behind());
            self.summary.behind += 1;
        }
    }

    /// The record counts on the standby's replica no more.
    pub fn standby_is_out(&mut self) {
        if self.ahead.as_ref().is_some_and(|ahead| !self.good.contains(&HOSTS[ahead.standby])) {
            self.ahead = None;
        }
    }

    /// Proposals that concern the memory reach the record's store.
    pub fn commit_memory(&mut self) {
        let both = self.good.len() == 2;
        if let Some(seen) = self.memory_held.pop()
            && seen == self.generation
            && both
            && self.guest_runs
        {
            self.memory = true;
            self.next_generation("the standby holds the memory");
        }
        if let Some(seen) = self.standby_lost.pop()
            && seen == self.generation
            && both
            && !self.continuing
        {
            self.good = BTreeSet::from([self.active]);
            self.memory = false;
            self.standby_is_out();
            self.next_generation("the standby is lost");
        }
    }

    fn next_generation(&mut self, why: &str) {
        self.generation = Generation(self.generation.0 + 1);
        self.tell(|| format!("record {}: {why}", self.generation));
    }
}
