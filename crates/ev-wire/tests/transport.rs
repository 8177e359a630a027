//! Calls over loopback TLS: many at once, late, broken, to the wrong one, among rubbish.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ev_core::ids::{MemberId, PoolId};
use ev_wire::frame::{Frame, FrameKind};
use ev_wire::identity::{
    Identity, Peer, PoolAuthority, Role, create_authority, new_key_and_request, server_name, sign_request,
};
use ev_wire::peer::{PeerCall, PeerRequest, PeerResponse};
use ev_wire::stream::write_frame;
use ev_wire::transport::{BoxFuture, CallError, PeerClient, PeerHandler, PeerServer, SpeedError, Throughput, measure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(10);
/// On a busy machine a connection may take longer than a measurement waits for it; it is measured anew so often.
const MEASUREMENTS_MAX: usize = 10;

fn pool() -> PoolId {
    PoolId(Uuid::from_u128(0xabc))
}

/// An address of this process, whose ports no other process takes.
fn own_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high, middle, low)
}

fn identity(authority: &PoolAuthority, member: u64) -> Identity {
    let key = new_key_and_request().unwrap();
    let peer = Peer { pool: pool(), member: MemberId(member), role: Role::Host };
    let certificate = sign_request(authority, &key.request_pem, peer, "h1", &[]).unwrap();
    Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap()
}

/// Gives bodies back; an empty one never.
struct Echo {
    asked: Notify,
}

impl PeerHandler for Echo {
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        Box::pin(async move {
            let PeerRequest::Command { body } = request else {
                return PeerResponse::Failed(format!("member {} asked for something else", from.member));
            };
            if body.is_empty() {
                self.asked.notify_one();
                std::future::pending::<()>().await;
            }
            PeerResponse::Command { body }
        })
    }
}

struct Setting {
    authority: PoolAuthority,
    server: Option<PeerServer>,
    address: SocketAddr,
    echo: Arc<Echo>,
    client: PeerClient,
}

impl Setting {
    async fn new() -> Self {
        let authority = create_authority(pool()).unwrap();
        let echo = Arc::new(Echo { asked: Notify::new() });
        let client = PeerClient::new(&identity(&authority, 2));
        let address = SocketAddr::from((own_address(), 0));
        let mut setting = Self { authority, server: None, address, echo, client };
        setting.serve().await;
        setting
    }

    async fn serve(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let config = identity(&self.authority, 1).server_config();
        let server = PeerServer::start(socket.listen(16).unwrap(), config, self.echo.clone()).unwrap();
        self.address = server.address();
        self.server = Some(server);
    }

