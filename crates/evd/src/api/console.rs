//! The guest's serial line as a byte stream, and verification of its disks: both answered by the active host.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ev_api::vm::{Verify, VerifyView};
use ev_api::{ApiError, ErrorCode};
use ev_core::authority::Power;
use ev_core::ids::VmId;
use ev_core::pool::PoolState;
use ev_core::vm::Vm;
use ev_wire::am::{AmAnswer, AmCall};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use uuid::Uuid;

use super::answer::{Answer, Body, Refusal, internal};
use super::resolve;
use crate::app::App;
use crate::local::{files, process};
use crate::proxy;

/// A comparison of all blocks of all disks.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Carries the request to the VM's active host.
async fn carry(app: &App, vm: &Vm, state: &PoolState, what: &str, mut request: Request) -> Result<Response, Refusal> {
    let member = app.member()?;
    let active = vm.authority.active.and_then(|active| state.members.get(&active)?.api);
    let Some(api) = active else {
        return Err(ApiError::new(ErrorCode::Refused, format!("{} has no active host", vm.name)).into());
    };
    let path = format!("/v1/local/vms/{}/{what}", vm.id);
    *request.uri_mut() = path.parse().map_err(|error| internal("naming a VM", &error))?;
    Ok(proxy::forward(member.tls(), api, request).await?)
}

pub async fn console(
    State(app): State<Arc<App>>,
    Path(vm): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let state = app.member()?.state();
    let vm = resolve::vm(&state, &vm)?;
    if vm.authority.power == Power::Off {
        return Err(ApiError::new(ErrorCode::Refused, format!("{} is off", vm.name))
            .hint("start it: ev pvm-start")
            .into());
    }
    carry(&app, vm, &state, "console", request).await
}

pub async fn verify(
    State(app): State<Arc<App>>,
    Path(vm): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let state = app.member()?.state();
    let vm = resolve::vm(&state, &vm)?;
    carry(&app, vm, &state, "verify", request).await
}

pub async fn console_here(
    State(app): State<Arc<App>>,
    Path(vm): Path<Uuid>,
    request: Request,
) -> Result<Response, Refusal> {
    join_serial(&app, VmId(vm), request).await
}

async fn join_serial(app: &App, vm: VmId, mut request: Request) -> Result<Response, Refusal> {
    let socket = files::serial_socket(&app.vm_run(vm));
    let mut serial = UnixStream::connect(&socket).await.map_err(|error| {
        ApiError::new(ErrorCode::Refused, format!("the guest's serial line is not open: {error}"))
            .hint("is the guest running (ev pvm-show)? Try again in a few seconds")
    })?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(stream), &mut serial).await;
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "evenkeel-stream")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

pub async fn verify_here(
    State(app): State<Arc<App>>,
    Path(vm): Path<Uuid>,
    Body(verify): Body<Verify>,
) -> Answer<VerifyView> {
    let socket = files::am_socket(&app.vm_run(VmId(vm)));
    let answer =
        process::call(&socket, &AmCall::Verify { repair: verify.repair, bytes_per_s: None }, VERIFY_TIMEOUT).await;
    match answer.map_err(|error| internal("asking the VM's Availability Manager", &error))? {
        AmAnswer::Refused(why) => Err(ApiError::new(ErrorCode::Refused, why).into()),
        AmAnswer::Done => {
            Ok(Json(VerifyView { message: "begun; ev disk-show has the progress and the result".to_owned() }))
        }
        AmAnswer::Reverted { .. } => {
            Err(internal("asking the VM's Availability Manager", &"an answer out of turn").into())
        }
        AmAnswer::Status(report) => Ok(Json(VerifyView { message: report.troubles.join("; ") })),
    }
}
