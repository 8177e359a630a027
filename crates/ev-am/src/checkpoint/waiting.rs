//! Level 3 on the standby: a QEMU that waits, an image that follows the active host's guest, and going on from it.
//!
//! One task for as long as this host is the standby. [`Waiting::take_over`] ends it: from its answer on the old active side has no say, and
//! what was decided is being applied; the outcome comes when all of it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ev_checkpoint::{Applier, Image, LaneMessage, MemoryShape, Receiver, Staged, StagedNotice};
use ev_core::checkpoint::{Epoch, Session, Standby, StandbyAction, StandbyEvent};
use ev_core::ids::DiskId;
use ev_core::time::Instant;
use ev_failpoint::{Step, reach};
use ev_vm::checkpoint::Standby as WaitingQemu;
use ev_vm::{GuestSpec, Qemu};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::lane::{Lane, LaneEvent};
use super::prepare::{self, Prepared, end};
use super::{DiskHandles, QUEUE_MAX, memory_stream};
use crate::links::{Channel, Stream};

/// How long what was decided may take to be applied at a takeover.
const APPLY_TIME_MAX: Duration = Duration::from_secs(5);

/// What a takeover finds.
pub struct TakenOver {
    pub qemu: WaitingQemu,
    /// Its device state.
    pub state: Vec<u8>,
    pub epoch: Epoch,
    /// Since when that epoch is whole here: what the guest did later is undone, so that for its clients it stands still since then.
    pub whole_since: std::time::Instant,
}

/// Something that a disk of this host tells of its epochs.
#[derive(Debug, Clone, Copy)]
pub enum DiskNotice {
    Staged { disk: DiskId, session: Session, epoch: Epoch, flushed: bool },
    Applied { disk: DiskId, session: Session, epoch: Epoch },
    Lost { disk: DiskId, session: Session },
}

/// Makes the guest's description anew for each QEMU that is to wait: its memory is a file of its own.
pub type MakeSpec = Box<dyn Fn() -> Result<GuestSpec, String> + Send + Sync>;

/// What the task is made for.
pub struct WaitingSpec {
    pub qemu: Qemu,
    pub make_spec: MakeSpec,
    pub disks: DiskHandles,
}

type Outcome = oneshot::Sender<Result<TakenOver, String>>;

enum Order {
    Disks(DiskHandles),
    Stream(Channel, Box<Stream>),
    Disk(DiskNotice),
    /// The record does not count on this host.
    GivenUp,
    TakeOver {
        frozen: oneshot::Sender<()>,
        outcome: Outcome,
    },
    /// No QEMU of this task is left after the answer.
    End(oneshot::Sender<()>),
}

/// The task. To be ended by [`Self::take_over`] or [`Self::end`]; dropping it leaves a QEMU behind.
#[derive(Debug)]
pub struct Waiting {
    orders: mpsc::Sender<Order>,
    _task: JoinHandle<()>,
}

impl Waiting {
    /// Begins; streams that are wanted go to `wanted`.
    pub fn start(spec: WaitingSpec, wanted: mpsc::Sender<Channel>) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        Self { orders, _task: tokio::spawn(Driver::new(spec, wanted).run(queue)) }
    }

    pub fn disks(&self, disks: DiskHandles) {
        self.order(Order::Disks(disks));
    }

    /// A stream to the active side.
    pub fn stream(&self, channel: Channel, stream: Box<Stream>) {
        self.order(Order::Stream(channel, stream));
    }

    pub fn disk(&self, notice: DiskNotice) {
        self.order(Order::Disk(notice));
    }

    /// The record does not count on this host's replicas: nobody goes on from what is here.
    pub fn given_up(&self) {
        self.order(Order::GivenUp);
    }

    /// Returns when the old active side has no say any more and the disks have been told to apply what was decided: their role may change
    /// then. The outcome comes later; until then this must hear what the disks tell.
    pub async fn take_over(&self) -> oneshot::Receiver<Result<TakenOver, String>> {
        let (frozen, heard) = oneshot::channel();
        let (outcome, result) = oneshot::channel();
        if self.orders.send(Order::TakeOver { frozen, outcome }).await.is_ok() {
            let _ = heard.await;
        }
        result
    }

    /// Ends the waiting QEMU.
    pub async fn end(self) {
        let (done, ended) = oneshot::channel();
        if self.orders.send(Order::End(done)).await.is_ok() {
            let _ = ended.await;
        }
    }

    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::warn!("the standby's task is too busy to be told");
        }
    }
}

