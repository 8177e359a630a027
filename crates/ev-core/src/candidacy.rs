//! Whether a VM can be protected at a level, and if not, why not: asked before anything is changed. Also, how the
//! processors of two hosts differ.

use crate::authority::Power;
use crate::ids::HostId;
use crate::pool::{CpuFacts, Member, PoolState};
use crate::vm::{Level, Vm};

/// What is asked: may this VM be protected at this level with this other host?
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub vm: &'a Vm,
    pub level: Level,
    pub partner: &'a Member,
    /// Whether the partner is heard now.
    pub partner_alive: bool,
    /// Free bytes where the partner keeps replicas, if it has told.
    pub partner_free_bytes: Option<u64>,
}

/// One reason against it, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("{0} is down or cut off: bring it back first")]
    PartnerDown(String),
    #[error("{0} already holds the VM: choose another host")]
    PartnerIsHome(String),
    #[error("{host} has {free_bytes} bytes free for replicas, and {needed_bytes} are needed: make room there")]
    NoRoom { host: String, free_bytes: u64, needed_bytes: u64 },
    #[error(
        "{host}'s QEMU {version} has no machine type {machine}: install a QEMU that has it, or create the VM with an older type"
    )]
    MachineMissing { host: String, version: String, machine: String },
    #[error("{host} runs guests with {theirs} and the VM's host with {ours}: both must use the same accelerator")]
    OtherAccelerator { host: String, theirs: String, ours: String },
    #[error(
        "the VM's processor model is the host's own ({0}), which another host can't promise: create it with a named model"
    )]
    HostProcessorModel(String),
    #[error(
        "the processor of {host} lacks {missing}, which the VM may be using: choose a processor model that both hosts have"
    )]
    ProcessorLacks { host: String, missing: String },
    #[error("network {network} is not a network of this pool any more: add it (ev network-add)")]
    NetworkMissing { network: String },
    #[error("no host holds a good replica of every disk: bring the host with the good replica back first")]
    NoGoodReplica,
}

/// Most flags named in a message; more are counted.
const FLAGS_NAMED_MAX: usize = 8;

/// All reasons against it; empty: the VM is a candidate.
#[must_use]
pub fn obstacles(question: &Question<'_>, state: &PoolState) -> Vec<Obstacle> {
    let Question { vm, level, partner, .. } = *question;
    if level == Level::Unprotected {
        return Vec::new();
    }
    let mut found = Vec::new();
    let home = home_of(vm).and_then(|id| state.members.get(&id));
    if home.is_some_and(|home| home.id == partner.id) {
        found.push(Obstacle::PartnerIsHome(partner.name.clone()));
    }
    if !question.partner_alive {
        found.push(Obstacle::PartnerDown(partner.name.clone()));
    }
    let needed_bytes = vm.config.disks.iter().map(|disk| disk.size_bytes).sum();
    let already_there = vm.hosts.contains(&partner.id);
    if let Some(free_bytes) = question.partner_free_bytes.filter(|free| *free < needed_bytes && !already_there) {
        found.push(Obstacle::NoRoom { host: partner.name.clone(), free_bytes, needed_bytes });
    }
    if !partner.machines.contains(&vm.config.machine) {
        found.push(Obstacle::MachineMissing {
            host: partner.name.clone(),
            version: partner.qemu_version.clone(),
            machine: vm.config.machine.clone(),
        });
    }
    if let Some(home) = home {
        found.extend(processor_obstacles(vm, home, partner));
    }
    for nic in vm.config.nics.iter().filter(|nic| !state.networks.contains_key(&nic.network)) {
        found.push(Obstacle::NetworkMissing { network: nic.network.to_string() });
    }
    if !vm.hosts.iter().any(|host| vm.authority.holds_all_good(*host)) {
        found.push(Obstacle::NoGoodReplica);
    }
    found
}

/// The host that the VM lives on now.
fn home_of(vm: &Vm) -> Option<HostId> {
    match vm.authority.power {
        Power::On { .. } => vm.authority.active,
        Power::Off => vm.authority.active.or_else(|| vm.hosts.first().copied()),
    }
}

fn processor_obstacles(vm: &Vm, home: &Member, partner: &Member) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if home.cpu.accelerator != partner.cpu.accelerator {
        found.push(Obstacle::OtherAccelerator {
            host: partner.name.clone(),
            theirs: partner.cpu.accelerator.clone(),
            ours: home.cpu.accelerator.clone(),
        });
    }
    // An emulated processor is the same everywhere; a real one shows the guest what the host has.
    let model = vm.config.cpu_model.as_str();
    let shows_the_host = matches!(model.split(',').next(), Some("host" | "max"));
    if home.cpu.accelerator == "kvm" && shows_the_host {
        found.push(Obstacle::HostProcessorModel(model.to_owned()));
        if let Some(missing) = flags_missing(&home.cpu, &partner.cpu) {
            found.push(Obstacle::ProcessorLacks { host: partner.name.clone(), missing });
        }
    }
    found
}

/// Flags that `theirs` lacks of `ours`, in words; `None` when it lacks none.
#[must_use]
pub fn flags_missing(ours: &CpuFacts, theirs: &CpuFacts) -> Option<String> {
    let missing: Vec<&str> = ours.flags.difference(&theirs.flags).map(String::as_str).collect();
    match missing.len() {
        0 => None,
        count if count > FLAGS_NAMED_MAX => {
            Some(format!("{} and {} more flags", missing[..FLAGS_NAMED_MAX].join(", "), count - FLAGS_NAMED_MAX))
        }
        _ => Some(missing.join(", ")),
    }
}

/// How a joining host's processor differs from those of the pool's hosts: a sentence per difference, none if it does
/// not. A difference is no obstacle to joining; it limits which processor models PVMs can use.
#[must_use]
pub fn processor_differences(joining: &CpuFacts, pool: &PoolState) -> Vec<String> {
    let mut differences = Vec::new();
    for host in pool.hosts() {
        if let Some(flags) = flags_missing(&host.cpu, joining) {
            differences.push(format!(
                "the joining host ({}) lacks {flags}, which {} ({}) has: use a processor model without them for PVMs on both, or set both firmwares alike",
                joining.model, host.name, host.cpu.model
            ));
        }
        if let Some(flags) = flags_missing(joining, &host.cpu) {
            differences.push(format!(
                "{} ({}) lacks {flags}, which the joining host ({}) has: use a processor model without them for PVMs on both, or set both firmwares alike",
                host.name, host.cpu.model, joining.model
            ));
        }
        if host.cpu.accelerator != joining.accelerator {
            differences.push(format!(
                "{} runs guests with {} and the joining host with {}: PVMs can't be protected across the two",
                host.name, host.cpu.accelerator, joining.accelerator
            ));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(flags: &[&str]) -> CpuFacts {
        CpuFacts {
            model: "some processor".to_owned(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            accelerator: "kvm".to_owned(),
        }
    }

    #[test]
    fn missing_flags_are_named_and_many_are_counted() {
        assert_eq!(flags_missing(&cpu(&["nx", "sse2"]), &cpu(&["nx", "sse2", "avx"])), None);
        assert_eq!(flags_missing(&cpu(&["nx", "sse2"]), &cpu(&["sse2"])), Some("nx".to_owned()));
        let many: Vec<String> = (0..12).map(|n| format!("f{n:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let text = flags_missing(&cpu(&many), &cpu(&[])).unwrap();
        assert!(text.ends_with("and 4 more flags"), "{text}");
    }
}
