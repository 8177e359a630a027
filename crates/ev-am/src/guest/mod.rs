//! The guest's QEMU: started or taken up, paused, resumed, ended, and watched until it is gone.
//!
//! A task of its own owns it, so that a QEMU that does not answer never holds up the AM.

mod keep;

use ev_core::ids::Generation;
use ev_vm::{Accelerator, Exit, Guest, GuestSpec, Qemu, ShutdownReason};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Notices that may wait for the AM.
const NOTICES_MAX: usize = 16;
/// Orders that may wait for the guest's task: it takes them at once. When it is full the task is stuck,
/// which is said.
const ORDERS_MAX: usize = 64;

/// What the AM asks for. A later wish replaces an earlier one that was not carried out yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Pause,
    Resume,
    Powerdown,
    Kill,
}

/// What became of the guest.
#[derive(Debug, Clone)]
pub enum GuestNotice {
    /// QEMU runs and answers; `running`: the guest's processors do too.
    Up { guest: Guest, accelerator: Option<String>, running: bool },
    /// QEMU could not be started; none is left.
    StartFailed(String),
    /// The processors stand still.
    Paused,
    /// The processors go on.
    Resumed,
    /// QEMU is gone.
    Gone { exit: Exit, shutdown: Option<ShutdownReason>, log: String },
}

/// A notice with the record under which that guest was started.
pub type Notice = (Generation, GuestNotice);

/// Where notices come from and go to.
pub fn notices() -> (mpsc::Sender<Notice>, mpsc::Receiver<Notice>) {
    mpsc::channel(NOTICES_MAX)
}

/// A guest's QEMU, being started or running. Dropping this leaves QEMU as it is.
#[derive(Debug)]
pub struct GuestTask {
    since: Generation,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl GuestTask {
    /// Starts QEMU.
    pub fn start(since: Generation, qemu: Qemu, spec: GuestSpec, notices: mpsc::Sender<Notice>) -> Self {
        Self::spawn(since, |queue| keep::start(since, qemu, spec, queue, notices))
    }

    /// Takes up a QEMU that an earlier process started.
    pub fn attach(since: Generation, guest: Guest, notices: mpsc::Sender<Notice>) -> Self {
        Self::spawn(since, |queue| keep::attached(since, guest, queue, notices))
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        since: Generation,
        work: impl FnOnce(mpsc::Receiver<Order>) -> F,
    ) -> Self {
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        Self { since, orders, task: tokio::spawn(work(queue)) }
    }

    /// The record under which it was started.
    pub fn since(&self) -> Generation {
        self.since
    }

    /// Stops the guest's processors.
    pub fn pause(&self) {
        self.order(Order::Pause);
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.order(Order::Resume);
    }

    /// Presses the power button.
    pub fn powerdown(&self) {
        self.order(Order::Powerdown);
    }

    /// Ends QEMU at once.
    pub fn kill(&self) {
        self.order(Order::Kill);
    }

    fn order(&self, order: Order) {
        match self.orders.try_send(order) {
            // A task that has ended has told that QEMU is gone: then the order has no object any more.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(order)) => {
                tracing::error!(?order, "the guest's task is stuck and takes no orders; restart this ev-am");
            }
        }
    }
}

impl Drop for GuestTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The accelerator's name for reports.
fn accelerator_name(accelerator: &Accelerator) -> String {
    accelerator.name().to_owned()
}
