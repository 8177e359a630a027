//! Whether a VM can be protected at a level, and if not, why not: asked before anything is changed. Also, how the
//! processors of two hosts differ.

#[cfg(test)]
mod tests;

use crate::authority::Power;
use crate::ids::HostId;
use crate::pool::{CpuFacts, Member, MemoryTracking, PoolState};
use crate::vm::{Level, Vm};
use serde::{Deserialize, Serialize};

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
    /// The partner's memory, if it has told.
    pub partner_memory_mib: Option<u64>,
    /// Memory that could be had now: on the host that the VM lives on, and on the partner, if they have told.
    pub home_available_mib: Option<u64>,
    pub partner_available_mib: Option<u64>,
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
    #[error(
        "{host} has QEMU {theirs} and the VM's host {ours}: level 3 needs the same version on both, so upgrade the older one"
    )]
    OtherQemu { host: String, theirs: String, ours: String },
    #[error(
        "{host} has {memory_mib} MiB of memory, and {needed_mib} are needed there with this VM's, which is held at all times: take VMs off it, or add memory"
    )]
    NoMemory { host: String, memory_mib: u64, needed_mib: u64 },
    #[error(
        "{host} has {available_mib} MiB of memory that is not in use, and {needed_mib} are needed there for {purpose}: end something there, or add memory"
    )]
    NoMemoryFree { host: String, available_mib: u64, needed_mib: u64, purpose: &'static str },
    #[error(
        "the processor of {host} lacks {missing} of the VM's processor model {model}: create the VM anew, it then gets a model that all hosts have"
    )]
    ModelMissing { host: String, missing: String, model: String },
    #[error(
        "the processor of {host} is of {theirs} and that of the VM's host of {ours}: a guest can't go on from its memory with another maker's, so choose a host with the same"
    )]
    OtherMaker { host: String, theirs: String, ours: String },
    #[error("on {host} a guest's memory can't be followed: {why}")]
    NoMemoryTracking { host: String, why: String },
    #[error(
        "it is not known whether {0} can follow a guest's memory: upgrade Evenkeel there, or start evd there again (systemctl restart evd)"
    )]
    MemoryTrackingUntried(String),
    #[error(
        "the VM's processor model {0} has state that can't be carried to another host: create the VM with a named model without it"
    )]
    ImmovableProcessorModel(String),
    #[error(
        "the link from {from} to {to} ({}) carried {} Mbit/s when it was tried, and level 3 needs {LINK_MIN_MBIT_PER_S} at the least: look at its cables, ports and load",
        .speed.network, .speed.mbit_per_s
    )]
    LinkTooSlow { from: String, to: String, speed: LinkSpeed },
    #[error("network {network} is not a network of this pool any more: add it (ev network-add)")]
    NetworkMissing { network: String },
    #[error("no host holds a good replica of every disk: bring the host with the good replica back first")]
    NoGoodReplica,
}

/// A link that carries less is too slow for checkpoints: 12 MB of a guest's memory a second.
pub const LINK_MIN_MBIT_PER_S: u64 = 100;
/// One that carries less is said to be slow. A link of 1 Gbit/s carries 940 and, with something else on it, somewhat less.
pub const LINK_FAST_MBIT_PER_S: u64 = 800;

/// What a link carried when it was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpeed {
    /// Name of the network.
    pub network: String,
    pub mbit_per_s: u64,
}

/// What a link's speed means for level 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkVerdict {
    Fast,
    /// What a person should know.
    Slow(String),
    TooSlow(Obstacle),
}

/// Whether checkpoints find room on a link.
#[must_use]
pub fn link_verdict(from: &Member, to: &Member, speed: LinkSpeed) -> LinkVerdict {
    let (from, to) = (&from.name, &to.name);
    match speed.mbit_per_s {
        ..LINK_MIN_MBIT_PER_S => {
            LinkVerdict::TooSlow(Obstacle::LinkTooSlow { from: from.clone(), to: to.clone(), speed })
        }
        LINK_MIN_MBIT_PER_S..LINK_FAST_MBIT_PER_S => LinkVerdict::Slow(format!(
            "the link from {from} to {to} ({}) carried {} Mbit/s when it was tried: a guest that changes more memory than that is \
             not protected while it does; give the pool a private link of 1 Gbit/s or more",
            speed.network, speed.mbit_per_s
        )),
        LINK_FAST_MBIT_PER_S.. => LinkVerdict::Fast,
    }
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
        if level == Level::System {
            found.extend(memory_obstacles(vm, home, partner));
        }
    }
    if level == Level::System {
        found.extend(room_obstacles(question, home, state));
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

/// Whether the guest's memory finds room on both hosts.
fn room_obstacles(question: &Question<'_>, home: Option<&Member>, state: &PoolState) -> Vec<Obstacle> {
    let Question { vm, partner, .. } = *question;
    let mut found = Vec::new();
    let guest_mib = u64::from(vm.config.memory_mib);
    let needed_mib = memory_taken_mib(vm, partner.id, state) + guest_mib;
    if let Some(memory_mib) = question.partner_memory_mib.filter(|has| *has < needed_mib) {
        found.push(Obstacle::NoMemory { host: partner.name.clone(), memory_mib, needed_mib });
    }
    // What it has there already is in use by the VM itself.
    if vm.level == Level::System && vm.hosts.contains(&partner.id) {
        return found;
    }
    let mut needs = |host: &Member, available: Option<u64>, needed_mib, purpose| {
        if let Some(available_mib) = available.filter(|available| *available < needed_mib) {
            found.push(Obstacle::NoMemoryFree { host: host.name.clone(), available_mib, needed_mib, purpose });
        }
    };
    needs(partner, question.partner_available_mib, guest_mib, "the guest's memory");
    if let Some(home) = home {
        let (needed_mib, purpose) = match vm.authority.power {
            Power::On { .. } => (guest_mib, "what the other host has of the guest's memory"),
            Power::Off => (2 * guest_mib, "the guest's memory and what the other host has of it"),
        };
        needs(home, question.home_available_mib, needed_mib, purpose);
    }
    found
}

/// What keeps a guest from going on from its memory on the other host, in either direction.
fn memory_obstacles(vm: &Vm, home: &Member, partner: &Member) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if home.qemu_version != partner.qemu_version {
        found.push(Obstacle::OtherQemu {
            host: partner.name.clone(),
            theirs: partner.qemu_version.clone(),
            ours: home.qemu_version.clone(),
        });
    }
    for host in [home, partner] {
        match &host.memory_tracking {
            MemoryTracking::Works => {}
            MemoryTracking::Untried => found.push(Obstacle::MemoryTrackingUntried(host.name.clone())),
            MemoryTracking::Fails(why) => {
                found.push(Obstacle::NoMemoryTracking { host: host.name.clone(), why: why.clone() });
            }
        }
    }
    if is_immovable(&vm.config.cpu_model) {
        found.push(Obstacle::ImmovableProcessorModel(vm.config.cpu_model.clone()));
    }
    if home.cpu.accelerator == "kvm" {
        found.extend(real_processor_obstacles(vm, home, partner));
    }
    found
}

