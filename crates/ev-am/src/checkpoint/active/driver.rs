//! The task: tells the engine what happens, and does what it wants.

mod streams;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ev_checkpoint::{Cut, LaneMessage, MemoryStream, ShipNotice, Shipper};
use ev_core::checkpoint::{Action, Epoch, Event, Output, PaceLimits, Phase, Primary, Proposal, Session};
use ev_core::report::{Level3Report, Level3State};
use ev_failpoint::{Step, reach};
use ev_mirror::gate::{Gate, boot_time};
use ev_vm::checkpoint::{Capture, EpochBuffer};
use ev_vm::ram::PassReport;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::work::{self, Captured, Done, FILL_PASSES_MAX, Inner, PASS_PAGES_MIN, Pending, Started, Work};
use super::{ActiveNotice, ActiveSpec, Order, Origin, Wish};
use crate::checkpoint::lane::{Lane, LaneEvent};
use crate::checkpoint::stats::{Board, Stats};
use crate::checkpoint::turns::Turn;
use crate::checkpoint::{QUEUE_MAX, all};
use crate::links::Channel;

/// How often the engine is told that time passed: while output waits, while a session is on, and otherwise.
const TICK_WAITING: Duration = Duration::from_millis(1);
const TICK_ON: Duration = Duration::from_millis(25);
const TICK_OFF: Duration = Duration::from_millis(250);
/// How often the standby is told the clock.
const CLOCK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a session that ended, doubled each time up to the last; one that lasted for long counts as a success.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(30);
const LASTED: Duration = Duration::from_secs(10);

pub struct Driver {
    spec: ActiveSpec,
    engine: Primary,
    /// Events that came up while the engine's last wishes were carried out.
    events: VecDeque<Event>,
    notices: mpsc::Sender<ActiveNotice>,
    report: Board,
    inner: mpsc::Sender<Inner>,
    done: mpsc::Receiver<Inner>,
    ship: mpsc::Sender<ShipNotice>,
    shipped: mpsc::Receiver<ShipNotice>,
    waits: Arc<Notify>,
    output_waits: bool,
    /// Open while the standby can't have taken over.
    heard: Arc<Gate>,
    wish: Wish,
    lane: Option<Lane>,
    lanes: u64,
    memory: Option<(MemoryStream, Cut)>,
    /// Both streams are there, as the engine knows.
    linked: bool,
    work: Option<Work>,
    begun_at: Instant,
    retry_at: Instant,
    retry_pause: Duration,
    clock_at: Instant,
    asked_at: Option<Instant>,
    stats: Stats,
    turn: Turn,
}

impl Driver {
    pub fn new(spec: ActiveSpec, notices: mpsc::Sender<ActiveNotice>, report: Arc<Mutex<Level3Report>>) -> Self {
        let (inner, done) = mpsc::channel(QUEUE_MAX);
        let (ship, shipped) = mpsc::channel(QUEUE_MAX);
        let (now, limits) = (boot_time(), PaceLimits::default());
        let engine = match spec.origin {
            Origin::Begun => Primary::new(limits, now),
            Origin::TakenUp => Primary::taken_up(limits, now),
        };
        let waits = Arc::new(Notify::new());
        let notify = Arc::clone(&waits);
        spec.hold.on_waiting(move |_| notify.notify_one());
        let heard = Arc::new(Gate::new());
        let gate = Arc::clone(&heard);
        spec.hold.leave_while(move || gate.is_open());
        let now = Instant::now();
        let stats = Stats::new(spec.blackout);
        let turn = Turn::new(spec.limits.who.clone());
        Self {
            spec,
            engine,
            events: VecDeque::new(),
            notices,
            report: Board::new(report),
            inner,
            done,
            ship,
            shipped,
            waits,
            output_waits: false,
            heard,
            wish: Wish::No("it is being prepared".to_owned()),
            lane: None,
            lanes: 0,
            memory: None,
            linked: false,
            work: None,
            begun_at: now,
            retry_at: now,
            retry_pause: RETRY_FIRST,
            clock_at: now,
            asked_at: None,
            stats,
            turn,
        }
    }

