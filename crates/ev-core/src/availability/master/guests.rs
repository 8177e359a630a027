//! What becomes of each guest.

use std::cmp::Reverse;
use std::time::Duration;

use super::Master;
use super::hosts::HostView;
use crate::authority::{AuthorityChange, Power};
use crate::ids::{Generation, HostId, VmId};
use crate::pool::{Command, PoolState};
use crate::report::{EndCause, GuestState};
use crate::time::Instant;
use crate::vm::{Desired, Level, Vm};

/// A guest waits at most this long for those of a lower start order; then it starts all the same.
const START_ORDER_WAIT: Duration = Duration::from_secs(30);
/// A guest that fails again is restarted after this time, doubled with each failure up to the last.
const RESTART_PAUSE_FIRST: Duration = Duration::from_secs(1);
const RESTART_PAUSE_LAST: Duration = Duration::from_secs(60);
/// A guest that has run for this long has not failed to start.
const RESTART_FORGET: Duration = Duration::from_secs(300);
/// From this many failures in a row on, the other host is tried in turn.
const FAILURES_BEFORE_OTHER_HOST: u32 = 3;

/// Failures of one guest in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restarts {
    pub(super) failures: u32,
    last: Instant,
    counted: Generation,
}

/// A guest that has ended, as its AM reported it.
struct Ended {
    since: Generation,
    active: HostId,
    cause: EndCause,
    clean: bool,
}

impl Master {
    pub(super) fn settle_guests(&mut self, now: Instant, state: &PoolState, out: &mut Vec<Command>) {
        let mut vms: Vec<&Vm> = state.vms.values().collect();
        vms.sort_by_key(|vm| (vm.config.start_order, Reverse(vm.level), vm.id));
        for vm in vms {
            if self.is_pending(now, vm, out) {
                continue;
            }
            let change = match vm.authority.power {
                Power::Off => self.start_of(now, vm, state),
                Power::On { since } => self.change_of_running(now, vm, since, state),
            };
            if let Some(change) = change {
                self.propose(now, vm, change, out);
            }
        }
    }

    /// A guest that is off and wished to run starts where it ran last, or at once on the other host if that one is away.
    fn start_of(&mut self, now: Instant, vm: &Vm, state: &PoolState) -> Option<AuthorityChange> {
        if matches!(vm.desired, Desired::Shutdown | Desired::ForceOff) || self.must_wait(now, vm, state) {
            return None;
        }
        let record = &vm.authority;
        let able = |host: &HostId| {
            record.holds_all_good(*host)
                && vm.hosts.contains(host)
                && self.host_view(now, *host, state) == HostView::Alive
        };
        let host = record.active.into_iter().chain(vm.hosts.iter().copied()).find(able)?;
        Some(AuthorityChange::Start { host, clean: true })
    }

    /// Whether a guest of a lower start order is still to come up: at the pool's start as after a host's death.
    fn must_wait(&mut self, now: Instant, vm: &Vm, state: &PoolState) -> bool {
        let blocked = state.vms.values().any(|other| {
            other.config.start_order < vm.config.start_order
                && other.desired == Desired::Running
                && !self.runs(now, other, state)
        });
        if !blocked {
            self.waiting_since.remove(&vm.id);
            return false;
        }
        let from = *self.waiting_since.entry(vm.id).or_insert(now);
        now.since(from) < START_ORDER_WAIT
    }

    fn runs(&self, now: Instant, vm: &Vm, state: &PoolState) -> bool {
        let (Some(active), Power::On { since }) = (vm.authority.active, vm.authority.power) else { return false };
        let report = self.reports.get(&(vm.id, active));
        let runs = report.is_some_and(|(_, report)| report.guest == GuestState::Running { since });
        runs && !self.active_is_dead(now, vm, active, state)
    }

    fn change_of_running(
        &mut self,
        now: Instant,
        vm: &Vm,
        since: Generation,
        state: &PoolState,
    ) -> Option<AuthorityChange> {
        let active = vm.authority.active?;
        if self.active_is_dead(now, vm, active, state) {
            return self.takeover(now, vm, active, state);
        }
        let (_, report) = self.reports.get(&(vm.id, active))?;
        match &report.guest {
            GuestState::Ended { since: of, cause, clean } if *of == since => {
                let ended = Ended { since, active, cause: cause.clone(), clean: *clean };
                self.after_end(now, vm, &ended, state)
            }
            GuestState::Absent
            | GuestState::Starting { .. }
            | GuestState::Running { .. }
            | GuestState::Paused { .. }
            | GuestState::Ended { .. } => None,
        }
    }

