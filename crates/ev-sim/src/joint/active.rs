//! The active side of `ev-am`: when the guest stands still, what is sent, what is held.

use std::time::Duration;

use ev_core::availability::keeper::Event as KeeperEvent;
use ev_core::checkpoint::{Action, Epoch, Event, Output, PaceLimits, Primary, Proposal, Session, Standing};
use ev_core::mirror::Input;
use ev_core::report::{GuestState, ReplicaState};
use ev_core::vm::Level;

use super::host::{Life, Pause};
use super::link::LaneMessage;
use super::world::World;

/// The active side tells its clock so often.
const CLOCK_MS: u64 = 100;
/// A pause that takes longer is given up.
const PAUSE_MAX_MS: u64 = 300;
/// Between the end of a session and the next one.
const RETRY_MS: u64 = 300;

impl World {
    pub(super) fn at_level_3(&self, index: usize) -> bool {
        self.nodes[index].am.as_ref().is_some_and(|am| am.keeper.vm().level == Level::System)
    }

    /// The guest runs: from now on it can be protected.
    pub(super) fn begin_level3(&mut self, index: usize, taken_up: bool) {
        let now = self.nodes[index].clock(self.now_ms);
        let holds = taken_up && self.at_level_3(index);
        let Some(am) = &mut self.nodes[index].am else { return };
        am.forget_guest();
        let limits = PaceLimits::default();
        am.output = if holds { Output::Through(Epoch::NONE) } else { Output::Free };
        am.primary = Some(if holds { Primary::taken_up(limits, now) } else { Primary::new(limits, now) });
        if am.link.is_some() {
            self.tell_primary(index, Event::LinkUp);
        }
    }

    pub(super) fn link_made(&mut self, index: usize) {
        self.tell_primary(index, Event::LinkUp);
    }

    pub(super) fn link_lost(&mut self, index: usize) {
        self.tell_primary(index, Event::LinkDown);
    }

    /// A session that writes ahead does not outlive the disk's link.
    pub(super) fn disk_link_lost(&mut self, index: usize) {
        let Some(am) = &self.nodes[index].am else { return };
        let linked = am.link.is_some();
        if am.session.is_some() {
            self.tell_primary(index, Event::LinkDown);
            if linked {
                self.tell_primary(index, Event::LinkUp);
            }
        }
    }

    pub(super) fn lane_message(&mut self, to: usize, message: LaneMessage) {
        self.trace(|| format!("host {to} hears {message:?}").chars().take(150).collect());
        match message {
            LaneMessage::Begin(session) => self.begins(to, session),
            LaneMessage::Clock(session, reading) => {
                self.tell_standby(to, ev_core::checkpoint::StandbyEvent::Clock { session, reading });
            }
            LaneMessage::Memory(session, epoch, memory) => self.stage_memory(to, session, epoch, *memory),
            LaneMessage::Confirm { session, epoch, echo } => {
                let at = self.now_ms + self.rng.within(1..200);
                if let Some(am) = &mut self.nodes[to].am
                    && epoch == Epoch::NONE
                    && am.session == Some(session)
                    && am.filled_at.is_none()
                {
                    am.filled_at = Some((session, at));
                }
                self.tell_primary(to, Event::Confirmed { session, epoch, echo });
            }
            LaneMessage::Refuse(session) => self.tell_primary(to, Event::Refused { session }),
        }
    }

    /// Runs the engine of a host whose guest runs.
    pub(super) fn run_active(&mut self, index: usize) {
        if self.nodes[index].am.as_ref().is_none_or(|am| am.primary.is_none()) {
            return;
        }
        self.end_pause(index);
        let standing = self.standing(index);
        self.tell_primary(index, Event::Record(standing));
        let wanted = self.wants(index);
        let session = wanted.then(|| Session(self.rng.bits()));
        self.tell_primary(index, Event::Wanted { session });
        let (now_ms, reading) = (self.now_ms, self.nodes[index].clock(self.now_ms));
        let Some(am) = &mut self.nodes[index].am else { return };
        let (session, waits) = (am.session, am.output != Output::Free && !am.held.is_empty());
        let filled = am.filled_at.filter(|(_, at)| *at <= now_ms);
        if let Some(session) = session.filter(|_| now_ms.is_multiple_of(CLOCK_MS)) {
            self.say(1 - index, LaneMessage::Clock(session, reading));
        }
        if let Some((session, _)) = filled {
            self.tell_primary(index, Event::Filled { session });
        }
        if waits {
            let rests = self.rng.per_mille(300);
            self.tell_primary(index, Event::OutputWaits);
            self.tell_primary(index, if rests { Event::Rested } else { Event::Tick });
        }
        self.tell_primary(index, Event::Tick);
    }

