//! Asks other members: one connection per address, many calls on it at once, made anew on demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ev_core::ids::{MemberId, PoolId};
use rustls::ClientConfig;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{CLIENT_SILENCE_MAX, CONNECT_TIMEOUT, PING_INTERVAL, WRITE_QUEUE_FRAMES_MAX};
use crate::frame::{Frame, FrameKind, TooLarge};
use crate::identity::{Identity, Peer, peer_of_certificates, server_name};
use crate::peer::{PeerAnswer, PeerCall, PeerRequest, PeerResponse};
use crate::stream::{read_frame, write_frame};

/// Most addresses with a connection; the one unused for longest goes first.
const CONNECTIONS_MAX: usize = 64;
/// Pause between two attempts to connect, at first and at most; calls in between fail at once with the last error.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(800);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The request was not sent.
    #[error("connecting to {address} failed: {reason}")]
    Connect { address: SocketAddr, reason: String },
    /// The request was not sent.
    #[error("at {address} is member {found}, not member {wanted}: check the members' addresses")]
    WrongMember { address: SocketAddr, found: MemberId, wanted: MemberId },
    /// The request was not sent.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The request may have been carried out.
    #[error("the connection to {address} broke before the answer came")]
    Broken { address: SocketAddr },
    /// The request may have been carried out.
    #[error("no answer from {address} within {} ms", after.as_millis())]
    Timeout { address: SocketAddr, after: Duration },
}

impl CallError {
    /// Whether it is certain that the other side has not got the request.
    #[must_use]
    pub fn not_sent(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::WrongMember { .. } | Self::TooLarge(_) => true,
            Self::Broken { .. } | Self::Timeout { .. } => false,
        }
    }
}

/// Asks members of one pool. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct PeerClient {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PoolId,
    connector: TlsConnector,
    connections: Mutex<HashMap<SocketAddr, Slot>>,
    next_id: AtomicU64,
}

/// What is known of an address.
struct Slot {
    /// Held while connecting, so that callers share one attempt.
    state: Arc<tokio::sync::Mutex<SlotState>>,
    used: Instant,
}

#[derive(Default)]
struct SlotState {
    connection: Option<Connection>,
    failed: Option<Failure>,
}

struct Failure {
    reason: String,
    retry_at: Instant,
    backoff: Duration,
}

/// A live connection. Ends when dropped.
struct Connection {
    peer: Peer,
    calls: mpsc::Sender<Outgoing>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Outgoing {
    id: u64,
    frame: Frame,
    answer: oneshot::Sender<PeerResponse>,
}

impl std::fmt::Debug for PeerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerClient").field("pool", &self.inner.pool).finish_non_exhaustive()
    }
}

