//! The Availability Manager itself: one task that owns the keeper and carries out what it decides.
//!
//! ```text
//!   master, links, guest, disks, am.sock, time ──► select() ──► Keeper::step ──► apply()
//! ```
//!
//! Nothing here waits for long: what does (QEMU, the network, a flush) has a task or thread of its own and comes back as
//! an [`Event`].

mod apply;
mod events;
mod level3;
mod report;
mod setup;

use std::sync::Arc;
use std::time::Duration;

use ev_core::availability::keeper::{self, Keeper};
use ev_core::ids::Generation;
use ev_core::report::EndCause;
use ev_core::vm::Vm;
use ev_mirror::gate::boot_time;
use ev_mirror::{DiskEvent, Gate};
use ev_net::OutputHold;
use ev_vm::Qemu;
use ev_wire::am::AmConfig;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Interval;

use crate::checkpoint::active::{Active, ActiveNotice, Origin, Wish};
use crate::checkpoint::waiting::{TakenOver, Waiting};
use crate::disks::{Disks, Troubles};
use crate::guest::{self, GuestTask};
use crate::links::{Channel, LinkNotice, Links, Tls};
use crate::local::LocalCall;
use crate::master::{MasterLink, MasterNotice};
use crate::nics::Nics;
use crate::nics::learned::Learned;
use crate::paths::Paths;

pub use setup::run;

/// How often the keeper is told that time passed, and reports are made anew. The gate does not depend on it.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at the NICs.
const TICKS_PER_LOOK: u32 = 10;
/// Ticks between two attempts to get a disk that can't be used into service.
const TICKS_PER_DISK_REPAIR: u32 = 50;

/// What happened.
enum Event {
    Master(MasterNotice),
    Links(LinkNotice),
    Guest(guest::Notice),
    Disk(DiskEvent),
    Local(LocalCall),
    /// Of the checkpoints of the guest that runs here.
    Level3(ActiveNotice),
    /// The standby's side of Level 3 wants this stream anew.
    StreamWanted(Channel),
    /// Going on from memory came to its end.
    WentOn {
        since: Generation,
        result: Result<Box<WentOn>, String>,
    },
    /// After the guest's end: the disks were flushed, or not.
    Flushed {
        since: Generation,
        cause: EndCause,
        clean: bool,
    },
    Tick,
    /// SIGTERM or SIGINT.
    Terminate,
}

/// Whether the process goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    Yes,
    /// The VM has no business on this host any more, or the process was told to end.
    No,
}

/// All ends of the queues that the AM listens to.
struct Inbox {
    master: mpsc::Receiver<MasterNotice>,
    links: mpsc::Receiver<LinkNotice>,
    guest: mpsc::Receiver<guest::Notice>,
    disks: mpsc::Receiver<DiskEvent>,
    local: mpsc::Receiver<LocalCall>,
    flushed: mpsc::Receiver<(Generation, EndCause, bool)>,
    level3: mpsc::Receiver<ActiveNotice>,
    wanted: mpsc::Receiver<Channel>,
    went_on: mpsc::Receiver<(Generation, Result<Box<WentOn>, String>)>,
    tick: Interval,
    terminate: Signal,
    interrupt: Signal,
}

/// The other ends of the queues that things started later write to.
struct Outbox {
    links: mpsc::Sender<LinkNotice>,
    guest: mpsc::Sender<guest::Notice>,
    flushed: mpsc::Sender<(Generation, EndCause, bool)>,
    level3: mpsc::Sender<ActiveNotice>,
    wanted: mpsc::Sender<Channel>,
    went_on: mpsc::Sender<(Generation, Result<Box<WentOn>, String>)>,
}

/// A guest that goes on here.
struct WentOn {
    guest: ev_vm::Guest,
    times: ev_vm::checkpoint::ResumeTimes,
    blackout: std::time::Duration,
}

struct Am {
    config: AmConfig,
    config_path: std::path::PathBuf,
    paths: Paths,
    tls: Tls,
    keeper: Keeper,
    gate: Arc<Gate>,
    disks: Disks,
    master: MasterLink,
    links: Option<Links>,
    qemu: Qemu,
    guest: Option<RunningGuest>,
    /// While this host is the standby of a guest at Level 3.
    waiting: Option<Waiting>,
    /// A takeover has begun; what it finds comes here.
    taking_over: Option<oneshot::Receiver<Result<TakenOver, String>>>,
    /// What was the standby, until it has heard that the disks applied what was decided.
    taken_from: Option<Waiting>,
    /// NICs that are connected for a guest that is about to go on here.
    ready_nics: Option<(Nics, Arc<OutputHold>)>,
    /// The guest that is about to go on here is to be ended at once.
    end_wanted: Option<EndCause>,
    learned: Learned,
    troubles: Troubles,
    /// The role that was acted on last.
    role: Option<keeper::Role>,
    partner_heard: bool,
    inbox: Inbox,
    outbox: Outbox,
    ticks: u32,
}

/// The guest that this process keeps.
struct RunningGuest {
    task: GuestTask,
    nics: Nics,
    /// Level 3's output commit.
    hold: Arc<OutputHold>,
    level3: Option<Active>,
    wish: Option<Wish>,
    origin: Origin,
    /// For how long it stood still when it went on here from its memory.
    blackout: Option<std::time::Duration>,
    accelerator: Option<String>,
    /// Why it is being ended, if it is.
    ending: Option<EndCause>,
}

impl Am {
    /// Works until the VM has no business here any more or the process is told to end.
    async fn work(&mut self) {
        loop {
            let event = self.inbox.next().await;
            if self.handle(event).await == Stay::No {
                return;
            }
        }
    }

    /// Tells the keeper what happened and does what it wants.
    async fn step(&mut self, event: keeper::Event) -> Stay {
        let before = self.keeper.guest_state();
        let mut actions = Vec::new();
        self.keeper.step(boot_time(), event, &mut actions);
        let stay = self.apply(actions).await;
        self.settle_level3();
        self.publish();
        if self.keeper.guest_state() != before {
            tracing::info!(guest = ?self.keeper.guest_state(), "the guest's state changed");
            self.master.report_at_once();
        }
        stay
    }

    /// The newest record known.
    fn vm(&self) -> &Vm {
        self.keeper.vm()
    }
}

impl Inbox {
    async fn next(&mut self) -> Event {
        tokio::select! {
            // In this order: what the lease and the guest's life depend on comes first.
            biased;
            _ = self.terminate.recv() => Event::Terminate,
            _ = self.interrupt.recv() => Event::Terminate,
            Some(notice) = self.master.recv() => Event::Master(notice),
            Some(notice) = self.guest.recv() => Event::Guest(notice),
            Some(event) = self.disks.recv() => Event::Disk(event),
            Some(notice) = self.links.recv() => Event::Links(notice),
            Some((since, result)) = self.went_on.recv() => Event::WentOn { since, result },
            Some(notice) = self.level3.recv() => Event::Level3(notice),
            Some(channel) = self.wanted.recv() => Event::StreamWanted(channel),
            Some((since, cause, clean)) = self.flushed.recv() => Event::Flushed { since, cause, clean },
            Some(call) = self.local.recv() => Event::Local(call),
            _ = self.tick.tick() => Event::Tick,
        }
    }
}
