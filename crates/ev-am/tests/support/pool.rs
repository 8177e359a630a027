//! A pool with one master that lives in the test: the real pool state, the real master engine, the real peer port.

use std::collections::BTreeSet;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ev_core::authority::{Authority, AuthorityChange, Power};
use ev_core::availability::master::{Master, Path};
use ev_core::ids::{DiskId, HostId, MacAddress, MemberId, NetworkId, PoolId, VmId};
use ev_core::pool::{
    Command, CpuFacts, Member, MemberKind, MemoryTracking, Network, Outcome, PoolInfo, PoolState, Refusal, Stamped,
};
use ev_core::report::AmReport;
use ev_core::vm::{Boot, Desired, DiskConfig, Firmware, Level, NicConfig, Vm, VmConfig};
use ev_wire::identity::{Identity, Peer, PoolAuthority, Role, create_authority, new_key_and_request, sign_request};
use ev_wire::peer::{Directive, PeerRequest, PeerResponse, ProposeRefusal};
use ev_wire::transport::{BoxFuture, PeerHandler, PeerServer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub const POOL: PoolId = PoolId(Uuid::from_u128(0xa0));
pub const VM: VmId = VmId(Uuid::from_u128(0xb0));
pub const DISK: DiskId = DiskId(Uuid::from_u128(0xd0));
pub const ONE: HostId = MemberId(1);
pub const TWO: HostId = MemberId(2);
/// The master's own number; it runs no VM, so no test can take it for a VM's host.
const MASTER: MemberId = MemberId(3);
const NETWORK: NetworkId = NetworkId(Uuid::from_u128(1));
pub const DISK_BYTES: u64 = 1 << 20;
/// What the master does with questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    Yes,
    /// As in an election: no member leads.
    NotMaster,
}

struct Inner {
    state: PoolState,
    master: Master,
    alive: BTreeSet<HostId>,
    answers: Answers,
    /// Records that were committed, oldest first.
    history: Vec<(AuthorityChange, Authority)>,
}

pub struct Pool {
    inner: Arc<Mutex<Inner>>,
    certificates: PoolAuthority,
    server: PeerServer,
    ticker: JoinHandle<()>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

impl Pool {
    /// A pool of three hosts with one VM on host 1, switched off, at level 0.
    pub async fn start(disks: usize) -> Self {
        Self::start_with(disks, Vec::new()).await
    }

    /// The same with NICs on the pool's network, whose bridge is called `lan`.
    pub async fn start_with(disks: usize, nics: Vec<MacAddress>) -> Self {
        let certificates = create_authority(POOL).unwrap();
        let mut inner = Inner {
            state: PoolState::default(),
            master: Master::new(MASTER),
            alive: [ONE, TWO, MASTER].into(),
            answers: Answers::Yes,
            history: Vec::new(),
        };
        inner.make(disks, nics);
        let inner = Arc::new(Mutex::new(inner));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let handler = Arc::new(Handler { inner: Arc::clone(&inner) });
        let identity = identity(&certificates, MASTER);
        let server = PeerServer::start(listener, identity.server_config(), handler).unwrap();
        let ticker = tokio::spawn(tick_for_ever(Arc::clone(&inner)));
        Self { inner, certificates, server, ticker }
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    pub fn master_id(&self) -> MemberId {
        MASTER
    }

    /// Writes a host's certificate, its key and the pool's authority into `folder`.
    pub fn write_identity(&self, host: HostId, folder: &FilePath) {
        let key = new_key_and_request().unwrap();
        let peer = Peer { pool: POOL, member: host, role: Role::Host };
        let certificate = sign_request(&self.certificates, &key.request_pem, peer, "host", &[]).unwrap();
        std::fs::write(folder.join("host.pem"), certificate).unwrap();
        std::fs::write(folder.join("host.key"), key.key_pem).unwrap();
        std::fs::write(folder.join("ca.pem"), self.certificates.certificate_pem()).unwrap();
    }

    pub fn command(&self, command: Command) -> Outcome {
        self.inner.lock().unwrap().apply(command)
    }

    pub fn desire(&self, desired: Desired) {
        assert_eq!(self.command(Command::VmDesire { id: VM, desired }), Outcome::Done);
    }

    pub fn place(&self, level: Level, hosts: &[HostId]) {
        let hosts = hosts.iter().copied().collect();
        assert_eq!(self.command(Command::VmPlace { id: VM, level, hosts }), Outcome::Done);
    }

    pub fn vm(&self) -> Vm {
        self.inner.lock().unwrap().state.vms[&VM].clone()
    }

    pub fn since(&self) -> Option<u64> {
        match self.vm().authority.power {
            Power::On { since } => Some(since.0),
            Power::Off => None,
        }
    }

    pub fn set_answers(&self, answers: Answers) {
        self.inner.lock().unwrap().answers = answers;
    }

    /// Heartbeats of this host come no more, or come again.
    pub fn set_alive(&self, host: HostId, alive: bool) {
        let mut inner = self.inner.lock().unwrap();
        if alive {
            inner.alive.insert(host);
        } else {
            inner.alive.remove(&host);
        }
    }

    pub fn report(&self, host: HostId) -> Option<AmReport> {
        self.inner.lock().unwrap().master.last_report(VM, host).map(|(_, report)| report.clone())
    }

    pub fn history(&self) -> Vec<(AuthorityChange, Authority)> {
        self.inner.lock().unwrap().history.clone()
    }

    pub fn change_settings(&self, change: impl FnOnce(&mut ev_core::pool::Settings)) {
        let mut settings = self.inner.lock().unwrap().state.settings;
        change(&mut settings);
        assert_eq!(self.command(Command::SettingsSet { settings }), Outcome::Done);
    }

    pub fn settings(&self) -> ev_core::pool::Settings {
        self.inner.lock().unwrap().state.settings
    }
}

fn identity(certificates: &PoolAuthority, host: HostId) -> Identity {
    let key = new_key_and_request().unwrap();
    let peer = Peer { pool: POOL, member: host, role: Role::Host };
    let certificate = sign_request(certificates, &key.request_pem, peer, "host", &[]).unwrap();
    Identity::from_pem(&certificate, &key.key_pem, certificates.certificate_pem()).unwrap()
}

fn now() -> ev_core::time::Instant {
    ev_mirror::gate::boot_time()
}

impl Inner {
    fn apply(&mut self, command: Command) -> Outcome {
        let change = match &command {
            Command::VmAuthority { change, .. } => Some(change.clone()),
            _ => None,
        };
        let outcome = self.state.apply(Stamped { unix_ms: 1, command });
        if let (Some(change), Outcome::Authority(record)) = (change, &outcome) {
            self.history.push((change, record.clone()));
        }
        outcome
    }

