//! Hosts and quorum servers: listed, removed, added.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use ev_api::host::{HostRemove, HostState, HostView, PathView};
use ev_api::pool::QuorumAdd;
use ev_api::vm::Done;
use ev_api::{ApiError, ErrorCode, VersionView};
use ev_core::candidacy::LinkSpeed;
use ev_core::ids::{HostId, MemberId};
use ev_core::pool::{Command, CpuFacts, Member as PoolMember, MemberKind, MemoryTracking, Outcome, PoolState};
use ev_pool::quorum::{self, Enlistment};
use ev_pool::{PoolStatus, VoterRole};
use ev_wire::quorum::Invitation;

use super::answer::{Answer, Body, internal, refuse};
use super::resolve;
use crate::app::App;
use crate::live::HostStatus;
use crate::member::Member;
use crate::{heartbeats, link_speed, status, view};

pub async fn version(State(app): State<Arc<App>>) -> Json<VersionView> {
    Json(VersionView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: 1,
        host: app.config.name.clone(),
        member: app.member().is_ok(),
    })
}

pub async fn status(State(app): State<Arc<App>>) -> Answer<HostStatus> {
    let member = app.member()?;
    Ok(Json(status::here(&app, &member).await))
}

pub async fn list(State(app): State<Arc<App>>) -> Answer<Vec<HostView>> {
    let member = app.member()?;
    let state = member.state();
    Ok(Json(state.hosts().filter_map(|host| host_view(&member, &state, host)).collect()))
}

fn host_view(member: &Member, state: &PoolState, host: &PoolMember) -> Option<HostView> {
    let group = member.node.status();
    let said = member.live.status_of(host.id);
    let votes = group.members.iter().any(|one| one.at.member == host.id && one.role == VoterRole::Voter);
    Some(HostView {
        id: host.id.0,
        name: host.name.clone(),
        state: if member.is_online(host.id) { HostState::Online } else { HostState::Dead },
        master: group.leadership.master == Some(host.id),
        votes,
        api_address: host.api?,
        addresses: view::addresses(host),
        cpu: host.cpu.model.clone(),
        cpus: said.as_ref().map_or(0, |said| said.cpus),
        memory_mib: said.as_ref().map_or(0, |said| said.memory_mib),
        qemu_version: host.qemu_version.clone(),
        accelerator: host.cpu.accelerator.clone(),
        paths: said.as_ref().map_or_else(Vec::new, |said| paths(state, host.id, said)),
        troubles: said.map_or_else(Vec::new, |said| said.troubles),
        vms: state.vms.values().filter(|vm| runs_on(vm, host.id)).map(|vm| vm.name.clone()).collect(),
    })
}

fn runs_on(vm: &ev_core::vm::Vm, host: HostId) -> bool {
    vm.authority.active == Some(host) && vm.authority.power != ev_core::authority::Power::Off
}

/// Every path on which `host` should hear another one, and whether it does.
fn paths(state: &PoolState, host: HostId, said: &HostStatus) -> Vec<PathView> {
    let silence_ms = u64::try_from(heartbeats::SILENCE.as_millis()).unwrap_or(u64::MAX);
    let own = state.members.get(&host).map_or(0, |host| host.private.len());
    let mut views = Vec::new();
    for other in state.hosts().filter(|other| other.id != host) {
        let count = u16::try_from(own.min(other.private.len()) + 1).unwrap_or(u16::MAX);
        for path in 0..count {
            let heard = said
                .heard
                .iter()
                .any(|heard| heard.from == other.id && heard.path == path && heard.ago_ms < silence_ms);
            views.push(PathView { from: other.name.clone(), network: heartbeats::path_name(path), heard });
        }
    }
    views
}

/// From this host to another one, for the pool master.
pub async fn link_speed(State(app): State<Arc<App>>, Path(host): Path<u64>) -> Answer<LinkSpeed> {
    Ok(Json(link_speed::here(&*app.member()?, MemberId(host)).await?))
}

/// How long a removed host has to learn of it before it is forgotten.
const FAREWELL: Duration = Duration::from_millis(500);

