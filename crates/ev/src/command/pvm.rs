//! `pvm-*`, `disk-*`, `event-list`, `alert-list`.

use std::time::{Duration, Instant};

use ev_api::client::{Client, escape};
use ev_api::vm::{
    CandidacyView, DesiredChange, DesiredState, DiskView, Done, Level3State, PowerState, Protect, Revert, Verify,
    VerifyView, VmView,
};
use hyper::Method;

use crate::args::{Command, Format, PowerArgs, Wait};
use crate::exit::Failure;
use crate::output::{self, bytes, facts, or_dash, table, word, yes_no};
use crate::{terminal, wait};

/// For calls that only change the record.
const SHORT: Duration = Duration::from_secs(60);

/// Writing back what a copy had overwritten.
const REVERT: Duration = Duration::from_secs(24 * 3600);

pub fn path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", escape(vm))
}

pub async fn dispatch(client: &Client, format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::PvmProtect { vm, level, host, wait } => {
            protect(client, format, &vm, Protect { level, host }, wait).await
        }
        Command::PvmUnprotect { vm, wait } => {
            protect(client, format, &vm, Protect { level: 0, host: None }, wait).await
        }
        Command::PvmCandidacy { vm, level } => candidacy(client, format, &vm, level).await,
        Command::PvmStart(power) => change_power(client, &power, DesiredState::Running).await,
        Command::PvmShutdown(power) => change_power(client, &power, DesiredState::Shutdown).await,
        Command::PvmForceOff(power) => change_power(client, &power, DesiredState::ForceOff).await,
        Command::PvmReboot { power, force } => {
            let desired = if force { DesiredState::ForceReboot } else { DesiredState::Reboot };
            change_power(client, &power, desired).await
        }
        Command::PvmRevert { vm, host, give_up_newer_writes } => {
            let request = Revert { host, give_up_newer_writes };
            let done: Done = client.json(Method::POST, &path(&vm, "/revert"), Some(&request), REVERT).await?;
            super::host::print_notes(&done);
            Ok(())
        }
        Command::PvmSwitch { vm, wait } => switch(client, &vm, wait).await,
        Command::PvmStats { vm, follow, interval } => {
            let follow = follow.then(|| Duration::from_secs(interval));
            super::stats::stats(client, format, &vm, follow).await
        }
        Command::PvmShow { vm } => show(client, format, &vm).await,
        Command::PvmSync { vm, wait } => sync(client, format, &vm, wait).await,
        Command::PvmConsole { vm } => {
            let stream = client.upgrade(&path(&vm, "/console")).await?;
            eprintln!("Connected to {vm}; leave with Ctrl-]\r");
            terminal::join(stream).await
        }
        Command::DiskShow { vm } => disks(client, format, vm.as_deref()).await,
        Command::DiskVerify { vm, repair, wait } => verify(client, format, &vm, repair, wait).await,
        Command::EventList { since, follow } => super::event::list(client, format, since, follow).await,
        Command::AlertList => super::event::alerts(client, format).await,
        other => Err(Failure::local(format!("this command is not known here: {other:?}"))),
    }
}

async fn protect(client: &Client, format: Format, vm: &str, request: Protect, wait: Wait) -> Result<(), Failure> {
    let level = request.level;
    let done: Done = client.json(Method::PUT, &path(vm, "/protection"), Some(&request), SHORT).await?;
    super::host::print_notes(&done);
    if wait.wait && level == 0 {
        wait::until(client, vm, wait, &format!("removal of the second replica of {vm}"), |view| {
            Ok(view.disks.iter().all(|disk| disk.replicas.len() == 1))
        })
        .await
    } else if wait.wait {
        wait::in_sync(client, vm, wait, format).await
    } else {
        Ok(())
    }
}

async fn candidacy(client: &Client, format: Format, vm: &str, only: Option<u8>) -> Result<(), Failure> {
    let mut levels: Vec<CandidacyView> = client.get(&path(vm, "/candidacy")).await?;
    levels.retain(|view| only.is_none_or(|level| level == view.level));
    output::show(format, &levels, |levels| {
        table(
            ["LEVEL", "CANDIDATE", "WHY"],
            levels.iter().map(|level| [level.level.to_string(), yes_no(level.candidate), level.reasons.join("\n")]),
        )
    })
}

