//! The pool master's side of taking a quorum server into service, and of dismissing it.
//!
//! The order that leaves nothing half done: `Command::MemberAdd` gives the number, [`enlist`] makes the quorum server
//! ready, and the group takes it in as it finds it there. When enlisting fails, `Command::MemberRemove`. To let one
//! go: `Command::MemberRemove`, the group lets go of it, [`dismiss`].

use std::net::SocketAddr;
use std::time::Duration;

use ev_core::ids::MemberId;
use ev_wire::frame::{Frame, FrameError, FrameKind, TooLarge};
use ev_wire::identity::{AuthorityError, Identity, Peer, PoolAuthority, Role, client_config_pinned, sign_request};
use ev_wire::peer::{PeerRequest, PeerResponse};
use ev_wire::quorum::{ENLIST_SERVER_NAME, Enlist, Invitation, QuorumMessage};
use ev_wire::stream::{ReadError, read_frame, write_frame};
use ev_wire::transport::{CallError, PeerClient};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

/// How long the whole exchange may take.
const ENLIST_TIMEOUT: Duration = Duration::from_secs(10);
const DISMISS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a quorum server was not taken into service.
#[derive(Debug, thiserror::Error)]
pub enum EnlistError {
    #[error(
        "connecting to the quorum server at {address} failed: {source}; check that ev-quorumd runs there, and that \
         the invitation is the one that it printed last"
    )]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("the exchange with the quorum server broke: {0}; get a new invitation (ev-quorumd invite) and try again")]
    Stream(#[from] ReadError),
    #[error("the quorum server hung up; get a new invitation (ev-quorumd invite) and try again")]
    HungUp,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("the quorum server refused: {0}")]
    Refused(String),
    #[error("the quorum server answered out of turn: upgrade the older side")]
    OutOfTurn,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("not done within {} s: check the network and try again with a new invitation", ENLIST_TIMEOUT.as_secs())]
    Timeout,
}

/// What the quorum server is told.
#[derive(Debug, Clone)]
pub struct Enlistment {
    pub invitation: Invitation,
    pub pool_name: String,
    /// The number that `Command::MemberAdd` gave it.
    pub member: MemberId,
    /// Its name in the pool.
    pub name: String,
}

/// Make a quorum server ready to vote in the authority's pool. It uses up the invitation.
///
/// # Errors
/// See [`EnlistError`]. The quorum server may then be ready or not; a new attempt needs a new invitation and a new
/// member number.
pub async fn enlist(authority: &PoolAuthority, enlistment: &Enlistment) -> Result<(), EnlistError> {
    tokio::time::timeout(ENLIST_TIMEOUT, exchange(authority, enlistment)).await.unwrap_or(Err(EnlistError::Timeout))
}

async fn exchange(authority: &PoolAuthority, enlistment: &Enlistment) -> Result<(), EnlistError> {
    let invitation = &enlistment.invitation;
    let address = invitation.address;
    let connect = |source| EnlistError::Connect { address, source };
    let tcp = TcpStream::connect(address).await.map_err(connect)?;
    let connector = TlsConnector::from(client_config_pinned(invitation.fingerprint));
    let name = ServerName::try_from(ENLIST_SERVER_NAME).expect("a fixed DNS name");
    let mut stream = connector.connect(name, tcp).await.map_err(connect)?;

    let hello = Enlist {
        secret: invitation.secret.clone(),
        pool: authority.pool(),
        pool_name: enlistment.pool_name.clone(),
        member: enlistment.member,
        authority_certificate: authority.certificate_pem().to_owned(),
    };
    let request = match ask(&mut stream, &QuorumMessage::Enlist(hello)).await? {
        QuorumMessage::Request { request } => request,
        other => return Err(unexpected(other)),
    };
    let peer = Peer { pool: authority.pool(), member: enlistment.member, role: Role::Quorum };
    let certificate = sign_request(authority, &request, peer, &enlistment.name, &[address.ip()])?;
    match ask(&mut stream, &QuorumMessage::Certificate { certificate }).await? {
        QuorumMessage::Enlisted => Ok(()),
        other => Err(unexpected(other)),
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>, message: &QuorumMessage) -> Result<QuorumMessage, EnlistError> {
    write_frame(stream, &Frame::of(FrameKind::QUORUM, message)?).await.map_err(ReadError::from)?;
    let frame = read_frame(stream).await?.ok_or(EnlistError::HungUp)?;
    Ok(frame.message(FrameKind::QUORUM)?)
}

fn unexpected(message: QuorumMessage) -> EnlistError {
    match message {
        QuorumMessage::Refused(reason) => EnlistError::Refused(reason),
        QuorumMessage::Enlist(_)
        | QuorumMessage::Request { .. }
        | QuorumMessage::Certificate { .. }
        | QuorumMessage::Enlisted => EnlistError::OutOfTurn,
    }
}

/// Why a quorum server was not dismissed.
#[derive(Debug, thiserror::Error)]
pub enum DismissError {
    #[error("{0}; the pool goes on without it: on the quorum server run `ev-quorumd forget` when it is back")]
    Call(#[from] CallError),
    #[error("the quorum server refused: {0}; on the quorum server run `ev-quorumd forget`")]
    Refused(String),
    #[error("the quorum server answered something else than it was asked: upgrade it")]
    Unexpected,
}

/// Tell a quorum server that was removed from the pool to forget it.
///
/// # Errors
/// See [`DismissError`]; the pool is not affected by any.
pub async fn dismiss(identity: &Identity, member: MemberId, address: SocketAddr) -> Result<(), DismissError> {
    let client = PeerClient::new(identity);
    match client.call(address, Some(member), PeerRequest::Dismiss, DISMISS_TIMEOUT).await? {
        PeerResponse::Dismissed => Ok(()),
        PeerResponse::Failed(reason) => Err(DismissError::Refused(reason)),
        _ => Err(DismissError::Unexpected),
    }
}
