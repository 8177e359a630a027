//! Answers calls of other members.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::{BoxFuture, CONNECT_TIMEOUT, SERVER_SILENCE_MAX, WRITE_QUEUE_FRAMES_MAX};
use crate::frame::{Frame, FrameKind};
use crate::identity::{NotAMember, Peer, peer_of_certificates};
use crate::peer::{PeerAnswer, PeerCall, PeerRequest, PeerResponse};
use crate::stream::{ReadError, read_frame, write_frame};

/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 512;
/// Most calls of one connection being answered at once; more wait in the socket.
const CALLS_PER_CONNECTION_MAX: usize = 64;
/// How long a handler may take; then the caller is told that it failed.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, as for want of file descriptors.
const ACCEPT_FAILED_PAUSE: Duration = Duration::from_millis(100);

/// Answers calls.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answer one call of `from`, whose certificate was checked.
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse>;
}

/// An accepted TLS stream.
pub type ServerStream = TlsStream<TcpStream>;

/// Takes streams that are not for calls.
pub trait StreamHandler: Send + Sync + 'static {
    /// Serve the stream to its end.
    fn serve(&self, stream: ServerStream, from: SocketAddr) -> BoxFuture<'_, ()>;
}

/// What is behind a server name on the port.
pub enum Door {
    /// Calls between members.
    Peers { config: Arc<ServerConfig>, handler: Arc<dyn PeerHandler> },
    /// Something else.
    Stream { config: Arc<ServerConfig>, handler: Arc<dyn StreamHandler> },
}

/// Finds the door to a server name (SNI).
pub trait Doors: Send + Sync + 'static {
    /// `None`: no such door; the connection is closed.
    fn door(&self, server_name: Option<&str>) -> Option<Door>;
}

/// One door whatever the name: what a host has.
struct OneDoor {
    config: Arc<ServerConfig>,
    handler: Arc<dyn PeerHandler>,
}

impl Doors for OneDoor {
    fn door(&self, _server_name: Option<&str>) -> Option<Door> {
        Some(Door::Peers { config: Arc::clone(&self.config), handler: Arc::clone(&self.handler) })
    }
}

/// Serves a listening socket until it is dropped, connections included.
#[derive(Debug)]
pub struct PeerServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl PeerServer {
    /// Answer calls of members of one pool; `config` is [`crate::identity::Identity::server_config`].
    ///
    /// # Errors
    /// When the socket's address can't be told.
    pub fn start(listener: TcpListener, config: Arc<ServerConfig>, handler: Arc<dyn PeerHandler>) -> io::Result<Self> {
        Self::start_with_doors(listener, Arc::new(OneDoor { config, handler }))
    }

