//! The standby's side of `ev-am`: what is staged, what goes on.

use std::collections::BTreeSet;

use ev_core::availability::keeper::Role;
use ev_core::checkpoint::{Epoch, Session, StandbyAction, StandbyEvent};
use ev_core::mirror::ReplicaInput;

use super::host::{Memory, Waiting};
use super::link::LaneMessage;
use super::world::{DISK, World};

impl World {
    fn waiting(&mut self, index: usize) -> Option<&mut Waiting> {
        let am = self.nodes[index].am.as_mut()?;
        am.waiting.as_mut().or(am.taking.as_mut())
    }

    pub(super) fn tell_standby(&mut self, index: usize, event: StandbyEvent) {
        let Some(waiting) = self.waiting(index) else { return };
        let mut actions = Vec::new();
        waiting.engine.step(event, &mut actions);
        for action in actions {
            self.trace(|| format!("host {index} standby: {action:?}"));
            self.standby_action(index, action);
        }
    }

    fn standby_action(&mut self, index: usize, action: StandbyAction) {
        let Some(waiting) = self.waiting(index) else { return };
        let session = waiting.session;
        match action {
            StandbyAction::Discard => {
                waiting.staged.clear();
                waiting.work.clear();
                self.tell_replica(index, ReplicaInput::DiscardEpochs);
            }
            StandbyAction::ApplyDisk { epoch, .. } => {
                let session = session.expect("set by its beginning");
                self.tell_replica(index, ReplicaInput::ApplyEpoch { session, epoch });
            }
            StandbyAction::ApplyMemory { epoch } => waiting.work.push_back(epoch),
            StandbyAction::Confirm { session, epoch, echo } => {
                self.summary.confirmed += u64::from(epoch > Epoch::NONE);
                self.say(1 - index, LaneMessage::Confirm { session, epoch, echo });
            }
            StandbyAction::Refuse { session } => self.say(1 - index, LaneMessage::Refuse(session)),
            StandbyAction::GoOn { epoch } => waiting.outcome = Some(Some(epoch)),
            StandbyAction::CannotGoOn => waiting.outcome = Some(None),
        }
    }

    /// The active side begins a session: a QEMU is started for it first.
    pub(super) fn begins(&mut self, index: usize, session: Session) {
        let at = self.now_ms + self.rng.within(0..60);
        let Some(waiting) = self.nodes[index].am.as_mut().and_then(|am| am.waiting.as_mut()) else { return };
        waiting.begins = Some((session, at));
    }

    pub(super) fn stage_memory(&mut self, index: usize, session: Session, epoch: Epoch, memory: Memory) {
        let Some(waiting) = self.nodes[index].am.as_mut().and_then(|am| am.waiting.as_mut()) else { return };
        if waiting.session == Some(session) {
            waiting.staged.insert(epoch, memory);
            self.tell_standby(index, StandbyEvent::MemoryStaged { session, epoch });
        }
    }

    pub(super) fn disk_notice(&mut self, index: usize, event: StandbyEvent) {
        self.tell_standby(index, event);
    }

    pub(super) fn epochs_lost(&mut self, index: usize, session: Session) {
        if self.waiting(index).is_some_and(|waiting| waiting.session == Some(session)) {
            self.tell_standby(index, StandbyEvent::Failed);
        }
    }

    /// Memory is applied, one epoch after the other, and a QEMU that was waited for is there.
    pub(super) fn run_standby(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let Some(waiting) = self.waiting(index) else { return };
        if let Some((session, _)) = waiting.begins.take_if(|(_, at)| *at <= now_ms) {
            waiting.session = Some(session);
            waiting.image = None;
            self.tell_standby(index, StandbyEvent::Begin { session, disks: BTreeSet::from([DISK]) });
        }
        if !self.rng.per_mille(500) {
            return;
        }
        let Some(waiting) = self.waiting(index) else { return };
        let (Some(session), Some(epoch)) = (waiting.session, waiting.work.pop_front()) else { return };
        let memory = waiting.staged.remove(&epoch).expect("what is decided was staged");
        waiting.image = Some((epoch, memory));
        self.tell_standby(index, StandbyEvent::MemoryApplied { session, epoch });
    }

    /// Ends what this host did as a standby, if it is none any more.
    pub(super) fn leave_standby(&mut self, index: usize, role: Role, goes_on: bool) {
        let stays = matches!(role, Role::Replica { coordinator: Some(_) }) && self.at_level_3(index);
        let Some(am) = &mut self.nodes[index].am else { return };
        let Some(waiting) = am.waiting.take_if(|_| !stays) else { return };
        if goes_on {
            am.taking = Some(waiting);
            self.tell_standby(index, StandbyEvent::TakeOver);
        } else {
            self.tell_replica(index, ReplicaInput::DiscardEpochs);
        }
    }

    pub(super) fn become_standby(&mut self, index: usize, role: Role) {
        let is_one = matches!(role, Role::Replica { coordinator: Some(_) }) && self.at_level_3(index);
        let node = &mut self.nodes[index];
        let runs = node.qemu.is_some();
        let Some(am) = node.am.as_mut().filter(|am| is_one && am.waiting.is_none() && !runs) else { return };
        am.taking = None;
        am.waiting = Some(Waiting::default());
    }

    /// The record does not count on this host: nobody goes on from what is here.
    pub(super) fn given_up(&mut self, index: usize) {
        let id = self.nodes[index].id;
        let Some(am) = &self.nodes[index].am else { return };
        let counts = am.keeper.vm().authority.holds_all_good(id);
        let decided = am.waiting.as_ref().is_some_and(|waiting| waiting.engine.decided() != Epoch::NONE);
        if !counts && decided {
            self.tell_standby(index, StandbyEvent::Failed);
        }
    }
}