/// What the driver's own tasks tell it.
enum Inner {
    Lane(LaneEvent),
    Prepared(Session, Result<Prepared, String>),
    QemuGone(Session),
}

impl From<LaneEvent> for Inner {
    fn from(event: LaneEvent) -> Self {
        Self::Lane(event)
    }
}

/// What the active side said at the session's begin.
struct Begun {
    session: Session,
    disks: Vec<DiskId>,
    shape: MemoryShape,
}

/// A session whose memory is here, or on its way.
struct Held {
    session: Session,
    qemu: WaitingQemu,
    image: Arc<Mutex<Image>>,
    applier: Applier,
    staged: BTreeMap<Epoch, Staged>,
    /// The newest epoch that is whole, and since when.
    decided: (Epoch, std::time::Instant),
}

struct Driver {
    spec: WaitingSpec,
    wanted: mpsc::Sender<Channel>,
    engine: Standby,
    inner: mpsc::Sender<Inner>,
    done: mpsc::Receiver<Inner>,
    notices: mpsc::Sender<StagedNotice>,
    staged: mpsc::Receiver<StagedNotice>,
    lane: Option<Lane>,
    lanes: u64,
    receiver: Option<Receiver>,
    /// A QEMU is being started for it.
    begun: Option<Begun>,
    held: Option<Held>,
    /// Why this session can't go on, to be told.
    why: String,
    outcome: Option<Outcome>,
}