    fn standing(&self, index: usize) -> Standing {
        let (here, there) = (self.nodes[index].id, self.nodes[1 - index].id);
        let Some(am) = &self.nodes[index].am else { return Standing::Everything };
        let record = &am.keeper.vm().authority;
        if record.active != Some(here) {
            Standing::Everything
        } else if record.memory == Some(there) {
            Standing::MayGoOn
        } else if record.good.values().any(|good| good.contains(&there)) {
            Standing::MayStart
        } else {
            Standing::Nothing
        }
    }

    fn wants(&self, index: usize) -> bool {
        let there = self.nodes[1 - index].id;
        let Some(am) = self.nodes[index].am.as_ref().filter(|_| self.at_level_3(index)) else { return false };
        let engine = self.nodes[index].storage.process.as_ref().and_then(|process| process.coordinator());
        let in_step = engine.is_some_and(|engine| {
            engine.local_state() == ReplicaState::Online && engine.partner_state() == Some(ReplicaState::Online)
        });
        matches!(am.keeper.guest_state(), GuestState::Running { .. })
            && in_step
            && am.keeper.vm().authority.holds_all_good(there)
            && am.link.is_some()
            && (am.session.is_some() || self.now_ms >= am.retry_ms)
    }

    pub(super) fn tell_primary(&mut self, index: usize, event: Event) {
        let now = self.nodes[index].clock(self.now_ms);
        let Some(primary) = self.nodes[index].am.as_mut().and_then(|am| am.primary.as_mut()) else { return };
        let mut actions = Vec::new();
        primary.step(now, event, &mut actions);
        for action in actions {
            self.trace(|| format!("host {index}: {action:?}"));
            self.checkpoint_action(index, action);
        }
    }

    fn checkpoint_action(&mut self, index: usize, action: Action) {
        let host = self.nodes[1 - index].id;
        let now_ms = self.now_ms;
        let Some(am) = &mut self.nodes[index].am else { return };
        match action {
            Action::Begin { session } => {
                am.session = Some(session);
                am.filled_at = None;
                self.say(1 - index, LaneMessage::Begin(session));
            }
            Action::Brake => self.tell_primary(index, Event::Braked),
            Action::Capture { epoch } => {
                let session = am.session.expect("a checkpoint is one of a session");
                am.pause = Some(Pause { session, epoch, since_ms: now_ms });
            }
            // Here frames leave in the moment in which they are let go.
            Action::LetOutUntil(_) => {}
            Action::Release(Output::Free) => {
                am.output = Output::Free;
                self.tell_disk(index, Input::EndAhead);
                self.let_out(index);
            }
            Action::Release(output @ Output::Through(_)) => {
                am.output = output;
                self.let_out(index);
            }
            Action::Propose(Proposal::StandbyHolds) => self.later(index, KeeperEvent::MemoryHeld { host }),
            Action::Propose(Proposal::StandbyLost) => self.later(index, KeeperEvent::StandbyLost { host }),
            Action::End => {
                am.session = None;
                am.filled_at = None;
                am.retry_ms = now_ms + RETRY_MS;
            }
        }
    }

    /// The processors stand still; once the disk has answered everything, the epoch ends.
    fn end_pause(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(pause) = node.am.as_ref().and_then(|am| am.pause).filter(|_| node.life == Life::Up) else { return };
        let drained = node.qemu.as_ref().is_some_and(|qemu| qemu.asked.is_none() && qemu.memory.is_some());
        if drained {
            let Pause { session, epoch, .. } = pause;
            self.tell_disk(index, Input::MarkEpoch { session, epoch });
        } else if self.now_ms - pause.since_ms > PAUSE_MAX_MS {
            self.capture_failed(index);
        }
    }

    fn capture_failed(&mut self, index: usize) {
        let Some(am) = &mut self.nodes[index].am else { return };
        am.pause = None;
        let held = am.output != Output::Free;
        self.tell_primary(index, Event::CaptureFailed { held });
    }

    /// The disk has put the end of the epoch behind what was written.
    pub(super) fn marked(&mut self, index: usize, ok: bool) {
        let Some(pause) = self.nodes[index].am.as_mut().and_then(|am| am.pause.take()) else { return };
        let Pause { session, epoch, since_ms } = pause;
        if !ok {
            if epoch == Epoch::FIRST {
                self.tell_disk(index, Input::EndAhead);
            }
            return self.capture_failed(index);
        }
        let memory = self.nodes[index].qemu.as_ref().and_then(|qemu| qemu.memory.clone());
        let Some(am) = &mut self.nodes[index].am else { return };
        if epoch == Epoch::FIRST && am.output == Output::Free {
            am.output = Output::Through(Epoch::NONE);
        }
        let current = am.session == Some(session);
        if let Some(memory) = memory.filter(|_| current) {
            self.say(1 - index, LaneMessage::Memory(session, epoch, Box::new(memory)));
        }
        let pause = Duration::from_millis(self.now_ms - since_ms);
        self.tell_primary(index, Event::Captured { epoch, pause });
    }
}
