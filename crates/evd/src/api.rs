//! The HTTP API: one router behind both doors.

pub mod answer;
pub mod auth;
pub mod console;
pub mod events;
pub mod hosts;
pub mod images;
pub mod library;
pub mod placement;
pub mod pool;
pub mod refusals;
pub mod resolve;
pub mod revert;
pub mod switch;
pub mod upload;
pub mod vms;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Router, middleware};
use ev_api::{ApiError, ErrorCode};

use crate::app::App;

/// Largest JSON body; uploads are streams and have no limit but the disk.
const BODY_BYTES_MAX: usize = 1 << 20;

/// All of it.
pub fn router(app: Arc<App>) -> Router {
    let on_master = Router::new()
        .route("/v1/tokens", get(pool::admin_tokens).post(pool::admin_token))
        .route("/v1/tokens/{id}", delete(pool::admin_token_revoke))
        .route("/v1/tokens/host", post(pool::host_token))
        .route("/v1/networks", get(pool::networks).post(pool::network_add))
        .route("/v1/settings", get(pool::settings).put(pool::settings_set))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{host}", delete(hosts::remove))
        .route("/v1/quorum-servers", post(hosts::quorum_add))
        .route("/v1/quorum-servers/{server}", delete(hosts::quorum_remove))
        .route("/v1/library", get(library::list))
        .route("/v1/library/{hash}", get(library::get).put(library::put))
        .route("/v1/images/home", get(images::home))
        .route("/v1/images/{id}", get(images::get).put(images::put))
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{vm}", get(vms::show).delete(vms::delete))
        .route("/v1/vms/{vm}/protection", put(placement::protect))
        .route("/v1/vms/{vm}/candidacy", get(placement::candidacy))
        .route("/v1/vms/{vm}/desired", put(vms::desire))
        .route("/v1/vms/{vm}/disks", get(vms::disks_of))
        .route("/v1/vms/{vm}/verify", post(console::verify))
        .route("/v1/vms/{vm}/revert", post(revert::revert))
        .route("/v1/vms/{vm}/switch", post(switch::switch))
        .route("/v1/vms/{vm}/console", get(console::console))
        .route("/v1/disks", get(vms::disks))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_master))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_administrator));
    let at_best_on_master = Router::new()
        .route("/v1/pool", get(pool::show))
        .route("/v1/events", get(events::list))
        .route("/v1/alerts", get(events::alerts))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::prefer_master))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_administrator));
    let between_hosts = Router::new()
        .route("/v1/local/status", get(hosts::status))
        .route("/v1/local/link-speed/{host}", get(hosts::link_speed))
        .route("/v1/local/adopt", post(images::adopt_here))
        .route("/v1/local/images/{id}", get(images::get_here).put(images::put_here))
        .route("/v1/local/vms/{vm}/console", get(console::console_here))
        .route("/v1/local/vms/{vm}/verify", post(console::verify_here))
        .route("/v1/local/vms/{vm}/revert", post(revert::revert_here))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_host));
    let on_this_host = Router::new()
        .route("/v1/pool", post(pool::create))
        .route("/v1/pool/join", post(pool::join))
        .layer(middleware::from_fn(auth::require_local));
    let for_newcomers = Router::new()
        .route("/v1/join", post(pool::admit))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_master));
    on_master
        .merge(at_best_on_master)
        .merge(between_hosts)
        .merge(on_this_host)
        .merge(for_newcomers)
        .route("/v1/version", get(hosts::version))
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

async fn no_such_path() -> Response {
    let error = ApiError::new(ErrorCode::NotFound, "there is no such path in this API, version 1");
    answer::Refusal(error.hint("is ev of the same version as evd?")).into_response()
}
