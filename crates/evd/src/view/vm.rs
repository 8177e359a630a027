//! VMs and disks in the words of the API.

use std::collections::BTreeMap;

use super::time;
use ev_api::library::LibraryView;
use ev_api::vm::{
    BootSpec, ComparisonView, CopyView, DesiredState, DiskReplica, DiskView, Health, NicView, PowerState, ReplicaView,
    VmView,
};
use ev_core::authority::Power;
use ev_core::ids::{DiskId, HostId};
use ev_core::pool::{Compared, PoolState};
use ev_core::report::{AmReport, Comparison, CopyProgress, DiskReport, GuestState, ReplicaState};
use ev_core::vm::{Boot, Desired, Firmware, Level, LibraryFile, Vm};

type Reports = BTreeMap<HostId, AmReport>;

/// One VM; `reports` are the fresh ones of its AMs.
#[must_use]
pub fn vm_view(state: &PoolState, vm: &Vm, reports: &Reports) -> VmView {
    let record = &vm.authority;
    let name = |host| state.member_name(host);
    let disks = disk_views(state, vm, reports);
    let power = power(vm, reports);
    let active_report = record.active.and_then(|host| reports.get(&host));
    let mut troubles: Vec<String> = Vec::new();
    for (host, report) in reports {
        troubles.extend(report.troubles.iter().map(|trouble| format!("{}: {trouble}", name(*host))));
    }
    VmView {
        uuid: vm.id.0,
        name: vm.name.clone(),
        number: vm.number,
        level: vm.level.number(),
        power,
        desired: desired(vm.desired),
        health: health(vm, power, &disks, reports),
        active: record.active.map(name),
        standby: record.standby.map(name),
        memory: record.memory.map(name),
        level3: active_report.and_then(|report| report.level3.clone()).map(Into::into),
        hosts: vm.hosts.iter().map(|host| name(*host)).collect(),
        generation: record.generation.0,
        vcpus: vm.config.vcpus,
        memory_mib: vm.config.memory_mib,
        firmware: match vm.config.firmware {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        }
        .to_owned(),
        machine: vm.config.machine.clone(),
        cpu_model: vm.config.cpu_model.clone(),
        boot: boot(&vm.config.boot),
        accelerator: active_report.and_then(|report| report.accelerator.clone()),
        disks,
        nics: vm
            .config
            .nics
            .iter()
            .map(|nic| NicView {
                mac: nic.mac.to_string(),
                network: state
                    .networks
                    .get(&nic.network)
                    .map_or_else(|| nic.network.to_string(), |net| net.name.clone()),
                bridge: nic.bridge.clone(),
            })
            .collect(),
        start_order: vm.config.start_order,
        troubles,
    }
}

fn desired(desired: Desired) -> DesiredState {
    match desired {
        Desired::Running => DesiredState::Running,
        Desired::Shutdown => DesiredState::Shutdown,
        Desired::ForceOff => DesiredState::ForceOff,
        Desired::Reboot => DesiredState::Reboot,
        Desired::ForceReboot => DesiredState::ForceReboot,
    }
}

fn boot(boot: &Boot) -> BootSpec {
    let file = |file: &LibraryFile| LibraryView {
        name: file.name.clone(),
        blake3: file.blake3.clone(),
        size_bytes: file.size_bytes,
    };
    match boot {
        Boot::Disk => BootSpec::Disk,
        Boot::Iso(iso) => BootSpec::Iso { iso: file(iso) },
        Boot::Kernel { kernel, initrd, command_line } => BootSpec::Kernel {
            kernel: file(kernel),
            initrd: initrd.as_ref().map(file),
            command_line: command_line.clone(),
        },
    }
}

/// What the guest does, by the record and by what its active AM last said under this record.
fn power(vm: &Vm, reports: &Reports) -> PowerState {
    let Power::On { since } = vm.authority.power else {
        return if vm.desired == Desired::Running { PowerState::Starting } else { PowerState::Off };
    };
    let report = vm.authority.active.and_then(|host| reports.get(&host));
    match report.map(|report| &report.guest) {
        None => PowerState::Unknown,
        Some(GuestState::Running { since: under }) if *under == since => match vm.desired {
            Desired::Running => PowerState::Running,
            Desired::Shutdown | Desired::ForceOff | Desired::Reboot | Desired::ForceReboot => PowerState::Stopping,
        },
        Some(GuestState::Paused { since: under }) if *under == since => PowerState::Paused,
        Some(GuestState::Ended { since: under, .. }) if *under == since => PowerState::Stopping,
        Some(
            GuestState::Absent
            | GuestState::Starting { .. }
            | GuestState::Running { .. }
            | GuestState::Paused { .. }
            | GuestState::Ended { .. },
        ) => PowerState::Starting,
    }
}

