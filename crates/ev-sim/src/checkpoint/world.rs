//! One schedule: the active host, its guest, the standby, the links between them, and the pool's record.

use std::collections::VecDeque;
use std::time::Duration;

use ev_core::checkpoint::{
    Action, Epoch, Event, Output, PaceLimits, Phase, Primary, Proposal, Session, StandbyAction, StandbyEvent, Standing,
};
use ev_core::time::Instant;

use super::peer::{Answers, DISKS, DiskPart, Peer};
use crate::rng::Rng;

const STEP_MS: u64 = 5;
const FAULTS_MS: u64 = 8_000;
const CALM_MS: u64 = 6_000;
const CLOCK_LANE: usize = 3;
/// The active side tells its clock so often.
const CLOCK_MS: u64 = 100;
/// After a takeover nothing comes from the old side any more, but for what was confirmed just before.
const LATE_MS: u64 = 600;
/// The mirror needs so long to bring the standby's replicas in step.
const RESYNC_MS: u64 = 300;
/// The whole memory is sent within this time.
const FILL_MS: u64 = 500;

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    pub takeovers: u64,
    pub protections: u64,
    pub simplex: u64,
    pub frozen_takeovers: u64,
}

impl Summary {
    pub fn add(&mut self, other: Self) {
        self.takeovers += other.takeovers;
        self.protections += other.protections;
        self.simplex += other.simplex;
        self.frozen_takeovers += other.frozen_takeovers;
    }
}

/// The record, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    generation: u64,
    names_standby: bool,
    replicas_good: bool,
    /// The standby was made active.
    moved: bool,
}