    /// Runs until the AM lets go of it.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let tick = self.tick_time();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                Some(inner) = self.done.recv() => match inner {
                    Inner::Lane(event) => self.on_lane(event),
                    Inner::Done(session, done) => self.on_done(session, done),
                },
                Some(notice) = self.shipped.recv() => self.on_ship(notice),
                () = self.waits.notified() => {
                    self.output_waits = true;
                    self.tell(Event::OutputWaits);
                }
                () = sleep(tick) => {}
            }
            self.tick();
        }
    }

    fn tick_time(&self) -> Duration {
        match self.engine.phase() {
            Phase::Joining | Phase::Protected if self.output_waits => TICK_WAITING,
            Phase::Filling | Phase::Joining | Phase::Protected | Phase::Parting => TICK_ON,
            Phase::Off if self.wish == Wish::Yes => TICK_ON,
            Phase::Off => TICK_OFF,
        }
    }

    fn tick(&mut self) {
        self.ask_for_streams();
        let session = self.may_synchronise().then(|| Session(uuid::Uuid::new_v4().as_u64_pair().0));
        self.tell(Event::Wanted { session });
        if let (Some(work), Some(lane)) = (&self.work, &self.lane)
            && self.clock_at.elapsed() >= CLOCK_INTERVAL
        {
            self.clock_at = Instant::now();
            lane.send(LaneMessage::Clock { session: work.session, reading: boot_time() });
            if let Some(shipper) = &work.shipper {
                self.stats.sent(shipper.counters().pages(), shipper.counters().bytes());
            }
        }
        let rested = self.engine.waits_for_rest(boot_time()) && self.work.as_mut().is_some_and(Work::processors_rest);
        self.tell(if rested { Event::Rested } else { Event::Tick });
        let state = self.state();
        self.report.renew(state, &self.stats, &self.spec.hold);
    }

    /// Whether a session may begin or go on now; to begin one takes a turn, until the standby holds the memory.
    fn may_synchronise(&mut self) -> bool {
        let phase = self.engine.phase();
        let is_ready = phase != Phase::Off || self.linked && Instant::now() >= self.retry_at;
        if self.wish != Wish::Yes || !is_ready || matches!(phase, Phase::Protected | Phase::Parting) {
            self.turn.give_up();
        }
        self.wish == Wish::Yes
            && match phase {
                Phase::Off => is_ready && self.turn.wait(&self.spec.limits.turns),
                Phase::Filling | Phase::Joining | Phase::Protected => true,
                Phase::Parting => false,
            }
    }

    fn state(&self) -> Level3State {
        match (self.engine.phase(), &self.wish) {
            (Phase::Off, Wish::No(why)) => Level3State::Simplex(why.clone()),
            (Phase::Off, Wish::Yes) if !self.linked => {
                Level3State::Simplex("the partner's AM is not linked for checkpoints".to_owned())
            }
            (Phase::Off, Wish::Yes) if let Some(position) = self.turn.position() => Level3State::Queued { position },
            (Phase::Off, Wish::Yes) => {
                let last = self.stats.last_end.as_deref().unwrap_or("none was begun yet");
                Level3State::Simplex(format!("the next attempt comes soon; the last one: {last}"))
            }
            (Phase::Filling, _) => Level3State::Synchronising,
            (Phase::Joining, _) => Level3State::Joining,
            (Phase::Protected, _) => Level3State::Protected,
            (Phase::Parting, _) => Level3State::Parting,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Wish(wish) => self.wish = wish,
            Order::Standing(standing) => self.tell(Event::Record(standing)),
            Order::Disks(disks) => self.spec.disks = disks,
            Order::Limits(limits) => self.spec.limits = limits,
            Order::Stream(Channel::Lane, stream) => self.take_lane(*stream),
            Order::Stream(Channel::Memory, stream) => self.take_memory(*stream),
            Order::Stream(Channel::Disk(_), _) => {}
            Order::DiskLinkDown => {
                // A session that writes ahead does not outlive a disk's link: what was on it may be lost.
                if self.work.is_some() {
                    self.end_because("a disk's link was lost");
                    self.tell(Event::LinkDown);
                    self.linked = false;
                    self.link();
                }
            }
        }
    }

    fn end_because(&mut self, why: &str) {
        if let Some(work) = &mut self.work {
            work.why.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Never waits: what is lost is repeated by the engine or by the next tick.
    fn notify(&self, notice: ActiveNotice) {
        if self.notices.try_send(notice).is_err() {
            tracing::warn!(?notice, "the AM takes no notice of the checkpoints");
        }
    }

    fn on_lane(&mut self, event: LaneEvent) {
        let number = match &event {
            LaneEvent::Message(number, _) | LaneEvent::Down(number) => *number,
        };
        if self.lane.as_ref().is_none_or(|lane| lane.number() != number) {
            return;
        }
        match event {
            LaneEvent::Down(_) => {
                self.lane = None;
                self.unlink("the link was lost");
            }
            LaneEvent::Message(_, LaneMessage::Confirm { session, epoch, echo }) => {
                if epoch == Epoch::NONE {
                    self.opened(session);
                }
                if epoch > Epoch::FIRST {
                    reach(Step::ActiveConfirmed);
                }
                self.tell(Event::Confirmed { session, epoch, echo });
            }
            LaneEvent::Message(_, LaneMessage::Refuse { session, why }) => {
                if self.work.as_ref().is_some_and(|work| work.session == session) {
                    tracing::warn!(%session, why, "the standby can't go on with the session");
                    self.end_because(&why);
                }
                self.tell(Event::Refused { session });
            }
            LaneEvent::Message(_, message) => {
                tracing::warn!(?message, "the standby said what only an active side says")
            }
        }
    }

    /// The standby's memory is there and empty: all of ours goes out.
    fn opened(&mut self, session: Session) {
        let Some(work) = self.work.as_mut().filter(|work| work.session == session && !work.opened) else { return };
        let (Some(capture), Some(stream)) = (&work.capture, self.memory.take()) else { return };
        work.opened = true;
        let memory = Arc::clone(capture.tracker().memory());
        let shipper = Shipper::start(session, memory.layout().pages(), stream, self.ship.clone());
        let rate = self.spec.limits.bytes_per_s;
        let filling = shipper.map_err(|error| error.to_string()).and_then(|shipper| {
            let filling = shipper.fill(memory, rate).map_err(|error| error.to_string());
            work.shipper = Some(shipper);
            filling
        });
        if let Err(why) = filling {
            self.failed(&why);
        }
    }

    /// The session can't go on here.
    fn failed(&mut self, why: &str) {
        tracing::warn!(why, "checkpoints can't go on");
        self.end_because(why);
        self.not_captured();
    }

    /// What was to be captured never will be: the engine waits for each one's end, whatever became of the session.
    fn not_captured(&mut self) {
        let held = self.spec.hold.is_held();
        self.tell(Event::CaptureFailed { held });
    }

    fn on_ship(&mut self, notice: ShipNotice) {
        let of = match &notice {
            ShipNotice::Filled { session } | ShipNotice::Sent { session, .. } | ShipNotice::Failed { session, .. } => {
                *session
            }
        };
        let Some(work) = self.work.as_mut().filter(|work| work.session == of) else { return };
        match notice {
            ShipNotice::Filled { .. } => work.pending = Some(Pending::Pass),
            ShipNotice::Sent { buffer, .. } => {
                tracing::trace!("sent");
                work.free.push(*buffer);
            }
            ShipNotice::Failed { why, .. } => {
                self.unlink(&format!("the memory stream broke: {why}"));
                return;
            }
        }
        self.work_on();
    }

    /// Begins what waits, if it can be.
    fn work_on(&mut self) {
        let Some(work) = &mut self.work else { return };
        let Some((pending, capture, buffer)) = work.next() else {
            if matches!(work.pending, Some(Pending::Checkpoint(_))) {
                reach(Step::ActiveCaptureWaits);
            }
            return;
        };
        let (session, inner) = (work.session, self.inner.clone());
        match pending {
            Pending::Pass => {
                tokio::spawn(async move {
                    let done = work::pass(capture, buffer).await;
                    let _ = inner.send(Inner::Done(session, done)).await;
                });
            }
            Pending::Checkpoint(epoch) => {
                let (passes, at_stop) = (work.passes_ahead(), work.at_stop(&self.spec.hold, epoch));
                let blackout = self.spec.limits.blackout;
                let guest = self.spec.guest.clone();
                tokio::spawn(async move {
                    let done = work::checkpoint(capture, buffer, epoch, passes, blackout, at_stop).await;
                    if matches!(done, Done::Captured(_, Err(_))) && work::has_died(&guest).await {
                        tracing::warn!(%epoch, "QEMU died; the standby has what was confirmed");
                        return;
                    }
                    let _ = inner.send(Inner::Done(session, done)).await;
                });
            }
        }
    }

    /// Slows the guest, if nothing else is done with it now.
    fn brake(&mut self) {
        let Some(work) = self.work.as_mut().filter(|work| work.pending.is_none()) else {
            return self.tell(Event::Braked);
        };
        let Some(capture) = work.capture.take() else { return self.tell(Event::Braked) };
        let (session, inner, blackout) = (work.session, self.inner.clone(), self.spec.limits.blackout);
        tokio::spawn(async move {
            let done = work::brake(capture, blackout).await;
            let _ = inner.send(Inner::Done(session, done)).await;
        });
    }

    fn on_done(&mut self, session: Session, done: Done) {
        let current = self.work.as_ref().is_some_and(|work| work.session == session);
        match done {
            Done::Started(started) if current => self.started(started),
            Done::Passed(passed) if current => self.passed(passed),
            Done::Captured(epoch, Ok(Captured { capture, checkpoint, stood_still })) => {
                let pause = checkpoint.times.running;
                tracing::trace!(%epoch, pages = checkpoint.epoch.pages.copies(), times = ?checkpoint.times, "captured");
                self.stats.paused(epoch, pause);
                self.stats.stood_still(stood_still);
                if let Some(work) = self.work.as_mut().filter(|work| work.session == session) {
                    work.capture = Some(capture);
                    work.last_pages = checkpoint.epoch.pages.copies();
                    let sent = work.shipper.as_ref().map(|shipper| shipper.epoch(epoch, Box::new(checkpoint.epoch)));
                    if !matches!(sent, Some(Ok(()))) {
                        self.unlink("what was captured could not be sent");
                    }
                }
                self.tell(Event::Captured { epoch, pause });
                if self.spec.hold.has_waited(self.engine.running()) {
                    // It began to wait before the engine knew of this epoch.
                    self.output_waits = true;
                    self.tell(Event::OutputWaits);
                }
            }
            Done::Braked(capture, braked) => self.braked(session, capture, braked),
            // Also of a session that is over: the engine waits for the end of the pause.
            Done::Captured(_, Err(why)) => self.failed(&why),
            Done::Started(_) | Done::Passed(_) => {}
        }
    }

    /// A guest that could not be slowed runs on: the next checkpoint finds out whether anything is wrong with it.
    fn braked(&mut self, session: Session, capture: Capture, braked: Result<Duration, String>) {
        if let Some(work) = self.work.as_mut().filter(|work| work.session == session) {
            work.capture = Some(capture);
        }
        match braked {
            Ok(time) => self.stats.stood_still(time),
            Err(why) => tracing::warn!(why, "the guest was not slowed"),
        }
        self.tell(Event::Braked);
        self.work_on();
    }

    fn started(&mut self, started: Result<Started, String>) {
        let (Some(work), Some(lane)) = (&mut self.work, &self.lane) else { return };
        match started {
            Ok(Started { capture, processors, buffers, version }) => {
                work.capture = Some(capture);
                work.processors = Some(processors);
                work.free = buffers;
                let Some(shape) = work.shape() else { return };
                lane.send(LaneMessage::Begin {
                    session: work.session,
                    disks: work.disks.iter().map(|(disk, _)| *disk).collect(),
                    shape,
                    qemu: version,
                    machine: self.spec.machine.clone(),
                });
            }
            Err(why) => self.failed(&why),
        }
    }

    fn passed(&mut self, passed: Result<(Capture, EpochBuffer, PassReport), String>) {
        let Some(work) = &mut self.work else { return };
        let (capture, buffer, report) = match passed {
            Ok(passed) => passed,
            Err(why) => return self.failed(&why),
        };
        work.capture = Some(capture);
        work.passes += 1;
        work.last_pages = usize::try_from(report.pages).unwrap_or(usize::MAX);
        let session = work.session;
        let sent = work.shipper.as_ref().map(|shipper| shipper.part(Box::new(buffer)));
        if !matches!(sent, Some(Ok(()))) {
            return self.unlink("what was captured could not be sent");
        }
        if report.pages > PASS_PAGES_MIN && work.passes < FILL_PASSES_MAX {
            work.pending = Some(Pending::Pass);
            self.work_on();
        } else {
            self.tell(Event::Filled { session });
        }
    }

    /// Tells the engine, and carries out what it wants, until there is nothing more.
    fn tell(&mut self, event: Event) {
        self.events.push_back(event);
        if self.events.len() > 1 {
            // It is being worked on further up.
            return;
        }
        while let Some(event) = self.events.front().copied() {
            let (before, mut actions) = (self.engine.phase(), Vec::new());
            self.engine.step(boot_time(), event, &mut actions);
            if self.engine.phase() != before {
                tracing::info!(from = ?before, to = ?self.engine.phase(), ?event, "Level 3");
            }
            for action in actions {
                self.perform(action);
            }
            self.events.pop_front();
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Begin { session } => self.begin(session),
            Action::Capture { epoch } => {
                self.output_waits = false;
                tracing::trace!(%epoch, "capture");
                match &mut self.work {
                    Some(work) => work.pending = Some(Pending::Checkpoint(epoch)),
                    None => return self.not_captured(),
                }
                self.work_on();
            }
            Action::Brake => self.brake(),
            Action::Release(Output::Through(Epoch::NONE)) => self.spec.hold.hold_from(Epoch::FIRST),
            Action::Release(Output::Through(epoch)) => {
                self.spec.hold.release_through(epoch);
                reach(Step::ActiveReleased);
                self.stats.confirmed(epoch);
            }
            Action::LetOutUntil(deadline) => {
                self.heard.open_until(deadline);
                self.spec.hold.look_again();
            }
            Action::Release(Output::Free) => {
                for disk in self.spec.disks.iter().filter_map(|(_, disk)| disk.upgrade()) {
                    if let Err(error) = disk.end_ahead() {
                        tracing::error!(%error, "a disk takes no orders");
                    }
                }
                self.spec.hold.free();
            }
            Action::Propose(proposal) => {
                if proposal == Proposal::StandbyHolds {
                    reach(Step::ActiveJoining);
                }
                self.notify(ActiveNotice::Propose(proposal));
            }
            Action::End => self.end(),
        }
    }

    fn begin(&mut self, session: Session) {
        tracing::info!(%session, "synchronising the guest's memory with the standby");
        self.stats.begin();
        self.begun_at = Instant::now();
        let Some(disks) = all(&self.spec.disks) else {
            self.work = Some(Work::new(session, Vec::new()));
            return self.failed("a disk is not in service");
        };
        self.work = Some(Work::new(session, disks));
        let (guest, inner) = (self.spec.guest.clone(), self.inner.clone());
        tokio::spawn(async move {
            let done = work::start(guest).await;
            let _ = inner.send(Inner::Done(session, done)).await;
        });
    }

    fn end(&mut self) {
        let Some(work) = self.work.take() else { return };
        let why = work.why.clone().unwrap_or_else(|| match &self.wish {
            Wish::No(why) => why.clone(),
            Wish::Yes => "the standby was silent, or the pool counts on it no more".to_owned(),
        });
        self.stats.last_end = Some(why.clone());
        tracing::warn!(session = %work.session, why, "the session with the standby is over");
        if let Some(lane) = &self.lane {
            lane.send(LaneMessage::End { session: work.session });
        }
        if let Some(Pending::Checkpoint(_)) = work.pending {
            self.not_captured();
        }
        if self.begun_at.elapsed() >= LASTED {
            self.retry_pause = RETRY_FIRST;
        }
        self.retry_at = Instant::now() + self.retry_pause;
        self.retry_pause = (self.retry_pause * 2).min(RETRY_LAST);
        if work.shipper.is_some() {
            // What is on it belongs to this session.
            drop(work);
            self.linked = false;
            self.memory = None;
            self.asked_at = None;
            self.tell(Event::LinkDown);
        }
    }
}
