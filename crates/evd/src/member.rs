//! This host as a member of its pool: everything that runs while it is one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use ev_api::{ApiError, ErrorCode};
use ev_core::ids::{HostId, MemberId, PoolId};
use ev_core::pool::{Command, Outcome, PoolState};
use ev_pool::{PoolNode, PoolNodeConfig, ProposeError, RaftTimes};
use ev_wire::heartbeat::HeartbeatKey;
use ev_wire::identity::{Identity, PoolAuthority, Role, peer_of_certificates};
use ev_wire::transport::{PeerClient, PeerServer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::App;
use crate::heartbeats::{self, Ear, Heart, Targets};
use crate::identity::MemberFile;
use crate::library::Library;
use crate::live::Live;
use crate::master::{self, MasterHandle};
use crate::{api, clock, http, local, peer, status, upkeep};

/// How long a change of the pool state may take, an election included.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// One per membership.
pub struct Member {
    pub host: HostId,
    pub pool: PoolId,
    pub pool_name: String,
    pub node: PoolNode,
    pub identity: Arc<Identity>,
    pub authority: PoolAuthority,
    pub authority_certificate: String,
    pub heartbeat_secret: String,
    pub live: Live,
    pub ear: Arc<Ear>,
    pub master: MasterHandle,
    pub peers: PeerClient,
    library: Library,
    tls: Arc<rustls::ClientConfig>,
    running: Mutex<Running>,
}

/// Ends with the membership.
#[derive(Default)]
struct Running {
    tasks: JoinSet<()>,
    heart: JoinSet<()>,
    peer_servers: Vec<PeerServer>,
}

impl Member {
    /// Takes up the membership that lies on disk: listens, beats, votes, reconciles.
    ///
    /// # Errors
    /// The papers or the pool state can't be read, or an address is not on this host.
    pub async fn start(app: &Arc<App>, file: &MemberFile) -> anyhow::Result<Arc<Self>> {
        let identity = Arc::new(app.papers.identity()?);
        let config = PoolNodeConfig {
            dir: app.papers.path().to_owned(),
            identity: Arc::clone(&identity),
            times: RaftTimes::default(),
        };
        let node = PoolNode::start(config).await.context("cannot take up the pool state")?;
        let (master, engine) = master::handle();
        let member = Arc::new(Self {
            host: file.host,
            pool: file.pool,
            pool_name: file.pool_name.clone(),
            tls: identity.client_config(),
            peers: PeerClient::new(&identity),
            authority: app.papers.authority()?,
            authority_certificate: std::fs::read_to_string(app.papers.authority_certificate())?,
            heartbeat_secret: app.papers.heartbeat_secret()?,
            live: Live::default(),
            ear: Arc::default(),
            library: app.library.clone(),
            node,
            identity,
            master,
            running: Mutex::default(),
        });
        member.listen(app).await?;
        let targets = watch::Sender::new(Targets::new());
        let heart = member.start_heart(app, targets.subscribe());
        let mut tasks = JoinSet::new();
        tasks.spawn(master::run(Arc::clone(&member), engine));
        tasks.spawn(follow_targets(Arc::clone(&member), targets));
        tasks.spawn(status::watch_hosts(Arc::clone(app), Arc::clone(&member)));
        tasks.spawn(reconcile_membership(Arc::clone(&member)));
        tasks.spawn(upkeep::tell_changes(Arc::clone(app), Arc::clone(&member)));
        tasks.spawn(local::run(Arc::clone(app), Arc::clone(&member)));
        let mut running = member.running();
        running.heart = heart;
        running.tasks.spawn(async move { while tasks.join_next().await.is_some() {} });
        drop(running);
        Ok(member)
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self: &Arc<Self>, app: &Arc<App>) -> anyhow::Result<()> {
        let bind = |address: SocketAddr| async move {
            TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address}; is management_address in evd.toml an address of this host, and the port free?")
            })
        };
        let https = bind(app.config.api_address()).await?;
        let mut peer_servers = vec![self.serve_peers(bind(app.config.peer_address()).await?)?];
        for address in &app.config.private_addresses {
            // A private link that is down must not keep the host from its pool.
            match bind(SocketAddr::new(*address, app.config.peer_port)).await {
                Ok(listener) => peer_servers.push(self.serve_peers(listener)?),
                Err(error) => tracing::error!(%error, "this private link is not used for the pool's own messages"),
            }
        }
        let router = api::router(Arc::clone(app));
        let tls = self.identity.api_server_config();
        let mut running = self.running();
        running.tasks.spawn(http::serve_tls(https, tls, host_of, router));
        running.peer_servers = peer_servers;
        Ok(())
    }

    fn serve_peers(self: &Arc<Self>, listener: TcpListener) -> std::io::Result<PeerServer> {
        let handler = Arc::new(peer::Handler::new(Arc::downgrade(self)));
        PeerServer::start(listener, self.identity.server_config(), handler)
    }

    fn start_heart(&self, app: &App, targets: watch::Receiver<Targets>) -> JoinSet<()> {
        let config = &app.config;
        let addresses = std::iter::once(config.management_address).chain(config.private_addresses.iter().copied());
        heartbeats::start(&Heart {
            pool: self.pool,
            host: self.host,
            key: HeartbeatKey::derive(self.heartbeat_secret.as_bytes()),
            addresses: addresses.collect(),
            port: config.heartbeat_port,
            targets,
            ear: Arc::clone(&self.ear),
        })
    }

    /// Stops everything and closes the pool state's file.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *self.running());
        drop(running);
        self.node.shutdown().await;
    }

    /// The pool state as applied here.
    #[must_use]
    pub fn state(&self) -> Arc<PoolState> {
        Arc::clone(&self.node.state().borrow())
    }

    /// Follows the pool state.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<PoolState>> {
        self.node.state()
    }

    #[must_use]
    pub fn is_master(&self) -> bool {
        self.node.is_leader()
    }

    /// The pool master's API address, if there is a master.
    #[must_use]
    pub fn master_api(&self) -> Option<SocketAddr> {
        let master = self.node.leader()?.member;
        self.state().members.get(&master)?.api
    }

    /// For connections to other hosts' APIs.
    #[must_use]
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.tls)
    }

    #[must_use]
    pub fn app_library(&self) -> &Library {
        &self.library
    }

    /// Whether this host hears the other one on any path.
    #[must_use]
    pub fn is_online(&self, host: HostId) -> bool {
        let detection = Duration::from_millis(self.state().settings.detection_ms);
        let now = clock::now();
        host == self.host || self.ear.last().iter().any(|((from, _), at)| *from == host && now.since(*at) < detection)
    }

    /// Commits a change of the pool state.
    ///
    /// # Errors
    /// The state refuses it, or the pool cannot commit now.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ApiError> {
        match self.node.propose(command, PROPOSE_TIMEOUT).await {
            Ok(Outcome::Refused(refusal)) => Err(api::refusals::of_state(&refusal)),
            Ok(outcome) => Ok(outcome),
            Err(error) => {
                let code = match &error {
                    ProposeError::NoMaster { .. } => ErrorCode::NoMaster,
                    ProposeError::Unknown => ErrorCode::TimedOut,
                    ProposeError::TooLarge { .. } => ErrorCode::Invalid,
                    ProposeError::Refused(_) | ProposeError::OtherTerm => ErrorCode::Refused,
                    ProposeError::Stopped => ErrorCode::Internal,
                };
                Err(ApiError::new(code, error.to_string()))
            }
        }
    }
}

