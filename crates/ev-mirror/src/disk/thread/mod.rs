//! The thread of one disk: it owns the NBD clients, the replica, its metadata and the partner's link, all around one io_uring.
//!
//! Each round: carry out what the engine asked for, hand all that is ready to the kernel in one system call, wait for
//! something to complete, tell the engine. No other thread touches any of it; the AM's handle sends commands.
//!
//! A panic here ends the process: the guest's I/O then waits for the next AM, which begins from the files.

mod clients;
mod comparison;
mod engine;
mod epochs;
mod holes;
mod inline;
mod local;
mod lookout;
mod partner;
mod ring;
mod slots;
mod store;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ev_core::checkpoint::{Epoch, Session};
use ev_core::ids::Generation;
use ev_core::mirror::{
    Action, Coordinator, Input, OpId, Record, Replica, ReplicaInput, Required, Settings, Trouble, Wish,
};
use ev_core::report::{Comparison, DiskReport};

use self::clients::{Client, Reply, Verdict};
use self::engine::{Engine, Told};
use self::epochs::Marking;
use self::inline::Inline;
use self::local::Local;
use self::lookout::Lookout;
use self::partner::Link;
use self::ring::{Completion, Ring, Tag};
use self::slots::Slots;
use self::store::Store;
use super::epochs::MarkError;
use super::link::LinkStream;
use super::spec::{DiskEvent, DiskRole, DiskSpec, OpenError};
use crate::buffer::{BufferPool, IoBuffer};
use crate::gate::{Gate, boot_time};

/// How often the engine is told that time has passed and the report is brought up to date.
const TICK: Duration = Duration::from_millis(50);
/// While something waits for the gate, or for the AM to take events, it is looked at this often.
const GATE_LOOK: Duration = Duration::from_millis(5);

/// What the handle asks for.
pub enum Command {
    Role {
        generation: Generation,
        role: DiskRole,
    },
    Link(LinkStream),
    Verify {
        repair: bool,
        bytes_per_s: Option<u64>,
    },
    CopyRate(Option<u64>),
    /// Flush both replicas and clear the write-intent log.
    Flush(SyncSender<bool>),
    /// End without a flush.
    End,
    MarkEpoch {
        session: Session,
        epoch: Epoch,
        marked: SyncSender<Result<(), MarkError>>,
    },
    EndAhead,
    WasAhead,
    ApplyEpoch {
        session: Session,
        epoch: Epoch,
    },
    DiscardEpochs,
}

/// An operation of a guest, of the engine, or of the partner.
struct Op {
    data: Option<IoBuffer>,
    origin: Origin,
    /// The kernel works on its data.
    busy: bool,
    /// Nobody waits for it any more; it goes when it is not busy.
    over: bool,
}

enum Origin {
    Guest { client: u32, reply: Reply, bytes: u32 },
    Control(SyncSender<bool>),
    Engine,
}

/// The thread's state.
pub struct Thread {
    spec: DiskSpec,
    gate: Arc<Gate>,
    report: Arc<Mutex<DiskReport>>,
    events: SyncSender<DiskEvent>,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    bytes_ahead: Arc<AtomicU64>,
    ring: Ring,
    pool: BufferPool,
    store: Store,
    engine: Engine,
    /// Whose replica this is, while it is one.
    coordinator: Option<ev_core::ids::HostId>,
    /// The newest role asked for; `role_set` once the engine has it.
    role: Option<(Generation, DiskRole)>,
    role_set: bool,
    actions: Vec<Action>,
    ops: HashMap<OpId, Op>,
    next_op: u64,
    locals: Slots<Local>,
    inline: Inline,
    lookout: Lookout,
    maps_busy: bool,
    listener: Option<UnixListener>,
    /// Whether clients are taken.
    serving: bool,
    accepting: bool,
    clients: Slots<Client>,
    requests: usize,
    request_bytes: u64,
    /// Answers that wait for the gate, in order.
    held: VecDeque<(u32, Reply, Verdict)>,
    link: Option<Link>,
    link_number: u32,
    link_is_up: bool,
    old_links: Vec<Link>,
    asked_for_link: Option<Instant>,
    /// Flushes that wait for the log to be tidy as well.
    tidying: Vec<SyncSender<bool>>,
    /// Marks that the engine has not answered yet.
    marking: VecDeque<Marking>,
    /// The guest that this process takes up may have been answered ahead of the partner.
    was_ahead: bool,
    /// Events that the AM has no room for and that must not be lost, in order.
    kept_events: VecDeque<DiskEvent>,
    link_trouble: Option<String>,
    engine_trouble: Option<String>,
    /// The last comparison that has ended.
    last_comparison: Option<Comparison>,
    read_bytes: u64,
    write_bytes: u64,
    ticked: Instant,
    ending: bool,
}

