//! Which changes of a VM's authority record are allowed.
//!
//! ```text
//!            Start{host}                       ReplicaLost / ReplicaGood
//!   Off ───────────────────► On{since} ──────────────┐
//!    ▲                        │  ▲  └────────────────┘ (same since: the guest goes on)
//!    └────────────────────────┘  └── Start{host}: a restart or a takeover (new since)
//!              Ended                    (Off ──Revert{host}──► Off: a person takes an older state)
//! ```
//!
//! Every allowed change raises the generation by one; a refused one changes nothing.

use std::collections::BTreeSet;

use super::command::Refusal;
use crate::authority::{Authority, AuthorityChange, Power};
use crate::ids::{DiskId, HostId};
use crate::vm::{Desired, Vm};

/// The record after `change`, or why it may not be changed so.
pub(super) fn changed(vm: &Vm, change: &AuthorityChange) -> Result<Authority, Refusal> {
    let mut record = vm.authority.clone();
    match *change {
        AuthorityChange::ReplicaLost { disk, host } => lose(&mut record, disk, host)?,
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
    if let AuthorityChange::Start { .. } = change {
        record.power = Power::On { since: record.generation };
    }
    record.standby = standby(&record, &vm.hosts);
    Ok(record)
}

fn lose(record: &mut Authority, disk: DiskId, host: HostId) -> Result<(), Refusal> {
    let good = record.good.get_mut(&disk).ok_or(Refusal::NoSuchDisk)?;
    if good.len() == 1 && good.contains(&host) {
        return Err(Refusal::LastGoodReplica);
    }
    good.remove(&host);
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
    let was_clean = clean && (record.clean || record.power != Power::Off);
    if !was_clean {
        keep_only(record, host);
    }
    record.active = Some(host);
    record.clean = false;
    Ok(())
}

/// After an unclean end all replicas that were good stay so (each holds every acknowledged write), but they may differ in
/// writes that were under way: the next start, wherever it is, keeps only its own host's.
fn end(record: &mut Authority, clean: bool) -> Result<(), Refusal> {
    let Power::On { .. } = record.power else { return Err(Refusal::NotRunning) };
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
pub(super) fn placed(vm: &Vm, hosts: &BTreeSet<HostId>) -> Result<Authority, Refusal> {
    let mut record = vm.authority.clone();
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
    record.generation = record.generation.next();
    Ok(record)
}
