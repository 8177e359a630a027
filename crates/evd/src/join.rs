//! Joining: this host's side, and the pool master's.
//!
//! ```text
//! host                                        pool master
//!   | recognises the pool by its authority's
//!   | fingerprint; makes a key (pending.json)
//!   | -- secret, key request, facts -------->| token unused and in time? processor fits? name free?
//!   |                                        | commits member and use of the token in one step
//!   |<- certificate, authority, secrets -----|
//!   | keeps them: Joining; listens           | takes it into the consensus group, first to learn
//!   |<- pool state --------------------------|
//!   | sees itself in it: Member              |
//! ```
//! An answer that was lost is got by asking again: the master knows the host by its uuid. A host that stops while
//! Joining goes on when it starts again.

use std::sync::Arc;
use std::time::Duration;

use ev_api::client::{Client, ClientError, Target};
use ev_api::pool::{JoinPool, JoinedPool};
use ev_api::token::{AdminToken, JoinTokenText};
use ev_api::{ApiError, ErrorCode};
use ev_core::candidacy::processor_differences;
use ev_core::ids::{MemberId, PoolId};
use ev_core::pool::{Command, Member as PoolMember, Outcome, PoolState, Refusal, TokenPurpose};
use ev_wire::identity::{Peer, Role, new_key_and_request, sign_request};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::answer::internal;
use crate::api::{auth, refusals};
use crate::app::App;
use crate::found::{own_record, papers_fault, require_no_pool};
use crate::identity::{MemberFile, Papers, PendingJoin, Phase};
use crate::member::Member;
use crate::view;

/// How long the pool may take to bring a new member up to date.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// `POST /v1/join`: authorised by the one-time secret in it.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    pub secret: String,
    /// PEM.
    pub key_request: String,
    /// The host as it would stand in the pool state; the master sets its number.
    pub record: PoolMember,
}

/// Answer to [`JoinRequest`].
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub pool: PoolId,
    pub pool_name: String,
    pub host: MemberId,
    pub certificate: String,
    pub authority_certificate: String,
    pub authority_key: String,
    pub heartbeat_secret: String,
    pub warnings: Vec<String>,
}

/// The host's side.
///
/// # Errors
/// The token is damaged, not this pool's, used or expired; the pool can't be reached or refuses; this host is in a
/// pool. Nothing is changed then.
pub async fn join(app: &Arc<App>, request: JoinPool) -> Result<JoinedPool, ApiError> {
    let _changing = app.changing.lock().await;
    require_no_pool(app)?;
    let token: JoinTokenText = request
        .token
        .parse()
        .map_err(|error: ev_api::token::BadToken| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    let pending = pending(app)?;
    let record = own_record(app, MemberId(0), pending.uuid).await?;
    let question = JoinRequest { secret: token.secret.clone(), key_request: pending.request.clone(), record };
    let as_bearer = AdminToken { fingerprint: token.fingerprint, secret: token.secret.clone() };
    let client = Client::new(Target::Remote { addresses: vec![token.address], token: as_bearer });
    let answer: JoinAnswer = client.post("/v1/join", &question).await.map_err(|error| unjoined(&token, error))?;
    let papers = Papers {
        authority_certificate: answer.authority_certificate,
        authority_key: answer.authority_key,
        certificate: answer.certificate,
        key: pending.key,
        heartbeat_secret: answer.heartbeat_secret,
    };
    let file = MemberFile {
        version: 1,
        pool: answer.pool,
        pool_name: answer.pool_name.clone(),
        host: answer.host,
        phase: Phase::Joining,
    };
    app.papers.keep(&file, &papers).map_err(|error| papers_fault(&error))?;
    let member =
        Member::start(app, &file).await.map_err(|error| internal("taking up the membership", &format!("{error:#}")))?;
    app.set_member(Some(Arc::clone(&member)));
    arrive(app, &member, &file).await?;
    Ok(JoinedPool {
        pool: answer.pool_name,
        uuid: answer.pool.0,
        host: app.config.name.clone(),
        id: answer.host.0,
        warnings: answer.warnings,
    })
}

/// Takes up a join that was begun, or begins one.
fn pending(app: &App) -> Result<PendingJoin, ApiError> {
    if let Some(pending) = app.papers.pending() {
        return Ok(pending);
    }
    let key = new_key_and_request().map_err(|error| internal("making a key", &error))?;
    let pending = PendingJoin { uuid: Uuid::new_v4(), key: key.key_pem, request: key.request_pem };
    app.papers.keep_pending(&pending).map_err(|error| papers_fault(&error))?;
    Ok(pending)
}

fn unjoined(token: &JoinTokenText, error: ClientError) -> ApiError {
    match error {
        ClientError::Api(error) => error,
        ClientError::NotThisPool { address, .. } => ApiError::new(
            ErrorCode::Refused,
            format!(
                "the host at {address} does not belong to the pool that issued the token: its certificate is another's"
            ),
        )
        .hint("nothing was sent to it. Get a new token with ev host-token on a host of the pool"),
        error @ ClientError::Unreachable(_) => ApiError::new(ErrorCode::Unreachable, error.to_string())
            .hint(format!("is {} up, and does this host reach it on the management network?", token.address)),
        error @ (ClientError::TimedOut(_)
        | ClientError::Broken(_)
        | ClientError::Unreadable(_)
        | ClientError::RedirectedInCircles) => ApiError::new(ErrorCode::Unreachable, error.to_string())
            .hint("run the same command again: it goes on where it was"),
    }
}

/// Waits until this host sees itself in the pool state.
///
/// # Errors
/// Not in time; the arrival goes on in the background.
pub async fn arrive(app: &App, member: &Member, file: &MemberFile) -> Result<(), ApiError> {
    let mut states = member.states();
    let seen = states.wait_for(|state| state.members.contains_key(&member.host));
    match tokio::time::timeout(ARRIVAL_TIMEOUT, seen).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(internal("waiting for the pool state", &error)),
        Err(_) => {
            return Err(ApiError::new(
                ErrorCode::TimedOut,
                format!("pool {} has accepted this host and has not sent its state yet", file.pool_name),
            )
            .hint("the host joins by itself once the pool master reaches it; see ev pool-show"));
        }
    }
    let file = MemberFile { phase: Phase::Member, ..file.clone() };
    app.papers.keep_member(&file).map_err(|error| papers_fault(&error))?;
    app.papers.drop_pending();
    Ok(())
}