/// What the thread shares with its handle.
pub struct Shared {
    pub gate: Arc<Gate>,
    pub report: Arc<Mutex<DiskReport>>,
    pub events: SyncSender<DiskEvent>,
    pub commands: Receiver<Command>,
    pub wake: Arc<OwnedFd>,
    pub bytes_ahead: Arc<AtomicU64>,
}

impl Thread {
    /// Opens the files. [`Thread::run`] is then to be called on a thread of its own, where the ring is made.
    pub fn open(spec: DiskSpec, instance: u64, shared: Shared) -> Result<Self, OpenError> {
        let (store, local) = Store::open(&spec, instance)?;
        let listener = clients::listen(&spec)?;
        Ok(Self {
            gate: shared.gate,
            report: shared.report,
            events: shared.events,
            commands: shared.commands,
            wake: shared.wake,
            bytes_ahead: shared.bytes_ahead,
            ring: Ring::new().map_err(OpenError::Ring)?,
            pool: BufferPool::default(),
            store,
            engine: Engine::Idle(Box::new(local)),
            coordinator: None,
            role: None,
            role_set: true,
            actions: Vec::new(),
            ops: HashMap::new(),
            next_op: 0,
            locals: Slots::default(),
            inline: Inline::default(),
            lookout: Lookout::default(),
            maps_busy: false,
            listener,
            serving: false,
            accepting: false,
            clients: Slots::default(),
            requests: 0,
            request_bytes: 0,
            held: VecDeque::new(),
            link: None,
            link_number: 0,
            link_is_up: false,
            old_links: Vec::new(),
            asked_for_link: None,
            tidying: Vec::new(),
            marking: VecDeque::new(),
            was_ahead: false,
            kept_events: VecDeque::new(),
            link_trouble: None,
            engine_trouble: None,
            last_comparison: None,
            read_bytes: 0,
            write_bytes: 0,
            ticked: Instant::now(),
            ending: false,
            spec,
        })
    }

