//! Giving up what was written since an older state, when the good side is lost: the last resort, and a person's decision.
//!
//! First the host's AM brings its replicas back, durably, while the record still calls them not good; then the record makes them
//! good alone. Whatever stops it in between leaves replicas that nobody starts, and the same command goes on from there.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Path, State};
use ev_api::vm::{Done, Revert, Reverted};
use ev_api::{ApiError, ErrorCode};
use ev_core::authority::{AuthorityChange, Power};
use ev_core::ids::VmId;
use ev_core::pool::{Command, Member as PoolMember, PoolState};
use ev_core::vm::Vm;
use ev_wire::am::{AmAnswer, AmCall};
use hyper::Request;
use uuid::Uuid;

use super::answer::{Answer, Body, internal, refuse};
use super::resolve;
use crate::app::App;
use crate::local::{files, process};
use crate::member::Member;
use crate::{proxy, view};

/// Writing back what a copy had overwritten.
const REVERT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub async fn revert(State(app): State<Arc<App>>, Path(vm): Path<String>, Body(request): Body<Revert>) -> Answer<Done> {
    let member = app.member()?;
    let state = member.state();
    let vm = resolve::vm(&state, &vm)?;
    let host = resolve::host(&state, &request.host)?;
    check(&member, &state, vm, host)?;
    if !request.give_up_newer_writes {
        return refuse(
            ErrorCode::Refused,
            format!("all that {} has written since the older state on {} would be lost", vm.name, host.name),
            "bring back the other host if there is any way to; else say --give-up-newer-writes",
        );
    }
    // A client that goes away must not stop it halfway.
    let (vm, host) = (vm.clone(), host.clone());
    let work = tokio::spawn(async move { carry_out(&member, &vm, &host).await });
    Ok(Json(work.await.map_err(|error| internal("bringing back an older state", &error))??))
}

fn check(member: &Member, state: &PoolState, vm: &Vm, host: &PoolMember) -> Result<(), ApiError> {
    let refused = |message: String, hint: &str| Err(ApiError::new(ErrorCode::Refused, message).hint(hint));
    if !vm.hosts.contains(&host.id) {
        return refused(format!("{} has no replica on {}", vm.name, host.name), "ev pvm-show names its hosts");
    }
    if vm.authority.power != Power::Off {
        return refused(format!("{} is on", vm.name), "end it first: ev pvm-force-off");
    }
    if vm.authority.holds_all_good(host.id) {
        let hint = "there is nothing to go back to; start it: ev pvm-start";
        return refused(format!("{} has the newest state of every disk", host.name), hint);
    }
    let newest = state.hosts().find(|other| vm.hosts.contains(&other.id) && vm.authority.holds_all_good(other.id));
    if let Some(newest) = newest.filter(|newest| member.is_online(newest.id)) {
        let message = format!("{} is up and has the newest state of every disk", newest.name);
        return refused(message, "start the VM (ev pvm-start); the other replica is brought in step by itself");
    }
    if !member.is_online(host.id) {
        return refused(format!("{} is down or cut off", host.name), "bring it back first");
    }
    Ok(())
}

async fn carry_out(member: &Member, vm: &Vm, host: &PoolMember) -> Result<Done, ApiError> {
    let Some(api) = host.api else {
        return Err(ApiError::new(ErrorCode::Internal, "that host has no address for the API"));
    };
    let request = Request::post(format!("/v1/local/vms/{}/revert", vm.id))
        .body(HttpBody::empty())
        .map_err(|error| internal("asking the host", &error))?;
    let answer = tokio::time::timeout(REVERT_TIMEOUT, proxy::forward(member.tls(), api, request));
    let reverted: Reverted =
        proxy::json(answer.await.map_err(|error| internal("waiting for the host", &error))??).await?;
    let change = AuthorityChange::Revert { host: host.id };
    member.propose(Command::VmAuthority { id: vm.id, if_generation: vm.authority.generation, change }).await?;
    let state = match reverted.kept_at {
        Some(time) => format!("as it was before the copy that began at {time}"),
        None => "as it was when it fell behind".to_owned(),
    };
    Ok(Done { notes: vec![format!("{} is now {state}, on {}; start it with ev pvm-start", vm.name, host.name)] })
}

pub async fn revert_here(State(app): State<Arc<App>>, Path(vm): Path<Uuid>) -> Answer<Reverted> {
    let socket = files::am_socket(&app.vm_run(VmId(vm)));
    let answer = process::call(&socket, &AmCall::Revert, REVERT_TIMEOUT).await;
    match answer.map_err(|error| internal("asking the VM's Availability Manager", &error))? {
        AmAnswer::Reverted { kept_at_unix_s } => {
            let kept_at = kept_at_unix_s.map(|seconds| view::time(seconds.saturating_mul(1000)));
            Ok(Json(Reverted { kept_at }))
        }
        AmAnswer::Refused(why) => Err(ApiError::new(ErrorCode::Refused, why).into()),
        AmAnswer::Done | AmAnswer::Status(_) => {
            Err(ApiError::new(ErrorCode::Internal, "the AM answered out of turn: are all programs of one version?")
                .into())
        }
    }
}
