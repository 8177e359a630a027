//! From a configuration file to a working AM: the lock, what is left of an earlier process, sockets, tasks.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::Context;
use ev_core::availability::keeper::{self, Keeper};
use ev_core::ids::Generation;
use ev_core::report::GuestState;
use ev_mirror::gate::boot_time;
use ev_mirror::{DiskEvent, Gate};
use ev_vm::{Guest, Qemu, RunState};
use ev_wire::am::AmConfig;
use ev_wire::identity::Identity;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Am, Inbox, Outbox, RunningGuest, Stay, TICK};
use crate::disks::{Disks, Troubles};
use crate::guest::{self, GuestNotice, GuestTask};
use crate::links::Tls;
use crate::master::{MasterLink, MasterNotice};
use crate::nics::Nics;
use crate::nics::learned::Learned;
use crate::paths::Paths;
use crate::started::{self, MarkerError, Started};
use crate::{config, local, lock};

/// Events that may wait for the AM, of each kind; what sends more waits.
const EVENTS_MAX: usize = 64;
/// How long a new process that found a running guest waits for its first lease before it looks at the guest: with the
/// lease the guest goes on unpaused.
const FIRST_LEASE_WAIT: Duration = Duration::from_millis(500);

/// How long the process lives on after its work, for the last answer on the local socket.
const LAST_ANSWER_TIME: Duration = Duration::from_millis(100);

/// Runs the AM of the VM that `config_path` describes.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = config::load(config_path)?;
    let paths = Paths::new(&config.state_dir, &config.run_dir);
    for folder in [&config.state_dir, &config.run_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let _lock = lock::take(&paths.am_pid())?;
    tracing::info!(vm = %config.vm.name, id = %config.vm_id, host = %config.host, "ev-am begins");
    let (calls, local_queue) = mpsc::channel(local::CALLS_MAX);
    let _server = local::serve(&paths.am_socket(), calls)?;
    let mut am = Am::new(config, config_path, paths, local_queue)?;
    if am.take_up().await == Stay::Yes {
        am.work().await;
    }
    am.end_standby().await;
    // The answer to a call that ended this process is still on its way.
    tokio::time::sleep(LAST_ANSWER_TIME).await;
    tracing::info!("ev-am ends");
    Ok(())
}

/// What is left here of the guest of an earlier process.
struct Left {
    marker: Option<Started>,
    guest: Option<Guest>,
}

