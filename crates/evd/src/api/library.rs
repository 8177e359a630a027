//! The pool's library: uploaded to the pool master; other hosts fetch what their VMs need by hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use ev_api::library::LibraryView;
use ev_api::{ApiError, ErrorCode};
use ev_core::pool::PoolState;
use ev_core::vm::{Boot, LibraryFile, Vm};
use serde::Deserialize;

use super::answer::{Answer, Refusal};
use super::upload::{Sink, pour};
use crate::app::App;
use crate::library::{Incoming, LibraryError};

/// Longest name of a library file, in bytes.
const NAME_BYTES_MAX: usize = 255;

#[derive(Debug, Deserialize)]
pub struct Named {
    #[serde(default)]
    name: String,
}

/// The library files of a VM.
pub fn of_vm(vm: &Vm) -> Vec<&LibraryFile> {
    match &vm.config.boot {
        Boot::Disk => Vec::new(),
        Boot::Iso(iso) => vec![iso],
        Boot::Kernel { kernel, initrd, .. } => std::iter::once(kernel).chain(initrd).collect(),
    }
}

fn known(state: &PoolState) -> BTreeMap<String, LibraryView> {
    let files = state.vms.values().flat_map(of_vm);
    files.map(|file| (file.blake3.clone(), view(file))).collect()
}

fn view(file: &LibraryFile) -> LibraryView {
    LibraryView { name: file.name.clone(), blake3: file.blake3.clone(), size_bytes: file.size_bytes }
}

pub async fn list(State(app): State<Arc<App>>) -> Answer<Vec<LibraryView>> {
    let member = app.member()?;
    Ok(Json(known(&member.state()).into_values().collect()))
}

pub async fn get(State(app): State<Arc<App>>, Path(hash): Path<String>) -> Answer<LibraryView> {
    let path = app.library.path(&hash).map_err(refused)?;
    let missing = || {
        Refusal(ApiError::new(ErrorCode::NotFound, format!("there is no file {hash} in the library")).hint("upload it"))
    };
    let size_bytes = std::fs::metadata(path).map_err(|_| missing())?.len();
    let known = known(&app.member()?.state()).remove(&hash);
    Ok(Json(known.unwrap_or(LibraryView { name: hash.clone(), blake3: hash, size_bytes })))
}

fn refused(error: LibraryError) -> ApiError {
    let code = match &error {
        LibraryError::BadHash(_) | LibraryError::WrongHash { .. } => ErrorCode::Invalid,
        LibraryError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorCode::NoSpace,
        LibraryError::Io { .. } => ErrorCode::Internal,
    };
    ApiError::new(code, error.to_string())
}

impl Sink for Incoming {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        Incoming::write(self, bytes).map_err(refused)
    }
}

pub async fn put(
    State(app): State<Arc<App>>,
    Path(hash): Path<String>,
    Query(named): Query<Named>,
    request: Request,
) -> Answer<LibraryView> {
    if named.name.len() > NAME_BYTES_MAX || named.name.chars().any(char::is_control) {
        return Err(ApiError::new(ErrorCode::Invalid, "the file's name is too long or has control characters").into());
    }
    let incoming = app.library.receive(&hash).map_err(refused)?;
    let incoming = pour(request.into_body(), incoming).await?;
    let size_bytes = tokio::task::spawn_blocking(move || incoming.finish())
        .await
        .map_err(|error| super::answer::internal("keeping a file", &error))?
        .map_err(refused)?;
    Ok(Json(LibraryView { name: named.name, blake3: hash, size_bytes }))
}
