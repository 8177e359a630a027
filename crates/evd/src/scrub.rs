//! Comparisons in the background: looks now and then whether one is due on this host, and has it begun.

use std::sync::Arc;
use std::time::Duration;

use ev_core::scrub::{SCRUB_BYTES_PER_S, due};
use ev_wire::am::{AmAnswer, AmCall};

use crate::app::App;
use crate::local::{files, process};
use crate::view;

/// How often it looks. One that is under way is not begun again.
const INTERVAL: Duration = Duration::from_secs(10);

/// Runs as long as the daemon.
pub async fn run(app: Arc<App>) {
    let mut look = tokio::time::interval(INTERVAL);
    loop {
        look.tick().await;
        let Ok(member) = app.member() else { continue };
        let Some(vm) = due(&member.state(), member.host, view::unix_ms_now()) else { continue };
        let socket = files::am_socket(&app.vm_run(vm));
        if is_busy(&socket).await {
            continue;
        }
        let call = AmCall::Verify { repair: true, bytes_per_s: Some(SCRUB_BYTES_PER_S) };
        match process::call(&socket, &call, process::CALL_TIMEOUT).await {
            Ok(_) => tracing::info!(%vm, "both replicas are being compared, as every so often"),
            Err(error) => tracing::debug!(%vm, %error, "its AM does not answer; the comparison comes later"),
        }
    }
}

/// Whether a copy or a comparison is under way, or it can't be told.
async fn is_busy(socket: &std::path::Path) -> bool {
    let Ok(AmAnswer::Status(report)) = process::call(socket, &AmCall::Status, process::CALL_TIMEOUT).await else {
        return true;
    };
    report.disks.iter().any(|disk| {
        let copying = disk.copy.is_some_and(|copy| copy.done_bytes < copy.total_bytes);
        let comparing = disk.comparison.is_some_and(|comparison| comparison.ended_unix_ms.is_none());
        copying || comparing
    })
}
