//! Level 3 on the active host: takes checkpoints, ships them, and lets out what the standby has confirmed.
//!
//! One task for each guest that runs here with its memory tracked, from its start to its end; at lower levels it stands by.
//! `driver` carries out what the engine decides, `work` is what one session consists of.

mod driver;
mod work;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ev_core::checkpoint::{Proposal, Standing};
use ev_core::report::{Level3Report, Level3State};
use ev_net::OutputHold;
use ev_vm::Guest;
use ev_wire::am::Turns;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{DiskHandles, QUEUE_MAX};
use crate::links::{Channel, Stream};

/// What the task is made for.
pub struct ActiveSpec {
    pub guest: Guest,
    pub disks: DiskHandles,
    pub hold: Arc<OutputHold>,
    pub machine: String,
    pub origin: Origin,
    /// For how long the guest stood still when it went on here from its memory, if it did.
    pub blackout: Option<Duration>,
    pub limits: Limits,
}

/// What a synchronisation keeps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Its name among those that wait for their turn.
    pub who: String,
    pub turns: Turns,
    /// Most bytes per second while the whole memory is sent.
    pub bytes_per_s: Option<u64>,
    /// The guest is not to stand still for longer than about this at a time.
    pub blackout: Duration,
}

/// Where the guest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was started, or gone on with, by this process.
    Begun,
    /// A process before this one kept it, at Level 3: what it had under way with the standby is not known.
    TakenUp,
}

/// Whether checkpoints are wished for and possible now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    Yes,
    /// Why not, in words.
    No(String),
}

/// What the task tells the AM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActiveNotice {
    /// A change of the record is wished for. Repeated until it is seen in a record.
    Propose(Proposal),
    /// This stream is used up or broken: a new one is wanted.
    StreamDown(Channel),
}

/// What the AM tells the task.
enum Order {
    Wish(Wish),
    Standing(Standing),
    Disks(DiskHandles),
    Limits(Limits),
    Stream(Channel, Box<Stream>),
    DiskLinkDown,
}

/// The task. Dropping this ends it; the guest runs on, and what is held stays so.
#[derive(Debug)]
pub struct Active {
    orders: mpsc::Sender<Order>,
    report: Arc<Mutex<Level3Report>>,
    task: JoinHandle<()>,
}

impl Active {
    /// Begins, off. For a guest that was taken up, output must be held already.
    pub fn start(spec: ActiveSpec, notices: mpsc::Sender<ActiveNotice>) -> Self {
        let (orders, queue) = mpsc::channel(QUEUE_MAX);
        let report = Arc::new(Mutex::new(first_report()));
        let driver = driver::Driver::new(spec, notices, Arc::clone(&report));
        Self { orders, report, task: tokio::spawn(driver.run(queue)) }
    }

    /// How far it is.
    pub fn report(&self) -> Level3Report {
        self.report.lock().expect("a report is only copied under the lock").clone()
    }

    pub fn wish(&self, wish: Wish) {
        self.order(Order::Wish(wish));
    }

    /// What the newest record leaves to the other host.
    pub fn standing(&self, standing: Standing) {
        self.order(Order::Standing(standing));
    }

    pub fn disks(&self, disks: DiskHandles) {
        self.order(Order::Disks(disks));
    }

    /// From the next session on.
    pub fn limits(&self, limits: Limits) {
        self.order(Order::Limits(limits));
    }

    /// A stream to the partner.
    pub fn stream(&self, channel: Channel, stream: Box<Stream>) {
        self.order(Order::Stream(channel, stream));
    }

    /// A disk lost its link, or its partner's replica.
    pub fn disk_link_down(&self) {
        self.order(Order::DiskLinkDown);
    }

    /// Never waits: the task may be waiting for the AM to take a notice.
    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::warn!("the checkpoints' task is too busy to be told");
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn first_report() -> Level3Report {
    Level3Report {
        state: Level3State::Simplex("it is being prepared".to_owned()),
        confirmed: 0,
        epoch_us: 0,
        pause_median_us: 0,
        pause_p99_us: 0,
        stood_still_permille: 0,
        pages_per_s: 0,
        bytes_per_s: 0,
        latency_median_us: 0,
        latency_p99_us: 0,
        lag_median_us: 0,
        last_end: None,
        blackout_us: None,
    }
}
