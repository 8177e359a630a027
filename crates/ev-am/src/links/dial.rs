//! Making links: connecting or accepting, the TLS handshake, the check of who is there, and the first two messages.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ev_core::ids::HostId;
use ev_wire::frame::{Frame, FrameError, FrameKind};
use ev_wire::identity::{Identity, NotAMember, Peer, Role, peer_of_certificates, server_name};
use ev_wire::stream::{ReadError, read_frame, write_frame};
use tokio::net::TcpStream;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::message::{LinkHello, LinkReply, Refusal};

/// How long a link may take from the first packet to the partner's answer. Longer: the next path is tried.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(700);

/// Who this host is, and the TLS configurations made of that once (they also keep sessions to resume).
#[derive(Debug, Clone)]
pub struct Tls {
    peer: Peer,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self { peer: identity.peer(), client: identity.client_config(), server: identity.server_config() }
    }
}

/// A link's encrypted stream.
pub type Stream = TlsStream<TcpStream>;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no answer within {} ms", DIAL_TIMEOUT.as_millis())]
    TimedOut,
    #[error(transparent)]
    NotAMember(#[from] NotAMember),
    #[error("the other end is {found:?}, not the partner, host {wanted}")]
    OtherPeer { found: Peer, wanted: HostId },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the other end hung up")]
    HungUp,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Connects to the partner's AM at `address` and asks for what `hello` says.
pub async fn dial(tls: &Tls, address: SocketAddr, partner: HostId, hello: LinkHello) -> Result<Stream, DialError> {
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&tls.client));
        let stream = connector.connect(server_name(tls.peer.pool), tcp).await?;
        let mut stream = TlsStream::Client(stream);
        check_peer(&stream, tls.peer, partner)?;
        send(&mut stream, &hello).await?;
        let frame = read_frame(&mut stream).await?.ok_or(DialError::HungUp)?;
        match frame.message(FrameKind::LINK_HELLO)? {
            LinkReply::Welcome => Ok(stream),
            LinkReply::Refused(refusal) => Err(refusal.into()),
        }
    };
    tokio::time::timeout(DIAL_TIMEOUT, connect).await.unwrap_or(Err(DialError::TimedOut))
}

/// Takes an incoming connection as far as the hello; the answer is up to the caller ([`reply`]).
pub async fn accept(tls: &Tls, tcp: TcpStream, partner: HostId) -> Result<(Stream, LinkHello), DialError> {
    let accept = async {
        tcp.set_nodelay(true)?;
        let stream = TlsAcceptor::from(Arc::clone(&tls.server)).accept(tcp).await?;
        let mut stream = TlsStream::Server(stream);
        check_peer(&stream, tls.peer, partner)?;
        let frame = read_frame(&mut stream).await?.ok_or(DialError::HungUp)?;
        let hello = frame.message(FrameKind::LINK_HELLO)?;
        Ok((stream, hello))
    };
    tokio::time::timeout(DIAL_TIMEOUT, accept).await.unwrap_or(Err(DialError::TimedOut))
}

/// Answers a hello.
pub async fn reply(stream: &mut Stream, reply: LinkReply) -> Result<(), DialError> {
    tokio::time::timeout(DIAL_TIMEOUT, send(stream, &reply)).await.unwrap_or(Err(DialError::TimedOut))
}

async fn send<T: serde::Serialize>(stream: &mut Stream, message: &T) -> Result<(), DialError> {
    let frame = Frame::of(FrameKind::LINK_HELLO, message).expect("a hello is short");
    Ok(write_frame(stream, &frame).await?)
}

/// TLS proved that the other end is a member of the pool; here, that it is the one host that holds the partner replica.
fn check_peer(stream: &Stream, own: Peer, partner: HostId) -> Result<(), DialError> {
    let found = peer_of_certificates(stream.get_ref().1.peer_certificates())?;
    let wanted = Peer { pool: own.pool, member: partner, role: Role::Host };
    if found == wanted { Ok(()) } else { Err(DialError::OtherPeer { found, wanted: partner }) }
}
