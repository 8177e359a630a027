//! What the pool master decides for all guests: which host is dead, which guest is started where, what is wrong.
//!
//! Only the Raft leader runs it, and it only proposes: each decision is a conditional commit that the pool state may refuse.
//!
//! A guest is given to another host when *all* of this holds:
//! - its active host was silent for the detection time: no heartbeat on any path and no report of the guest's AM (or the
//!   host lives but that AM has been silent for much longer: then it is stuck or can't be started);
//! - every lease that it may hold has run out, and 5 % more for clocks that run at different rates. A new master does
//!   not know what its predecessor granted, and waits that long from its own election;
//! - the other host is alive and holds a good replica of every disk.
//!
//! Where the other host holds the guest's memory (level 3) the second point falls away, and the guest goes on there at once:
//! nothing leaves the old active host without the other one's confirmation, whatever lease it has.
//!
//! `hosts` says who is alive, `guests` what becomes of each guest, `alerts` what a person should know.

mod alerts;
mod guests;
mod hosts;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_memory;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::authority::{AuthorityChange, Power};
use crate::ids::{Generation, HostId, MemberId, VmId};
use crate::pool::{Command, Compared, PoolState};
use crate::report::{AmReport, Comparison};
use crate::time::Instant;
use crate::vm::{Level, Vm};

pub use hosts::{HostView, Path};

/// Clocks of two machines may run at rates that differ by this much: a hundredth part is a hundred times what quartz does.
const CLOCK_ALLOWANCE_PERCENT: u32 = 5;
/// A proposal without a visible result is made again, the same, after this time.
const PROPOSAL_REPEAT: Duration = Duration::from_secs(1);

/// A proposal whose outcome is not known.
#[derive(Debug)]
struct Pending {
    seen: Generation,
    at: Instant,
    change: AuthorityChange,
}

/// The engine. One task owns it.
#[derive(Debug)]
pub struct Master {
    /// The member that runs this engine.
    me: HostId,
    leader_since: Option<Instant>,
    last_tick: Option<Instant>,
    /// Since when this engine has run without a gap: what was not heard before may have been missed here.
    awake_since: Option<Instant>,
    heard: BTreeMap<(HostId, Path), Instant>,
    first_heard: BTreeMap<HostId, Instant>,
    reports: BTreeMap<(VmId, HostId), (Instant, AmReport)>,
    /// Latest time, on this clock, at which a lease that was granted here can still count.
    granted_until: BTreeMap<VmId, Instant>,
    /// Proposals whose outcome is not known. A proposal that seems lost can still be committed, however late: until the
    /// record moves on or the refusal is known, no other is made and no lease is granted under a record that is to go.
    pending: BTreeMap<VmId, Pending>,
    restarts: BTreeMap<VmId, guests::Restarts>,
    /// Since when a guest of a lower start order has been awaited.
    waiting_since: BTreeMap<VmId, Instant>,
    /// Voters that do not answer, and since when.
    silent_voters: BTreeMap<MemberId, Instant>,
    /// Since when a guest at level 3 has run without a host that could go on from its memory.
    without_memory_since: BTreeMap<VmId, Instant>,
}

impl Master {
    #[must_use]
    pub fn new(me: HostId) -> Self {
        Self {
            me,
            leader_since: None,
            last_tick: None,
            awake_since: None,
            heard: BTreeMap::new(),
            first_heard: BTreeMap::new(),
            reports: BTreeMap::new(),
            granted_until: BTreeMap::new(),
            pending: BTreeMap::new(),
            restarts: BTreeMap::new(),
            waiting_since: BTreeMap::new(),
            silent_voters: BTreeMap::new(),
            without_memory_since: BTreeMap::new(),
        }
    }

    /// This member was elected: nothing that a predecessor knew is known here, but for the heartbeats.
    pub fn elected(&mut self, now: Instant) {
        let heard = std::mem::take(&mut self.heard);
        let (awake_since, last_tick) = (self.awake_since, self.last_tick);
        *self = Self { leader_since: Some(now), awake_since, last_tick, heard, ..Self::new(self.me) };
    }

    /// This member leads no longer.
    pub fn deposed(&mut self) {
        self.leader_since = None;
    }

