//! Level 3 in the simulation: the real engine of the active side on each host, a standby that confirms whole checkpoints, and the
//! link between them.

use std::collections::VecDeque;
use std::time::Duration;

use ev_core::availability::keeper;
use ev_core::checkpoint::{Action, Epoch, Event, Output, PaceLimits, Primary, Proposal, Session, Standing};
use ev_core::time::Instant;

use super::host::{Checkpoint, Image, Life, Mirror, Qemu};
use super::world::World;

/// The active side tells its clock so often.
const CLOCK_MS: u64 = 100;
/// A link is given up after so long without the other side.
const LINK_PATIENCE_MS: u64 = 600;

/// A message between the two AMs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Message {
    Open(Session),
    Clock(Session, Instant),
    Checkpoint { session: Session, epoch: Epoch, checkpoint: Checkpoint },
    Confirm { session: Session, epoch: Epoch, echo: Instant },
}

/// The link between the two AMs; messages to each host are in order, but for the clock's, which have a lane of their own.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Its number, if it is up.
    pub(super) up: Option<u64>,
    count: u64,
    changed_ms: u64,
    lanes: [[VecDeque<(u64, Message)>; 2]; 2],
}

impl Link {
    fn lane(&mut self, to: usize, message: &Message) -> &mut VecDeque<(u64, Message)> {
        let clock = matches!(message, Message::Clock(..));
        &mut self.lanes[to][usize::from(clock)]
    }
}

impl World {
    /// The link comes and goes, and what is due on it arrives: with a host that stands still when it is thawed, even when
    /// the link is gone by then.
    pub(super) fn tend_link(&mut self) {
        let now_ms = self.now_ms;
        let sound = self.pair_connected();
        for to in 0..2 {
            for lane in 0..2 {
                while self.hosts[to].life == Life::Up
                    && (sound || self.link.up.is_none())
                    && self.link.lanes[to][lane].front().is_some_and(|(at, _)| *at <= now_ms)
                {
                    let (_, message) = self.link.lanes[to][lane].pop_front().expect("it was looked at");
                    self.message_arrives(to, message);
                }
            }
        }
        if sound == self.link.up.is_some() {
            self.link.changed_ms = now_ms;
        }
        let for_ms = now_ms - self.link.changed_ms;
        let gone = self.hosts.iter().any(|host| host.keeper.is_none());
        if self.link.up.is_some() && (gone || for_ms >= LINK_PATIENCE_MS) {
            self.link.up = None;
            self.lose_messages();
        } else if self.link.up.is_none() && sound && (self.calm || self.rng.per_mille(100)) {
            self.link.count += 1;
            self.link.up = Some(self.link.count);
            self.link.lanes = Default::default();
        }
    }

    /// What came to a host that stands still waits for it; all else is lost with the link.
    fn lose_messages(&mut self) {
        for to in 0..2 {
            let waits = self.hosts[to].life == Life::Frozen;
            for lane in &mut self.link.lanes[to] {
                lane.retain(|(at, _)| waits && *at <= self.now_ms);
            }
        }
    }

    fn say(&mut self, to: usize, message: Message) {
        if self.link.up.is_none() {
            return;
        }
        let late = if !self.calm && self.rng.per_mille(20) { 600 } else { 30 };
        let at = self.now_ms + self.rng.within(0..late);
        let lane = self.link.lane(to, &message);
        let earliest = lane.back().map_or(0, |(at, _)| *at);
        lane.push_back((at.max(earliest), message));
    }

    fn message_arrives(&mut self, to: usize, message: Message) {
        if self.hosts[to].keeper.is_none() {
            return;
        }
        if let Message::Confirm { session, epoch, echo } = message {
            self.tell(to, Event::Confirmed { session, epoch, echo });
            if epoch == Epoch::NONE {
                self.tell(to, Event::Filled { session });
            }
            return;
        }
        let active = self.hosts[to].keeper.as_ref().and_then(|keeper| keeper.vm().authority.active);
        let host = &mut self.hosts[to];
        if active == Some(host.id) || host.qemu.is_some() {
            return;
        }
        let answer = match (message, &mut host.pair.image) {
            (Message::Open(session), image) => {
                *image = Some(Image { session, decided: Epoch::NONE, newest: None, clock: Instant(0) });
                image.as_ref()
            }
            (Message::Clock(session, reading), Some(image)) if image.session == session => {
                image.clock = image.clock.max(reading);
                Some(&*image)
            }
            (Message::Checkpoint { session, epoch, checkpoint }, Some(image))
                if image.session == session && epoch == image.decided.next() =>
            {
                image.decided = epoch;
                image.newest = Some(checkpoint);
                host.disk = checkpoint.disk;
                Some(&*image)
            }
            (Message::Clock(..) | Message::Checkpoint { .. } | Message::Confirm { .. }, _) => None,
        };
        let confirm =
            answer.map(|image| Message::Confirm { session: image.session, epoch: image.decided, echo: image.clock });
        if let Some(confirm) = confirm {
            self.say(1 - to, confirm);
        }
    }

