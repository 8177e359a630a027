//! VMs: made, listed, shown, deleted, told to run or stop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use ev_api::library::LibraryView;
use ev_api::vm::{BootSpec, DesiredChange, DesiredState, DiskSpec, DiskView, Done, NicSpec, VmCreate, VmView};
use ev_api::{ApiError, ErrorCode};
use ev_core::candidacy::common_model;
use ev_core::ids::{DiskId, Generation, HostId, MacAddress, VmId};
use ev_core::pool::{Command, Member as PoolMember, PoolState};
use ev_core::report::ReplicaState;
use ev_core::vm::{Boot, Desired, DiskConfig, Firmware, LibraryFile, NicConfig, SECTOR_BYTES, VmConfig};
use uuid::Uuid;

use super::answer::{Answer, Body, Refusal, refuse};
use super::{placement, resolve};
use crate::app::App;
use crate::member::Member;
use crate::view;

/// Most memory of a VM; more is a slip of the finger.
const MEMORY_MIB_MAX: u32 = 16 << 20;
/// Least memory that firmware and a kernel need.
const MEMORY_MIB_MIN: u32 = 16;
/// Most virtual processors that q35 machines take.
const VCPUS_MAX: u16 = 255;
/// The text of a kernel's command line that QEMU and Linux take.
const COMMAND_LINE_BYTES_MAX: usize = 2047;

pub async fn list(State(app): State<Arc<App>>) -> Answer<Vec<VmView>> {
    let member = app.member()?;
    let state = member.state();
    let mut views: Vec<VmView> =
        state.vms.values().map(|vm| view::vm_view(&state, vm, &member.live.reports_of(vm.id))).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(views))
}

fn shown(member: &Member, text: &str) -> Result<VmView, ApiError> {
    let state = member.state();
    let vm = resolve::vm(&state, text)?;
    Ok(view::vm_view(&state, vm, &member.live.reports_of(vm.id)))
}

pub async fn show(State(app): State<Arc<App>>, Path(vm): Path<String>) -> Answer<VmView> {
    let member = app.member()?;
    Ok(Json(shown(&member, &vm)?))
}

pub async fn disks_of(State(app): State<Arc<App>>, Path(vm): Path<String>) -> Answer<Vec<DiskView>> {
    let member = app.member()?;
    Ok(Json(shown(&member, &vm)?.disks))
}

pub async fn disks(State(app): State<Arc<App>>) -> Answer<Vec<DiskView>> {
    let member = app.member()?;
    let state = member.state();
    let all = state.vms.values().flat_map(|vm| view::disk_views(&state, vm, &member.live.reports_of(vm.id)));
    Ok(Json(all.collect()))
}

pub async fn create(State(app): State<Arc<App>>, Body(request): Body<VmCreate>) -> Answer<VmView> {
    let member = app.member()?;
    let state = member.state();
    check_size(&request)?;
    if state.vm_named(&request.name).is_some() {
        return refuse(
            ErrorCode::Conflict,
            format!("there is a VM {} already", request.name),
            "choose another name, or delete that VM first",
        );
    }
    let home = match &request.host {
        Some(name) => resolve::host(&state, name)?.clone(),
        None => placement::home(&member, &state)?.clone(),
    };
    let config = config(&member, &state, &home, &request)?;
    let id = VmId(Uuid::new_v4());
    for (index, (spec, disk)) in request.disks.iter().zip(&config.disks).enumerate() {
        if let Some(image) = spec.image {
            super::images::adopt(&app, &member, &home, id, index, image, disk.size_bytes).await?;
        }
    }
    let command = Command::VmCreate { id, name: request.name.clone(), config: Box::new(config), host: home.id };
    member.propose(command).await?;
    if request.start {
        await_disks(&member, id).await?;
        member.propose(Command::VmDesire { id, desired: Desired::Running }).await?;
    }
    Ok(Json(shown(&member, &format!("uuid={id}"))?))
}

fn check_size(request: &VmCreate) -> Result<(), Refusal> {
    if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&request.memory_mib) {
        return refuse(
            ErrorCode::Invalid,
            format!("{} MiB of memory is not possible", request.memory_mib),
            format!("give {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB"),
        );
    }
    if !(1..=VCPUS_MAX).contains(&request.vcpus) {
        return refuse(
            ErrorCode::Invalid,
            format!("{} virtual processors are not possible", request.vcpus),
            format!("give 1 to {VCPUS_MAX}"),
        );
    }
    Ok(())
}

fn config(member: &Member, state: &PoolState, home: &PoolMember, request: &VmCreate) -> Result<VmConfig, ApiError> {
    Ok(VmConfig {
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        firmware: if request.uefi { Firmware::Uefi } else { Firmware::Bios },
        machine: placement::machine(state, home)?,
        cpu_model: common_model(state).to_owned(),
        boot: boot(member, &request.boot)?,
        disks: request.disks.iter().map(disk).collect(),
        nics: nics(state, &request.nics)?,
        start_order: request.start_order,
    })
}

fn disk(spec: &DiskSpec) -> DiskConfig {
    // An image may end in the middle of a sector; a disk that was asked for by size may not.
    let size_bytes = match spec.image {
        Some(_) => spec.size_bytes.next_multiple_of(SECTOR_BYTES),
        None => spec.size_bytes,
    };
    DiskConfig { id: DiskId(Uuid::new_v4()), size_bytes }
}