/// Does it to one VM after the other; goes on after a refusal and ends with the first one.
async fn change_power(client: &Client, arguments: &PowerArgs, desired: DesiredState) -> Result<(), Failure> {
    let names = if arguments.all {
        let vms: Vec<VmView> = client.get("/v1/vms").await?;
        vms.into_iter().filter(|vm| concerns(vm, desired)).map(|vm| vm.name).collect()
    } else {
        arguments.vms.clone()
    };
    let mut first_failure = Ok(());
    let mut changed = Vec::new();
    for name in names {
        let change = DesiredChange { desired };
        match client.json::<Done>(Method::PUT, &path(&name, "/desired"), Some(&change), SHORT).await {
            Ok(done) => {
                super::host::print_notes(&done);
                changed.push(name);
            }
            Err(error) if first_failure.is_ok() => first_failure = Err(error.into()),
            Err(error) => eprintln!("ev: {error}"),
        }
    }
    if arguments.wait.wait {
        for name in changed {
            wait::power(client, &name, arguments.wait, desired).await?;
        }
    }
    first_failure
}

/// With `--wait` until the guest runs there, and says how long that took.
async fn switch(client: &Client, vm: &str, wait: Wait) -> Result<(), Failure> {
    let before: VmView = client.get(&path(vm, "")).await?;
    let start = Instant::now();
    let done: Done = client.json(Method::POST, &path(vm, "/switch"), None::<&()>, SHORT).await?;
    super::host::print_notes(&done);
    if !wait.wait {
        return Ok(());
    }
    let mut after = None;
    wait::until(client, vm, wait, &format!("the switch of {vm}"), |view| {
        let runs_there = view.active.is_some() && view.active != before.active && view.power == PowerState::Running;
        after = Some(view.clone());
        Ok(runs_there && view.level3.is_some())
    })
    .await?;
    let (took, view) = (start.elapsed().as_millis(), after.expect("it was looked at"));
    let blackout = view.level3.and_then(|level3| level3.blackout_us).map(|us| format!("at most {} ms", us / 1_000));
    let blackout = blackout.unwrap_or_else(|| "a boot, as it was started from its disks".to_owned());
    let host = view.active.unwrap_or_default();
    output::print(&format!("it runs on {host}, {took} ms after the order, with a blackout of {blackout}\n"))
}

/// Whether `--all` means this VM too.
fn concerns(vm: &VmView, desired: DesiredState) -> bool {
    let off = vm.power == PowerState::Off;
    match desired {
        DesiredState::Running => vm.desired != DesiredState::Running || off,
        DesiredState::Shutdown | DesiredState::ForceOff | DesiredState::Reboot | DesiredState::ForceReboot => !off,
    }
}

pub fn level3_state(state: &Level3State) -> String {
    match state {
        Level3State::Simplex(why) => format!("simplex: {why}"),
        Level3State::Queued { position } => {
            format!("queued: number {position} of those that wait to be synchronised (ev pool-set --sync-at-once)")
        }
        Level3State::Synchronising => "synchronising: the guest's memory is on its way to the standby".to_owned(),
        Level3State::Joining => "joining: the pool has to confirm the standby".to_owned(),
        Level3State::Protected => "protected: the standby can go on at any moment".to_owned(),
        Level3State::Parting => "parting: the standby was given up, the pool has to confirm that".to_owned(),
    }
}

async fn show(client: &Client, format: Format, vm: &str) -> Result<(), Failure> {
    let vm: VmView = client.get(&path(vm, "")).await?;
    output::show(format, &vm, |vm| {
        let mut text = facts([
            ("VM", vm.name.clone()),
            ("UUID", vm.uuid.to_string()),
            ("Level", vm.level.to_string()),
            ("Power", format!("{} (wanted: {})", word(&vm.power), word(&vm.desired))),
            ("Health", word(&vm.health)),
            ("Active host", or_dash(vm.active.as_deref())),
            ("Standby host", or_dash(vm.standby.as_deref())),
            ("Memory held on", or_dash(vm.memory.as_deref())),
            ("Level 3", vm.level3.as_ref().map_or_else(|| "-".to_owned(), |level3| level3_state(&level3.state))),
            ("Generation", vm.generation.to_string()),
            ("Hardware", format!("{} vCPUs, {} MiB, {}, {}", vm.vcpus, vm.memory_mib, vm.firmware, vm.machine)),
            ("Processor", vm.cpu_model.clone()),
            ("Accelerator", or_dash(vm.accelerator.as_deref())),
            ("Start order", vm.start_order.to_string()),
        ]);
        for nic in &vm.nics {
            text.push_str(&format!("\nNIC {} on {} ({})", nic.mac, nic.network, nic.bridge));
        }
        if !vm.disks.is_empty() {
            text.push_str("\n\n");
            text.push_str(&disk_table(&vm.disks));
        }
        for trouble in &vm.troubles {
            text.push_str(&format!("\n! {trouble}"));
        }
        text
    })
}

