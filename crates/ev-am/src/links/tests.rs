//! Two AMs' links over loopback, with paths that fall silent on demand.

use std::time::Duration;

use ev_core::ids::{MemberId, PoolId};
use ev_wire::identity::{Identity, Peer, PoolAuthority, Role, create_authority, new_key_and_request, sign_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use reserved::Reserved;

#[path = "../../tests/support/reserved.rs"]
mod reserved;

const POOL: PoolId = PoolId(Uuid::from_u128(0xa0));
const VM: VmId = VmId(Uuid::from_u128(0xb0));
const DISK: DiskId = DiskId(Uuid::from_u128(0xd0));
/// Far beyond what any step here takes: a test that waits longer hangs for a reason.
const PATIENCE: Duration = Duration::from_secs(10);

fn tls(authority: &PoolAuthority, host: u64) -> Tls {
    let key = new_key_and_request().unwrap();
    let peer = Peer { pool: authority.pool(), member: MemberId(host), role: Role::Host };
    let certificate = sign_request(authority, &key.request_pem, peer, "host", &[]).unwrap();
    Tls::new(&Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap())
}

/// A path through which bytes pass until it is cut; then both ends hear nothing more, not even an end.
struct Path {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Path {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, seen) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((one, _)) = listener.accept().await {
                tokio::spawn(carry(one, target, seen.clone()));
            }
        });
        Self { address, open }
    }
}

