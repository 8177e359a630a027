//! What protects the guest's memory on its host, as far as the disk sees it: marks while the guest stands still, confirmations, and giving
//! the standby up. The standby's side is the engine itself ([`ev_core::checkpoint::Standby`]), in `memory`.

use std::collections::{BTreeMap, VecDeque};

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::DiskId;
use ev_core::mirror::{Input, Wish};
use ev_core::report::ReplicaState;
use uuid::Uuid;

use super::disk::Sector;
use super::host::{Host, Process};
use super::oracle::Oracle;
use super::world::{World, place};

pub const DISK: DiskId = DiskId(Uuid::from_u128(1));
/// Checkpoints that are not confirmed, at most: with more the guest is not paused again.
const UNCONFIRMED_MAX: u64 = 3;
/// A pause that takes so long is given up.
const PAUSE_MAX_MS: u64 = 400;

/// What the active host's process knows of a session. It dies with it.
#[derive(Debug, Clone, Copy)]
pub struct Protector {
    pub session: Session,
    /// The standby has answered.
    opened: bool,
    /// Since when the guest stands still.
    paused: Option<u64>,
    pub marked: Epoch,
    confirmed: Epoch,
    /// The standby is given up; a record without it is awaited.
    parting: bool,
}

/// The guest as it was at the end of an epoch.
#[derive(Debug)]
pub struct Checkpoint {
    at: u64,
    pub content: Vec<Sector>,
    pub oracle: Oracle,
}

/// A guest that is answered ahead of the standby's replica, seen by somebody who knows everything.
#[derive(Debug)]
pub struct Ahead {
    pub standby: usize,
    pub session: Session,
    /// When both replicas were asked for the last time.
    together: u64,
    /// Up to when the outside has seen what the guest did.
    seen: u64,
    pub confirmed: Epoch,
    pub checkpoints: BTreeMap<Epoch, Checkpoint>,
}

/// What a replica that was written ahead of may lack.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    pub together: Option<u64>,
    pub seen: u64,
}

impl Ahead {
    pub fn behind(&self) -> Behind {
        Behind { together: Some(self.together), seen: self.seen }
    }
}

/// Where the guest goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoesOn {
    From(Epoch),
    /// It has to be started from its disks.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub enum LaneMessage {
    Begin(Session),
    /// The memory of an epoch, whole.
    Memory(Session, Epoch),
    Confirm(Session, Epoch),
    Refuse(Session),
}

/// How both sides' protection speaks with each other, beside the disk's link.
#[derive(Debug, Default)]
pub struct Lane {
    pub to_standby: VecDeque<LaneMessage>,
    pub to_active: VecDeque<LaneMessage>,
    /// Something was lost: the session can't go on.
    broken: bool,
}

impl World {
    pub fn may_be_behind(&self) -> bool {
        self.ahead.is_some() || self.behind.is_some()
    }

    fn protector(&mut self) -> Option<&mut Protector> {
        self.hosts[place(self.active)].process.as_mut().and_then(|process| process.protector.as_mut())
    }

    /// Whether the guest stands still for a checkpoint.
    pub fn is_paused(&mut self) -> bool {
        self.protector().is_some_and(|protector| protector.paused.is_some())
    }

    /// What is on its way between both is lost.
    pub fn lane_ends(&mut self) {
        self.lane = Lane { broken: true, ..Lane::default() };
    }

    /// The active host's protection does its next step.
    pub fn protect(&mut self) {
        let place = place(self.active);
        if self.is_frozen(place) || self.recovering || self.continuing {
            return;
        }
        let Some(process) = &self.hosts[place].process else { return };
        let Some(engine) = process.coordinator().filter(|_| process.next_role.is_none()) else { return };
        let Some(record) = engine.record() else { return };
        let online = engine.partner_state() == Some(ReplicaState::Online);
        let wanted = self.protected && self.guest_runs && self.closing.is_none();
        match process.protector {
            None if record.good.partner && self.memory && self.guest_runs => {
                self.propose_standby_lost(record.generation)
            }
            None if wanted && online && record.good.local && record.good.partner => self.begin_session(place),
            None => {}
            Some(Protector { parting: true, .. }) if !record.good.partner => self.end_session(place),
            Some(Protector { parting: true, .. }) => self.propose_standby_lost(record.generation),
            Some(protector) => {
                let lost = self.lane.broken || !online;
                if !wanted || !record.good.partner || lost && self.rng.per_mille(200) {
                    self.give_up(place);
                } else {
                    if protector.confirmed > Epoch::NONE && !self.memory {
                        self.memory_held.push(record.generation);
                    }
                    self.checkpoint(place, protector);
                }
            }
        }
    }

    fn begin_session(&mut self, place: usize) {
        self.next_session += 1;
        let session = Session(self.next_session);
        self.tell(|| format!("host {place} begins session {session}"));
        self.lane = Lane { to_standby: VecDeque::from([LaneMessage::Begin(session)]), ..Lane::default() };
        if let Some(process) = &mut self.hosts[place].process {
            process.protector = Some(Protector {
                session,
                opened: false,
                paused: None,
                marked: Epoch::NONE,
                confirmed: Epoch::NONE,
                parting: false,
            });
        }
    }