    async fn echo(&self, body: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, CallError> {
        let request = PeerRequest::Command { body };
        match self.client.call(self.address, Some(MemberId(1)), request, timeout).await? {
            PeerResponse::Command { body } => Ok(body),
            other => panic!("{other:?}"),
        }
    }

    async fn tls(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let connector = TlsConnector::from(identity(&self.authority, 2).client_config());
        let tcp = TcpStream::connect(self.address).await.unwrap();
        connector.connect(server_name(pool()), tcp).await.unwrap()
    }
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers_and_a_stuck_one_holds_nobody_up() {
    let setting = Arc::new(Setting::new().await);
    let mut calls = JoinSet::new();
    let stuck = Arc::clone(&setting);
    calls.spawn(async move {
        let answer = stuck.echo(Vec::new(), Duration::from_millis(1_500)).await;
        assert!(matches!(answer, Err(CallError::Timeout { .. })), "{answer:?}");
    });
    for number in 1..=500_u32 {
        let setting = Arc::clone(&setting);
        calls.spawn(async move {
            let body = number.to_be_bytes().repeat(100);
            assert_eq!(setting.echo(body.clone(), PATIENCE).await, Ok(body));
        });
    }
    calls.join_all().await;
    let large = vec![5; 4 << 20];
    assert_eq!(setting.echo(large.clone(), PATIENCE).await, Ok(large));
}

#[tokio::test]
async fn a_call_to_the_wrong_member_is_not_sent() {
    let setting = Setting::new().await;
    let error = setting.client.call(setting.address, Some(MemberId(9)), PeerRequest::Standing, PATIENCE).await;
    let error = error.unwrap_err();
    assert!(matches!(error, CallError::WrongMember { found: MemberId(1), wanted: MemberId(9), .. }), "{error}");
    assert!(error.not_sent());
}

#[tokio::test]
async fn a_server_that_goes_away_breaks_the_call_and_is_found_again_when_it_is_back() {
    let mut setting = Setting::new().await;
    let client = setting.client.clone();
    let address = setting.address;
    let call =
        tokio::spawn(
            async move { client.call(address, None, PeerRequest::Command { body: Vec::new() }, PATIENCE).await },
        );
    setting.echo.asked.notified().await;
    setting.server = None;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error, CallError::Broken { address });
    assert!(!error.not_sent(), "it may have been carried out");

    let error = setting.echo(vec![1], PATIENCE).await.unwrap_err();
    assert!(error.not_sent(), "{error}");
    setting.serve().await;
    let until = tokio::time::Instant::now() + PATIENCE;
    while setting.echo(vec![1], PATIENCE).await.is_err() {
        assert!(tokio::time::Instant::now() < until, "not found again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_stranger_is_refused_and_members_are_served_on() {
    let setting = Setting::new().await;
    let stranger = PeerClient::new(&identity(&create_authority(pool()).unwrap(), 2));
    let error = stranger.call(setting.address, None, PeerRequest::Standing, PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Connect { .. }), "{error}");
    assert_eq!(setting.echo(vec![1], PATIENCE).await, Ok(vec![1]));
}

#[tokio::test]
async fn rubbish_before_and_after_the_handshake_ends_only_its_own_connection() {
    let setting = Setting::new().await;
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 10_000], &[0x16, 3, 1, 0x40, 0, 1, 2]] {
        let mut stream = TcpStream::connect(setting.address).await.unwrap();
        stream.write_all(rubbish).await.unwrap();
    }
    let whole =
        Frame::of(FrameKind::PEER_CALL, &PeerCall { id: 1, request: PeerRequest::Standing }).unwrap().to_bytes();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let unknown = Frame::empty(FrameKind(999)).to_bytes();
    let bad_body = Frame { kind: FrameKind::PEER_CALL, body: vec![0xff; 3] }.to_bytes();
    for rubbish in [b"rubbish inside TLS".to_vec(), damaged, unknown, bad_body] {
        let mut stream = setting.tls().await;
        stream.write_all(&rubbish).await.unwrap();
        let mut rest = Vec::new();
        // Closed by the server, without an answer.
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(read.is_err() || rest.is_empty());
    }
    for cut in [3, 16, whole.len() - 1] {
        let mut stream = setting.tls().await;
        stream.write_all(&whole[..cut]).await.unwrap();
        stream.shutdown().await.unwrap();
    }
    assert_eq!(setting.echo(vec![1], PATIENCE).await, Ok(vec![1]));
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let authority = create_authority(pool()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(identity(&authority, 1).server_config());
    let silent = tokio::spawn(async move {
        let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        std::future::pending::<()>().await;
        drop(stream);
    });
    let client = PeerClient::new(&identity(&authority, 2));
    let error = client.call(address, None, PeerRequest::Standing, PATIENCE).await.unwrap_err();
    assert_eq!(error, CallError::Broken { address }, "before the call's own timeout");
    silent.abort();
}

#[tokio::test]
async fn a_server_that_answers_rubbish_breaks_the_call() {
    let authority = create_authority(pool()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(identity(&authority, 1).server_config());
    let rubbish = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        write_frame(&mut stream, &Frame { kind: FrameKind::PEER_ANSWER, body: vec![0xff; 9] }).await.unwrap();
        std::future::pending::<()>().await;
    });
    let client = PeerClient::new(&identity(&authority, 2));
    let error = client.call(address, None, PeerRequest::Standing, PATIENCE).await.unwrap_err();
    assert_eq!(error, CallError::Broken { address });
    rubbish.abort();
}

async fn measured(setting: &Setting, member: u64, address: SocketAddr) -> Result<Throughput, SpeedError> {
    let config = identity(&setting.authority, 2).client_config();
    let mut more = 1..MEASUREMENTS_MAX;
    loop {
        let outcome = measure(Arc::clone(&config), pool(), MemberId(member), address).await;
        if !matches!(outcome, Err(SpeedError::ConnectTimeout { .. })) || more.next().is_none() {
            return outcome;
        }
    }
}

#[tokio::test]
async fn a_links_speed_is_measured_with_the_member_that_was_meant() {
    let setting = Setting::new().await;
    let throughput = measured(&setting, 1, setting.address).await.unwrap();
    assert!(throughput.bytes > 0, "{throughput:?}");
    let other = measured(&setting, 3, setting.address).await;
    assert!(matches!(other, Err(SpeedError::WrongMember { found: MemberId(1), .. })), "{other:?}");
    let closed = TcpListener::bind((own_address(), 0)).await.unwrap().local_addr().unwrap();
    let nobody = measured(&setting, 1, closed).await;
    assert!(matches!(nobody, Err(SpeedError::Connect { .. })), "{nobody:?}");
}
