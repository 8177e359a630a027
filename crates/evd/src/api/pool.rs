//! The pool: made, joined, shown; tokens and networks.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use ev_api::pool::{
    JoinPool, JoinToken, JoinTokenRequest, JoinedPool, MemberKind, MemberView, NetworkAdd, NetworkView, PoolCreate,
    PoolCreated, PoolView, SettingsView, TokenCreate, TokenCreated, TokenView,
};
use ev_api::token::{AdminToken, JoinTokenText};
use ev_api::vm::Done;
use ev_api::{ApiError, ErrorCode};
use ev_core::ids::NetworkId;
use ev_core::pool::{self, AdminTokenInfo, Command, Network, PoolState, Settings, Token, TokenPurpose};
use ev_pool::VoterRole;
use uuid::Uuid;

use super::answer::{Answer, Body, refuse};
use super::{auth, resolve};
use crate::app::App;
use crate::join::{JoinAnswer, JoinRequest};
use crate::member::Member;
use crate::{found, join as joining, view};

/// Longest validity of a one-time token.
const TOKEN_VALID_S_MAX: u64 = 7 * 24 * 3600;

pub async fn create(State(app): State<Arc<App>>, Body(request): Body<PoolCreate>) -> Answer<PoolCreated> {
    // A client that goes away must not stop it halfway.
    let work = tokio::spawn(async move { found::create_pool(&app, request.name).await });
    Ok(Json(work.await.map_err(|error| super::answer::internal("making the pool", &error))??))
}

pub async fn join(State(app): State<Arc<App>>, Body(request): Body<JoinPool>) -> Answer<JoinedPool> {
    let work = tokio::spawn(async move { joining::join(&app, request).await });
    Ok(Json(work.await.map_err(|error| super::answer::internal("joining the pool", &error))??))
}

pub async fn admit(State(app): State<Arc<App>>, Body(request): Body<JoinRequest>) -> Answer<JoinAnswer> {
    let member = app.member()?;
    Ok(Json(joining::admit(&member, request).await?))
}

pub async fn show(State(app): State<Arc<App>>) -> Answer<PoolView> {
    let member = app.member()?;
    // In this order: the state is not older than that.
    let is_up_to_date = member.node.is_up_to_date();
    let state = member.state();
    let status = member.node.status();
    let master = status.leadership.master.filter(|_| is_up_to_date);
    let voters: Vec<_> =
        status.members.iter().filter(|one| one.role == VoterRole::Voter).map(|one| one.at.member).collect();
    let silent = member.node.silence().await.silent;
    let members = state.members.values().map(|one| MemberView {
        id: one.id.0,
        name: one.name.clone(),
        kind: match one.kind {
            pool::MemberKind::Host => MemberKind::Host,
            pool::MemberKind::QuorumServer => MemberKind::QuorumServer,
        },
        address: one.peer,
        votes: voters.contains(&one.id),
        master: master == Some(one.id),
        reachable: match one.kind {
            pool::MemberKind::Host => member.is_online(one.id),
            pool::MemberKind::QuorumServer => !silent.contains(&one.name),
        },
    });
    Ok(Json(PoolView {
        uuid: member.pool.0,
        name: member.pool_name.clone(),
        master: master.map(|id| state.member_name(id)),
        members: members.collect(),
        networks: state.networks.values().map(view::network).collect(),
        vms: state.vms.len(),
        survives: if master.is_some() {
            survives(&state, voters.len())
        } else {
            "nothing more: it has no master now".to_owned()
        },
        alerts: super::events::alerts_now(&member, &state).await,
        authority_certificate: member.authority_certificate.clone(),
    }))
}

/// Which failures the pool survives by its votes, in words.
fn survives(state: &PoolState, voters: usize) -> String {
    let hosts = state.hosts().count();
    match (hosts, voters) {
        (1, _) => "nothing: this is the only host. Add a second one (ev host-token)".to_owned(),
        (2, 1) => "the loss of the host that does not vote; the loss of the other stops the pool until it is back. \
                   Add a quorum server (ev quorum-add)"
            .to_owned(),
        (2, 3) => "the loss of either host, or of the quorum server".to_owned(),
        (_, voters) => format!("the loss of any {} of its {voters} voting members", voters.saturating_sub(1) / 2),
    }
}

pub async fn host_token(State(app): State<Arc<App>>, Body(request): Body<JoinTokenRequest>) -> Answer<JoinToken> {
    let member = app.member()?;
    if !(1..=TOKEN_VALID_S_MAX).contains(&request.valid_s) {
        return refuse(
            ErrorCode::Invalid,
            format!("a token cannot be valid for {} s", request.valid_s),
            format!("give 1 to {TOKEN_VALID_S_MAX} s"),
        );
    }
    let expires_unix_ms = view::unix_ms_now().saturating_add(request.valid_s.saturating_mul(1000));
    let token = JoinTokenText {
        fingerprint: found::fingerprint(&member.authority_certificate)?,
        secret: found::secret(),
        address: app.config.api_address(),
    };
    let command = Command::TokenAdd {
        hash: auth::hash(&token.secret),
        token: Token { purpose: TokenPurpose::JoinHost, expires_unix_ms, used: false },
    };
    member.propose(command).await?;
    Ok(Json(JoinToken { token: token.to_string(), expires: view::time(expires_unix_ms) }))
}