    /// Runs the engine of a host whose guest runs.
    pub(super) fn checkpoints(&mut self, index: usize) {
        let now = self.hosts[index].clock(self.now_ms);
        let runs = self.hosts[index].qemu.is_some() && self.hosts[index].keeper.is_some();
        if !runs {
            self.forget_guest(index);
            return;
        }
        let pair = &mut self.hosts[index].pair;
        if pair.primary.is_none() {
            pair.primary = Some(Primary::new(PaceLimits::default(), now));
            pair.link = None;
        }
        let up = self.link.up;
        if self.hosts[index].pair.link != up {
            if self.hosts[index].pair.link.is_some() {
                self.tell(index, Event::LinkDown);
            }
            if up.is_some() {
                self.tell(index, Event::LinkUp);
            }
            self.hosts[index].pair.link = up;
        }
        self.end_pause(index);
        let standing = self.standing(index);
        self.tell(index, Event::Record(standing));
        let session = self.wants(index, standing).then(|| Session(self.rng.bits()));
        self.tell(index, Event::Wanted { session });
        if let Some(session) = self.hosts[index].pair.session.filter(|_| self.now_ms.is_multiple_of(CLOCK_MS)) {
            self.say(1 - index, Message::Clock(session, now));
        }
        if self.rng.per_mille(20) {
            self.tell(index, Event::OutputWaits);
            self.tell(index, Event::Rested);
        }
        self.tell(index, Event::Tick);
    }

    fn forget_guest(&mut self, index: usize) {
        let pair = &mut self.hosts[index].pair;
        if pair.primary.take().is_some() {
            pair.session = None;
            pair.output = Output::Free;
            pair.taken.clear();
            pair.pausing = None;
        }
    }

    fn standing(&self, index: usize) -> Standing {
        let host = &self.hosts[index];
        let other = self.hosts[1 - index].id;
        let Some(keeper) = &host.keeper else { return Standing::Everything };
        let record = &keeper.vm().authority;
        if record.active != Some(host.id) {
            Standing::Everything
        } else if record.memory == Some(other) {
            Standing::MayGoOn
        } else if keeper.vm().hosts.contains(&other) && record.holds_all_good(other) {
            Standing::MayStart
        } else {
            Standing::Nothing
        }
    }

    fn wants(&self, index: usize, standing: Standing) -> bool {
        let host = &self.hosts[index];
        let runs = host.qemu.is_some_and(|qemu| !qemu.paused);
        let in_step = matches!(host.pair.mirror, Mirror::InStep { .. } | Mirror::Ahead);
        let counts = matches!(standing, Standing::MayGoOn | Standing::MayStart);
        self.at_level_3(index) && runs && in_step && counts && self.link.up.is_some()
    }

    fn tell(&mut self, index: usize, event: Event) {
        let now = self.hosts[index].clock(self.now_ms);
        let Some(primary) = &mut self.hosts[index].pair.primary else { return };
        let mut actions = Vec::new();
        primary.step(now, event, &mut actions);
        for action in actions {
            self.trace(|| format!("host {index}: {action:?}"));
            self.do_checkpoint_action(index, action);
        }
    }

    fn do_checkpoint_action(&mut self, index: usize, action: Action) {
        let other = self.hosts[1 - index].id;
        match action {
            Action::Begin { session } => {
                self.hosts[index].pair.session = Some(session);
                self.hosts[index].pair.taken.clear();
                self.say(1 - index, Message::Open(session));
            }
            Action::Capture { epoch } => self.begin_pause(index, epoch),
            Action::Brake => self.tell(index, Event::Braked),
            // Here frames leave in the moment in which they are let go.
            Action::LetOutUntil(_) => {}
            Action::Release(output) => {
                self.released(index);
                let pair = &mut self.hosts[index].pair;
                pair.output = output;
                if output == Output::Free {
                    pair.taken.clear();
                    pair.mirror = Mirror::Behind;
                }
            }
            Action::Propose(Proposal::StandbyHolds) => self.keep(index, keeper::Event::MemoryHeld { host: other }),
            Action::Propose(Proposal::StandbyLost) => self.keep(index, keeper::Event::StandbyLost { host: other }),
            Action::End => self.hosts[index].pair.session = None,
        }
    }

    /// The guest stands still from here on. With the first checkpoint, output is held and disks write ahead.
    fn begin_pause(&mut self, index: usize, epoch: Epoch) {
        let until = self.now_ms + self.rng.within(0..40);
        let now_ms = self.now_ms;
        let pair = &mut self.hosts[index].pair;
        pair.pausing = Some((epoch, now_ms, until));
        if epoch == Epoch::FIRST {
            pair.output = Output::Through(Epoch::NONE);
            pair.mirror = Mirror::Ahead;
        }
    }

    fn end_pause(&mut self, index: usize) {
        let Some((epoch, began, until)) = self.hosts[index].pair.pausing else { return };
        let Some(qemu) = self.hosts[index].qemu.filter(|_| until <= self.now_ms) else { return };
        let checkpoint = Checkpoint { memory: qemu.memory, disk: qemu.disk };
        let pair = &mut self.hosts[index].pair;
        pair.pausing = None;
        pair.taken.insert(epoch, checkpoint);
        if let Some(session) = pair.session {
            self.say(1 - index, Message::Checkpoint { session, epoch, checkpoint });
        }
        let pause = Duration::from_millis(until - began);
        self.tell(index, Event::Captured { epoch, pause });
    }

    /// The guest goes on from the memory that this host held; `None`: it holds none.
    pub(super) fn go_on(&mut self, index: usize) -> Option<Qemu> {
        let image = self.hosts[index].pair.image.take()?;
        let Checkpoint { memory, disk } = image.newest?;
        let now_ms = self.now_ms;
        let memory = self.memories.fork(Some(memory), now_ms);
        self.hosts[index].disk = disk;
        Some(Qemu { since: self.hosts[index].started, memory, disk, wrote: false, paused: false })
    }
}