/// The master's side.
///
/// # Errors
/// As [`join`] says.
pub async fn admit(member: &Member, request: JoinRequest) -> Result<JoinAnswer, ApiError> {
    let state = member.state();
    let hash = auth::hash(&request.secret);
    let token = state.tokens.get(&hash).ok_or_else(|| refusals::of_state(&Refusal::TokenUnknown))?;
    if token.purpose != TokenPurpose::JoinHost {
        return Err(refusals::of_state(&Refusal::TokenUnknown));
    }
    let known = state.hosts().find(|host| host.uuid == request.record.uuid && host.name == request.record.name);
    let (host, warnings) = match known {
        // Its answer was lost: the token was used by this very host.
        Some(host) if token.used => (host.id, Vec::new()),
        Some(_) | None => {
            if token.used {
                return Err(refusals::of_state(&Refusal::TokenUsed));
            }
            if view::unix_ms_now() >= token.expires_unix_ms {
                return Err(refusals::of_state(&Refusal::TokenExpired));
            }
            let warnings = check_fit(&state, &request)?;
            let command = Command::MemberJoin { token_hash: hash, member: Box::new(request.record.clone()) };
            match member.propose(command).await? {
                Outcome::MemberAdded(id) => (id, warnings),
                Outcome::Done | Outcome::Authority(_) | Outcome::Refused(_) => {
                    return Err(ApiError::new(ErrorCode::Internal, "the join has an outcome of another kind"));
                }
            }
        }
    };
    let peer = Peer { pool: member.pool, member: host, role: Role::Host };
    let name = &request.record.name;
    let certificate = sign_request(&member.authority, &request.key_request, peer, name, &[request.record.peer.ip()])
        .map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    Ok(JoinAnswer {
        pool: member.pool,
        pool_name: member.pool_name.clone(),
        host,
        certificate,
        authority_certificate: member.authority_certificate.clone(),
        authority_key: member.authority.key_pem(),
        heartbeat_secret: member.heartbeat_secret.clone(),
        warnings,
    })
}

/// Whether the newcomer can run what the pool's hosts run; what to know if so.
fn check_fit(state: &PoolState, request: &JoinRequest) -> Result<Vec<String>, ApiError> {
    let new = &request.record;
    let same_address = state.members.values().find(|member| member.peer.ip() == new.peer.ip());
    if let Some(member) = same_address {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{} has the management address {} already", member.name, new.peer.ip()),
        )
        .hint(
            "give each host its own management_address in evd.toml, or remove the old record (ev host-remove --force)",
        ));
    }
    let mut warnings = processor_differences(&new.cpu, state);
    for host in state.hosts() {
        if new.qemu_version != host.qemu_version {
            warnings.push(format!(
                "QEMU is {} on {} and {} on {}",
                new.qemu_version, new.name, host.qemu_version, host.name
            ));
        }
        if !host.machines.iter().any(|machine| new.machines.contains(machine)) {
            return Err(ApiError::new(
                ErrorCode::Refused,
                format!(
                    "QEMU {} of {} and QEMU {} of {} have no machine type in common",
                    new.qemu_version, new.name, host.qemu_version, host.name
                ),
            )
            .hint("install QEMU of a similar version on both"));
        }
    }
    Ok(warnings)
}