    /// The host that can go on from the guest's memory now.
    fn can_go_on(&self, now: Instant, vm: &Vm, state: &PoolState) -> Option<HostId> {
        let wished = !matches!(vm.desired, Desired::Shutdown | Desired::ForceOff);
        vm.authority.memory.filter(|host| wished && self.host_view(now, *host, state) == HostView::Alive)
    }

    fn takeover(&mut self, now: Instant, vm: &Vm, active: HostId, state: &PoolState) -> Option<AuthorityChange> {
        // No lease counts while a standby holds the memory, and a guest that goes on waits for no other one.
        if let Some(host) = self.can_go_on(now, vm, state) {
            return Some(AuthorityChange::Continue { host });
        }
        if vm.level == Level::Unprotected || !self.lease_surely_over(now, vm, state) {
            return None;
        }
        if matches!(vm.desired, Desired::Shutdown | Desired::ForceOff) {
            return Some(AuthorityChange::Ended { clean: false });
        }
        let other = vm.hosts.iter().copied().find(|host| {
            *host != active
                && vm.authority.holds_all_good(*host)
                && self.host_view(now, *host, state) == HostView::Alive
        })?;
        (!self.must_wait(now, vm, state)).then_some(AuthorityChange::Start { host: other, clean: false })
    }

    fn after_end(&mut self, now: Instant, vm: &Vm, ended: &Ended, state: &PoolState) -> Option<AuthorityChange> {
        let Ended { active, clean, .. } = *ended;
        let standby = self.can_go_on(now, vm, state);
        match (vm.desired, &ended.cause) {
            // A QEMU that died is survived like a host that died; it is no failure of the guest to start.
            (_, EndCause::Crashed(_) | EndCause::LeaseLost) if standby.is_some() => {
                standby.map(|host| AuthorityChange::Continue { host })
            }
            (Desired::Shutdown | Desired::ForceOff, _) | (Desired::Running, EndCause::GuestShutdown) => {
                Some(AuthorityChange::Ended { clean })
            }
            (Desired::Reboot | Desired::ForceReboot, EndCause::GuestShutdown | EndCause::Forced) => {
                self.restarts.remove(&vm.id);
                Some(AuthorityChange::Start { host: active, clean })
            }
            (
                Desired::Running | Desired::Reboot | Desired::ForceReboot,
                EndCause::Crashed(_)
                | EndCause::StartFailed(_)
                | EndCause::Forced
                | EndCause::Superseded
                | EndCause::LeaseLost,
            ) => self.restart(now, vm, ended, state),
        }
    }

    /// Once at once, then with a pause that doubles; after some failures on the other host, in turn, if it may.
    fn restart(&mut self, now: Instant, vm: &Vm, ended: &Ended, state: &PoolState) -> Option<AuthorityChange> {
        let Ended { since, active, clean, .. } = *ended;
        let entry =
            self.restarts.entry(vm.id).or_insert(Restarts { failures: 0, last: now, counted: Generation::NONE });
        if entry.counted != since {
            let long_ago = entry.failures > 0 && now.since(entry.last) >= RESTART_FORGET;
            entry.failures = if long_ago { 1 } else { entry.failures + 1 };
            entry.counted = since;
            entry.last = now;
        }
        let Restarts { failures, last, .. } = *entry;
        let pause =
            failures.checked_sub(2).map(|doublings| RESTART_PAUSE_FIRST * 2_u32.saturating_pow(doublings.min(6)));
        if pause.is_some_and(|pause| now.since(last) < pause.min(RESTART_PAUSE_LAST)) || self.must_wait(now, vm, state)
        {
            return None;
        }
        let other = vm
            .authority
            .standby
            .filter(|host| vm.hosts.contains(host) && self.host_view(now, *host, state) == HostView::Alive);
        let holds_all = vm.authority.holds_all_good(active);
        let host = match other {
            Some(other) if !holds_all || (failures >= FAILURES_BEFORE_OTHER_HOST && failures % 2 == 1) => other,
            Some(_) | None => active,
        };
        Some(AuthorityChange::Start { host, clean })
    }

    /// How often in a row a guest failed, for the alert.
    pub(super) fn failures(&self, vm: VmId) -> u32 {
        self.restarts.get(&vm).map_or(0, |restarts| restarts.failures)
    }
}
