//! Which changes of a VM's authority record are allowed.
//!
//! ```text
//!            Start{host}                       ReplicaLost / ReplicaGood
//!   Off ───────────────────► On{since} ──────────────┐
//!    ▲                        │  ▲  └────────────────┘ (same since: the guest goes on)
//!    └────────────────────────┘  ├── Start{host}: a restart or a takeover (new since)
//!              Ended             └── Continue{host}: a takeover from memory (new since)
//!                                       (Off ──Revert{host}──► Off: a person takes an older state)
//! ```
//!
//! At level 3 `memory` names the host that may go on from the guest's memory:
//!
//! ```text
//!            MemoryHeld{host}
//!   None ───────────────────────────────► Some(host) ── Continue{host}: active, and the only good replicas
//!    ▲                                        │
//!    └────────────────────────────────────────┘
//!      StandbyLost, ReplicaLost of that host: memory and replicas at once; Start, Ended, another level
//! ```
//!
//! While it is held, the standby's disks are those of the newest checkpoint and the active host's are ahead of them: nothing
//! that was let out is missing there, but writes that were acknowledged to the guest may be. So whatever ends the
//! guest's memory otherwise than by going on from it leaves only one side's replicas good.
//!
//! Every allowed change raises the generation by one; a refused one changes nothing.

use std::collections::BTreeSet;

use super::command::Refusal;
use crate::authority::{Authority, AuthorityChange, Origin, Power};
use crate::ids::{DiskId, HostId};
use crate::vm::{Desired, Level, Vm};

/// The record after `change`, or why it may not be changed so.
pub(super) fn changed(vm: &Vm, change: &AuthorityChange) -> Result<Authority, Refusal> {
    let mut record = vm.authority.clone();
    match *change {
        AuthorityChange::ReplicaLost { disk, host } => lose(&mut record, disk, host)?,
        AuthorityChange::MemoryHeld { host } => hold_memory(vm, &mut record, host)?,
        AuthorityChange::StandbyLost { host } => lose_standby(&mut record, host)?,
        AuthorityChange::Continue { host } => go_on(vm, &mut record, host)?,
        AuthorityChange::ReplicaGood { disk, host } => {
            if !vm.hosts.contains(&host) {
                return Err(Refusal::NotAHostOfTheVm);
            }
            record.good.get_mut(&disk).ok_or(Refusal::NoSuchDisk)?.insert(host);
        }
        AuthorityChange::Start { host, clean } => start(vm, &mut record, host, clean)?,
        AuthorityChange::Ended { clean } => end(&mut record, clean)?,
        AuthorityChange::Revert { host } => revert(vm, &mut record, host)?,
    }
    record.generation = record.generation.next();
    if let AuthorityChange::Start { .. } | AuthorityChange::Continue { .. } = change {
        record.power = Power::On { since: record.generation };
    }
    record.standby = standby(&record, &vm.hosts);
    record.memory = memory(&record, vm.level, &vm.hosts);
    Ok(record)
}

/// Whether the host that holds the guest's memory may still go on from it.
fn memory(record: &Authority, level: Level, hosts: &BTreeSet<HostId>) -> Option<HostId> {
    let runs = level == Level::System && record.power != Power::Off;
    record
        .memory
        .filter(|host| runs && hosts.contains(host) && record.active != Some(*host) && record.holds_all_good(*host))
}

fn lose(record: &mut Authority, disk: DiskId, host: HostId) -> Result<(), Refusal> {
    let good = record.good.get_mut(&disk).ok_or(Refusal::NoSuchDisk)?;
    match record.memory {
        Some(holder) if holder == host => return lose_standby(record, host),
        // What the guest wrote since the last checkpoint is nowhere else: it goes on from there, or not at all.
        Some(_) if record.active == Some(host) => return Err(Refusal::MemoryIsElsewhere),
        Some(_) | None => {}
    }
    if good.len() == 1 && good.contains(&host) {
        return Err(Refusal::LastGoodReplica);
    }
    good.remove(&host);
    Ok(())
}

fn hold_memory(vm: &Vm, record: &mut Authority, host: HostId) -> Result<(), Refusal> {
    let Power::On { .. } = record.power else { return Err(Refusal::NotRunning) };
    if vm.level != Level::System {
        return Err(Refusal::NotSystemLevel);
    }
    if !vm.hosts.contains(&host) {
        return Err(Refusal::NotAHostOfTheVm);
    }
    let Some(active) = record.active.filter(|active| *active != host) else { return Err(Refusal::IsActive) };
    if !record.holds_all_good(host) || !record.holds_all_good(active) {
        return Err(Refusal::ReplicaNotGood);
    }
    record.memory = Some(host);
    Ok(())
}