fn boot(member: &Member, spec: &BootSpec) -> Result<Boot, ApiError> {
    let file = |file: &LibraryView| -> Result<LibraryFile, ApiError> {
        if !member.app_library().has(&file.blake3) {
            return Err(ApiError::new(ErrorCode::NotFound, format!("{} is not in the pool's library", file.name))
                .hint("upload it first; ev vm-create does so by itself"));
        }
        Ok(LibraryFile { name: file.name.clone(), blake3: file.blake3.clone(), size_bytes: file.size_bytes })
    };
    match spec {
        BootSpec::Disk => Ok(Boot::Disk),
        BootSpec::Iso { iso } => Ok(Boot::Iso(file(iso)?)),
        BootSpec::Kernel { command_line, .. } if command_line.len() > COMMAND_LINE_BYTES_MAX => {
            Err(ApiError::new(ErrorCode::Invalid, "the kernel's command line is too long")
                .hint(format!("at most {COMMAND_LINE_BYTES_MAX} bytes are possible")))
        }
        BootSpec::Kernel { kernel, initrd, command_line } => Ok(Boot::Kernel {
            kernel: file(kernel)?,
            initrd: initrd.as_ref().map(file).transpose()?,
            command_line: command_line.clone(),
        }),
    }
}

fn nics(state: &PoolState, specs: &[NicSpec]) -> Result<Vec<NicConfig>, ApiError> {
    let mut taken: BTreeSet<MacAddress> =
        state.vms.values().flat_map(|vm| &vm.config.nics).map(|nic| nic.mac).collect();
    let mut nics = Vec::new();
    for spec in specs {
        let network = resolve::network(state, &spec.network)?;
        let mac = match &spec.mac {
            Some(text) => text
                .parse::<MacAddress>()
                .map_err(|error| ApiError::new(ErrorCode::Invalid, format!("MAC address {text}: {error}")))?,
            None => draw_mac(&taken),
        };
        if mac.0[0] & 1 == 1 {
            return Err(ApiError::new(ErrorCode::Invalid, format!("{mac} is a group address"))
                .hint("the first byte of a NIC's address is even, such as 52"));
        }
        taken.insert(mac);
        nics.push(NicConfig { mac, network: network.id, bridge: network.bridge.clone() });
    }
    Ok(nics)
}

/// In QEMU's range, and free.
fn draw_mac(taken: &BTreeSet<MacAddress>) -> MacAddress {
    loop {
        let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
        let mac = MacAddress([0x52, 0x54, 0x00, a, b, c]);
        if !taken.contains(&mac) {
            return mac;
        }
    }
}

pub async fn delete(State(app): State<Arc<App>>, Path(vm): Path<String>) -> Answer<Done> {
    let member = app.member()?;
    let state = member.state();
    let vm = resolve::vm(&state, &vm)?;
    member.propose(Command::VmDelete { id: vm.id }).await?;
    Ok(Json(Done::default()))
}

pub async fn desire(
    State(app): State<Arc<App>>,
    Path(vm): Path<String>,
    Body(change): Body<DesiredChange>,
) -> Answer<Done> {
    let member = app.member()?;
    let state = member.state();
    let vm = resolve::vm(&state, &vm)?;
    let desired = match change.desired {
        DesiredState::Running => Desired::Running,
        DesiredState::Shutdown => Desired::Shutdown,
        DesiredState::ForceOff => Desired::ForceOff,
        DesiredState::Reboot => Desired::Reboot,
        DesiredState::ForceReboot => Desired::ForceReboot,
    };
    if desired == Desired::Running {
        await_disks(&member, vm.id).await?;
    }
    member.propose(Command::VmDesire { id: vm.id, desired }).await?;
    let mut notes = Vec::new();
    if desired == Desired::Running && !any_host_online(&member, &vm.hosts) {
        notes.push(format!("no host of {} is online: it starts when one is", vm.name));
    }
    Ok(Json(Done { notes }))
}

/// How long a new VM's host may take to make its disks.
const NEW_DISKS_TIMEOUT: Duration = Duration::from_secs(20);
/// A VM that is made (1) and placed on a second host (2) was not started yet.
const NEVER_STARTED_MAX: Generation = Generation(2);
/// Between two looks at what its AM reports.
const NEW_DISKS_LOOK: Duration = Duration::from_millis(50);

/// A VM that was never started is not to be before its disks are there: from its first start on, a missing replica is
/// a lost one and is never made anew.
async fn await_disks(member: &Member, id: VmId) -> Result<(), ApiError> {
    let until = tokio::time::Instant::now() + NEW_DISKS_TIMEOUT;
    loop {
        let state = member.state();
        let Some(vm) = state.vms.get(&id) else { return Ok(()) };
        let report = vm.authority.active.and_then(|home| member.live.reports_of(id).remove(&home));
        let made = report.as_ref().is_some_and(|report| {
            report.disks.len() == vm.config.disks.len()
                && report.disks.iter().all(|disk| disk.local == ReplicaState::Online)
        });
        if made || vm.config.disks.is_empty() || vm.authority.generation > NEVER_STARTED_MAX {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            let why = report.and_then(|report| report.disks.into_iter().find_map(|disk| disk.trouble));
            let why = why.unwrap_or_else(|| "nothing is heard from its host".to_owned());
            return Err(ApiError::new(ErrorCode::Refused, format!("the disks of {} are not made yet: {why}", vm.name))
                .hint("the VM stays; remove the obstacle and start it with ev pvm-start"));
        }
        tokio::time::sleep(NEW_DISKS_LOOK).await;
    }
}

fn any_host_online(member: &Member, hosts: &BTreeSet<HostId>) -> bool {
    hosts.iter().any(|host| member.is_online(*host))
}