impl Am {
    fn new(
        config: AmConfig,
        config_path: &Path,
        paths: Paths,
        local: mpsc::Receiver<crate::local::LocalCall>,
    ) -> anyhow::Result<Self> {
        let identity = Identity::load(&config.certificate, &config.key, &config.authority_certificate)
            .context("cannot use this host's certificate")?;
        let gate = Arc::new(Gate::new());
        let (events, disk_events) = sync_channel(EVENTS_MAX);
        let disks = Disks::open(&config, &config.vm, &gate, events);
        let (master_notices, master_queue) = mpsc::channel(EVENTS_MAX);
        let report_interval = Duration::from_millis(config.times.report_interval_ms);
        let master = MasterLink::start(&identity, &config.members, report_interval, master_notices);
        let (links_sender, links_queue) = mpsc::channel(EVENTS_MAX);
        let (guest_sender, guest_queue) = guest::notices();
        let (flushed_sender, flushed_queue) = mpsc::channel(1);
        let (level3_sender, level3_queue) = mpsc::channel(EVENTS_MAX);
        let (wanted_sender, wanted_queue) = mpsc::channel(EVENTS_MAX);
        let (went_on_sender, went_on_queue) = mpsc::channel(1);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let inbox = Inbox {
            master: master_queue,
            links: links_queue,
            guest: guest_queue,
            disks: bridge(disk_events)?,
            local,
            flushed: flushed_queue,
            level3: level3_queue,
            wanted: wanted_queue,
            went_on: went_on_queue,
            tick,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let since = started_since(&paths, &config)?;
        Ok(Self {
            keeper: Keeper::new(config.host, Duration::from_millis(config.times.grace_ms), config.vm.clone(), since),
            tls: Tls::new(&identity),
            learned: Learned::read(&paths.learned()),
            qemu: Qemu::at(&config.qemu, config.qemu_data_dir.as_deref()),
            config,
            config_path: config_path.to_owned(),
            paths,
            gate,
            disks,
            master,
            links: None,
            guest: None,
            waiting: None,
            taking_over: None,
            taken_from: None,
            ready_nics: None,
            end_wanted: None,
            troubles: Troubles::default(),
            role: None,
            partner_heard: false,
            inbox,
            outbox: Outbox {
                links: links_sender,
                guest: guest_sender,
                flushed: flushed_sender,
                level3: level3_sender,
                wanted: wanted_sender,
                went_on: went_on_sender,
            },
            ticks: 0,
        })
    }

    /// Takes up what an earlier process left: a running QEMU, or one that ended.
    async fn take_up(&mut self) -> Stay {
        let left = self.look().await;
        let mut report = self.report();
        let since = left.marker.as_ref().map_or(Generation::NONE, |marker| marker.since);
        if left.guest.is_some() {
            report.guest = GuestState::Running { since };
        }
        self.master.set_report(report);
        self.master.report_at_once();
        let ended = left.marker.and_then(|marker| marker.end);
        if let Some(guest) = left.guest {
            return self.take_up_guest(since, guest).await;
        }
        if let Some(end) = ended {
            // The keeper only knows that a guest was started: tell it how that one ended.
            let attached = keeper::Event::Attached { since, paused: keeper::Paused::Yes };
            if self.step(attached).await == Stay::No {
                return Stay::No;
            }
            return self.step(keeper::Event::Ended { cause: end.cause, clean: end.clean }).await;
        }
        self.step(keeper::Event::Tick).await
    }

    async fn look(&self) -> Left {
        let marker = started::read(&self.paths.started()).ok().flatten();
        let guest = match Guest::attach(&self.guest_paths()).await {
            Ok(guest) => guest,
            Err(error) => {
                tracing::error!(%error, "a QEMU of this VM may be running but can't be taken up");
                None
            }
        };
        let guest = match guest {
            Some(guest) => without_waiting(guest).await,
            None => None,
        };
        Left { marker, guest }
    }

    /// Takes up a running QEMU. The keeper hears of it together with the first answer of a master, if that comes soon:
    /// with the lease the guest need not be paused. Until then the gate is closed: it runs, and nothing of it gets out.
    async fn take_up_guest(&mut self, since: Generation, guest: Guest) -> Stay {
        tracing::info!(%since, pid = guest.pid(), "taking up the guest of an earlier ev-am");
        let gate = Arc::clone(&self.gate);
        let (hold, origin) = self.hold_of_taken_up();
        let nics =
            Nics::connect(self.vm(), &self.guest_paths(), Arc::new(move || gate.is_open()), Arc::clone(&hold)).await;
        let task = GuestTask::attach(since, guest, self.outbox.guest.clone());
        self.guest = Some(RunningGuest::new(task, nics, hold, origin));
        let Some((_, GuestNotice::Up { running, accelerator, guest: up })) = self.inbox.guest.recv().await else {
            // It ended in this very moment: then it counts as any guest that was started here and is gone.
            self.guest = None;
            return self.step(keeper::Event::Tick).await;
        };
        if let Some(guest) = &mut self.guest {
            guest.accelerator = accelerator;
        }
        self.begin_level3(up);
        let paused = if running { keeper::Paused::No } else { keeper::Paused::Yes };
        let (now, mut actions) = (boot_time(), Vec::new());
        if let Ok(Some(MasterNotice::Directive { asked_at, directive })) =
            timeout(FIRST_LEASE_WAIT, self.inbox.master.recv()).await
        {
            let vm = directive.vm.map_or(keeper::Event::VmGone, |vm| keeper::Event::Vm(Box::new(vm)));
            self.keeper.step(now, vm, &mut actions);
            let lease = directive.lease_ms.map(Duration::from_millis);
            self.keeper.step(now, keeper::Event::Directive { asked_at, lease }, &mut actions);
        }
        self.keeper.step(now, keeper::Event::Attached { since, paused }, &mut actions);
        let stay = self.apply(actions).await;
        self.publish();
        stay
    }
}

/// A QEMU that an earlier process had wait for the guest's memory is of no use any more: it is ended.
async fn without_waiting(guest: Guest) -> Option<Guest> {
    let status = async { guest.qmp().await?.status().await };
    let waits =
        matches!(timeout(FIRST_LEASE_WAIT, status).await, Ok(Ok(RunState::Other(state))) if state == "inmigrate");
    if !waits {
        return Some(guest);
    }
    tracing::info!(pid = guest.pid(), "ending a QEMU that waited for an earlier ev-am");
    if let Err(error) = guest.kill() {
        tracing::error!(pid = guest.pid(), %error, "cannot end a waiting QEMU; end it by hand");
    }
    guest.exited().await;
    None
}

/// What the marker says; a damaged one counts as started under the present record, so that a new one is needed.
fn started_since(paths: &Paths, config: &AmConfig) -> anyhow::Result<Generation> {
    match started::read(&paths.started()) {
        Ok(marker) => Ok(marker.map_or(Generation::NONE, |marker| marker.since)),
        Err(error @ MarkerError::Damaged { .. }) => {
            tracing::error!(%error, "the marker of the last start is damaged");
            Ok(config.vm.authority.generation)
        }
        Err(error) => Err(error.into()),
    }
}

/// Brings the events of the disks' threads to the AM's task.
fn bridge(events: Receiver<DiskEvent>) -> anyhow::Result<mpsc::Receiver<DiskEvent>> {
    let (sender, queue) = mpsc::channel(EVENTS_MAX);
    std::thread::Builder::new().name("disk-events".into()).spawn(move || {
        while let Ok(event) = events.recv() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(queue)
}