    /// Whether this engine believes that it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leader_since.is_some()
    }

    /// A heartbeat of a host came in on a path. Taken in also while not leading, so that a new master is not blind.
    pub fn heartbeat(&mut self, now: Instant, host: HostId, path: Path) {
        self.first_heard.entry(host).or_insert(now);
        self.heard.insert((host, path), now);
    }

    /// Which voters gave no answer when they were last asked.
    pub fn voters_asked(&mut self, now: Instant, silent: &BTreeSet<MemberId>) {
        self.silent_voters.retain(|voter, _| silent.contains(voter));
        for voter in silent {
            self.silent_voters.entry(*voter).or_insert(now);
        }
    }

    /// An AM reported. Returns the lease to grant. The caller must have confirmed, *after* the report came in, that this member
    /// still leads (a Raft read index), and `state` must be at least as new as that confirmation.
    pub fn report(&mut self, now: Instant, report: AmReport, state: &PoolState) -> Option<Duration> {
        self.leader_since?;
        let (id, host) = (report.vm, report.host);
        self.reports.insert((id, host), (now, report));
        let vm = state.vms.get(&id)?;
        let lease = Duration::from_millis(state.settings.lease_ms);
        let may_run = vm.authority.active == Some(host) && matches!(vm.authority.power, Power::On { .. });
        let replaced = self.pending.get(&id).is_some_and(|pending| pending.seen == vm.authority.generation);
        if !may_run || replaced || vm.level == Level::Unprotected {
            return None;
        }
        self.granted_until.insert(id, now.after(with_allowance(lease)));
        Some(lease)
    }

    /// The newest report of a VM's AM on a host, and when it came.
    #[must_use]
    pub fn last_report(&self, vm: VmId, host: HostId) -> Option<(Instant, &AmReport)> {
        self.reports.get(&(vm, host)).map(|(at, report)| (*at, report))
    }

    /// Looks at everything and appends the commands to propose. Call it when something changed and every 50 to 100 ms, also while
    /// not leading: a new master that was awake before knows who is silent. `unix_ms` stamps alerts.
    pub fn tick(&mut self, now: Instant, unix_ms: u64, state: &PoolState, out: &mut Vec<Command>) {
        self.note_own_stall(now, state);
        if self.leader_since.is_none() || state.pool.is_none() {
            return;
        }
        self.forget_what_is_gone(state);
        self.settle_guests(now, state, out);
        self.settle_comparisons(state, out);
        self.note_lacking_memory(now, state);
        self.settle_alerts(now, unix_ms, state, out);
    }

    /// Records each comparison that an active host's AM has ended. Proposed until the state has it, which counts it once.
    fn settle_comparisons(&self, state: &PoolState, out: &mut Vec<Command>) {
        for vm in state.vms.values() {
            let report = vm.authority.active.and_then(|active| self.reports.get(&(vm.id, active)));
            for disk in report.iter().flat_map(|(_, report)| &report.disks) {
                let Some(comparison) = disk.comparison.filter(|comparison| comparison.complete) else { continue };
                let Some(unix_ms) = comparison.ended_unix_ms else { continue };
                if state.compared.get(&disk.disk).is_none_or(|last| last.unix_ms < unix_ms) {
                    let Comparison { compared_bytes, different_bytes, repaired_bytes, .. } = comparison;
                    let outcome = Compared { unix_ms, compared_bytes, different_bytes, repaired_bytes };
                    out.push(Command::DiskCompared { vm: vm.id, disk: disk.disk, outcome });
                }
            }
        }
    }

    /// When this host stood still (frozen, or short of processors), it must not take its own silence for the others'.
    fn note_own_stall(&mut self, now: Instant, state: &PoolState) {
        let stalled = Duration::from_millis(state.settings.detection_ms) / 2;
        if self.last_tick.is_none_or(|last| now.since(last) >= stalled) {
            self.awake_since = Some(now);
        }
        self.last_tick = Some(now);
    }

    fn forget_what_is_gone(&mut self, state: &PoolState) {
        self.reports.retain(|(vm, host), _| state.vms.get(vm).is_some_and(|vm| vm.hosts.contains(host)));
        self.granted_until.retain(|vm, _| state.vms.contains_key(vm));
        self.restarts.retain(|vm, _| state.vms.contains_key(vm));
        self.waiting_since.retain(|vm, _| state.vms.contains_key(vm));
        self.pending.retain(|vm, pending| state.vms.get(vm).is_some_and(|vm| vm.authority.generation == pending.seen));
        self.heard.retain(|(host, _), _| state.members.contains_key(host));
        self.first_heard.retain(|host, _| state.members.contains_key(host));
    }

    /// The pool state refused the change proposed at generation `seen`: it will not be committed any more.
    pub fn proposal_refused(&mut self, vm: VmId, seen: Generation) {
        if self.pending.get(&vm).is_some_and(|pending| pending.seen == seen) {
            self.pending.remove(&vm);
        }
    }

    fn propose(&mut self, now: Instant, vm: &Vm, change: AuthorityChange, out: &mut Vec<Command>) {
        let seen = vm.authority.generation;
        self.pending.insert(vm.id, Pending { seen, at: now, change: change.clone() });
        out.push(Command::VmAuthority { id: vm.id, if_generation: seen, change });
    }

    /// Whether a proposal is under way for this VM; one that has been for long is made again.
    fn is_pending(&mut self, now: Instant, vm: &Vm, out: &mut Vec<Command>) -> bool {
        let Some(pending) = self.pending.get(&vm.id) else { return false };
        if now.since(pending.at) >= PROPOSAL_REPEAT {
            let change = pending.change.clone();
            self.propose(now, vm, change, out);
        }
        true
    }

    /// Whether no lease that the active host may hold for this VM can still count.
    fn lease_surely_over(&self, now: Instant, vm: &Vm, state: &PoolState) -> bool {
        let lease = with_allowance(Duration::from_millis(state.settings.lease_ms));
        let Some(since) = self.leader_since else { return false };
        now >= since.after(lease) && self.granted_until.get(&vm.id).is_none_or(|until| now >= *until)
    }
}

fn with_allowance(lease: Duration) -> Duration {
    lease + lease * CLOCK_ALLOWANCE_PERCENT / 100
}
