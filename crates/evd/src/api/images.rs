//! Disk images: carried to the host that will run the VM, converted there, adopted by the VM.

use std::io::Write;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use ev_api::library::{ImageHome, ImageView};
use ev_api::{ApiError, ErrorCode};
use ev_core::ids::VmId;
use ev_core::pool::Member as PoolMember;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::answer::{Answer, Body as JsonBody, Refusal, internal};
use super::upload::{Sink, pour};
use super::{placement, resolve};
use crate::app::App;
use crate::images::disk_fault;
use crate::member::Member;
use crate::proxy;

/// Which host an image is on.
#[derive(Debug, Deserialize)]
pub struct OnHost {
    #[serde(default)]
    host: String,
}

/// The host that a new VM's images go to: as wished, or chosen.
pub async fn home(State(app): State<Arc<App>>, Query(on): Query<OnHost>) -> Answer<ImageHome> {
    let member = app.member()?;
    let state = member.state();
    let host = if on.host.is_empty() { placement::home(&member, &state)? } else { resolve::host(&state, &on.host)? };
    Ok(Json(ImageHome { host: host.name.clone() }))
}

fn api_of(host: &PoolMember) -> Result<std::net::SocketAddr, ApiError> {
    host.api.ok_or_else(|| ApiError::new(ErrorCode::Internal, format!("host {} has no API address", host.name)))
}

struct Staged {
    file: std::fs::File,
    folder: std::path::PathBuf,
}

impl Sink for Staged {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.file.write_all(bytes).map_err(|error| disk_fault(&self.folder, &error))
    }
}

/// Carries the request to the host that it names.
async fn carry(app: &App, id: Uuid, on: &OnHost, mut request: Request) -> Result<Response, Refusal> {
    let member = app.member()?;
    let state = member.state();
    let host = resolve::host(&state, &on.host)?;
    let path = format!("/v1/local/images/{id}");
    *request.uri_mut() = path.parse().map_err(|error| internal("naming an image", &error))?;
    Ok(proxy::forward(member.tls(), api_of(host)?, request).await?)
}

pub async fn put(
    State(app): State<Arc<App>>,
    Path(id): Path<Uuid>,
    Query(on): Query<OnHost>,
    request: Request,
) -> Result<Response, Refusal> {
    carry(&app, id, &on, request).await
}

pub async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<Uuid>,
    Query(on): Query<OnHost>,
    request: Request,
) -> Result<Response, Refusal> {
    carry(&app, id, &on, request).await
}

pub async fn put_here(State(app): State<Arc<App>>, Path(id): Path<Uuid>, request: Request) -> Answer<ImageView> {
    let sink = Staged { file: app.images.begin(id)?, folder: app.config.state_dir.clone() };
    if let Err(error) = pour(request.into_body(), sink).await {
        app.images.discard(id);
        return Err(error.into());
    }
    app.images.convert(id);
    Ok(Json(view(&app, id)?))
}

pub async fn get_here(State(app): State<Arc<App>>, Path(id): Path<Uuid>) -> Answer<ImageView> {
    Ok(Json(view(&app, id)?))
}

fn view(app: &App, id: Uuid) -> Result<ImageView, ApiError> {
    let state = app.images.state(id).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no uploaded image {id} on this host"))
            .hint("upload it again")
    })?;
    Ok(ImageView { id, host: app.config.name.clone(), state })
}

/// `POST /v1/local/adopt`, between daemons: a converted image becomes a replica of a VM that is about to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Adopt {
    vm: VmId,
    disk: usize,
    image: Uuid,
    size_bytes: u64,
}

pub async fn adopt_here(State(app): State<Arc<App>>, JsonBody(adopt): JsonBody<Adopt>) -> Answer<()> {
    let replica = crate::local::files::replica(&app.vm_state(adopt.vm), adopt.disk);
    let images = app.images.clone();
    tokio::task::spawn_blocking(move || images.adopt(adopt.image, adopt.size_bytes, &replica))
        .await
        .map_err(|error| internal("taking an image in", &error))??;
    Ok(Json(()))
}

/// Has the home host adopt the image.
pub async fn adopt(
    app: &Arc<App>,
    member: &Member,
    home: &PoolMember,
    vm: VmId,
    disk: usize,
    image: Uuid,
    size_bytes: u64,
) -> Result<(), ApiError> {
    let adopt = Adopt { vm, disk, image, size_bytes };
    if home.id == member.host {
        return adopt_here(State(Arc::clone(app)), JsonBody(adopt)).await.map(|_| ()).map_err(|refusal| refusal.0);
    }
    let body = serde_json::to_vec(&adopt).map_err(|error| internal("encoding a request", &error))?;
    let request = Request::post("/v1/local/adopt")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .header(hyper::header::HOST, "host")
        .body(Body::from(body))
        .map_err(|error| internal("making a request", &error))?;
    let response = proxy::forward(member.tls(), api_of(home)?, request).await?;
    proxy::json::<()>(response).await
}