fn lose_standby(record: &mut Authority, host: HostId) -> Result<(), Refusal> {
    if record.active == Some(host) {
        return Err(Refusal::IsActive);
    }
    if record.good.values().any(|good| good.len() == 1 && good.contains(&host)) {
        return Err(Refusal::LastGoodReplica);
    }
    for good in record.good.values_mut() {
        good.remove(&host);
    }
    record.memory = record.memory.filter(|holder| *holder != host);
    Ok(())
}

fn go_on(vm: &Vm, record: &mut Authority, host: HostId) -> Result<(), Refusal> {
    if record.memory != Some(host) {
        return Err(Refusal::MemoryNotHeld);
    }
    if matches!(vm.desired, Desired::Shutdown | Desired::ForceOff) {
        return Err(Refusal::NotDesired);
    }
    keep_only(record, host);
    record.active = Some(host);
    record.clean = false;
    record.memory = None;
    record.origin = Origin::Memory;
    Ok(())
}

fn start(vm: &Vm, record: &mut Authority, host: HostId, clean: bool) -> Result<(), Refusal> {
    if !vm.hosts.contains(&host) {
        return Err(Refusal::NotAHostOfTheVm);
    }
    if !record.holds_all_good(host) {
        return Err(Refusal::ReplicaNotGood);
    }
    if matches!(vm.desired, Desired::Shutdown | Desired::ForceOff) {
        return Err(Refusal::NotDesired);
    }
    let was_clean = clean && record.memory.is_none() && (record.clean || record.power != Power::Off);
    if !was_clean {
        keep_only(record, host);
    }
    record.active = Some(host);
    record.clean = false;
    record.memory = None;
    record.origin = Origin::Boot;
    Ok(())
}

/// After an unclean end all replicas that were good stay so (each holds every acknowledged write, or, at level 3, all that
/// was let out), but they may differ: the next start, wherever it is, keeps only its own host's. What a guest wrote
/// last before it was shut down properly is on the active host alone where the other one held its memory.
fn end(record: &mut Authority, clean: bool) -> Result<(), Refusal> {
    let Power::On { .. } = record.power else { return Err(Refusal::NotRunning) };
    let held = record.memory.take().is_some();
    if let Some(active) = record.active.filter(|active| held && clean && record.holds_all_good(*active)) {
        keep_only(record, active);
    }
    record.power = Power::Off;
    record.clean = clean;
    Ok(())
}

fn revert(vm: &Vm, record: &mut Authority, host: HostId) -> Result<(), Refusal> {
    if !vm.hosts.contains(&host) {
        return Err(Refusal::NotAHostOfTheVm);
    }
    if record.power != Power::Off {
        return Err(Refusal::VmRuns(vm.name.clone()));
    }
    if record.holds_all_good(host) {
        return Err(Refusal::NothingToRevert);
    }
    keep_only(record, host);
    record.active = Some(host);
    Ok(())
}

/// Only one side counts until the other was brought in step by delta copy.
fn keep_only(record: &mut Authority, host: HostId) {
    for good in record.good.values_mut() {
        *good = BTreeSet::from([host]);
    }
}

/// The host, other than the active one, that could take over without losing anything.
pub(super) fn standby(record: &Authority, hosts: &BTreeSet<HostId>) -> Option<HostId> {
    hosts.iter().copied().find(|host| Some(*host) != record.active && record.holds_all_good(*host))
}

/// The record after the VM's level or hosts were changed. Its generation rises in any case: an AM that holds an older
/// level or older hosts is known to hold an older record, and a late copy of it can't undo the newer one.
pub(super) fn placed(vm: &Vm, level: Level, hosts: &BTreeSet<HostId>) -> Result<Authority, Refusal> {
    let mut record = vm.authority.clone();
    // The active host of a guest at level 3 may be ahead of the other one's disks, also before the memory is on record;
    // at a lower level every replica that counts holds every acknowledged write. A last good one is ahead of nothing.
    let leaves_system = vm.level == Level::System && level != Level::System && record.power != Power::Off;
    let active = vm.authority.active;
    for host in vm.hosts.iter().filter(|host| leaves_system && active != Some(**host)) {
        lose_standby(&mut record, *host).ok();
    }
    for good in record.good.values_mut() {
        good.retain(|host| hosts.contains(host));
        if good.is_empty() {
            return Err(Refusal::NoGoodReplicaLeft);
        }
    }
    if record.active.is_some_and(|active| !hosts.contains(&active)) {
        record.active = None;
    }
    record.standby = standby(&record, hosts);
    record.memory = memory(&record, level, hosts);
    record.generation = record.generation.next();
    Ok(record)
}