impl Record {
    fn standing(self) -> Standing {
        match self {
            Self { moved: true, .. } => Standing::Everything,
            Self { names_standby: true, .. } => Standing::MayGoOn,
            Self { replicas_good: true, .. } => Standing::MayStart,
            Self { .. } => Standing::Nothing,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Message {
    Begin(Session),
    Clock(Session, Instant),
    Memory { session: Session, epoch: Epoch, value: u64 },
    Disk(Session, DiskPart),
}

/// A frame that waits for its epoch, or has none.
#[derive(Debug, Clone, Copy)]
struct Frame {
    epoch: Epoch,
    value: u64,
    /// What of it had been flushed.
    flushed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Up,
    Frozen,
    Dead,
}

struct World {
    rng: Rng,
    now_ms: u64,
    /// Longest that a message is on its way.
    delay_ms: u64,
    life: Life,
    engine: Primary,
    session: Option<Session>,
    sessions: u64,
    output: Output,
    /// The guest: its counter, which disks are written from, and the newest flush.
    counter: u64,
    flushed: u64,
    flushed_in_epoch: bool,
    held: VecDeque<Frame>,
    /// The whole memory is being sent until then.
    filled_at: Option<(Session, u64)>,
    /// A pause that is under way.
    capture: Option<(Epoch, u64)>,
    peer: Peer,
    peer_up: bool,
    link_up: bool,
    /// Memory, disks, and a lane of its own for the clock, which must not queue behind megabytes.
    to_peer: [VecDeque<(u64, Message)>; 4],
    to_primary: VecDeque<(u64, StandbyAction)>,
    record: Record,
    proposals: VecDeque<(u64, u64, Proposal)>,
    /// The newest record that each side knows, and when a newer one gets there.
    known: Record,
    known_at_ms: u64,
    takeover_at_ms: Option<u64>,
    resync_since_ms: Option<u64>,
    /// The standby's process has lived since the record names it.
    lived_since_named: bool,
    went_on_at_ms: Option<u64>,
    /// The largest number that the outside has seen, and the largest flush that it knows of.
    seen: u64,
    seen_flushed: u64,
    summary: Summary,
}

/// Runs one seed.
///
/// # Panics
/// When something does not hold: the message says what, and at which time.
#[must_use]
pub fn run(seed: u64) -> Summary {
    let mut world = World::new(seed);
    let faulty = world.rng.within(0..10);
    while world.now_ms < FAULTS_MS + CALM_MS {
        if world.now_ms < FAULTS_MS {
            world.faults(faulty);
        } else {
            world.heal();
        }
        world.step();
        world.now_ms += STEP_MS;
    }
    world.check_end();
    world.summary
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let delay_ms = if rng.per_mille(700) { 20 } else { 300 };
        Self {
            rng,
            now_ms: 0,
            delay_ms,
            life: Life::Up,
            engine: Primary::new(PaceLimits::default(), Instant::default()),
            session: None,
            sessions: 0,
            output: Output::Free,
            counter: 0,
            flushed: 0,
            flushed_in_epoch: false,
            held: VecDeque::new(),
            filled_at: None,
            capture: None,
            peer: Peer::default(),
            peer_up: true,
            link_up: false,
            to_peer: Default::default(),
            to_primary: VecDeque::new(),
            record: Record { generation: 1, names_standby: false, replicas_good: true, moved: false },
            proposals: VecDeque::new(),
            known: Record { generation: 1, names_standby: false, replicas_good: true, moved: false },
            known_at_ms: 0,
            takeover_at_ms: None,
            resync_since_ms: None,
            lived_since_named: false,
            went_on_at_ms: None,
            seen: 0,
            seen_flushed: 0,
            summary: Summary::default(),
        }
    }

    fn clock(&self) -> Instant {
        Instant::default().after(Duration::from_millis(self.now_ms + 1_000))
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if std::env::var_os("EVENKEEL_TRACE").is_some() {
            eprintln!("{:6} ms  {}", self.now_ms, what());
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("at {} ms: {what}; {:?}, {:?}", self.now_ms, self.record, self.engine);
    }

    fn faults(&mut self, faulty: u64) {
        if self.link_up && self.rng.per_mille(faulty) {
            self.cut();
        } else if !self.link_up && self.rng.per_mille(30) {
            self.connect();
        }
        if self.peer_up && self.rng.per_mille(faulty / 2) {
            let power = self.rng.per_mille(500);
            self.trace(|| format!("the standby dies (power: {power})"));
            self.peer_up = false;
            self.lived_since_named = false;
            self.peer.die(power);
            self.cut();
        } else if !self.peer_up && self.rng.per_mille(10) {
            self.peer_up = true;
        }
        match self.life {
            Life::Up if self.rng.per_mille(faulty / 2) => {
                self.life = Life::Frozen;
                self.trace(|| "the active host stands still".to_owned());
            }
            Life::Frozen if self.rng.per_mille(10) => {
                self.life = Life::Up;
                self.trace(|| "the active host goes on".to_owned());
            }
            Life::Up if self.rng.per_mille(faulty / 4) => {
                self.life = Life::Dead;
                self.cut();
                self.trace(|| "the active host dies".to_owned());
            }
            Life::Up | Life::Frozen | Life::Dead => {}
        }
        // The master takes it for dead, rightly or not.
        let suspected = if self.life == Life::Up { 1 } else { 20 };
        if self.takeover_at_ms.is_none() && self.record.names_standby && self.rng.per_mille(suspected) {
            self.commit(|record| Record { names_standby: false, replicas_good: false, moved: true, ..record });
            self.takeover_at_ms = Some(self.now_ms + self.rng.within(1..200));
            self.summary.frozen_takeovers += u64::from(self.life == Life::Frozen);
        }
    }

    fn heal(&mut self) {
        self.peer_up = true;
        if self.life == Life::Frozen {
            self.life = Life::Up;
        }
        if !self.link_up && self.life == Life::Up {
            self.connect();
        }
    }

    /// What is on its way is lost from some point on.
    fn cut(&mut self) {
        self.link_up = false;
        for lane in &mut self.to_peer {
            let keep = usize::try_from(self.rng.within(0..4)).expect("few");
            lane.truncate(keep);
        }
        let keep = usize::try_from(self.rng.within(0..3)).expect("few");
        self.to_primary.truncate(keep);
        if self.life == Life::Up {
            self.tell(Event::LinkDown);
        }
    }

    fn connect(&mut self) {
        if self.peer_up && self.life == Life::Up {
            // A new connection: nothing of the old one comes any more.
            self.to_peer.iter_mut().for_each(VecDeque::clear);
            self.to_primary.clear();
            self.link_up = true;
            self.tell(Event::LinkUp);
        }
    }

    fn commit(&mut self, change: impl FnOnce(Record) -> Record) {
        self.record = Record { generation: self.record.generation + 1, ..change(self.record) };
        self.known_at_ms = self.now_ms + self.rng.within(1..150);
        let record = self.record;
        self.trace(|| format!("{record:?}"));
    }

    fn step(&mut self) {
        self.decide_proposals();
        self.deliver_to_peer();
        if self.peer_up {
            let pick = usize::try_from(self.rng.within(0..8)).expect("few");
            if self.rng.per_mille(600) {
                let answers = self.peer.work(pick);
                self.send_back(answers);
            }
            if self.takeover_at_ms.is_some_and(|at| at <= self.now_ms) && self.record.moved {
                let answers = self.peer.tell(StandbyEvent::TakeOver);
                self.send_back(answers);
                self.check_takeover();
            }
        }
        if self.life == Life::Up {
            self.run_guest();
            self.run_primary();
        }
    }

    fn decide_proposals(&mut self) {
        while let Some((at, seen, proposal)) = self.proposals.front().copied() {
            if at > self.now_ms {
                return;
            }
            self.proposals.pop_front();
            if seen != self.record.generation || self.record.moved {
                continue;
            }
            match proposal {
                Proposal::StandbyHolds if self.record.replicas_good => {
                    self.summary.protections += 1;
                    self.lived_since_named =
                        self.peer_up && self.session.is_some() && self.peer.session == self.session;
                    self.commit(|record| Record { names_standby: true, ..record });
                }
                Proposal::StandbyHolds => {}
                Proposal::StandbyLost => {
                    self.summary.simplex += 1;
                    self.commit(|record| Record { names_standby: false, replicas_good: false, ..record });
                }
            }
        }
    }

    fn deliver_to_peer(&mut self) {
        for lane in 0..self.to_peer.len() {
            while let Some((at, message)) = self.to_peer[lane].front().copied() {
                if at > self.now_ms {
                    break;
                }
                self.to_peer[lane].pop_front();
                if !self.peer_up {
                    continue;
                }
                let answers = match message {
                    Message::Begin(session) => self.peer.begin(session),
                    Message::Clock(session, reading) => self.peer.tell(StandbyEvent::Clock { session, reading }),
                    Message::Memory { session, epoch, value } => self.peer.memory(session, epoch, value),
                    Message::Disk(session, part) => self.peer.disk(session, part),
                };
                self.send_back(answers);
            }
        }
    }

    fn send_back(&mut self, answers: Answers) {
        let earliest = self.to_primary.back().map_or(0, |(at, _)| *at);
        for answer in answers {
            let at = (self.now_ms + self.rng.within(1..self.delay_ms)).max(earliest);
            if self.link_up {
                self.to_primary.push_back((at, answer));
            }
        }
    }

    fn run_guest(&mut self) {
        if self.capture.is_some() {
            return;
        }
        self.counter += 1;
        if self.rng.per_mille(60) {
            self.flushed = self.counter;
            self.flushed_in_epoch = true;
        }
        if self.rng.per_mille(100) {
            let frame = Frame { epoch: self.engine.running(), value: self.counter, flushed: self.flushed };
            match self.output {
                Output::Free => self.see(frame),
                Output::Through(_) => {
                    self.held.push_back(frame);
                    self.tell(Event::OutputWaits);
                }
            }
        }
    }

    fn run_primary(&mut self) {
        if self.known != self.record && self.known_at_ms <= self.now_ms {
            self.known = self.record;
        }
        // Who stood still may find either first.
        if self.rng.per_mille(500) {
            self.receive_answers();
        }
        if self.engine.waits_for_rest(self.clock()) && self.rng.per_mille(300) {
            self.tell(Event::Rested);
        }
        self.tell(Event::Record(self.known.standing()));
        self.receive_answers();
        if let Some((epoch, until)) = self.capture
            && until <= self.now_ms
        {
            self.end_capture(epoch);
        }
        if let Some((session, at)) = self.filled_at
            && at <= self.now_ms
        {
            self.tell(Event::Filled { session });
        }
        self.resync();
        let ready = self.known.replicas_good && !self.known.moved && self.link_up;
        if ready && self.engine.phase() == Phase::Off {
            self.sessions += 1;
        }
        let session = ready.then_some(Session(self.sessions));
        self.tell(Event::Wanted { session });
        if self.now_ms.is_multiple_of(CLOCK_MS)
            && let Some(session) = self.session
        {
            let reading = self.clock();
            self.send(CLOCK_LANE, Message::Clock(session, reading));
        }
        self.tell(Event::Tick);
    }

    fn receive_answers(&mut self) {
        while let Some((at, answer)) = self.to_primary.front().copied() {
            if at > self.now_ms {
                break;
            }
            self.to_primary.pop_front();
            match answer {
                StandbyAction::Confirm { session, epoch, echo } => {
                    if epoch == Epoch::NONE && self.session == Some(session) && self.filled_at.is_none() {
                        self.filled_at = Some((session, self.now_ms + self.rng.within(1..FILL_MS)));
                    }
                    self.tell(Event::Confirmed { session, epoch, echo });
                }
                StandbyAction::Refuse { session } => self.tell(Event::Refused { session }),
                other => self.fail(&format!("{other:?} is not for the other side")),
            }
        }
    }

    /// At Level 2 the mirror brings the standby's replicas in step, and proposes so.
    fn resync(&mut self) {
        let apart = self.engine.phase() == Phase::Off && !self.known.replicas_good && !self.record.moved;
        if !apart || !self.link_up || !self.peer_up {
            self.resync_since_ms = None;
            return;
        }
        let since = *self.resync_since_ms.get_or_insert(self.now_ms);
        if self.now_ms - since >= RESYNC_MS && self.known == self.record {
            self.peer.resync([self.counter; 2]);
            self.commit(|record| Record { replicas_good: true, ..record });
            self.resync_since_ms = None;
        }
    }

    fn end_capture(&mut self, epoch: Epoch) {
        self.capture = None;
        let pause = Duration::from_millis(self.rng.within(1..20));
        // All of it is staged in the pause; it goes out on lanes of their own.
        if let Some(session) = self.session {
            let flushed = std::mem::take(&mut self.flushed_in_epoch);
            if self.output == Output::Free {
                self.output = Output::Through(Epoch::NONE);
            }
            self.send(0, Message::Memory { session, epoch, value: self.counter });
            for index in 0..DISKS.len() {
                let part = DiskPart { index, epoch, value: self.counter, flushed };
                self.send(1 + index, Message::Disk(session, part));
            }
        }
        self.tell(Event::Captured { epoch, pause });
    }

    fn send(&mut self, lane: usize, message: Message) {
        if self.link_up {
            let longest = if lane == CLOCK_LANE { 20 + self.delay_ms / 4 } else { 3 * self.delay_ms };
            let earliest = self.to_peer[lane].back().map_or(0, |(at, _)| *at);
            let at = (self.now_ms + self.rng.within(1..longest)).max(earliest);
            self.to_peer[lane].push_back((at, message));
        }
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        let now = self.clock();
        self.engine.step(now, event, &mut out);
        for action in out {
            self.trace(|| format!("{action:?}"));
            match action {
                Action::Begin { session } => {
                    self.session = Some(session);
                    self.filled_at = None;
                    self.flushed_in_epoch = true;
                    self.send(CLOCK_LANE, Message::Begin(session));
                }
                Action::Capture { epoch } => self.capture = Some((epoch, self.now_ms + self.rng.within(1..20))),
                Action::Brake => self.tell(Event::Braked),
                // Here frames leave in the moment in which they are let go.
                Action::LetOutUntil(_) => {}
                Action::Release(output) => self.release(output),
                Action::Propose(proposal) => {
                    let at = self.now_ms + self.rng.within(1..300);
                    self.proposals.push_back((at, self.known.generation, proposal));
                }
                Action::End => self.session = None,
            }
        }
    }

    fn release(&mut self, output: Output) {
        self.output = output;
        if output == Output::Free && (self.record.names_standby || self.record.moved && self.known.moved) {
            self.fail("output is free although the standby can go on");
        }
        while let Some(frame) = self.held.front().copied() {
            let free = match output {
                Output::Free => true,
                Output::Through(epoch) => frame.epoch <= epoch,
            };
            if !free {
                return;
            }
            self.held.pop_front();
            self.see(frame);
        }
    }

    fn see(&mut self, frame: Frame) {
        self.seen = self.seen.max(frame.value);
        self.seen_flushed = self.seen_flushed.max(frame.flushed);
        if let Some(memory) = self.peer.went_on
            && frame.value > memory
        {
            self.fail("the old side lets something be seen that the new side has never done");
        }
        if self.went_on_at_ms.is_some_and(|at| self.now_ms - at > LATE_MS) {
            self.fail("the old side lets a frame out long after the guest went on elsewhere");
        }
        let durable = self.peer.replicas.iter().map(|replica| replica.durable).min().unwrap_or_default();
        let held_back = matches!(self.output, Output::Through(_));
        if held_back
            && self.record.names_standby
            && self.peer_up
            && self.peer.session == self.session
            && durable < frame.flushed
        {
            self.fail("a flush was released that is not durable on the standby");
        }
    }

    fn check_takeover(&mut self) {
        let Some(memory) = self.peer.went_on else {
            if self.peer.cannot_go_on && self.lived_since_named {
                self.fail("the record names a standby that has nothing to go on from");
            }
            if self.peer.cannot_go_on {
                self.takeover_at_ms = None;
            }
            return;
        };
        self.takeover_at_ms = None;
        self.went_on_at_ms = Some(self.now_ms);
        self.summary.takeovers += 1;
        if memory < self.seen {
            self.fail(&format!("{} was seen, and the guest goes on from {memory}", self.seen));
        }
        if self.peer.replicas.iter().any(|replica| replica.value != memory) {
            self.fail(&format!("disks {:?} with the memory of {memory}", self.peer.replicas));
        }
    }

    fn check_end(&self) {
        if self.record.moved || self.life == Life::Dead {
            return;
        }
        if self.engine.phase() != Phase::Protected {
            self.fail("long after the last fault the pair is not protected");
        }
        if self.held.len() > 150 {
            self.fail("long after the last fault output does not flow");
        }
    }
}
