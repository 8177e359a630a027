//! The daemon as a process, with a host of a pool in this one.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ev_core::ids::{MemberId, NetworkId, PoolId};
use ev_core::pool::{Command as Change, CpuFacts, Member, MemberKind, MemoryTracking, Network, Outcome, PoolInfo};
use ev_pool::quorum::{EnlistError, Enlistment, dismiss, enlist};
use ev_pool::{PoolNode, PoolNodeConfig, RaftTimes, Reconciled, VoterRole};
use ev_wire::identity::{Identity, Peer, PoolAuthority, Role, create_authority, new_key_and_request, sign_request};
use ev_wire::peer::{PeerRequest, PeerResponse};
use ev_wire::quorum::Invitation;
use ev_wire::transport::{BoxFuture, PeerHandler, PeerServer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

struct Daemon {
    folder: TempDir,
    address: SocketAddr,
    process: Option<Child>,
}

/// Addresses that no other test uses, and no other daemon of this one: from this process's number.
fn address() -> SocketAddr {
    static MADE: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    SocketAddr::new(Ipv4Addr::new(127, 96 + number, high, low).into(), 7412)
}

impl Daemon {
    fn new() -> Self {
        let (folder, address) = (TempDir::new().unwrap(), address());
        let text = format!(
            "address = '{}'\nport = {}\nstate_dir = '{}'\n",
            address.ip(),
            address.port(),
            folder.path().join("state").display()
        );
        std::fs::write(folder.path().join("quorumd.toml"), text).unwrap();
        Self { folder, address, process: None }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ev-quorumd"));
        command.env_remove("RUST_LOG").arg("--config").arg(self.folder.path().join("quorumd.toml"));
        command
    }

    fn start(&mut self) {
        let mut process = self.command().stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let serving = lines.by_ref().map(Result::unwrap).find(|line| line.contains("serving"));
        assert!(serving.is_some(), "it ended before it served");
        // Read on, so that it never waits for us.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("quorumd: {}", line.unwrap_or_default())));
        self.process = Some(process);
    }

    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let output = self.command().args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Waits until its status has all of these.
    async fn says(&self, wanted: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (good, text) = self.run(&["status"]);
            if good && wanted.iter().all(|one| text.contains(one)) {
                return;
            }
            assert!(Instant::now() < deadline, "{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn invitation(&self) -> Invitation {
        let (good, text) = self.run(&["invite"]);
        assert!(good, "{text}");
        text.parse().unwrap()
    }

    fn pool_folders(&self) -> Vec<PathBuf> {
        let dir = self.folder.path().join("state/pools");
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.as_ref().unwrap().id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// Member 1 of a pool, in this process.
struct Host {
    pool: PoolId,
    authority: PoolAuthority,
    identity: Arc<Identity>,
    node: PoolNode,
    _server: PeerServer,
    _folder: TempDir,
}

struct Handler(PoolNode);

impl PeerHandler for Handler {
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        Box::pin(async move { self.0.answer(from, request).await.unwrap_or(PeerResponse::Failed(String::new())) })
    }
}

fn member(id: u64, name: &str, kind: MemberKind, peer: SocketAddr) -> Member {
    Member {
        id: MemberId(id),
        uuid: Uuid::new_v4(),
        name: name.to_owned(),
        kind,
        peer,
        api: None,
        heartbeat_port: 0,
        link_port_base: 0,
        private: Vec::new(),
        cpu: CpuFacts::default(),
        qemu_version: String::new(),
        machines: Vec::new(),
        memory_tracking: MemoryTracking::Untried,
    }
}

impl Host {
    async fn new() -> Self {
        let pool = PoolId(Uuid::new_v4());
        let authority = create_authority(pool).unwrap();
        let key = new_key_and_request().unwrap();
        let peer = Peer { pool, member: MemberId(1), role: Role::Host };
        let certificate = sign_request(&authority, &key.request_pem, peer, "h1", &[]).unwrap();
        let identity = Arc::new(Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap());
        let folder = TempDir::new().unwrap();
        let config = PoolNodeConfig {
            dir: folder.path().to_owned(),
            identity: Arc::clone(&identity),
            times: RaftTimes::default(),
        };
        let node = PoolNode::start(config).await.unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = PeerServer::start(listener, identity.server_config(), Arc::new(Handler(node.clone()))).unwrap();
        node.initialize(&[address]).await.unwrap();
        let create = Change::PoolCreate {
            pool: PoolInfo { id: pool, name: "test".to_owned() },
            first: Box::new(member(1, "h1", MemberKind::Host, address)),
            network: Network { id: NetworkId(Uuid::new_v4()), name: "net".to_owned(), bridge: "br0".to_owned() },
            admin_token: "0".repeat(64),
        };
        assert_eq!(node.propose(create, PATIENCE).await, Ok(Outcome::Done));
        Self { pool, authority, identity, node, _server: server, _folder: folder }
    }

    async fn add(&self, name: &str, address: SocketAddr) -> MemberId {
        let one = member(0, name, MemberKind::QuorumServer, address);
        match self.node.propose(Change::MemberAdd { member: Box::new(one) }, PATIENCE).await {
            Ok(Outcome::MemberAdded(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    async fn enlist(&self, invitation: Invitation, member: MemberId) -> Result<(), EnlistError> {
        let enlistment = Enlistment { invitation, pool_name: "test".to_owned(), member, name: "third".to_owned() };
        enlist(&self.authority, &enlistment).await
    }

    /// Reconcile until the consensus group is as the pool state wants it.
    async fn settled(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.node.reconcile_membership().await != Ok(Reconciled::Settled) {
            assert!(Instant::now() < deadline, "{:?}", self.node.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Reconcile until a member has caught up with the log.
    async fn caught_up(&self, member: MemberId) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.node.status();
            let settled = self.node.reconcile_membership().await == Ok(Reconciled::Settled);
            let found = status.members.iter().find(|one| one.at.member == member);
            if settled && found.is_some_and(|one| one.lag_entries == Some(0)) {
                return;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_server_is_enlisted_survives_its_death_and_is_dismissed() {
    let mut daemon = Daemon::new();
    daemon.start();
    let host = Host::new().await;
    let (good, text) = daemon.run(&["status"]);
    assert!(good && text.contains("serves no pool yet"), "{text}");

    let id = host.add("third", daemon.address).await;
    host.enlist(daemon.invitation(), id).await.unwrap();
    host.caught_up(id).await;
    // It has the log, and learns last of all from the next append how far that is committed.
    daemon.says(&["member 2", "master: h1"]).await;
    println!("resident with one pool: {} KiB", daemon.resident_kib());

    // Let it vote, which the plan for one host does not ask for, so that its memory counts.
    host.node.promote(id).await.unwrap();
    assert!(host.node.status().members.iter().all(|one| one.role == VoterRole::Voter));
    daemon.kill();
    daemon.start();
    let note = Change::AdminTokenAdd { hash: "with its vote".to_owned(), name: String::new() };
    assert_eq!(host.node.propose(note, PATIENCE).await, Ok(Outcome::Done));

    host.node.propose(Change::MemberRemove { id }, PATIENCE).await.unwrap();
    host.settled().await;
    dismiss(&host.identity, id, daemon.address).await.unwrap();
    assert!(daemon.pool_folders().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_server_that_was_away_when_it_was_removed_forgets_the_pool_at_its_return() {
    let (mut daemon, mut second) = (Daemon::new(), Daemon::new());
    daemon.start();
    second.start();
    let (host, other) = (Host::new().await, Host::new().await);
    let id = other.add("third", daemon.address).await;
    other.enlist(daemon.invitation(), id).await.unwrap();
    // Both vote: only who votes asks the others how they stand.
    for (name, server) in [("third", &daemon), ("fourth", &second)] {
        let id = host.add(name, server.address).await;
        host.enlist(server.invitation(), id).await.unwrap();
        host.caught_up(id).await;
    }
    for id in [2, 3] {
        host.node.promote(MemberId(id)).await.unwrap();
    }
    daemon.kill();
    host.node.propose(Change::MemberRemove { id: MemberId(2) }, PATIENCE).await.unwrap();
    host.settled().await;
    daemon.start();
    let deadline = Instant::now() + PATIENCE;
    while daemon.pool_folders().len() > 1 {
        assert!(Instant::now() < deadline, "{:?}", daemon.pool_folders());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(daemon.pool_folders()[0].ends_with(other.pool.to_string()), "the other pool's stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_pools_share_one_daemon() {
    let mut daemon = Daemon::new();
    daemon.start();
    let (one, two) = (Host::new().await, Host::new().await);
    for host in [&one, &two] {
        let id = host.add("third", daemon.address).await;
        host.enlist(daemon.invitation(), id).await.unwrap();
        host.caught_up(id).await;
    }
    let (_, text) = daemon.run(&["status", "--output", "json"]);
    assert!(text.contains(&one.pool.to_string()) && text.contains(&two.pool.to_string()), "{text}");
    dismiss(&one.identity, MemberId(2), daemon.address).await.unwrap();
    assert_eq!(daemon.pool_folders().len(), 1);
    two.caught_up(MemberId(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_works_once_and_only_at_the_server_that_made_it() {
    let mut daemon = Daemon::new();
    daemon.start();
    let host = Host::new().await;
    let id = host.add("third", daemon.address).await;
    let good = daemon.invitation();

    let wrong_secret = Invitation { secret: "0".repeat(64), ..good.clone() };
    let error = host.enlist(wrong_secret, id).await.unwrap_err().to_string();
    assert!(error.contains("unknown, used or expired"), "{error}");

    let other = host.identity.authority_fingerprint();
    let wrong_server = Invitation { fingerprint: other, ..good.clone() };
    assert!(matches!(host.enlist(wrong_server, id).await, Err(EnlistError::Connect { .. })));

    host.enlist(good.clone(), id).await.unwrap();
    let error = host.enlist(good, id).await.unwrap_err().to_string();
    assert!(error.contains("unknown, used or expired"), "{error}");

    // A second time under the same number: refused; under a new number, after the first was given up: taken.
    let error = host.enlist(daemon.invitation(), id).await.unwrap_err().to_string();
    assert!(error.contains("already is member 2"), "{error}");
    host.node.propose(Change::MemberRemove { id }, PATIENCE).await.unwrap();
    let again = host.add("third", daemon.address).await;
    host.enlist(daemon.invitation(), again).await.unwrap();
    host.caught_up(again).await;
    assert_eq!(daemon.pool_folders().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_on_the_port_and_a_damaged_pool_stop_nobody_else() {
    let mut daemon = Daemon::new();
    daemon.start();
    let (one, two) = (Host::new().await, Host::new().await);
    for host in [&one, &two] {
        let id = host.add("third", daemon.address).await;
        host.enlist(daemon.invitation(), id).await.unwrap();
        host.caught_up(id).await;
    }
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0; 4_096]] {
        TcpStream::connect(daemon.address).unwrap().write_all(rubbish).unwrap();
    }
    two.caught_up(MemberId(2)).await;

    daemon.kill();
    let folder = daemon.folder.path().join("state/pools").join(one.pool.to_string());
    std::fs::write(folder.join("raft.redb"), b"not a database").unwrap();
    daemon.start();
    let note = Change::AdminTokenAdd { hash: "goes on".to_owned(), name: String::new() };
    two.node.propose(note, PATIENCE).await.unwrap();
    two.caught_up(MemberId(2)).await;
    let (_, text) = daemon.run(&["status"]);
    assert!(text.contains("not served: "), "{text}");
}