/// KVM shows the guest the real processor's maker, whatever the model, and leaves out without a word what the real one lacks.
fn real_processor_obstacles(vm: &Vm, home: &Member, partner: &Member) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let (ours, theirs) = (&home.cpu.vendor, &partner.cpu.vendor);
    if ours != theirs && !ours.is_empty() && !theirs.is_empty() {
        let (theirs, ours) = (theirs.clone(), ours.clone());
        found.push(Obstacle::OtherMaker { host: partner.name.clone(), theirs, ours });
    }
    let model = vm.config.cpu_model.as_str();
    if is_immovable(model) {
        return found;
    }
    // Of a model that is not known here, the guest may use whatever its host has.
    let missing = match model_flags(model) {
        Some(flags) => named(flags.iter().copied().filter(|flag| !partner.cpu.flags.contains(*flag)).collect()),
        None => flags_missing(&home.cpu, &partner.cpu),
    };
    if let Some(missing) = missing {
        found.push(Obstacle::ModelMissing { host: partner.name.clone(), missing, model: model.to_owned() });
    }
    found
}

/// Processor model that every x86-64 processor can show.
const MODEL_PLAIN: &str = "qemu64";
/// Processor model of x86-64-v2, and the flags (in the kernel's words) that a host needs to show it.
const MODEL_V2: &str = "Nehalem";
const FLAGS_V2: [&str; 6] = ["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"];

/// Flags that a model needs beyond those of every x86-64 processor; `None`: not known.
fn model_flags(model: &str) -> Option<&'static [&'static str]> {
    match model.split(',').next() {
        Some(MODEL_PLAIN) => Some(&[]),
        Some(MODEL_V2) => Some(&FLAGS_V2),
        Some(_) | None => None,
    }
}

/// The best processor model that all hosts can show.
#[must_use]
pub fn common_model(state: &PoolState) -> &'static str {
    let has_v2 =
        |host: &Member| host.cpu.accelerator == "tcg" || FLAGS_V2.iter().all(|flag| host.cpu.flags.contains(*flag));
    if state.hosts().all(has_v2) { MODEL_V2 } else { MODEL_PLAIN }
}

/// Memory on a host that other guests run in, or that is held there for them.
fn memory_taken_mib(vm: &Vm, host: HostId, state: &PoolState) -> u64 {
    let others = state.vms_on(host).filter(|other| other.id != vm.id);
    let runs_there = |other: &&Vm| other.authority.active == Some(host) && other.authority.power != Power::Off;
    let taken = others.filter(|other| runs_there(other) || other.level == Level::System);
    taken.map(|other| u64::from(other.config.memory_mib)).sum()
}

/// `host` and `max` are whatever the host and its QEMU have; a constant rate of the time stamp counter is the host's own.
fn is_immovable(model: &str) -> bool {
    let mut parts = model.split(',');
    let name = parts.next().unwrap_or_default();
    let fixed_rate = |part: &str| matches!(part.trim_start_matches('+').trim_end_matches("=on"), "invtsc");
    matches!(name, "host" | "max") || parts.any(fixed_rate)
}

/// The first version of QEMU by which the memory of the screen is carried too.
const QEMU_CARRIES_SCREEN: u32 = 10;

/// What is no obstacle to level 3 and yet a person should know.
#[must_use]
pub fn limitations(host: &Member) -> Option<String> {
    let major = host.qemu_version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.filter(|major| *major < QEMU_CARRIES_SCREEN).map(|_| {
        format!(
            "QEMU {} on {} does not carry the memory of the screen: after a takeover the screen stays as it was drawn last \
             until the guest draws it anew; serial console and network are not affected. QEMU 10.0 or newer on both hosts \
             carries it",
            host.qemu_version, host.name
        )
    })
}

/// Flags that `theirs` lacks of `ours`, in words; `None` when it lacks none.
#[must_use]
pub fn flags_missing(ours: &CpuFacts, theirs: &CpuFacts) -> Option<String> {
    named(ours.flags.difference(&theirs.flags).map(String::as_str).collect())
}

/// The first of them by name, the others by their number.
fn named(missing: Vec<&str>) -> Option<String> {
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
