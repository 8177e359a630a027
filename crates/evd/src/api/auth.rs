//! Who may ask: root through the local socket, hosts of the pool by their certificate, administrators by token. And
//! which host must answer: most questions are the pool master's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ev_api::token::AdminToken;
use ev_api::{ApiError, ErrorCode};
use ev_core::pool::{MemberKind, PoolState};

use super::answer::Refusal;
use crate::app::App;
use crate::http::Door;
use crate::member::Member;
use crate::proxy;

/// Refuses everyone who is not root, a host of the pool, or an administrator.
pub async fn require_administrator(
    State(app): State<Arc<App>>,
    Extension(door): Extension<Door>,
    request: Request,
    next: Next,
) -> Response {
    match allowed(&app, door, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Refusal(error).into_response(),
    }
}

fn allowed(app: &App, door: Door, headers: &HeaderMap) -> Result<(), ApiError> {
    let state = match door {
        Door::Local => return Ok(()),
        Door::Host(_) | Door::Remote => app.member()?.state(),
    };
    match door {
        Door::Host(host) if state.members.get(&host).is_some_and(|member| member.kind == MemberKind::Host) => Ok(()),
        Door::Host(_) => Err(ApiError::new(ErrorCode::Unauthorized, "that host was removed from the pool")),
        Door::Local | Door::Remote => by_token(&state, headers),
    }
}

fn by_token(state: &PoolState, headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |message: &str| {
        Err(ApiError::new(ErrorCode::Unauthorized, message)
            .hint("use the token that ev pool-create printed, or make one with ev token-create on a host of the pool"))
    };
    let Some(text) = bearer(headers) else { return refused("no administrator's token was given") };
    let Ok(token) = text.parse::<AdminToken>() else { return refused("the administrator's token is malformed") };
    if state.admin_tokens.contains_key(&hash(&token.secret)) {
        Ok(())
    } else {
        refused("the administrator's token is not one of this pool's, or was revoked")
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
}

/// The hash of the administrator's token that a question was asked with; `None` for root and hosts.
#[must_use]
pub fn token_hash(headers: &HeaderMap) -> Option<String> {
    bearer(headers)?.parse::<AdminToken>().ok().map(|token| hash(&token.secret))
}

/// What the pool keeps of a secret.
#[must_use]
pub fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Lets the request through on the pool master. Elsewhere a request through the local socket is carried to the
/// master; others are told where it is.
pub async fn require_master(
    State(app): State<Arc<App>>,
    Extension(door): Extension<Door>,
    request: Request,
    next: Next,
) -> Response {
    let member = match app.member() {
        Ok(member) => member,
        Err(error) => return Refusal(error).into_response(),
    };
    wait_for_master(&member).await;
    if member.is_master() {
        return next.run(request).await;
    }
    match member.master_api() {
        Some(address) => ask_master(&member, address, door, request).await,
        None => {
            let message = format!("the pool has no master at present: {}", member.node.silence().await);
            let hint = "more than half of its voters must be up and reach each other; ev pool-show says what is wrong";
            Refusal(ApiError::new(ErrorCode::NoMaster, message).hint(hint)).into_response()
        }
    }
}

/// The same for questions that this host can answer from what it knew last, if there is no master: what is wrong has to
/// be said just then.
pub async fn prefer_master(
    State(app): State<Arc<App>>,
    Extension(door): Extension<Door>,
    request: Request,
    next: Next,
) -> Response {
    let member = match app.member() {
        Ok(member) => member,
        Err(error) => return Refusal(error).into_response(),
    };
    wait_for_master(&member).await;
    match member.master_api() {
        Some(address) if !member.is_master() => ask_master(&member, address, door, request).await,
        Some(_) | None => next.run(request).await,
    }
}

async fn ask_master(member: &Member, address: SocketAddr, door: Door, request: Request) -> Response {
    match door {
        Door::Local => match proxy::forward(member.tls(), address, request).await {
            Ok(response) => response,
            Err(error) => Refusal(ApiError { error: ErrorCode::NoMaster, ..error }).into_response(),
        },
        Door::Host(_) | Door::Remote => {
            let mut error = ApiError::new(ErrorCode::NotMaster, format!("the pool master is at {address}"));
            error.master = Some(address);
            Refusal(error).into_response()
        }
    }
}

/// How long a request waits for an election that is under way.
const MASTER_WAIT: Duration = Duration::from_secs(3);

/// Rides out an election, so that users do not see it.
async fn wait_for_master(member: &Member) {
    let mut leadership = member.node.leadership();
    let _ = tokio::time::timeout(MASTER_WAIT, leadership.wait_for(|leadership| leadership.master.is_some())).await;
}

/// Through the local socket only: what is about this very host.
pub async fn require_local(Extension(door): Extension<Door>, request: Request, next: Next) -> Response {
    match door {
        Door::Local => next.run(request).await,
        Door::Host(_) | Door::Remote => Refusal(
            ApiError::new(ErrorCode::Unauthorized, "this is done on the host itself")
                .hint("run ev there as root; it then uses the local socket"),
        )
        .into_response(),
    }
}

/// Other hosts' daemons (and root) only.
pub async fn require_host(
    State(app): State<Arc<App>>,
    Extension(door): Extension<Door>,
    request: Request,
    next: Next,
) -> Response {
    let known = match door {
        Door::Local => true,
        Door::Host(_) => allowed(&app, door, request.headers()).is_ok(),
        Door::Remote => false,
    };
    if known {
        next.run(request).await
    } else {
        Refusal(ApiError::new(ErrorCode::Unauthorized, "only hosts of the pool may ask this")).into_response()
    }
}
