//! A pool whose members run in this process and talk over real TLS on the loopback interface.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ev_core::ids::{MemberId, NetworkId, PoolId};
use ev_core::pool::{
    Command, CpuFacts, Member, MemberKind, MemoryTracking, Network, Outcome, PoolInfo, PoolState, Severity,
};
use ev_pool::{PoolNode, PoolNodeConfig, RaftTimes, Reconciled};
use ev_wire::identity::{Identity, Peer, PoolAuthority, Role, create_authority, new_key_and_request, sign_request};
use ev_wire::peer::{PeerRequest, PeerResponse};
use ev_wire::transport::{BoxFuture, PeerHandler, PeerServer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use uuid::Uuid;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Pairs (asker, asked) whose messages are lost.
pub type Cuts = Arc<Mutex<BTreeSet<(u64, u64)>>>;

pub struct TestPool {
    pub id: PoolId,
    pub authority: PoolAuthority,
    pub members: BTreeMap<u64, TestMember>,
    pub cuts: Cuts,
    folder: TempDir,
}

pub struct TestMember {
    pub role: Role,
    pub address: SocketAddr,
    pub identity: Arc<Identity>,
    pub running: Option<(PoolNode, PeerServer)>,
}

/// Answers for a node, but loses what is cut.
struct Lossy {
    node: PoolNode,
    cuts: Cuts,
}

impl PeerHandler for Lossy {
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        Box::pin(async move {
            let me = self.node.me().member.0;
            if self.cuts.lock().unwrap().contains(&(from.member.0, me)) {
                std::future::pending::<()>().await;
            }
            let answer = self.node.answer(from, request).await;
            if self.cuts.lock().unwrap().contains(&(me, from.member.0)) {
                std::future::pending::<()>().await;
            }
            answer.unwrap_or_else(|_| PeerResponse::Failed("not served in this test".to_owned()))
        })
    }
}

pub fn identity_of(authority: &PoolAuthority, pool: PoolId, member: u64, role: Role) -> Identity {
    let key = new_key_and_request().unwrap();
    let peer = Peer { pool, member: MemberId(member), role };
    let certificate = sign_request(authority, &key.request_pem, peer, &format!("m{member}"), &[]).unwrap();
    Identity::from_pem(&certificate, &key.key_pem, authority.certificate_pem()).unwrap()
}