impl PeerClient {
    /// A client that shows `identity`.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        Self::with_config(identity.peer().pool, identity.client_config())
    }

    fn with_config(pool: PoolId, config: Arc<ClientConfig>) -> Self {
        let inner = Inner {
            pool,
            connector: TlsConnector::from(config),
            connections: Mutex::default(),
            next_id: AtomicU64::new(1),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Ask the member at `address`, which has to be `member` if that is given. `timeout` covers connecting too.
    ///
    /// # Errors
    /// See [`CallError`]; [`CallError::not_sent`] tells whether the call may be repeated without harm.
    pub async fn call(
        &self,
        address: SocketAddr,
        member: Option<MemberId>,
        request: PeerRequest,
        timeout: Duration,
    ) -> Result<PeerResponse, CallError> {
        let deadline = Instant::now() + timeout;
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = Frame::of(FrameKind::PEER_CALL, &PeerCall { id, request })?;
        let reached = tokio::time::timeout_at(deadline, self.connection(address)).await;
        let (peer, calls) = reached.unwrap_or_else(|_| {
            Err(CallError::Connect { address, reason: format!("not within {} ms", timeout.as_millis()) })
        })?;
        if let Some(wanted) = member.filter(|wanted| *wanted != peer.member) {
            return Err(CallError::WrongMember { address, found: peer.member, wanted });
        }
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            calls.send(Outgoing { id, frame, answer }).await.map_err(|_| CallError::Broken { address })?;
            answered.await.map_err(|_| CallError::Broken { address })
        };
        let timed_out = CallError::Timeout { address, after: timeout };
        tokio::time::timeout_at(deadline, exchange).await.unwrap_or(Err(timed_out))
    }

    async fn connection(&self, address: SocketAddr) -> Result<(Peer, mpsc::Sender<Outgoing>), CallError> {
        let mut state = self.slot(address).lock_owned().await;
        if let Some(connection) = state.connection.as_ref().filter(|one| !one.calls.is_closed()) {
            return Ok((connection.peer, connection.calls.clone()));
        }
        state.connection = None;
        let mut backoff = BACKOFF_FIRST;
        if let Some(failure) = &state.failed {
            if Instant::now() < failure.retry_at {
                return Err(CallError::Connect { address, reason: failure.reason.clone() });
            }
            backoff = (failure.backoff * 2).min(BACKOFF_MAX);
        }
        // A task of its own: callers with little patience come and go while the one attempt goes on.
        let client = self.clone();
        let attempt = tokio::spawn(async move {
            match client.connect(address).await {
                Ok(connection) => {
                    let found = (connection.peer, connection.calls.clone());
                    *state = SlotState { connection: Some(connection), failed: None };
                    Ok(found)
                }
                Err(reason) => {
                    let retry_at = Instant::now() + backoff;
                    state.failed = Some(Failure { reason: reason.clone(), retry_at, backoff });
                    Err(CallError::Connect { address, reason })
                }
            }
        });
        attempt.await.unwrap_or(Err(CallError::Broken { address }))
    }

    fn slot(&self, address: SocketAddr) -> Arc<tokio::sync::Mutex<SlotState>> {
        let mut connections = self.inner.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(slot) = connections.get_mut(&address) {
            slot.used = now;
            return Arc::clone(&slot.state);
        }
        if connections.len() >= CONNECTIONS_MAX {
            let oldest = connections.iter().min_by_key(|(_, slot)| slot.used).map(|(address, _)| *address);
            oldest.and_then(|oldest| connections.remove(&oldest));
        }
        let slot = Slot { state: Arc::default(), used: now };
        Arc::clone(&connections.entry(address).or_insert(slot).state)
    }

    async fn connect(&self, address: SocketAddr) -> Result<Connection, String> {
        let handshake = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            self.inner.connector.connect(server_name(self.inner.pool), tcp).await
        };
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
            Ok(result) => result.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("not within {} ms", CONNECT_TIMEOUT.as_millis())),
        };
        let peer = peer_of_certificates(stream.get_ref().1.peer_certificates()).map_err(|error| error.to_string())?;
        let (calls, queue) = mpsc::channel(WRITE_QUEUE_FRAMES_MAX);
        Ok(Connection { peer, calls, task: tokio::spawn(run_connection(stream, queue, address)) })
    }
}

type Waiting = Mutex<HashMap<u64, oneshot::Sender<PeerResponse>>>;

/// Write calls and read answers until one of the two fails or the connection is dropped. The callers that still
/// wait then learn it from their channel's end.
async fn run_connection(stream: TlsStream<TcpStream>, queue: mpsc::Receiver<Outgoing>, address: SocketAddr) {
    let (reader, writer) = tokio::io::split(stream);
    let waiting = Waiting::default();
    tokio::select! {
        reason = read_answers(reader, &waiting) => tracing::debug!(%address, reason, "a peer connection ended"),
        () = write_calls(writer, queue, &waiting) => {}
    }
}

async fn write_calls(
    mut writer: WriteHalf<TlsStream<TcpStream>>,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting: &Waiting,
) {
    let mut ping = tokio::time::interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            call = queue.recv() => {
                let Some(call) = call else { return };
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // Those who lost patience leave their entries; they go when the next call comes.
                waiting.retain(|_, answer| !answer.is_closed());
                waiting.insert(call.id, call.answer);
                call.frame
            }
            _ = ping.tick() => Frame::empty(FrameKind::PING),
        };
        if write_frame(&mut writer, &frame).await.is_err() {
            return;
        }
    }
}

async fn read_answers(mut reader: ReadHalf<TlsStream<TcpStream>>, waiting: &Waiting) -> String {
    loop {
        let frame = match tokio::time::timeout(CLIENT_SILENCE_MAX, read_frame(&mut reader)).await {
            Err(_) => return format!("silent for {} ms", CLIENT_SILENCE_MAX.as_millis()),
            Ok(Err(error)) => return error.to_string(),
            Ok(Ok(None)) => return "closed by the other side".to_owned(),
            Ok(Ok(Some(frame))) => frame,
        };
        if frame.kind == FrameKind::PONG {
            continue;
        }
        match frame.message::<PeerAnswer>(FrameKind::PEER_ANSWER) {
            Ok(PeerAnswer { id, answer }) => {
                let caller = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                // An answer that came too late has no caller any more.
                if let Some(caller) = caller {
                    let _ = caller.send(answer);
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}