async fn sync(client: &Client, format: Format, vm: &str, wait: Wait) -> Result<(), Failure> {
    if wait.wait {
        wait::in_sync(client, vm, wait, format).await?;
    }
    disks(client, format, Some(vm)).await
}

async fn disks(client: &Client, format: Format, vm: Option<&str>) -> Result<(), Failure> {
    let disks: Vec<DiskView> = match vm {
        Some(vm) => client.get(&path(vm, "/disks")).await?,
        None => client.get("/v1/disks").await?,
    };
    output::show(format, &disks, |disks| disk_table(disks))
}

fn disk_table(disks: &[DiskView]) -> String {
    table(
        ["VM", "DISK", "SIZE", "REPLICAS", "IN SYNC", "COPY", "COMPARED"],
        disks.iter().map(|disk| {
            let replicas: Vec<String> = disk
                .replicas
                .iter()
                .map(|replica| {
                    let counts = if replica.good { "good" } else { "does not count" };
                    format!("{}: {}, {counts}", replica.host, word(&replica.state))
                })
                .collect();
            [
                disk.vm.clone(),
                disk.index.to_string(),
                bytes(disk.size_bytes),
                replicas.join("\n"),
                yes_no(disk.in_sync),
                copy_text(disk),
                comparison_text(disk),
            ]
        }),
    )
}

fn copy_text(disk: &DiskView) -> String {
    let Some(copy) = &disk.copy else { return disk.trouble.clone().unwrap_or_else(|| "-".to_owned()) };
    let kind = if copy.full { "full" } else { "delta" };
    let moved = bytes(copy.moved_bytes);
    if !copy.running {
        return format!("{kind}, ended: {moved} moved of {}", bytes(copy.total_bytes));
    }
    let left = copy.left_s.map_or_else(String::new, |seconds| format!(", {seconds} s left"));
    format!("{kind}: {} of {}, {moved} moved{left}", bytes(copy.done_bytes), bytes(copy.total_bytes))
}

async fn verify(client: &Client, format: Format, vm: &str, repair: bool, wait: Wait) -> Result<(), Failure> {
    let before: Vec<DiskView> = client.get(&path(vm, "/disks")).await?;
    let result: VerifyView = client.json(Method::POST, &path(vm, "/verify"), Some(&Verify { repair }), SHORT).await?;
    if !wait.wait {
        return output::show(format, &result, |result| result.message.clone());
    }
    let disks = wait::compared(client, vm, &before, wait, format).await?;
    output::show(format, &disks, |disks| disks.iter().map(compared_line).collect::<Vec<_>>().join("\n"))?;
    let alike = |disk: &DiskView| {
        let comparison = disk.comparison.as_ref();
        comparison.is_some_and(|one| one.complete && one.different_bytes <= one.repaired_bytes)
    };
    if disks.iter().all(alike) {
        return Ok(());
    }
    Err(Failure::local(format!("the replicas of {vm} are not known to be alike"))
        .hint("ev pvm-sync shows whether they are in step; --repair makes the other replica like the active host's"))
}

fn compared_line(disk: &DiskView) -> String {
    format!("disk {}: {}", disk.index, comparison_text(disk))
}

fn comparison_text(disk: &DiskView) -> String {
    let Some(comparison) = &disk.comparison else { return "-".to_owned() };
    let done = bytes(comparison.compared_bytes);
    let of = bytes(comparison.total_bytes);
    match (comparison.ended, comparison.complete) {
        (None, _) => format!("{done} of {of} compared"),
        (Some(_), false) => format!("stopped after {done} of {of}"),
        (Some(at), true) if comparison.different_bytes == 0 => format!("alike, {}", output::time(at)),
        (Some(at), true) => {
            let (different, repaired) = (bytes(comparison.different_bytes), bytes(comparison.repaired_bytes));
            format!("{different} differed, {repaired} repaired, {}", output::time(at))
        }
    }
}
