//! Making a pool on this host, and letting this host leave its pool.

use std::sync::Arc;
use std::time::Duration;

use ev_api::pool::PoolCreated;
use ev_api::token::{AdminToken, Fingerprint};
use ev_api::{ApiError, ErrorCode};
use ev_core::ids::{MemberId, NetworkId, PoolId};
use ev_core::pool::{Command, CpuFacts, Member as PoolMember, MemberKind, Network, PoolInfo};
use ev_wire::identity::{Peer, Role, create_authority, new_key_and_request, sign_request};
use uuid::Uuid;

use crate::api::answer::internal;
use crate::api::auth;
use crate::app::App;
use crate::identity::{MemberFile, Papers, PapersError, Phase};
use crate::member::Member;

/// How long the first election may take.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Name of the network that a new pool has.
const FIRST_NETWORK: &str = "vm";
/// Linux takes names of interfaces up to this length.
const INTERFACE_BYTES_MAX: usize = 15;

/// 32 random hexadecimal digits.
#[must_use]
pub fn secret() -> String {
    Uuid::new_v4().simple().to_string()
}

/// The bridge that carries a network where nothing else is said.
#[must_use]
pub fn default_bridge(network: &str) -> String {
    let mut name = format!("evbr-{network}");
    name.truncate(INTERFACE_BYTES_MAX);
    name
}

pub fn papers_fault(error: &PapersError) -> ApiError {
    internal("this host's membership", error)
}

/// This host as a record of the pool state.
///
/// # Errors
/// Its QEMU can't be used.
pub async fn own_record(app: &App, id: MemberId, uuid: Uuid) -> Result<PoolMember, ApiError> {
    let (qemu, accelerator) = app.qemu_facts().await?;
    let config = &app.config;
    Ok(PoolMember {
        id,
        uuid,
        name: config.name.clone(),
        kind: MemberKind::Host,
        peer: config.peer_address(),
        api: Some(config.api_address()),
        heartbeat_port: config.heartbeat_port,
        link_port_base: config.link_port_base,
        private: config.private_addresses.clone(),
        cpu: CpuFacts {
            model: app.machine.cpu_name.clone(),
            vendor: app.machine.cpu_vendor.clone(),
            flags: app.machine.cpu_features.clone(),
            accelerator: accelerator.name().to_owned(),
        },
        qemu_version: qemu.version.to_string(),
        machines: qemu.machines.into_iter().filter(|machine| machine.starts_with("pc-q35-")).collect(),
        memory_tracking: app.memory_tracking(qemu.version, &accelerator).await,
    })
}

/// Refuses a second pool.
///
/// # Errors
/// There is one.
pub fn require_no_pool(app: &App) -> Result<(), ApiError> {
    match app.papers.member().map_err(|error| papers_fault(&error))? {
        None => Ok(()),
        Some(file) => Err(ApiError::new(
            ErrorCode::Refused,
            format!("host {} already belongs to pool {}", app.config.name, file.pool_name),
        )
        .hint("a host serves one pool; remove it there first: ev host-remove")),
    }
}

/// Makes a pool with this host as its first member.
///
/// # Errors
/// There is one already, QEMU can't be used, or the disk is full: then nothing is left behind.
pub async fn create_pool(app: &Arc<App>, name: String) -> Result<PoolCreated, ApiError> {
    let _changing = app.changing.lock().await;
    require_no_pool(app)?;
    check_pool_name(&name)?;
    let id = MemberId(1);
    let first = own_record(app, id, Uuid::new_v4()).await?;
    let pool = PoolId(Uuid::new_v4());
    let (file, papers) = new_papers(app, pool, &name, id)?;
    let admin = AdminToken { fingerprint: fingerprint(&papers.authority_certificate)?, secret: secret() };
    let result = begin(app, &file, &papers, first, &admin).await;
    if result.is_err() {
        app.set_member(None);
        let _ = app.papers.remove();
    }
    result?;
    Ok(PoolCreated {
        uuid: pool.0,
        name,
        address: app.config.api_address(),
        token: admin.to_string(),
        authority_certificate: papers.authority_certificate,
    })
}

fn check_pool_name(name: &str) -> Result<(), ApiError> {
    let plain = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= crate::config::NAME_BYTES_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if plain {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Invalid, format!("{name:?} cannot be a pool's name"))
        .hint("use 1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit"))
}

fn new_papers(app: &App, pool: PoolId, name: &str, id: MemberId) -> Result<(MemberFile, Papers), ApiError> {
    let fault = |error: ev_wire::identity::AuthorityError| internal("making the pool's certificates", &error);
    let authority = create_authority(pool).map_err(fault)?;
    let key = new_key_and_request().map_err(fault)?;
    let peer = Peer { pool, member: id, role: Role::Host };
    let addresses = [app.config.management_address];
    let certificate = sign_request(&authority, &key.request_pem, peer, &app.config.name, &addresses).map_err(fault)?;
    let papers = Papers {
        authority_certificate: authority.certificate_pem().to_owned(),
        authority_key: authority.key_pem(),
        certificate,
        key: key.key_pem,
        heartbeat_secret: format!("{}{}", secret(), secret()),
    };
    let file = MemberFile { version: 1, pool, pool_name: name.to_owned(), host: id, phase: Phase::Creating };
    Ok((file, papers))
}

/// The fingerprint of a certificate in PEM.
///
/// # Errors
/// It is not one.
pub fn fingerprint(certificate_pem: &str) -> Result<Fingerprint, ApiError> {
    use rustls::pki_types::pem::PemObject;
    let certificate = rustls::pki_types::CertificateDer::from_pem_slice(certificate_pem.as_bytes())
        .map_err(|error| internal("reading the pool's certificate", &error))?;
    Ok(Fingerprint::of(&certificate))
}

async fn begin(
    app: &Arc<App>,
    file: &MemberFile,
    papers: &Papers,
    first: PoolMember,
    admin: &AdminToken,
) -> Result<(), ApiError> {
    app.papers.remove().map_err(|error| papers_fault(&error))?;
    app.papers.keep(file, papers).map_err(|error| papers_fault(&error))?;
    let member =
        Member::start(app, file).await.map_err(|error| internal("starting the pool", &format!("{error:#}")))?;
    let founded = found(&member, file, first, admin).await;
    if let Err(error) = founded {
        member.stop().await;
        return Err(error);
    }
    let file = MemberFile { phase: Phase::Member, ..file.clone() };
    app.papers.keep_member(&file).map_err(|error| papers_fault(&error))?;
    app.set_member(Some(member));
    Ok(())
}

async fn found(member: &Member, file: &MemberFile, first: PoolMember, admin: &AdminToken) -> Result<(), ApiError> {
    let addresses = ev_pool::membership::addresses(&first);
    member.node.initialize(&addresses).await.map_err(|error| internal("founding the consensus group", &error))?;
    let mut leadership = member.node.leadership();
    tokio::time::timeout(ELECTION_TIMEOUT, leadership.wait_for(|leadership| leadership.is_me))
        .await
        .map_err(|_| ApiError::new(ErrorCode::Internal, "this host did not become pool master in time"))?
        .map_err(|error| internal("waiting for the first election", &error))?;
    let network = Network {
        id: NetworkId(Uuid::new_v4()),
        name: FIRST_NETWORK.to_owned(),
        bridge: default_bridge(FIRST_NETWORK),
    };
    let command = Command::PoolCreate {
        pool: PoolInfo { id: file.pool, name: file.pool_name.clone() },
        first: Box::new(first),
        network,
        admin_token: auth::hash(&admin.secret),
    };
    member.propose(command).await?;
    Ok(())
}
