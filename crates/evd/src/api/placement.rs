//! Where a VM may live and with which machine type and processor model; which levels it is a candidate for.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use ev_api::vm::{CandidacyView, Done, Protect};
use ev_api::{ApiError, ErrorCode};
use ev_core::candidacy::{LinkVerdict, Obstacle, Question, limitations, link_verdict, obstacles};
use ev_core::ids::HostId;
use ev_core::pool::{Command, Member as PoolMember, PoolState};
use ev_core::vm::{Level, Vm};

use super::answer::{Answer, Body, refuse};
use super::resolve;
use crate::app::App;
use crate::link_speed;
use crate::member::Member;

const MACHINE_PREFIX: &str = "pc-q35-";

/// The online host with the fewest VMs.
///
/// # Errors
/// None is online.
pub fn home<'a>(member: &Member, state: &'a PoolState) -> Result<&'a PoolMember, ApiError> {
    least_used(member, state, &BTreeSet::new())
        .ok_or_else(|| ApiError::new(ErrorCode::Refused, "no host is online").hint("see ev host-list"))
}

fn least_used<'a>(member: &Member, state: &'a PoolState, not: &BTreeSet<HostId>) -> Option<&'a PoolMember> {
    state
        .hosts()
        .filter(|host| !not.contains(&host.id) && member.is_online(host.id))
        .min_by_key(|host| (state.vms_on(host.id).count(), host.id))
}