pub async fn admin_token(State(app): State<Arc<App>>, Body(request): Body<TokenCreate>) -> Answer<TokenCreated> {
    let member = app.member()?;
    let fingerprint = found::fingerprint(&member.authority_certificate)?;
    let token = AdminToken { fingerprint, secret: found::secret() };
    member.propose(Command::AdminTokenAdd { hash: auth::hash(&token.secret), name: request.name }).await?;
    Ok(Json(TokenCreated { token: token.to_string() }))
}

/// Digits of a token's hash that people see: enough to tell a hundred tokens apart, and of no use to whoever reads them.
const TOKEN_ID_DIGITS: usize = 12;

pub async fn admin_tokens(State(app): State<Arc<App>>, headers: HeaderMap) -> Answer<Vec<TokenView>> {
    let state = app.member()?.state();
    let asked_with = auth::token_hash(&headers);
    let view = |(hash, token): (&String, &AdminTokenInfo)| TokenView {
        id: hash.chars().take(TOKEN_ID_DIGITS).collect(),
        name: token.name.clone(),
        created: token.created_unix_ms.map(view::time),
        yours: asked_with.as_ref() == Some(hash),
    };
    Ok(Json(state.admin_tokens.iter().map(view).collect()))
}

/// Answers when this host, which is the master, refuses the token; the others do so when they have heard of it.
pub async fn admin_token_revoke(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer<Done> {
    if id.len() < TOKEN_ID_DIGITS {
        return refuse(
            ErrorCode::Invalid,
            format!("{id:?} is too short for the id of a token"),
            "ev token-list shows the ids",
        );
    }
    let member = app.member()?;
    member.propose(Command::AdminTokenRevoke { hash_start: id.clone() }).await?;
    let gone = |state: &Arc<PoolState>| !state.admin_tokens.keys().any(|hash| hash.starts_with(&id));
    let _ = tokio::time::timeout(APPLY_TIMEOUT, member.states().wait_for(gone)).await;
    Ok(Json(Done::default()))
}

pub async fn settings(State(app): State<Arc<App>>) -> Answer<SettingsView> {
    Ok(Json(settings_view(&app.member()?.state().settings)))
}

fn settings_view(settings: &Settings) -> SettingsView {
    SettingsView {
        scrub_interval_s: Some(settings.scrub_interval_s),
        copy_rate_limit_bytes: Some(settings.copy_rate_limit_bytes),
        sync_at_once: Some(settings.sync_at_once),
        blackout_ms: Some(settings.blackout_ms),
    }
}

/// Below, a checkpoint's pause alone would be too long; above, clients would notice.
const BLACKOUT_MS: std::ops::RangeInclusive<u64> = 20..=1_000;

pub async fn settings_set(State(app): State<Arc<App>>, Body(request): Body<SettingsView>) -> Answer<SettingsView> {
    let member = app.member()?;
    let mut settings = member.state().settings;
    settings.scrub_interval_s = request.scrub_interval_s.unwrap_or(settings.scrub_interval_s);
    settings.copy_rate_limit_bytes = request.copy_rate_limit_bytes.unwrap_or(settings.copy_rate_limit_bytes);
    settings.sync_at_once = request.sync_at_once.unwrap_or(settings.sync_at_once);
    if settings.sync_at_once == 0 {
        let text = "no VM could be synchronised with 0 at once";
        return refuse(ErrorCode::Invalid, text.to_owned(), "give 1 or more");
    }
    settings.blackout_ms = request.blackout_ms.unwrap_or(settings.blackout_ms);
    if !BLACKOUT_MS.contains(&settings.blackout_ms) {
        let (low, high) = (BLACKOUT_MS.start(), BLACKOUT_MS.end());
        let text = format!("a guest can't be held to stand still for {} ms at most", settings.blackout_ms);
        return refuse(ErrorCode::Invalid, text, format!("give {low} to {high} ms"));
    }
    member.propose(Command::SettingsSet { settings }).await?;
    Ok(Json(settings_view(&settings)))
}

pub async fn networks(State(app): State<Arc<App>>) -> Answer<Vec<NetworkView>> {
    let member = app.member()?;
    Ok(Json(member.state().networks.values().map(view::network).collect()))
}

/// How long a new network takes to be in this host's copy of the state.
const APPLY_TIMEOUT: Duration = Duration::from_secs(3);

pub async fn network_add(State(app): State<Arc<App>>, Body(request): Body<NetworkAdd>) -> Answer<NetworkView> {
    let member = app.member()?;
    let bridge = request.bridge.unwrap_or_else(|| found::default_bridge(&request.name));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if bridge.is_empty() || bridge.len() > 15 || !bridge.chars().all(plain) {
        return refuse(
            ErrorCode::Invalid,
            format!("{bridge:?} cannot be a bridge's name"),
            "use up to 15 letters, digits, dots, dashes and underscores",
        );
    }
    let id = NetworkId(Uuid::new_v4());
    member.propose(Command::NetworkAdd { network: Network { id, name: request.name, bridge } }).await?;
    let view = seen(&member, id).await?;
    Ok(Json(view))
}

async fn seen(member: &Member, id: NetworkId) -> Result<NetworkView, ApiError> {
    let mut states = member.states();
    let _ = tokio::time::timeout(APPLY_TIMEOUT, states.wait_for(|state| state.networks.contains_key(&id))).await;
    let state = member.state();
    Ok(view::network(resolve::network(&state, &format!("uuid={id}"))?))
}