    /// Serve several pools, and streams of other kinds, by server name.
    ///
    /// # Errors
    /// When the socket's address can't be told.
    pub fn start_with_doors(listener: TcpListener, doors: Arc<dyn Doors>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(accept_loop(listener, doors)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_loop(listener: TcpListener, doors: Arc<dyn Doors>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this task: then all connections end too.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let doors = Arc::clone(&doors);
                connections.spawn(async move {
                    if let Err(error) = serve_connection(stream, from, doors).await {
                        tracing::debug!(%from, %error, "a peer connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a peer connection failed");
                tokio::time::sleep(ACCEPT_FAILED_PAUSE).await;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("TLS: {0}")]
    Tls(#[from] io::Error),
    #[error("no handshake within {} ms", CONNECT_TIMEOUT.as_millis())]
    HandshakeTimeout,
    #[error("nothing is served here under the name {0:?}")]
    NoDoor(Option<String>),
    #[error(transparent)]
    NotAMember(#[from] NotAMember),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("silent for {} s", SERVER_SILENCE_MAX.as_secs())]
    Silent,
    #[error("a frame of kind {} is not for this port", .0.0)]
    Unexpected(FrameKind),
}

async fn serve_connection(stream: TcpStream, from: SocketAddr, doors: Arc<dyn Doors>) -> Result<(), ServeError> {
    stream.set_nodelay(true)?;
    let handshake = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let name = start.client_hello().server_name().map(str::to_owned);
        let door = doors.door(name.as_deref()).ok_or(ServeError::NoDoor(name))?;
        let config = match &door {
            Door::Peers { config, .. } | Door::Stream { config, .. } => Arc::clone(config),
        };
        Ok::<_, ServeError>((start.into_stream(config).await?, door))
    };
    let (stream, door) =
        tokio::time::timeout(CONNECT_TIMEOUT, handshake).await.map_err(|_| ServeError::HandshakeTimeout)??;
    match door {
        Door::Stream { handler, .. } => {
            handler.serve(stream, from).await;
            Ok(())
        }
        Door::Peers { handler, .. } => {
            let peer = peer_of_certificates(stream.get_ref().1.peer_certificates())?;
            serve_calls(stream, peer, handler).await
        }
    }
}

async fn serve_calls(stream: ServerStream, peer: Peer, handler: Arc<dyn PeerHandler>) -> Result<(), ServeError> {
    let (mut reader, writer) = tokio::io::split(stream);
    let (answers, queue) = mpsc::channel(WRITE_QUEUE_FRAMES_MAX);
    // Both end with this function: the calls' answers would have nowhere to go.
    let mut tasks = JoinSet::new();
    tasks.spawn(write_frames(writer, queue));
    read_calls(&mut reader, peer, &handler, &answers, &mut tasks).await
}

async fn read_calls(
    reader: &mut ReadHalf<ServerStream>,
    peer: Peer,
    handler: &Arc<dyn PeerHandler>,
    answers: &mpsc::Sender<Frame>,
    tasks: &mut JoinSet<()>,
) -> Result<(), ServeError> {
    let places = Arc::new(Semaphore::new(CALLS_PER_CONNECTION_MAX));
    loop {
        while tasks.try_join_next().is_some() {}
        let frame = tokio::time::timeout(SERVER_SILENCE_MAX, read_frame(reader)).await;
        let Some(frame) = frame.map_err(|_| ServeError::Silent)?? else { return Ok(()) };
        match frame.kind {
            FrameKind::PING => {
                if answers.send(Frame::empty(FrameKind::PONG)).await.is_err() {
                    return Ok(());
                }
            }
            FrameKind::FILLER => {}
            FrameKind::PEER_CALL => {
                let call: PeerCall = frame.message(FrameKind::PEER_CALL).map_err(ReadError::from)?;
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                let (handler, answers) = (Arc::clone(handler), answers.clone());
                tasks.spawn(async move {
                    let answer = answer_call(handler.as_ref(), peer, call).await;
                    // Nobody waits for the answer when the connection is gone.
                    let _ = answers.send(answer).await;
                    drop(place);
                });
            }
            other => return Err(ServeError::Unexpected(other)),
        }
    }
}

async fn answer_call(handler: &dyn PeerHandler, peer: Peer, call: PeerCall) -> Frame {
    let answer = tokio::time::timeout(HANDLER_TIMEOUT, handler.call(peer, call.request)).await;
    let answer = answer.unwrap_or_else(|_| {
        PeerResponse::Failed(format!("not done within {} s: try again", HANDLER_TIMEOUT.as_secs()))
    });
    Frame::of(FrameKind::PEER_ANSWER, &PeerAnswer { id: call.id, answer }).unwrap_or_else(|error| {
        let answer = PeerResponse::Failed(error.to_string());
        Frame::of(FrameKind::PEER_ANSWER, &PeerAnswer { id: call.id, answer }).expect("a short text fits")
    })
}

async fn write_frames(mut writer: WriteHalf<ServerStream>, mut queue: mpsc::Receiver<Frame>) {
    while let Some(frame) = queue.recv().await {
        if write_frame(&mut writer, &frame).await.is_err() {
            // The reader finds the end of the connection by itself.
            return;
        }
    }
}
