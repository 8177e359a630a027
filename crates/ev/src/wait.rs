//! Waiting until the pool shows what was asked for.

use std::time::{Duration, Instant};

use ev_api::client::{Client, ClientError, escape};
use ev_api::vm::{DesiredState, DiskView, PowerState, VmView};
use ev_api::{ApiError, ErrorCode};

use crate::args::{Format, Wait};
use crate::exit::Failure;
use crate::progress;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks at the VM until `done` says so. A pool without a master is waited out too.
pub async fn until(
    client: &Client,
    vm: &str,
    wait: Wait,
    what: &str,
    mut done: impl FnMut(&VmView) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        match client.get::<VmView>(&format!("/v1/vms/{}", escape(vm))).await {
            Ok(view) => {
                if done(&view)? {
                    return Ok(());
                }
            }
            Err(ClientError::Api(ApiError { error: ErrorCode::NoMaster | ErrorCode::NotMaster, .. }))
            | Err(ClientError::Unreachable(_) | ClientError::Broken(_) | ClientError::RedirectedInCircles) => {}
            Err(error) => return Err(error.into()),
        }
        if start.elapsed() >= Duration::from_secs(wait.timeout) {
            return Err(Failure::TimedOut { what: what.to_owned(), seconds: wait.timeout });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Until the guest does what is asked of it.
pub async fn power(client: &Client, vm: &str, wait: Wait, desired: DesiredState) -> Result<(), Failure> {
    let what = format!("{vm}: {}", crate::output::word(&desired));
    until(client, vm, wait, &what, |view| {
        Ok(match desired {
            DesiredState::Running | DesiredState::Reboot | DesiredState::ForceReboot => {
                view.power == PowerState::Running && view.desired == DesiredState::Running
            }
            DesiredState::Shutdown | DesiredState::ForceOff => view.power == PowerState::Off,
        })
    })
    .await
}

/// Until as many replicas of every disk are good as the level asks for, with a bar; at level 3 also until the memory of
/// a guest that runs is held.
pub async fn in_sync(client: &Client, vm: &str, wait: Wait, format: Format) -> Result<(), Failure> {
    let bar = progress::bytes(format, 0, vm);
    let result = until(client, vm, wait, &format!("synchronisation of {vm}"), |view| {
        let (done_bytes, total_bytes) = view.disks.iter().fold((0, 0), |sum, disk| {
            let (done, total) = copied(disk);
            (sum.0 + done, sum.1 + total)
        });
        bar.set_length(total_bytes);
        bar.set_position(done_bytes);
        let held = view.level < 3 || view.memory.is_some() || view.power == PowerState::Off;
        Ok(held && view.disks.iter().all(|disk| disk.in_sync))
    })
    .await;
    bar.finish_and_clear();
    result
}

/// Until a comparison of every disk has ended that had not before, with a bar; the disks then.
pub async fn compared(
    client: &Client,
    vm: &str,
    before: &[DiskView],
    wait: Wait,
    format: Format,
) -> Result<Vec<DiskView>, Failure> {
    let bar = progress::bytes(format, 0, vm);
    let mut disks = Vec::new();
    let result = until(client, vm, wait, &format!("comparison of {vm}"), |view| {
        let comparisons = view.disks.iter().filter_map(|disk| disk.comparison.as_ref());
        bar.set_length(view.disks.iter().map(|disk| disk.size_bytes).sum());
        bar.set_position(comparisons.map(|comparison| comparison.compared_bytes).sum());
        let ended = |disk: &DiskView| disk.comparison.as_ref().and_then(|comparison| comparison.ended);
        let old = |disk: &DiskView| before.iter().find(|old| old.uuid == disk.uuid).and_then(ended);
        disks.clone_from(&view.disks);
        Ok(view.disks.iter().all(|disk| ended(disk).is_some() && ended(disk) != old(disk)))
    })
    .await;
    bar.finish_and_clear();
    result.map(|()| disks)
}

fn copied(disk: &DiskView) -> (u64, u64) {
    match &disk.copy {
        Some(copy) if copy.running => (copy.done_bytes, copy.total_bytes),
        Some(_) | None => (0, 0),
    }
}
