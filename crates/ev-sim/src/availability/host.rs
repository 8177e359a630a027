//! One simulated host: its clock, its master engine, its AM with what that holds in memory, its guest and its disk.

use std::collections::BTreeMap;
use std::time::Duration;

use ev_core::availability::keeper::{Action, Event, Gate, Keeper, Paused, Role};
use ev_core::availability::master::Master;
use ev_core::checkpoint::{Epoch, Output, Primary, Session};
use ev_core::ids::{Generation, HostId};
use ev_core::time::Instant;
use ev_core::vm::Vm;

use super::content::Content;

/// What a host is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Up,
    Frozen,
    Down,
}

/// A running QEMU. It outlives its AM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Qemu {
    pub(super) since: Generation,
    pub(super) memory: Content,
    /// What was written to disk and acknowledged.
    pub(super) disk: Content,
    /// Whether it has written anything yet.
    pub(super) wrote: bool,
    pub(super) paused: bool,
}

/// A guest's state at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) memory: Content,
    pub(super) disk: Content,
}

/// What a standby holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Image {
    pub(super) session: Session,
    pub(super) decided: Epoch,
    pub(super) newest: Option<Checkpoint>,
    /// The newest reading of the active host's clock that came.
    pub(super) clock: Instant,
}

/// The other replica, as the AM of the active host writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirror {
    /// Each write is acknowledged when both have it.
    InStep { asked: Generation },
    /// Each write is acknowledged when this host has it, and staged over there (level 3).
    Ahead,
    /// Nothing is acknowledged before a record newer than this says that the other one does not count.
    Waiting { asked: Generation },
    /// It does not count.
    Behind,
}

/// What an AM's process knows of the pair; gone with it.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) role: Option<Role>,
    pub(super) mirror: Mirror,
    pub(super) primary: Option<Primary>,
    pub(super) session: Option<Session>,
    pub(super) output: Output,
    pub(super) taken: BTreeMap<Epoch, Checkpoint>,
    /// A pause that is under way, until when, and when it began.
    pub(super) pausing: Option<(Epoch, u64, u64)>,
    pub(super) image: Option<Image>,
    /// The link that the primary was told of.
    pub(super) link: Option<u64>,
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            role: None,
            mirror: Mirror::Behind,
            primary: None,
            session: None,
            output: Output::Free,
            taken: BTreeMap::new(),
            pausing: None,
            image: None,
            link: None,
        }
    }
}

pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) life: Life,
    /// Reading of its clock at real time 0, and how fast it runs, in thousandths.
    offset_ns: u64,
    rate_per_mille: u64,
    pub(super) master: Master,
    pub(super) keeper: Option<Keeper>,
    pub(super) pair: Pair,
    /// These two survive a crash.
    pub(super) started: Generation,
    pub(super) disk: Content,
    pub(super) gate: Gate,
    pub(super) qemu: Option<Qemu>,
    /// Real time of the next report.
    pub(super) next_report_ms: u64,
    /// Real time since which the partner's AM could be reached or not.
    pub(super) partner_changed_ms: u64,
    pub(super) partner_reachable: bool,
    /// What was let out last, and the real time.
    pub(super) let_out: Option<(Checkpoint, u64)>,
}

impl Host {
    pub(super) fn new(id: HostId, offset_ns: u64, rate_per_mille: u64, disk: Content) -> Self {
        Self {
            id,
            life: Life::Up,
            offset_ns,
            rate_per_mille,
            master: Master::new(id),
            keeper: None,
            pair: Pair::default(),
            started: Generation::NONE,
            disk,
            gate: Gate::Closed,
            qemu: None,
            next_report_ms: 0,
            partner_changed_ms: 0,
            partner_reachable: true,
            let_out: None,
        }
    }

    /// This host's clock at a real time.
    pub(super) fn clock(&self, real_ms: u64) -> Instant {
        Instant(self.offset_ns + real_ms * 1_000 * self.rate_per_mille)
    }

    pub(super) fn gate_is_open(&self, real_ms: u64) -> bool {
        match self.gate {
            Gate::Closed => false,
            Gate::Open => true,
            Gate::OpenUntil(until) => self.clock(real_ms) < until,
        }
    }

    /// Whether what the guest does is seen outside at this real time without anyone's confirmation.
    pub(super) fn lets_out_freely(&self, real_ms: u64) -> bool {
        let held = matches!(self.pair.output, Output::Through(_));
        self.life == Life::Up && self.qemu.is_some() && !held && self.gate_is_open(real_ms)
    }

    /// What of the guest may be seen outside at this real time.
    pub(super) fn lets_out(&self, real_ms: u64) -> Option<Checkpoint> {
        let qemu = self.qemu.filter(|_| self.life == Life::Up && self.gate_is_open(real_ms))?;
        match self.pair.output {
            Output::Free => Some(Checkpoint { memory: qemu.memory, disk: qemu.disk }),
            Output::Through(epoch) => self.pair.taken.get(&epoch).copied(),
        }
    }

    /// A power cut: memory is lost; the marker and the disk are not.
    pub(super) fn crash(&mut self) {
        self.life = Life::Down;
        self.crash_am();
        self.qemu = None;
        self.master = Master::new(self.id);
    }

    /// The AM's process dies; the guest lives on.
    pub(super) fn crash_am(&mut self) {
        self.keeper = None;
        self.pair = Pair::default();
        self.gate = Gate::Closed;
    }

    /// Starts an AM from what its configuration file says.
    pub(super) fn start_am(&mut self, real_ms: u64, grace: Duration, vm: Vm) -> Vec<Action> {
        let mut keeper = Keeper::new(self.id, grace, vm, self.started);
        let mut actions = Vec::new();
        if let Some(qemu) = self.qemu {
            let paused = if qemu.paused { Paused::Yes } else { Paused::No };
            keeper.step(self.clock(real_ms), Event::Attached { since: qemu.since, paused }, &mut actions);
        }
        self.keeper = Some(keeper);
        self.next_report_ms = real_ms;
        actions
    }
}