    /// Runs until it is told to end, and nothing of its memory is in the kernel's hands.
    pub fn run(mut self) -> io::Result<()> {
        let mut completions = Vec::new();
        self.ring.poll(self.wake.as_raw_fd(), Tag::Wake)?;
        while !(self.ending && self.is_quiet()) {
            self.perform_all()?;
            self.settle_role()?;
            self.release_held();
            self.send_kept_events();
            self.pump_clients()?;
            self.perform_all()?;
            self.pump_listener()?;
            self.pump_clients()?;
            self.pump_link()?;
            self.write_inline()?;
            if !self.actions.is_empty() {
                // A send that failed has told the engine something.
                continue;
            }
            let waiting = !(self.held.is_empty() && self.kept_events.is_empty());
            self.wait(if waiting { GATE_LOOK } else { TICK })?;
            self.ring.completions(&mut completions);
            for completion in completions.drain(..) {
                self.completed(completion)?;
            }
            if self.ticked.elapsed() >= TICK {
                self.tick();
            }
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.clients.is_empty()
            && self.link.is_none()
            && self.old_links.is_empty()
            && self.locals.is_empty()
            && !self.maps_busy
            && self.ring.in_flight() <= 2
    }

    fn completed(&mut self, (tag, result): Completion) -> io::Result<()> {
        match tag {
            Tag::Wake => self.woken()?,
            Tag::Accept => self.accept(),
            Tag::ClientReceive(number) => self.client_received(number, result),
            Tag::ClientSend(number) => self.client_sent(number, result),
            Tag::LinkReceive(number) => self.link_received(number, result),
            Tag::LinkSend(number) => self.link_sent(number, result),
            Tag::Local(slot) => self.local_completed(slot, result)?,
            Tag::Maps => {
                self.maps_busy = false;
                self.tell(Told::Committed { ok: result.is_ok() });
            }
        }
        self.perform_all()
    }

    fn woken(&mut self) -> io::Result<()> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    self.obey(command)?;
                    self.perform_all()?;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.end();
                    break;
                }
            }
        }
        self.ring.poll(self.wake.as_raw_fd(), Tag::Wake)
    }

    fn obey(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Role { generation, role } => {
                if self.role.as_ref().is_none_or(|(newest, _)| *newest <= generation) {
                    self.role = Some((generation, role));
                    self.role_set = false;
                    // At once if possible: a link for this role may be the very next command.
                    self.settle_role()?;
                }
            }
            Command::Link(stream) => self.take_link(stream),
            Command::Verify { repair, bytes_per_s } => self.compare(repair, bytes_per_s),
            Command::CopyRate(rate) => {
                self.spec.copy_rate_limit = rate;
                if let Engine::Coordinator(coordinator) = &mut self.engine {
                    coordinator.set_copy_rate(rate);
                }
            }
            Command::Flush(done) if self.is_ahead() => {
                // It would be durable here only, and the record counts on both.
                let _ = done.try_send(false);
            }
            Command::Flush(done) => {
                self.control_flush(done);
            }
            Command::End => self.end(),
            Command::MarkEpoch { session, epoch, marked } => self.mark_epoch(session, epoch, marked),
            Command::EndAhead => self.coordinate(Input::EndAhead),
            Command::WasAhead => self.was_ahead = true,
            Command::ApplyEpoch { session, epoch } => self.tell_replica(ReplicaInput::ApplyEpoch { session, epoch }),
            Command::DiscardEpochs => self.tell_replica(ReplicaInput::DiscardEpochs),
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ending = true;
        self.stop_listening();
        self.drop_link();
    }

    fn coordinate(&mut self, input: Input) {
        if let Engine::Coordinator(coordinator) = &mut self.engine {
            coordinator.step(boot_time(), input, &mut self.actions);
        }
    }

    fn tell(&mut self, told: Told) {
        self.engine.tell(boot_time(), told, &mut self.actions);
    }

    /// Brings the engine into the role that the newest record gives it, as soon as nothing of the old role is under way.
    fn settle_role(&mut self) -> io::Result<()> {
        if self.role_set || self.ending {
            return Ok(());
        }
        let Some((generation, role)) = self.role.clone() else { return Ok(()) };
        match (&mut self.engine, &role) {
            (Engine::Coordinator(coordinator), DiskRole::Coordinator { partner, good }) => {
                let record = record(generation, *partner, good, self.spec.host);
                coordinator.step(boot_time(), Input::Record(record), &mut self.actions);
                self.role_set = true;
                return Ok(());
            }
            (Engine::Replica(replica), DiskRole::Replica { coordinator }) if Some(*coordinator) == self.coordinator => {
                replica.step(ReplicaInput::Record { generation }, &mut self.actions);
                self.role_set = true;
                return Ok(());
            }
            (Engine::Idle(_) | Engine::Coordinator(_) | Engine::Replica(_), _) => {}
        }
        self.change_role(generation, &role)
    }

    fn change_role(&mut self, generation: Generation, role: &DiskRole) -> io::Result<()> {
        // A QEMU that waits here for the guest's memory is connected already.
        let stays = matches!(self.engine, Engine::Replica(_)) && !matches!(role, DiskRole::Idle);
        if !stays {
            self.serve(false);
        }
        if self.link.is_some() {
            self.drop_link();
        }
        // What the old engine has said is still done: that an epoch is applied must not get lost.
        self.perform_all()?;
        if !(self.engine.is_idle() && self.locals.is_empty() && !self.maps_busy) {
            return Ok(());
        }
        self.abandon_ops();
        let local = self.take_local();
        self.actions.clear();
        self.refuse_marks();
        let (now, was_ahead) = (boot_time(), std::mem::take(&mut self.was_ahead));
        self.engine = match role {
            DiskRole::Idle => Engine::Idle(Box::new(local)),
            DiskRole::Replica { coordinator } => {
                self.coordinator = Some(*coordinator);
                Engine::Replica(Box::new(Replica::new(local, *coordinator, generation)))
            }
            DiskRole::Coordinator { partner, good } => {
                let settings = Settings {
                    partner_timeout: self.spec.partner_timeout,
                    copy_bytes_per_s: self.spec.copy_rate_limit,
                };
                let mut coordinator = Coordinator::new(local, settings, now);
                if was_ahead {
                    coordinator.step(now, Input::WasAhead, &mut self.actions);
                }
                let record = record(generation, *partner, good, self.spec.host);
                coordinator.step(now, Input::Record(record), &mut self.actions);
                Engine::Coordinator(Box::new(coordinator))
            }
        };
        self.role_set = true;
        self.serve(matches!(role, DiskRole::Coordinator { .. } | DiskRole::Replica { .. }));
        self.asked_for_link = None;
        self.ask_for_link();
        Ok(())
    }

    fn take_local(&mut self) -> ev_core::mirror::LocalReplica {
        let placeholder = Engine::Idle(Box::new(self.engine.local().clone()));
        std::mem::replace(&mut self.engine, placeholder).into_local()
    }

    /// What was under way in an old role is nobody's any more. Its clients are gone, or have asked for nothing that is not answered.
    fn abandon_ops(&mut self) {
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            self.conclude(op, Verdict::Failed);
        }
    }

    fn op_entry(&mut self, op: OpId) -> &mut Op {
        self.ops.entry(op).or_insert_with(|| Op { data: None, origin: Origin::Engine, busy: false, over: false })
    }

    fn drop_op(&mut self, op: OpId) {
        let Some(entry) = self.ops.get_mut(&op) else { return };
        if entry.busy {
            entry.over = true;
        } else if let Some(buffer) = self.ops.remove(&op).and_then(|entry| entry.data) {
            self.pool.give(buffer);
        }
    }

    fn perform_all(&mut self) -> io::Result<()> {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.perform(action)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) -> io::Result<()> {
        match action {
            Action::Local { op, io } => self.start_local(op, io)?,
            Action::Send(message) => self.send(&message),
            Action::Commit(words) => match self.store.write_words(&words) {
                Ok(()) => {
                    self.maps_busy = true;
                    self.ring.sync(self.store.metadata(), Tag::Maps)?;
                }
                Err(error) => {
                    tracing::error!(disk = %self.spec.disk, %error, "the region maps can't be written: replace this host's storage");
                    self.tell(Told::Committed { ok: false });
                }
            },
            Action::Superblock(info) => {
                let ok = self.store.store(info);
                self.tell(Told::SuperblockStored { ok });
            }
            Action::Acknowledge(proof) => self.conclude(proof.op(), Verdict::Done),
            Action::Answer { op, .. } => {
                let data = self.ops.get_mut(&op).and_then(|entry| entry.data.take());
                self.conclude(op, data.map_or(Verdict::Failed, Verdict::Data));
            }
            Action::Fail { op } => self.conclude(op, Verdict::Failed),
            Action::Forget { op } => self.drop_op(op),
            Action::CloseLink(reason) => {
                tracing::info!(disk = %self.spec.disk, %reason, "the link to the partner is closed");
                self.drop_link();
            }
            Action::Wish(wish) => self.wish(wish),
            Action::Trouble(trouble) => self.engine_troubled(trouble),
            Action::Verified(verified) => self.compared(verified),
            Action::Marked(outcome) => self.marked(outcome),
            Action::Stage { op, staged } => self.stage(op, staged),
            Action::AheadStuck { session } => {
                self.event_kept(DiskEvent::AheadStuck { disk: self.spec.disk, session });
            }
            Action::EpochStaged { session, epoch, flushed } => {
                self.event_kept(DiskEvent::EpochStaged { disk: self.spec.disk, session, epoch, flushed });
            }
            Action::EpochApplied { session, epoch } => {
                self.event_kept(DiskEvent::EpochApplied { disk: self.spec.disk, session, epoch });
            }
            Action::EpochsLost { session } => {
                self.event_kept(DiskEvent::EpochsLost { disk: self.spec.disk, session });
            }
        }
        Ok(())
    }

    fn wish(&mut self, wish: Wish) {
        let disk = self.spec.disk;
        self.event(match wish {
            Wish::ReplicaLost { host, seen } => DiskEvent::ReplicaLost { disk, host, seen },
            Wish::ReplicaGood { host, seen } => DiskEvent::ReplicaGood { disk, host, seen },
        });
    }

    fn engine_troubled(&mut self, trouble: Trouble) {
        tracing::warn!(disk = %self.spec.disk, %trouble, "the mirror is in trouble");
        self.engine_trouble = Some(trouble.to_string());
        self.event(DiskEvent::Trouble { disk: self.spec.disk, text: trouble.to_string() });
    }

    fn trouble(&mut self, text: String) {
        tracing::warn!(disk = %self.spec.disk, "{text}");
        self.link_trouble = Some(text.clone());
        self.event(DiskEvent::Trouble { disk: self.spec.disk, text });
    }

    /// One that finds the channel full is lost; wishes come again by themselves.
    fn event(&self, event: DiskEvent) {
        if self.events.try_send(event).is_err() {
            tracing::debug!(disk = %self.spec.disk, "the AM does not take events; one is left out");
        }
    }

    fn tick(&mut self) {
        self.ticked = Instant::now();
        self.tell(Told::Tick);
        self.tick_link();
        self.tick_flushes();
        let report = self.make_report();
        *self.report.lock().expect("a report is only copied under the lock") = report;
    }

    /// A flush for the AM is done when the write-intent log is clean on disk as well.
    fn tick_flushes(&mut self) {
        if self.tidying.is_empty() {
            return;
        }
        self.coordinate(Input::Tidy);
        let tidy = matches!(&self.engine, Engine::Coordinator(coordinator) if coordinator.is_tidy());
        if tidy {
            for done in self.tidying.drain(..) {
                let _ = done.try_send(true);
            }
        }
    }

    fn make_report(&self) -> DiskReport {
        let (partner, copy) = match &self.engine {
            Engine::Coordinator(coordinator) => (coordinator.partner_state(), coordinator.copy_progress()),
            Engine::Idle(_) | Engine::Replica(_) => (None, None),
        };
        let engine_trouble = self.engine_trouble.clone().filter(|_| self.engine.local().is_failed());
        DiskReport {
            disk: self.spec.disk,
            local: self.engine.local_state(),
            partner,
            copy,
            comparison: self.comparison(),
            read_bytes: self.read_bytes,
            write_bytes: self.write_bytes,
            trouble: engine_trouble.or_else(|| self.link_trouble.clone()),
        }
    }
}

fn record(
    generation: Generation,
    partner: Option<ev_core::ids::HostId>,
    good: &std::collections::BTreeSet<ev_core::ids::HostId>,
    host: ev_core::ids::HostId,
) -> Record {
    let partner_good = partner.is_some_and(|partner| good.contains(&partner));
    Record { generation, partner, good: Required { local: good.contains(&host), partner: partner_good } }
}
