//! This host's status, and on the pool master everyone's: which host hears which on which network, and what is wrong.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use ev_api::ApiError;
use ev_core::pool::Member as PoolMember;
use hyper::Request;
use tokio::task::JoinSet;

use crate::app::App;
use crate::live::{Heard, HostStatus};
use crate::member::Member;
use crate::{clock, facts, proxy};

/// How often the master asks each host.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long a host may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Of this host, now.
pub async fn here(app: &App, member: &Member) -> HostStatus {
    let now = clock::now();
    let heard = member.ear.last().into_iter().map(|((from, path), at)| Heard {
        from,
        path,
        ago_ms: u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX),
    });
    let (accelerator, troubles) = match app.qemu_facts().await {
        Ok((_, accelerator)) => (accelerator.to_string(), accelerator.notice().into_iter().collect()),
        Err(error) => ("none".to_owned(), vec![error.message]),
    };
    HostStatus {
        cpus: app.machine.cpus,
        memory_mib: app.machine.memory_mib,
        available_mib: facts::available_mib(),
        accelerator,
        free_bytes: free_bytes(&app.config.state_dir.join("vms")).or_else(|| free_bytes(&app.config.state_dir)),
        heard: heard.collect(),
        troubles,
    }
}

/// The VMs' folders may be a file system of their own; there is no such folder before the first VM.
fn free_bytes(folder: &std::path::Path) -> Option<u64> {
    let info = rustix::fs::statvfs(folder).ok()?;
    info.f_bavail.checked_mul(info.f_frsize)
}

async fn ask(member: &Member, host: &PoolMember) -> Result<HostStatus, ApiError> {
    let Some(api) = host.api else {
        return Err(ApiError::new(ev_api::ErrorCode::Internal, "the host has no API address"));
    };
    let request = Request::get("/v1/local/status")
        .header(hyper::header::HOST, "host")
        .body(Body::empty())
        .map_err(|error| ApiError::new(ev_api::ErrorCode::Internal, error.to_string()))?;
    proxy::json(proxy::forward(member.tls(), api, request).await?).await
}

/// While this host is master: asks every host every two seconds.
pub async fn watch_hosts(app: Arc<App>, member: Arc<Member>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !member.is_master() {
            continue;
        }
        member.live.sweep();
        let mut asked = JoinSet::new();
        for host in member.state().hosts().cloned() {
            let (app, member) = (Arc::clone(&app), Arc::clone(&member));
            asked.spawn(async move {
                if host.id == member.host {
                    let status = here(&app, &member).await;
                    member.live.host(host.id, status);
                } else if let Ok(Ok(status)) = tokio::time::timeout(TIMEOUT, ask(&member, &host)).await {
                    member.live.host(host.id, status);
                }
            });
        }
        while asked.join_next().await.is_some() {}
    }
}