/// Which host a client's certificate names.
fn host_of(connection: &rustls::ServerConnection) -> Option<MemberId> {
    let peer = peer_of_certificates(connection.peer_certificates()).ok()?;
    (peer.role == Role::Host).then_some(peer.member)
}

/// Where other hosts listen for heartbeats, by the pool state.
fn targets_of(state: &PoolState, me: HostId) -> Targets {
    let others = state.hosts().filter(|host| host.id != me);
    others
        .map(|host| {
            let all = std::iter::once(host.peer.ip()).chain(host.private.iter().copied());
            (host.id, all.map(|address| SocketAddr::new(address, host.heartbeat_port)).collect())
        })
        .collect::<BTreeMap<_, _>>()
}

async fn follow_targets(member: Arc<Member>, targets: watch::Sender<Targets>) {
    let mut states = member.states();
    loop {
        let new = targets_of(&states.borrow_and_update(), member.host);
        member.ear.retain(|host| new.contains_key(&host));
        targets.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Between two looks at the consensus group, on the master.
const MEMBERSHIP_INTERVAL: Duration = Duration::from_millis(500);

/// Brings the consensus group in step with the pool state, while this host is master.
async fn reconcile_membership(member: Arc<Member>) {
    loop {
        match member.node.reconcile_membership().await {
            Ok(ev_pool::Reconciled::Changed(_)) => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the consensus group could not be changed"),
        }
        tokio::time::sleep(MEMBERSHIP_INTERVAL).await;
    }
}