/// Versions of `pc-q35` that a host's QEMU has, as numbers.
fn versions(host: &PoolMember) -> BTreeSet<(u32, u32)> {
    let parse = |name: &str| {
        let (major, minor) = name.strip_prefix(MACHINE_PREFIX)?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    host.machines.iter().filter_map(|name| parse(name)).collect()
}

/// The newest versioned machine type that all hosts have, so that any of them can take the VM over.
///
/// # Errors
/// There is none in common.
pub fn machine(state: &PoolState, home: &PoolMember) -> Result<String, ApiError> {
    let mut common = versions(home);
    for host in state.hosts() {
        let has = versions(host);
        common.retain(|version| has.contains(version));
    }
    let newest = common.last().ok_or_else(|| {
        ApiError::new(ErrorCode::Refused, "the hosts' QEMUs have no machine type (pc-q35-…) in common")
            .hint("install QEMU of a similar version on all hosts; ev host-list shows them")
    })?;
    Ok(format!("{MACHINE_PREFIX}{}.{}", newest.0, newest.1))
}

fn level(number: u8) -> Result<Level, ApiError> {
    match number {
        0 => Ok(Level::Unprotected),
        1 => Ok(Level::Restart),
        2 => Ok(Level::Component),
        3 => Ok(Level::System),
        other => Err(ApiError::new(ErrorCode::Invalid, format!("there is no level {other}"))
            .hint("give 1 (restart), 2 (component fault tolerance) or 3 (system fault tolerance)")),
    }
}

pub async fn candidacy(State(app): State<Arc<App>>, Path(vm): Path<String>) -> Answer<Vec<CandidacyView>> {
    let member = app.member()?;
    let state = member.state();
    let vm = resolve::vm(&state, &vm)?;
    let mut views = Vec::new();
    for number in [1, 2, 3] {
        views.push(candidacy_at(&member, &state, vm, number).await?);
    }
    Ok(Json(views))
}

/// What stands against protecting `vm` with `partner`.
fn against(member: &Member, state: &PoolState, vm: &Vm, level: Level, partner: &PoolMember) -> Vec<String> {
    let status = member.live.status_of(partner.id);
    let home = stays(vm).and_then(|home| member.live.status_of(home));
    let question = Question {
        vm,
        level,
        partner,
        partner_alive: member.is_online(partner.id),
        partner_free_bytes: status.as_ref().and_then(|status| status.free_bytes),
        partner_memory_mib: status.as_ref().map(|status| status.memory_mib),
        home_available_mib: home.and_then(|status| status.available_mib),
        partner_available_mib: status.and_then(|status| status.available_mib),
    };
    obstacles(&question, state).iter().map(ToString::to_string).collect()
}

/// The host that stays one of the VM's whatever its level.
fn stays(vm: &Vm) -> Option<HostId> {
    vm.authority.active.or_else(|| vm.hosts.first().copied())
}

async fn candidacy_at(member: &Member, state: &PoolState, vm: &Vm, number: u8) -> Result<CandidacyView, ApiError> {
    let level = level(number)?;
    let stays = stays(vm);
    let mut reasons = Vec::new();
    let partners: Vec<&PoolMember> = state.hosts().filter(|host| Some(host.id) != stays).collect();
    if partners.is_empty() {
        reasons.push("the pool has one host: a second one must join (ev host-token)".to_owned());
    }
    for partner in partners {
        let mut found = against(member, state, vm, level, partner);
        if found.is_empty() {
            match link(member, state, vm, level, partner).await {
                Ok(notes) => {
                    let reasons = worth_knowing(state, level).into_iter().chain(notes).collect();
                    return Ok(CandidacyView { level: number, candidate: true, reasons });
                }
                Err(obstacle) => found.push(obstacle.to_string()),
            }
        }
        reasons.extend(found);
    }
    Ok(CandidacyView { level: number, candidate: false, reasons })
}

/// What is to be said of the link to a partner that nothing else stands against: level 3 tries it.
async fn link(
    member: &Member,
    state: &PoolState,
    vm: &Vm,
    level: Level,
    partner: &PoolMember,
) -> Result<Option<String>, Obstacle> {
    let home = stays(vm).and_then(|home| state.members.get(&home)).filter(|_| level == Level::System);
    let Some(home) = home else { return Ok(None) };
    match link_speed::between(member, home, partner).await {
        Ok(speed) => match link_verdict(home, partner, speed) {
            LinkVerdict::Fast => Ok(None),
            LinkVerdict::Slow(note) => Ok(Some(note)),
            LinkVerdict::TooSlow(obstacle) => Err(obstacle),
        },
        Err(error) => Ok(Some(format!("the link from {} to {} could not be tried: {error}", home.name, partner.name))),
    }
}

/// What is no obstacle and yet a person should know before protecting a VM.
fn worth_knowing(state: &PoolState, level: Level) -> Vec<String> {
    let mut notes = Vec::new();
    if level == Level::System {
        notes.extend(state.hosts().filter_map(limitations));
    }
    if state.hosts().any(|host| host.cpu.accelerator == "tcg") {
        notes.push("guests are emulated (TCG) on at least one host, so they are slow there".to_owned());
    }
    if state.members.len() < 3 {
        notes.push(
            "the pool has no third vote: after a host's death nothing may be restarted until it is back; add a quorum \
             server (ev quorum-add)"
                .to_owned(),
        );
    }
    notes
}

pub async fn protect(
    State(app): State<Arc<App>>,
    Path(vm): Path<String>,
    Body(request): Body<Protect>,
) -> Answer<Done> {
    let member = app.member()?;
    let state = member.state();
    let vm = resolve::vm(&state, &vm)?;
    let level = level(request.level)?;
    let hosts = hosts_for(&member, &state, vm, level, request.host.as_deref())?;
    if vm.level == level && vm.hosts == hosts {
        return Ok(Json(Done { notes: vec![format!("{} is at level {} already", vm.name, request.level)] }));
    }
    // Level 3 asks more of a host than the lower levels, under which it may hold the VM already.
    let stays = stays(vm);
    let is_new = |host: &PoolMember| !vm.hosts.contains(&host.id) || level == Level::System;
    let partners = state.hosts().filter(|host| hosts.contains(&host.id) && Some(host.id) != stays);
    let mut of_links = Vec::new();
    for partner in partners.filter(|host| is_new(host)) {
        let mut obstacle = against(&member, &state, vm, level, partner).into_iter().next();
        if obstacle.is_none() {
            match link(&member, &state, vm, level, partner).await {
                Ok(note) => of_links.extend(note),
                Err(too_slow) => obstacle = Some(too_slow.to_string()),
            }
        }
        if let Some(obstacle) = obstacle {
            return refuse(
                ErrorCode::Refused,
                format!("{} cannot be protected with host {}: {obstacle}", vm.name, partner.name),
                "see ev pvm-candidacy",
            );
        }
    }
    member.propose(Command::VmPlace { id: vm.id, level, hosts }).await?;
    let mut notes = if level == Level::Unprotected { Vec::new() } else { worth_knowing(&state, level) };
    notes.extend(of_links);
    Ok(Json(Done { notes }))
}

fn hosts_for(
    member: &Member,
    state: &PoolState,
    vm: &Vm,
    level: Level,
    wished: Option<&str>,
) -> Result<BTreeSet<HostId>, ApiError> {
    let Some(stays) = stays(vm) else {
        return Err(ApiError::new(ErrorCode::Internal, format!("{} has no host", vm.name)));
    };
    if level == Level::Unprotected {
        return Ok(BTreeSet::from([stays]));
    }
    let other = match wished {
        Some(name) => {
            let host = resolve::host(state, name)?;
            if host.id == stays {
                return Err(ApiError::new(ErrorCode::Invalid, format!("{} is on host {} already", vm.name, host.name))
                    .hint("name another host as the second one"));
            }
            host.id
        }
        None => match vm.hosts.iter().find(|host| **host != stays) {
            Some(other) => *other,
            None => {
                least_used(member, state, &BTreeSet::from([stays]))
                    .ok_or_else(|| {
                        ApiError::new(ErrorCode::Refused, format!("there is no second host online for {}", vm.name))
                            .hint("see ev host-list and ev pvm-candidacy")
                    })?
                    .id
            }
        },
    };
    Ok(BTreeSet::from([stays, other]))
}
