//! One simulated host: its clock, its master engine, its AM and its guest.

use std::time::Duration;

use ev_core::availability::keeper::{Action, Event, Gate, Keeper};
use ev_core::availability::master::Master;
use ev_core::ids::{Generation, HostId};
use ev_core::time::Instant;
use ev_core::vm::Vm;

/// What a host is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Up,
    Frozen,
    Down,
}

pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) life: Life,
    /// Reading of its clock at real time 0, and how fast it runs, in thousandths.
    offset_ns: u64,
    rate_per_mille: u64,
    pub(super) master: Master,
    pub(super) keeper: Option<Keeper>,
    /// Survives a crash.
    pub(super) started: Generation,
    pub(super) gate: Gate,
    pub(super) qemu: Option<Generation>,
    /// Real time of the next report.
    pub(super) next_report_ms: u64,
    /// Real time since which the partner's AM could be reached or not.
    pub(super) partner_changed_ms: u64,
    pub(super) partner_reachable: bool,
}

impl Host {
    pub(super) fn new(id: HostId, offset_ns: u64, rate_per_mille: u64) -> Self {
        Self {
            id,
            life: Life::Up,
            offset_ns,
            rate_per_mille,
            master: Master::new(id),
            keeper: None,
            started: Generation::NONE,
            gate: Gate::Closed,
            qemu: None,
            next_report_ms: 0,
            partner_changed_ms: 0,
            partner_reachable: true,
        }
    }

    /// This host's clock at a real time.
    pub(super) fn clock(&self, real_ms: u64) -> Instant {
        Instant(self.offset_ns + real_ms * 1_000 * self.rate_per_mille)
    }

    /// Whether what the guest does could be seen outside at this real time.
    pub(super) fn lets_out(&self, real_ms: u64) -> bool {
        let open = match self.gate {
            Gate::Closed => false,
            Gate::Open => true,
            Gate::OpenUntil(until) => self.clock(real_ms) < until,
        };
        self.life == Life::Up && self.qemu.is_some() && open
    }

    /// A power cut: memory is lost, the marker is not.
    pub(super) fn crash(&mut self) {
        self.life = Life::Down;
        self.keeper = None;
        self.qemu = None;
        self.gate = Gate::Closed;
        self.master = Master::new(self.id);
    }

    /// The AM's process dies; the guest lives on.
    pub(super) fn crash_am(&mut self) {
        self.keeper = None;
        self.gate = Gate::Closed;
    }

    /// Starts an AM from what its configuration file says.
    pub(super) fn start_am(&mut self, real_ms: u64, grace: Duration, vm: Vm) -> Vec<Action> {
        let mut keeper = Keeper::new(self.id, grace, vm, self.started);
        let mut actions = Vec::new();
        if let Some(since) = self.qemu {
            let paused = ev_core::availability::keeper::Paused::No;
            keeper.step(self.clock(real_ms), Event::Attached { since, paused }, &mut actions);
        }
        self.keeper = Some(keeper);
        self.next_report_ms = real_ms;
        actions
    }
}
