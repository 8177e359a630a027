//! Whether a VM can be protected at a level, and if not, why not: asked before anything is changed. Also, how the
//! processors of two hosts differ.

use crate::authority::Power;
use crate::ids::HostId;
use crate::pool::{CpuFacts, Member, MemoryTracking, PoolState};
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
    /// The partner's memory, if it has told.
    pub partner_memory_mib: Option<u64>,
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
        if level == Level::System {
            found.extend(memory_obstacles(vm, home, partner));
        }
    }
    let needed_mib = memory_taken_mib(vm, partner.id, state) + u64::from(vm.config.memory_mib);
    if let Some(memory_mib) = question.partner_memory_mib.filter(|has| level == Level::System && *has < needed_mib) {
        found.push(Obstacle::NoMemory { host: partner.name.clone(), memory_mib, needed_mib });
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
    found
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
    use crate::pool::fixtures::{H1, H2, place, protect, protected};

    fn cpu(flags: &[&str]) -> CpuFacts {
        CpuFacts {
            model: "some processor".to_owned(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            accelerator: "kvm".to_owned(),
        }
    }

    fn question<'a>(state: &'a PoolState, level: Level, partner: &'a Member) -> Question<'a> {
        Question {
            vm: state.vm(1),
            level,
            partner,
            partner_alive: true,
            partner_free_bytes: None,
            partner_memory_mib: Some(100),
        }
    }

    /// What stands against level 3 after the pool's members and the VM were changed.
    fn at_level_3(change: impl FnOnce(&mut PoolState)) -> Vec<Obstacle> {
        let mut state = protected();
        change(&mut state);
        let partner = &state.members[&H2];
        obstacles(&question(&state, Level::System, partner), &state)
    }

    fn host(state: &mut PoolState, id: HostId) -> &mut Member {
        state.members.get_mut(&id).expect("it is one of the two")
    }

    #[test]
    fn level_3_asks_more_of_both_hosts() {
        assert_eq!(at_level_3(|_| {}), []);
        let other = at_level_3(|state| host(state, H2).qemu_version = "10.0.2".to_owned());
        assert!(
            matches!(&other[..], [Obstacle::OtherQemu { theirs, ours, .. }] if theirs == "10.0.2" && ours == "7.2.0"),
            "{other:?}"
        );
        for id in [H1, H2] {
            let untried = at_level_3(|state| host(state, id).memory_tracking = MemoryTracking::Untried);
            assert!(matches!(untried[..], [Obstacle::MemoryTrackingUntried(_)]), "{untried:?}");
            let why = "Linux 6.7 or newer is needed".to_owned();
            let fails = at_level_3(|state| host(state, id).memory_tracking = MemoryTracking::Fails(why.clone()));
            assert!(matches!(&fails[..], [Obstacle::NoMemoryTracking { why: told, .. }] if *told == why), "{fails:?}");
        }
        let slow = at_level_3(|state| host(state, H2).cpu.accelerator = "tcg".to_owned());
        assert!(matches!(slow[..], [Obstacle::OtherAccelerator { .. }]), "{slow:?}");
        let machine = at_level_3(|state| host(state, H2).machines.clear());
        assert!(matches!(machine[..], [Obstacle::MachineMissing { .. }]), "{machine:?}");
    }

    #[test]
    fn level_3_needs_a_processor_that_is_the_same_everywhere_and_at_any_time() {
        let of_model = |model: &str| {
            at_level_3(|state| {
                for vm in state.vms.values_mut() {
                    vm.config.cpu_model = model.to_owned();
                }
                for member in state.members.values_mut() {
                    member.cpu.accelerator = "tcg".to_owned();
                }
            })
        };
        for model in ["max", "host", "max,-sse4a", "Nehalem,+invtsc", "Nehalem,invtsc=on"] {
            assert_eq!(of_model(model), [Obstacle::ImmovableProcessorModel(model.to_owned())]);
        }
        for model in ["qemu64", "Nehalem", "Nehalem,-invtsc"] {
            assert_eq!(of_model(model), []);
        }
    }

    #[test]
    fn the_memory_of_all_that_is_or_may_be_there_must_fit() {
        let taken = |level, host| {
            at_level_3(|state| {
                protect(state, 2);
                state.must(place(2, level, &[H1, H2]));
                state.start(2, host, true);
            })
        };
        let none = Obstacle::NoMemory { host: "h2".to_owned(), memory_mib: 100, needed_mib: 128 };
        assert_eq!(taken(Level::Component, H1), []);
        assert_eq!(taken(Level::Component, H2), std::slice::from_ref(&none));
        assert_eq!(taken(Level::System, H1), [none]);
    }

    #[test]
    fn level_2_asks_for_none_of_it() {
        let mut state = protected();
        let partner = host(&mut state, H2);
        partner.qemu_version = "10.0.2".to_owned();
        partner.memory_tracking = MemoryTracking::Untried;
        let partner = &state.members[&H2];
        assert_eq!(obstacles(&question(&state, Level::Component, partner), &state), []);
    }

    #[test]
    fn older_qemus_leave_the_screen_behind() {
        let mut state = protected();
        assert!(limitations(host(&mut state, H1)).is_some_and(|note| note.starts_with("QEMU 7.2.0 on h1")));
        host(&mut state, H1).qemu_version = "10.0.2".to_owned();
        assert_eq!(limitations(host(&mut state, H1)), None);
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