impl Driver {
    fn new(spec: WaitingSpec, wanted: mpsc::Sender<Channel>) -> Self {
        let (inner, done) = mpsc::channel(QUEUE_MAX);
        let (notices, staged) = mpsc::channel(QUEUE_MAX);
        Self {
            spec,
            wanted,
            engine: Standby::default(),
            inner,
            done,
            notices,
            staged,
            lane: None,
            lanes: 0,
            receiver: None,
            begun: None,
            held: None,
            why: String::new(),
            outcome: None,
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        self.ask_for(Channel::Lane);
        self.ask_for(Channel::Memory);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Disks(disks)) => self.spec.disks = disks,
                    Some(Order::Stream(channel, stream)) => self.take_stream(channel, *stream),
                    Some(Order::Disk(notice)) => self.on_disk(notice),
                    Some(Order::GivenUp) => self.given_up(),
                    Some(Order::TakeOver { frozen, outcome }) => {
                        self.outcome = Some(outcome);
                        self.tell(StandbyEvent::TakeOver);
                        let _ = frozen.send(());
                        break;
                    }
                    Some(Order::End(done)) => {
                        self.perform(StandbyAction::Discard);
                        self.let_go().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                Some(inner) = self.done.recv() => self.on_inner(inner).await,
                Some(notice) = self.staged.recv() => self.on_staged(notice),
            }
        }
        self.finish(orders).await;
    }

    /// After the takeover's begin: what was decided is applied.
    async fn finish(mut self, mut orders: mpsc::Receiver<Order>) {
        let deadline = tokio::time::Instant::now() + APPLY_TIME_MAX;
        while self.outcome.is_some() {
            tokio::select! {
                Some(order) = orders.recv() => if let Order::Disk(notice) = order { self.on_disk(notice) },
                Some(notice) = self.staged.recv() => self.on_staged(notice),
                () = tokio::time::sleep_until(deadline) => {
                    self.why = "what was decided was not applied in time".to_owned();
                    self.cannot_go_on();
                }
            }
        }
        // Unless it was handed over.
        self.let_go().await;
    }

    fn take_stream(&mut self, channel: Channel, stream: Stream) {
        match channel {
            Channel::Lane => {
                self.lanes += 1;
                self.lane = Some(Lane::start(self.lanes, stream, self.inner.clone()));
            }
            Channel::Memory => {
                let started = memory_stream(stream).map_err(|error| error.to_string()).and_then(|stream| {
                    Receiver::start(stream, self.notices.clone()).map_err(|error| error.to_string())
                });
                match started {
                    Ok(receiver) => {
                        if let Some(held) = &self.held {
                            receiver.open(held.session, Arc::clone(&held.image));
                        }
                        self.receiver = Some(receiver);
                    }
                    Err(why) => tracing::warn!(why, "a memory stream can't be read"),
                }
            }
            Channel::Disk(_) => {}
        }
    }

    fn ask_for(&self, channel: Channel) {
        let _ = self.wanted.try_send(channel);
    }

    async fn on_inner(&mut self, inner: Inner) {
        match inner {
            Inner::Lane(LaneEvent::Down(number)) => {
                if self.lane.as_ref().is_some_and(|lane| lane.number() == number) {
                    self.lane = None;
                }
            }
            Inner::Lane(LaneEvent::Message(number, message)) => {
                if self.lane.as_ref().is_some_and(|lane| lane.number() == number) {
                    self.on_message(message).await;
                }
            }
            Inner::Prepared(session, prepared) => self.prepared(session, prepared).await,
            Inner::QemuGone(session) => {
                if self.held.as_ref().is_some_and(|held| held.session == session) {
                    self.fail("the QEMU that waits here has ended; its log says why");
                }
            }
        }
    }

    async fn on_message(&mut self, message: LaneMessage) {
        match message {
            LaneMessage::Begin { session, disks, shape, qemu, machine } => {
                tracing::info!(%session, "the active side begins a session");
                self.let_go().await;
                match prepare::fits(&self.spec, &qemu, &machine).await {
                    Ok(spec) => self.prepare(Begun { session, disks, shape }, spec),
                    Err(why) => self.refuse(session, why),
                }
            }
            LaneMessage::Clock { session, reading } => self.tell(StandbyEvent::Clock { session, reading }),
            LaneMessage::End { session } => tracing::info!(%session, "the active side has ended the session"),
            message @ (LaneMessage::Confirm { .. } | LaneMessage::Refuse { .. }) => {
                tracing::warn!(?message, "the active side said what only a standby says");
            }
        }
    }

    fn refuse(&self, session: Session, why: String) {
        tracing::warn!(%session, why, "this host can't be the standby for it");
        if let Some(lane) = &self.lane {
            lane.send(LaneMessage::Refuse { session, why });
        }
    }

    fn prepare(&mut self, begun: Begun, spec: GuestSpec) {
        let (session, qemu, inner) = (begun.session, self.spec.qemu.clone(), self.inner.clone());
        self.begun = Some(begun);
        tokio::spawn(async move {
            let prepared = prepare::prepare(&qemu, &spec).await;
            let _ = inner.send(Inner::Prepared(session, prepared)).await;
        });
    }

    async fn prepared(&mut self, session: Session, prepared: Result<Prepared, String>) {
        let begun = self.begun.take_if(|begun| begun.session == session);
        let (begun, prepared) = match (begun, prepared) {
            (Some(begun), Ok(prepared)) => (begun, prepared),
            (Some(_), Err(why)) => return self.refuse(session, why),
            (None, Ok(prepared)) => return end(prepared.qemu.guest()).await,
            (None, Err(_)) => return,
        };
        let applier = Applier::start(session, Arc::clone(&prepared.image), self.notices.clone());
        let applier = match applier {
            Ok(applier) if prepared.shape == begun.shape => applier,
            Ok(_) => {
                let why = format!(
                    "the guest's memory is laid out otherwise here ({:?}) than on the active host ({:?}): use the same QEMU and settings",
                    prepared.shape.0, begun.shape.0
                );
                end(prepared.qemu.guest()).await;
                return self.refuse(session, why);
            }
            Err(error) => {
                end(prepared.qemu.guest()).await;
                return self.refuse(session, error.to_string());
            }
        };
        if let Some(receiver) = &self.receiver {
            receiver.open(session, Arc::clone(&prepared.image));
        }
        let (guest, inner) = (prepared.qemu.guest().clone(), self.inner.clone());
        tokio::spawn(async move {
            guest.exited().await;
            let _ = inner.send(Inner::QemuGone(session)).await;
        });
        let Prepared { qemu, image, .. } = prepared;
        let decided = (Epoch::NONE, std::time::Instant::now());
        self.held = Some(Held { session, qemu, image, applier, staged: BTreeMap::new(), decided });
        reach(Step::StandbyPrepared);
        self.tell(StandbyEvent::Begin { session, disks: begun.disks.into_iter().collect() });
    }

    fn on_staged(&mut self, notice: StagedNotice) {
        match notice {
            StagedNotice::Staged { session, epoch, staged } => {
                let Some(held) = self.held.as_mut().filter(|held| held.session == session) else { return };
                tracing::trace!(%epoch, "memory staged");
                held.staged.insert(epoch, staged);
                self.tell(StandbyEvent::MemoryStaged { session, epoch });
            }
            StagedNotice::Applied { session, epoch } => self.tell(StandbyEvent::MemoryApplied { session, epoch }),
            StagedNotice::Failed { session, why } => {
                if self.held.as_ref().is_some_and(|held| held.session == session) {
                    self.fail(&why);
                }
            }
            // The active side notices by itself, and what is decided stays.
            StagedNotice::Ended { why } => tracing::debug!(why, "the memory stream ended"),
        }
    }

    fn on_disk(&mut self, notice: DiskNotice) {
        match notice {
            DiskNotice::Staged { disk, session, epoch, flushed } => {
                tracing::trace!(%epoch, flushed, "disk staged");
                self.tell(StandbyEvent::DiskStaged { session, disk, epoch, flushed });
            }
            DiskNotice::Applied { disk, session, epoch } => {
                tracing::trace!(%epoch, "disk applied");
                self.tell(StandbyEvent::DiskApplied { session, disk, epoch })
            }
            DiskNotice::Lost { disk, session } => {
                if self.held.as_ref().is_some_and(|held| held.session == session) {
                    self.fail(&format!("the standby's replica of disk {disk} can't follow"));
                }
            }
        }
    }

    fn given_up(&mut self) {
        if self.engine.decided() != Epoch::NONE {
            tracing::warn!("the active side goes on without this standby");
            self.fail("the record does not count on this standby any more");
        }
    }

    fn fail(&mut self, why: &str) {
        why.clone_into(&mut self.why);
        self.tell(StandbyEvent::Failed);
    }

    fn tell(&mut self, event: StandbyEvent) {
        let mut actions = Vec::new();
        self.engine.step(event, &mut actions);
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: StandbyAction) {
        match action {
            StandbyAction::Discard => {
                for disk in self.spec.disks.iter().filter_map(|(_, disk)| disk.upgrade()) {
                    if let Err(error) = disk.discard_epochs() {
                        tracing::error!(%error, "a disk takes no orders");
                    }
                }
            }
            StandbyAction::ApplyDisk { disk, epoch } => self.apply_disk(disk, epoch),
            StandbyAction::ApplyMemory { epoch } => {
                let Some(held) = &mut self.held else { return };
                let applying = held.staged.remove(&epoch).map(|staged| held.applier.apply(epoch, staged));
                if !matches!(applying, Some(Ok(()))) {
                    tracing::error!(%epoch, "an epoch's memory can't be applied");
                }
            }
            StandbyAction::Confirm { session, epoch, echo } => self.confirm(session, epoch, echo),
            StandbyAction::Refuse { session } => self.refuse(session, self.why.clone()),
            StandbyAction::GoOn { epoch } => self.go_on(epoch),
            StandbyAction::CannotGoOn => {
                if self.why.is_empty() {
                    "no whole checkpoint of the guest is here".clone_into(&mut self.why);
                }
                self.cannot_go_on();
            }
        }
    }

    fn apply_disk(&self, disk: DiskId, epoch: Epoch) {
        let Some(session) = self.held.as_ref().map(|held| held.session) else { return };
        let handle = self.spec.disks.iter().find(|(id, _)| *id == disk).and_then(|(_, disk)| disk.upgrade());
        let told = handle.map(|handle| handle.apply_epoch(session, epoch));
        reach(Step::StandbyApplyingDisk);
        if !matches!(told, Some(Ok(()))) {
            tracing::error!(%disk, %epoch, "a disk can't apply an epoch; nothing more is confirmed");
        }
    }

    fn confirm(&mut self, session: Session, epoch: Epoch, echo: Instant) {
        if let Some(held) = self.held.as_mut().filter(|held| held.decided.0 < epoch) {
            held.decided = (epoch, std::time::Instant::now());
        }
        if epoch > Epoch::FIRST {
            reach(Step::StandbyConfirming);
        }
        tracing::trace!(%epoch, "confirmed");
        if let Some(lane) = &self.lane {
            lane.send(LaneMessage::Confirm { session, epoch, echo });
        }
    }

    fn go_on(&mut self, epoch: Epoch) {
        let (Some(outcome), Some(held)) = (self.outcome.take(), self.held.take()) else { return };
        reach(Step::TakeoverApplied);
        let state = held.image.lock().expect("the image's lock is held by code that does not panic").state().to_vec();
        let taken = TakenOver { qemu: held.qemu, state, epoch, whole_since: held.decided.1 };
        // The AM is ending if it does not listen; the next one finds that the guest is not running.
        let _ = outcome.send(Ok(taken));
    }

    fn cannot_go_on(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            let _ = outcome.send(Err(std::mem::take(&mut self.why)));
        }
    }

    /// Nothing of a session is left.
    async fn let_go(&mut self) {
        self.begun = None;
        if let Some(held) = self.held.take() {
            end(held.qemu.guest()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SESSION: Session = Session(5);
    const DISK: DiskId = DiskId(uuid::Uuid::from_u128(1));

    /// A standby that has decided its first epoch and has all of it but the disk's part applied.
    fn waiting() -> Waiting {
        let make_spec: MakeSpec = Box::new(|| Err("not needed".to_owned()));
        let spec = WaitingSpec { qemu: Qemu::at(Path::new("/bin/false"), None), make_spec, disks: Vec::new() };
        let mut driver = Driver::new(spec, mpsc::channel(QUEUE_MAX).0);
        let (session, disk, epoch) = (SESSION, DISK, Epoch::FIRST);
        driver.tell(StandbyEvent::Begin { session, disks: [DISK].into() });
        driver.tell(StandbyEvent::MemoryStaged { session, epoch });
        driver.tell(StandbyEvent::DiskStaged { session, disk, epoch, flushed: true });
        driver.tell(StandbyEvent::MemoryApplied { session, epoch });
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        Waiting { orders, _task: tokio::spawn(driver.run(queue)) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_takeover_goes_on_as_soon_as_the_disk_has_applied_what_was_decided() {
        let start = tokio::time::Instant::now();
        let waiting = waiting();
        let outcome = waiting.take_over().await;
        waiting.disk(DiskNotice::Applied { disk: DISK, session: SESSION, epoch: Epoch::FIRST });
        // There is no QEMU in this test that could be handed over: the outcome is dropped.
        assert!(outcome.await.is_err());
        assert!(start.elapsed() < APPLY_TIME_MAX, "it waited for what had been told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_takeover_ends_without_the_disk_after_a_while() {
        let waiting = waiting();
        let outcome = waiting.take_over().await;
        assert!(outcome.await.is_ok_and(|outcome| outcome.is_err_and(|why| why.contains("not applied in time"))));
    }
}