    /// Pauses the guest, and marks the end of the epoch when QEMU has nothing under way.
    fn checkpoint(&mut self, place: usize, protector: Protector) {
        let now = self.now;
        let Some(since) = protector.paused else {
            let room = protector.marked.0 - protector.confirmed.0 < UNCONFIRMED_MAX;
            if protector.opened && room && self.rng.per_mille(400) {
                self.set_paused(place, Some(now));
            }
            return;
        };
        if self.guest.is_empty() {
            let (session, epoch) = (protector.session, protector.marked.next());
            let now = self.instant();
            let Host { process, disk, .. } = &mut self.hosts[place];
            if let Some(process) = process {
                process.tell(now, disk, Input::MarkEpoch { session, epoch });
            }
            self.after(place);
        } else if now - since > PAUSE_MAX_MS {
            self.set_paused(place, None);
            if self.rng.per_mille(300) {
                self.give_up(place);
            }
        }
    }

    fn set_paused(&mut self, place: usize, paused: Option<u64>) {
        if let Some(protector) = self.hosts[place].process.as_mut().and_then(|process| process.protector.as_mut()) {
            protector.paused = paused;
        }
    }

    /// The disk has answered a mark.
    pub fn marked(&mut self, place: usize, ok: bool) {
        if super::world::HOSTS[place] != self.active {
            return;
        }
        let at = self.now;
        self.now += 1;
        let content = self.hosts[place].disk.content().to_vec();
        let Some(protector) = self.protector() else { return };
        protector.paused = None;
        if !ok {
            self.give_up(place);
            return;
        }
        protector.marked = protector.marked.next();
        let (session, epoch) = (protector.session, protector.marked);
        self.tell(|| format!("host {place} marks epoch {epoch}"));
        // An older proposal may have taken the standby out of the record, and this host does not know it yet.
        if epoch == Epoch::FIRST && self.good.len() == 2 {
            let (standby, checkpoints) = (1 - place, BTreeMap::new());
            let ahead = Ahead { standby, session, together: at, seen: at, confirmed: Epoch::NONE, checkpoints };
            self.ahead = Some(ahead);
            // The keeper waits until what an earlier process has asked for is void, before its guest is protected.
            self.wishes.retain(|wish| !matches!(wish, Wish::ReplicaLost { host, .. } if place == self::place(*host)));
        }
        let oracle = self.oracle.clone();
        if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.session == session) {
            ahead.checkpoints.insert(epoch, Checkpoint { at, content, oracle });
        }
        self.lane.to_standby.push_back(LaneMessage::Memory(session, epoch));
    }

    /// The session is over: before the guest is free, the record has to be without the standby.
    pub fn give_up(&mut self, place: usize) {
        let early = self.rng.per_mille(100);
        let Some(protector) = self.hosts[place].process.as_mut().and_then(|process| process.protector.as_mut()) else {
            return;
        };
        protector.parting = true;
        protector.paused = None;
        self.tell(|| format!("host {place} gives its standby up"));
        if early {
            self.end_ahead(place);
        }
    }

    fn end_ahead(&mut self, place: usize) {
        let now = self.instant();
        let Host { process, disk, .. } = &mut self.hosts[place];
        if let Some(process) = process {
            process.tell(now, disk, Input::EndAhead);
        }
        self.after(place);
    }

    fn end_session(&mut self, place: usize) {
        if let Some(process) = &mut self.hosts[place].process {
            process.protector = None;
        }
        self.end_ahead(place);
    }

    fn propose_standby_lost(&mut self, seen: ev_core::ids::Generation) {
        if !self.standby_lost.contains(&seen) {
            self.standby_lost.push(seen);
        }
    }

    /// This host's replica failed while the guest is ahead: the guest goes on elsewhere, or the standby is given up.
    pub fn stuck(&mut self, place: usize) {
        if super::world::HOSTS[place] != self.active {
            return;
        }
        if self.memory && self.rng.per_mille(700) {
            self.continue_guest();
        } else {
            self.give_up(place);
        }
    }

    /// A word of the standby arrives.
    pub fn hear_standby(&mut self) {
        let active = place(self.active);
        if self.is_frozen(active) {
            return;
        }
        let Some(message) = self.lane.to_active.pop_front() else { return };
        self.tell(|| format!("host {active} hears {message:?}"));
        let Some(protector) = self.protector().filter(|protector| !protector.parting) else { return };
        match message {
            LaneMessage::Confirm(session, epoch) if session == protector.session => {
                protector.opened = true;
                if epoch > protector.confirmed {
                    assert!(epoch <= protector.marked, "an epoch that has not ended is confirmed");
                    protector.confirmed = epoch;
                    self.confirmed(epoch);
                }
            }
            LaneMessage::Refuse(session) if session == protector.session => self.give_up(active),
            LaneMessage::Confirm(..) | LaneMessage::Refuse(_) | LaneMessage::Begin(_) | LaneMessage::Memory(..) => {}
        }
    }

    /// What the guest sent in the epoch leaves.
    fn confirmed(&mut self, epoch: Epoch) {
        self.summary.confirmed += 1;
        let Some(ahead) = &mut self.ahead else { return };
        ahead.confirmed = epoch;
        ahead.seen = ahead.checkpoints[&epoch].at;
        ahead.checkpoints.retain(|kept, _| *kept >= epoch);
    }

    /// Whether the protection of a process of an earlier guest, or none, is at work.
    pub fn is_unprotected(&self) -> bool {
        let protector = |process: &Process| process.protector.is_some();
        !self.hosts.iter().any(|host| host.process.as_ref().is_some_and(protector))
    }
}