    fn make(&mut self, disks: usize, nics: Vec<MacAddress>) {
        let member = |id: MemberId| Member {
            id,
            uuid: Uuid::from_u128(id.0.into()),
            name: format!("host{id}"),
            kind: MemberKind::Host,
            peer: "127.0.0.1:1".parse().unwrap(),
            api: None,
            heartbeat_port: 1,
            link_port_base: 1,
            private: Vec::new(),
            cpu: CpuFacts::default(),
            qemu_version: "7.2.0".into(),
            machines: Vec::new(),
            memory_tracking: MemoryTracking::Untried,
        };
        let network = Network { id: NETWORK, name: "lan".into(), bridge: "lan".into() };
        let nic = |mac| NicConfig { mac, network: NETWORK, bridge: "lan".into() };
        let pool = PoolInfo { id: POOL, name: "test".into() };
        let first = Box::new(member(ONE));
        assert_eq!(self.apply(Command::PoolCreate { pool, first, network, admin_token: String::new() }), Outcome::Done);
        for id in [TWO, MASTER] {
            assert_eq!(self.apply(Command::MemberAdd { member: Box::new(member(id)) }), Outcome::MemberAdded(id));
        }
        let disk = |index: usize| DiskConfig {
            id: DiskId(Uuid::from_u128(DISK.0.as_u128() + u128::try_from(index).unwrap())),
            size_bytes: DISK_BYTES,
        };
        let config = Box::new(VmConfig {
            vcpus: 1,
            memory_mib: 64,
            firmware: Firmware::Bios,
            machine: "pc-q35-7.2".into(),
            cpu_model: "qemu64".into(),
            boot: Boot::Disk,
            disks: (0..disks).map(disk).collect(),
            nics: nics.into_iter().map(nic).collect(),
            start_order: 0,
        });
        assert_eq!(self.apply(Command::VmCreate { id: VM, name: "vm".into(), config, host: ONE }), Outcome::Done);
        self.master.elected(now());
    }

    fn tick(&mut self) {
        for host in &self.alive {
            self.master.heartbeat(now(), *host, Path(0));
        }
        if self.answers == Answers::Yes {
            let mut commands = Vec::new();
            self.master.tick(now(), 1, &self.state, &mut commands);
            for command in commands {
                self.apply(command);
            }
        }
    }

    fn answer(&mut self, request: PeerRequest) -> PeerResponse {
        if self.answers == Answers::NotMaster {
            return PeerResponse::NotMaster { master: None };
        }
        match request {
            PeerRequest::Report(report) => {
                let id = report.vm;
                let lease = self.master.report(now(), *report, &self.state);
                let lease_ms = lease.map(|lease| u64::try_from(lease.as_millis()).unwrap());
                PeerResponse::Directive(Box::new(Directive { vm: self.state.vms.get(&id).cloned(), lease_ms }))
            }
            PeerRequest::Propose { vm, seen, change } => {
                PeerResponse::Proposed(match self.apply(Command::VmAuthority { id: vm, if_generation: seen, change }) {
                    Outcome::Authority(record) => Ok(record),
                    Outcome::Refused(Refusal::Superseded(record)) => Err(ProposeRefusal::Superseded(record)),
                    Outcome::Refused(Refusal::NoSuchVm) => Err(ProposeRefusal::NoSuchVm),
                    other => Err(ProposeRefusal::Forbidden(format!("{other:?}"))),
                })
            }
            other => PeerResponse::Failed(format!("not for this test: {other:?}")),
        }
    }
}

async fn tick_for_ever(inner: Arc<Mutex<Inner>>) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    loop {
        interval.tick().await;
        inner.lock().unwrap().tick();
    }
}

struct Handler {
    inner: Arc<Mutex<Inner>>,
}

impl PeerHandler for Handler {
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        assert_eq!(from.pool, POOL);
        let answer = self.inner.lock().unwrap().answer(request);
        Box::pin(async move { answer })
    }
}