impl TestPool {
    pub fn new() -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let id = PoolId(Uuid::new_v4());
        let authority = create_authority(id).unwrap();
        Self { id, authority, members: BTreeMap::new(), cuts: Cuts::default(), folder: TempDir::new().unwrap() }
    }

    /// One member that leads a pool whose state names it.
    pub async fn founded() -> Self {
        let mut pool = Self::new();
        pool.start_new(1, Role::Host).await;
        pool.node(1).initialize(&[pool.members[&1].address]).await.unwrap();
        let create = Command::PoolCreate {
            pool: PoolInfo { id: pool.id, name: "test".to_owned() },
            first: Box::new(pool.member(1)),
            network: Network { id: NetworkId(Uuid::new_v4()), name: "net".to_owned(), bridge: "br0".to_owned() },
            admin_token: "0".repeat(64),
        };
        assert_eq!(pool.node(1).propose(create, PATIENCE).await, Ok(Outcome::Done));
        pool
    }

    /// Founded, and these members added, and the group as it should be.
    pub async fn of(roles: &[Role]) -> Self {
        let mut pool = Self::founded().await;
        for (member, role) in (2..).zip(roles.iter().skip(1)) {
            pool.add(member, *role).await;
        }
        pool.settle().await;
        pool
    }

    /// Add a member to the state, and start it.
    pub async fn add(&mut self, member: u64, role: Role) {
        self.start_new(member, role).await;
        let command = Command::MemberAdd { member: Box::new(self.member(member)) };
        let outcome = self.master().await.1.propose(command, PATIENCE).await;
        assert_eq!(outcome, Ok(Outcome::MemberAdded(MemberId(member))));
    }

    pub fn member(&self, member: u64) -> Member {
        let one = &self.members[&member];
        Member {
            id: MemberId(member),
            uuid: Uuid::new_v4(),
            name: format!("m{member}"),
            kind: if one.role == Role::Host { MemberKind::Host } else { MemberKind::QuorumServer },
            peer: one.address,
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

    /// Reconcile until nothing is left to do.
    pub async fn settle(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, master) = self.master().await;
            match master.reconcile_membership().await {
                Ok(Reconciled::Settled) => return self.all_know_the_group_of(&master).await,
                Ok(Reconciled::Changed(_)) => {}
                other => {
                    assert!(Instant::now() < deadline, "not settled: {other:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// A change is settled when a majority has it: the others come to know of it later.
    async fn all_know_the_group_of(&self, master: &PoolNode) {
        let group = |node: &PoolNode| -> Vec<_> {
            node.status().members.iter().map(|member| (member.at.member, member.role)).collect()
        };
        let members: Vec<u64> = group(master).iter().map(|(member, _)| member.0).collect();
        let knows = |(id, node): (u64, &PoolNode)| !members.contains(&id) || group(node) == group(master);
        wait_until("all to know the group", || self.running().all(knows)).await;
    }

    pub fn dir(&self, member: u64) -> PathBuf {
        self.folder.path().join(member.to_string())
    }

    async fn start_new(&mut self, member: u64, role: Role) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Arc::new(identity_of(&self.authority, self.id, member, role));
        self.members.insert(member, TestMember { role, address, identity, running: None });
        self.run(member, listener).await;
    }

    async fn run(&mut self, member: u64, listener: TcpListener) {
        let dir = self.dir(member);
        let one = self.members.get_mut(&member).unwrap();
        let config = PoolNodeConfig { dir, identity: Arc::clone(&one.identity), times: RaftTimes::default() };
        let node = PoolNode::start(config).await.unwrap();
        let handler = Arc::new(Lossy { node: node.clone(), cuts: Arc::clone(&self.cuts) });
        let server = PeerServer::start(listener, one.identity.server_config(), handler).unwrap();
        one.running = Some((node, server));
    }

    /// Start a member again from its folder, at its old address.
    pub async fn restart(&mut self, member: u64) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.members[&member].address).unwrap();
        self.run(member, socket.listen(64).unwrap()).await;
    }

    /// End a member without a goodbye.
    pub async fn kill(&mut self, member: u64) {
        let (node, server) = self.members.get_mut(&member).unwrap().running.take().unwrap();
        drop(server);
        node.close().await;
    }

    pub fn node(&self, member: u64) -> PoolNode {
        self.members[&member].running.as_ref().expect("it runs").0.clone()
    }

    fn running(&self) -> impl Iterator<Item = (u64, &PoolNode)> {
        self.members.iter().filter_map(|(id, one)| Some((*id, &one.running.as_ref()?.0)))
    }

    /// Wait for a member that is master.
    pub async fn master(&self) -> (u64, PoolNode) {
        self.master_where(|_| true).await
    }

    pub async fn master_where(&self, accept: impl Fn(u64) -> bool) -> (u64, PoolNode) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((id, node)) = self.running().find(|(id, node)| node.is_leader() && accept(*id)) {
                return (id, node.clone());
            }
            assert!(
                Instant::now() < deadline,
                "no master: {:?}",
                self.running().map(|one| one.1.status()).collect::<Vec<_>>()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lose everything between two members.
    pub fn cut(&self, a: u64, b: u64) {
        self.cuts.lock().unwrap().extend([(a, b), (b, a)]);
    }

    pub fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    /// Commit a harmless change that can be found again.
    pub async fn note(&self, node: &PoolNode, text: &str) {
        let object = "test".to_owned();
        let command = Command::EventAdd { severity: Severity::Info, object, text: text.to_owned() };
        assert_eq!(node.propose(command, PATIENCE).await, Ok(Outcome::Done), "{text}");
    }
}

/// Wait until the state that a node has applied is as wished.
pub async fn wait_state(node: &PoolNode, what: &str, wish: impl Fn(&PoolState) -> bool) {
    let mut state = node.state();
    let found = tokio::time::timeout(PATIENCE, state.wait_for(|state| wish(state))).await;
    assert!(matches!(found, Ok(Ok(_))), "{what} was not applied on member {}", node.me().member);
}

pub async fn wait_note(node: &PoolNode, text: &str) {
    wait_state(node, text, |state| state.events.iter().any(|event| event.text == text)).await;
}

/// Wait until something is so.
pub async fn wait_until(what: &str, wish: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !wish() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