fn health(vm: &Vm, power: PowerState, disks: &[DiskView], reports: &Reports) -> Health {
    let whole = disks.iter().all(|disk| disk.in_sync && disk.trouble.is_none())
        && vm.hosts.iter().all(|host| reports.contains_key(host))
        && (vm.level != Level::System || vm.authority.memory.is_some() || vm.authority.power == Power::Off);
    match power {
        PowerState::Unknown | PowerState::Paused => Health::Down,
        PowerState::Starting => Health::Degraded,
        PowerState::Running | PowerState::Stopping | PowerState::Off if whole => Health::Good,
        PowerState::Running | PowerState::Stopping | PowerState::Off => Health::Degraded,
    }
}

/// The disks of a VM.
#[must_use]
pub fn disk_views(state: &PoolState, vm: &Vm, reports: &Reports) -> Vec<DiskView> {
    let speaker = vm.authority.active.and_then(|active| Some((active, reports.get(&active)?)));
    vm.config
        .disks
        .iter()
        .enumerate()
        .map(|(index, disk)| {
            let good = vm.authority.good.get(&disk.id);
            let is_good = |host: HostId| good.is_some_and(|good| good.contains(&host));
            let of_speaker = speaker.and_then(|(host, report)| Some((host, find(report, disk.id)?)));
            let replicas = vm.hosts.iter().map(|host| DiskReplica {
                host: state.member_name(*host),
                state: replica(*host, disk.id, of_speaker, reports),
                good: is_good(*host),
            });
            let any = || reports.values().filter_map(|report| find(report, disk.id));
            DiskView {
                uuid: disk.id.0,
                vm: vm.name.clone(),
                index,
                size_bytes: disk.size_bytes,
                replicas: replicas.collect(),
                in_sync: vm.hosts.iter().all(|host| is_good(*host)),
                copy: of_speaker
                    .and_then(|(_, report)| report.copy)
                    .or_else(|| any().find_map(|report| report.copy))
                    .map(copy),
                comparison: of_speaker
                    .and_then(|(_, report)| report.comparison)
                    .map(comparison)
                    .or_else(|| state.compared.get(&disk.id).and_then(compared)),
                read_bytes: of_speaker.map_or(0, |(_, report)| report.read_bytes),
                write_bytes: of_speaker.map_or(0, |(_, report)| report.write_bytes),
                trouble: of_speaker
                    .and_then(|(_, report)| report.trouble.clone())
                    .or_else(|| any().find_map(|report| report.trouble.clone())),
            }
        })
        .collect()
}

fn find(report: &AmReport, disk: DiskId) -> Option<&DiskReport> {
    report.disks.iter().find(|one| one.disk == disk)
}

/// The coordinator knows both replicas; without one each AM speaks for its own.
fn replica(host: HostId, disk: DiskId, speaker: Option<(HostId, &DiskReport)>, reports: &Reports) -> ReplicaView {
    let told = match speaker {
        Some((active, report)) if active == host => Some(report.local),
        Some((_, report)) if report.partner.is_some() => report.partner,
        Some(_) | None => reports.get(&host).and_then(|report| find(report, disk)).map(|report| report.local),
    };
    match told {
        Some(ReplicaState::Online) => ReplicaView::Online,
        Some(ReplicaState::Copying) => ReplicaView::Copying,
        Some(ReplicaState::Failed) => ReplicaView::Failed,
        Some(ReplicaState::Stale) => ReplicaView::Stale,
        Some(ReplicaState::Unreachable) | None => ReplicaView::Unreachable,
    }
}

fn comparison(told: Comparison) -> ComparisonView {
    ComparisonView {
        running: told.ended_unix_ms.is_none(),
        total_bytes: told.total_bytes,
        compared_bytes: told.compared_bytes,
        different_bytes: told.different_bytes,
        repaired_bytes: told.repaired_bytes,
        complete: told.complete,
        ended: told.ended_unix_ms.map(time),
    }
}

/// What is on record, when the AM that did it is no more.
fn compared(last: &Compared) -> Option<ComparisonView> {
    let Compared { unix_ms, compared_bytes, different_bytes, repaired_bytes } = *last;
    (compared_bytes > 0).then(|| ComparisonView {
        running: false,
        total_bytes: compared_bytes,
        compared_bytes,
        different_bytes,
        repaired_bytes,
        complete: true,
        ended: Some(time(unix_ms)),
    })
}

fn copy(copy: CopyProgress) -> CopyView {
    CopyView {
        full: copy.full,
        running: copy.done_bytes < copy.total_bytes,
        total_bytes: copy.total_bytes,
        done_bytes: copy.done_bytes,
        moved_bytes: copy.moved_bytes,
        left_s: copy.left_s,
    }
}