pub async fn remove(
    State(app): State<Arc<App>>,
    Path(host): Path<String>,
    Query(how): Query<HostRemove>,
) -> Answer<Done> {
    let member = app.member()?;
    let state = member.state();
    let host = resolve::host(&state, &host)?;
    if host.id == member.host {
        return refuse(
            ErrorCode::Refused,
            format!("host {} is pool master now and cannot remove itself", host.name),
            "stop evd on it for some seconds, so that another host becomes master, and try again",
        );
    }
    if !member.is_online(host.id) && !how.force {
        return refuse(
            ErrorCode::Refused,
            format!("host {} is not online and cannot be told that it leaves the pool", host.name),
            "bring it back, or say --force if it never will be; its data stays on it",
        );
    }
    member.propose(Command::MemberRemove { id: host.id }).await?;
    // The host learns of its removal from the log; then the group forgets it.
    tokio::time::sleep(FAREWELL).await;
    Ok(Json(Done::default()))
}

/// How long a new quorum server may take to vote, and a removed one to be let go.
const GROUP_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at the consensus group.
const GROUP_LOOK: Duration = Duration::from_millis(200);

pub async fn quorum_add(State(app): State<Arc<App>>, Body(request): Body<QuorumAdd>) -> Answer<Done> {
    let member = app.member()?;
    let invitation: Invitation = request
        .invitation
        .parse()
        .map_err(|error: ev_wire::quorum::BadInvitation| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    // A client that goes away must not stop it halfway.
    let work = tokio::spawn(async move { enlist(&member, request.name, invitation).await });
    Ok(Json(work.await.map_err(|error| internal("taking in a quorum server", &error))??))
}

async fn enlist(member: &Member, name: String, invitation: Invitation) -> Result<Done, ApiError> {
    let address = invitation.address;
    let record = PoolMember {
        id: MemberId(0),
        uuid: uuid::Uuid::new_v4(),
        name: name.clone(),
        kind: MemberKind::QuorumServer,
        peer: address,
        api: None,
        heartbeat_port: 0,
        link_port_base: 0,
        private: Vec::new(),
        cpu: CpuFacts::default(),
        qemu_version: String::new(),
        machines: Vec::new(),
        memory_tracking: MemoryTracking::Untried,
    };
    let outcome = member.propose(Command::MemberAdd { member: Box::new(record) }).await?;
    let Outcome::MemberAdded(id) = outcome else {
        return Err(ApiError::new(ErrorCode::Internal, "the addition has an outcome of another kind"));
    };
    let enlistment = Enlistment { invitation, pool_name: member.pool_name.clone(), member: id, name: name.clone() };
    if let Err(error) = quorum::enlist(&member.authority, &enlistment).await {
        member.propose(Command::MemberRemove { id }).await?;
        return Err(ApiError::new(ErrorCode::Refused, format!("quorum server {name} was not taken in: {error}")));
    }
    let in_time = group(member, |status| status.members.iter().any(|one| one.at.member == id)).await;
    let mut notes = Vec::new();
    if !in_time {
        notes.push(format!("{name} is not in the consensus group yet; ev pool-show says when it is"));
    } else if !group(member, |status| votes(status, id) || spare(&member.state(), status)).await {
        notes.push(format!("{name} does not vote yet; ev pool-show says when it does"));
    }
    Ok(Done { notes })
}

fn votes(status: &PoolStatus, id: MemberId) -> bool {
    status.members.iter().any(|one| one.at.member == id && one.role == VoterRole::Voter)
}

/// With an odd number of hosts a quorum server only learns.
fn spare(state: &PoolState, status: &PoolStatus) -> bool {
    let master = status.leadership.master.unwrap_or(MemberId(0));
    let target = ev_pool::membership::target_voters(state, master);
    target.iter().all(|id| votes(status, *id))
}

/// Waits until the consensus group is as asked. `false`: not in time.
async fn group(member: &Member, done: impl Fn(&PoolStatus) -> bool) -> bool {
    let until = tokio::time::Instant::now() + GROUP_TIMEOUT;
    while !done(&member.node.status()) {
        if tokio::time::Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(GROUP_LOOK).await;
    }
    true
}

pub async fn quorum_remove(State(app): State<Arc<App>>, Path(server): Path<String>) -> Answer<Done> {
    let member = app.member()?;
    let state = member.state();
    let server = resolve::quorum_server(&state, &server)?.clone();
    member.propose(Command::MemberRemove { id: server.id }).await?;
    let mut notes = Vec::new();
    if !group(&member, |status| status.members.iter().all(|one| one.at.member != server.id)).await {
        notes.push("the consensus group has not let go of it yet; it does when a majority answers".to_owned());
    } else if let Err(error) = quorum::dismiss(&member.identity, server.id, server.peer).await {
        notes.push(error.to_string());
    }
    Ok(Json(Done { notes }))
}