async fn carry(one: TcpStream, target: SocketAddr, mut open: watch::Receiver<bool>) {
    let _ = open.wait_for(|open| *open).await;
    let Ok(other) = TcpStream::connect(target).await else { return };
    let (one, other) = (one.into_split(), other.into_split());
    tokio::join!(pass(one.0, other.1, open.clone()), pass(other.0, one.1, open));
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok(length) = from.read(&mut buffer).await else { return };
        let _ = open.wait_for(|open| *open).await;
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

struct Pair {
    paths: Vec<Path>,
    dialler: (Links, mpsc::Receiver<LinkNotice>),
    accepter: (Links, mpsc::Receiver<LinkNotice>),
    _reserved: [Reserved; 2],
}

async fn pair(dialler_partner: u64) -> Pair {
    let authority = create_authority(POOL).unwrap();
    let reserved = [Reserved::new(), Reserved::new()];
    let listen: Vec<_> = reserved.iter().map(Reserved::address).collect();
    let mut paths = Vec::new();
    for target in &listen {
        paths.push(Path::to(*target).await);
    }
    let dial = paths.iter().map(|path| path.address).collect();
    let spec = |host, partner, listen, dial| LinksSpec {
        tls: tls(&authority, host),
        vm: VM,
        partner: MemberId(partner),
        listen,
        dial,
        disks: vec![DISK],
    };
    let start = |spec, side| {
        let (notices, seen) = mpsc::channel(64);
        (Links::start(spec, side, notices), seen)
    };
    let accepter = start(spec(2, 1, listen, vec![]), Side::Accepts);
    let dialler = start(spec(1, dialler_partner, vec![], dial), Side::Dials);
    Pair { paths, dialler, accepter, _reserved: reserved }
}

async fn next_stream(notices: &mut mpsc::Receiver<LinkNotice>) -> Stream {
    let next = async {
        loop {
            if let LinkNotice::Stream { channel: Channel::Disk(_), stream } = notices.recv().await.unwrap() {
                return *stream;
            }
        }
    };
    timeout(PATIENCE, next).await.expect("a stream in time")
}

async fn until_heard(notices: &mut mpsc::Receiver<LinkNotice>, wanted: bool) {
    let next = async {
        loop {
            if let LinkNotice::PartnerHeard(heard) = notices.recv().await.unwrap()
                && heard == wanted
            {
                return;
            }
        }
    };
    timeout(PATIENCE, next).await.expect("news of the partner in time");
}

impl Pair {
    async fn streams(&mut self) -> (Stream, Stream) {
        working_streams(&mut self.dialler, &mut self.accepter).await
    }
}

/// The ends of one stream. Of what was dialled some is given up by one side alone, and dead. A disk would say so; here this
/// does, until a stream works.
async fn working_streams(
    dialler: &mut (Links, mpsc::Receiver<LinkNotice>),
    accepter: &mut (Links, mpsc::Receiver<LinkNotice>),
) -> (Stream, Stream) {
    let connected = async {
        loop {
            let mut one = next_stream(&mut dialler.1).await;
            let _ = one.write_all(b"x").await.and(one.flush().await);
            while let Ok(Some(notice)) = timeout(Duration::from_millis(300), accepter.1.recv()).await {
                let LinkNotice::Stream { channel: Channel::Disk(_), stream: mut other } = notice else { continue };
                let mut byte = [0];
                if let Ok(Ok(_)) = timeout(Duration::from_millis(300), other.read_exact(&mut byte)).await {
                    return (one, *other);
                }
            }
            dialler.0.stream_down(Channel::Disk(DISK));
        }
    };
    timeout(PATIENCE, connected).await.expect("a stream that works")
}

async fn assert_connected(one: &mut Stream, other: &mut Stream) {
    one.write_all(b"hello").await.unwrap();
    one.flush().await.unwrap();
    let mut buffer = [0; 5];
    timeout(PATIENCE, other.read_exact(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer, b"hello");
}

#[tokio::test]
async fn a_disk_gets_its_stream_and_addresses_are_told() {
    let mut pair = pair(2).await;
    let (mut one, mut other) = pair.streams().await;
    assert_connected(&mut one, &mut other).await;
    let address: IpAddr = "192.0.2.9".parse().unwrap();
    pair.dialler.0.learned(1, vec![address]);
    let told = async {
        loop {
            if let LinkNotice::Learned { nic, addresses } = pair.accepter.1.recv().await.unwrap() {
                return (nic, addresses);
            }
        }
    };
    assert_eq!(timeout(PATIENCE, told).await.unwrap(), (1, vec![address]));
}

#[tokio::test]
async fn a_silent_path_is_left_for_the_next_and_the_old_stream_breaks() {
    let mut pair = pair(2).await;
    let (mut one, mut other) = pair.streams().await;
    // Which path the stream goes over depends on which answered first; silence both in turn.
    pair.paths[0].open.send_replace(false);
    let _ = other.write_all(b"y").await.and(other.flush().await);
    if timeout(PATIENCE, one.read_u8()).await.expect("the stream goes on or breaks").is_ok() {
        pair.paths[0].open.send_replace(true);
        pair.paths[1].open.send_replace(false);
        assert!(timeout(PATIENCE, one.read_u8()).await.expect("the stream breaks in time").is_err());
    }
    let (mut one, mut other) = pair.streams().await;
    assert_connected(&mut one, &mut other).await;
}

#[tokio::test]
async fn silence_on_all_paths_is_told_on_both_sides_and_so_is_its_end() {
    let mut pair = pair(2).await;
    let _streams = pair.streams().await;
    for path in &pair.paths {
        path.open.send_replace(false);
    }
    until_heard(&mut pair.dialler.1, false).await;
    until_heard(&mut pair.accepter.1, false).await;
    for path in &pair.paths {
        path.open.send_replace(true);
    }
    until_heard(&mut pair.dialler.1, true).await;
    pair.streams().await;
}

#[tokio::test]
async fn another_host_of_the_pool_is_not_the_partner() {
    let mut pair = pair(3).await;
    let none = timeout(Duration::from_millis(500), next_stream(&mut pair.dialler.1)).await;
    assert!(none.is_err(), "a link to a host that is not the partner");
}

#[tokio::test]
async fn roles_change_places() {
    let authority = create_authority(POOL).unwrap();
    let reserved = [Reserved::new(), Reserved::new()];
    let addresses = [reserved[0].address(), reserved[1].address()];
    let start = |host, partner, own: usize, other: usize, side| {
        let spec = LinksSpec {
            tls: tls(&authority, host),
            vm: VM,
            partner: MemberId(partner),
            listen: vec![addresses[own]],
            dial: vec![addresses[other]],
            disks: vec![DISK],
        };
        let (notices, seen) = mpsc::channel(64);
        (Links::start(spec, side, notices), seen)
    };
    let mut first = start(1, 2, 0, 1, Side::Dials);
    let mut second = start(2, 1, 1, 0, Side::Accepts);
    let (mut one, _other) = working_streams(&mut first, &mut second).await;
    // For a moment both dial: neither takes the other's links, and nothing worse happens.
    second.0.set_side(Side::Dials);
    first.0.set_side(Side::Accepts);
    assert!(timeout(PATIENCE, one.read_u8()).await.expect("the old stream breaks").is_err());
    let (mut one, mut other) = working_streams(&mut second, &mut first).await;
    assert_connected(&mut one, &mut other).await;
}
