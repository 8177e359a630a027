//! One member of a pool's consensus group.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ev_core::ids::MemberId;
use ev_core::pool::{MemberKind, PoolState};
use ev_wire::identity::{Identity, Peer, Role};
use ev_wire::peer::{LogPosition, PeerRequest, PeerResponse, RaftKind, Standing};
use ev_wire::transport::PeerClient;
use openraft::{ServerState, SnapshotPolicy};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::driver;
use crate::election::{DETECTION_MIN, ElectionTimes};
use crate::log::Log;
use crate::machine::Machine;
use crate::network::Network;
use crate::store::{self, OpenError, json};
use crate::types::{LogId, MemberAt, Metrics, Raft, StoredMembership, TypeConfig, addresses_of};

/// A snapshot is made after this many entries, and the log before it dropped but for [`LOG_KEPT_ENTRIES`].
const SNAPSHOT_AFTER_ENTRIES: u64 = 500;
/// Entries kept that a snapshot already covers, so that a member that was away shortly needs no snapshot.
const LOG_KEPT_ENTRIES: u64 = 100;
/// Most entries in one message; with [`crate::propose::COMMAND_BYTES_MAX`] it fits into a frame.
const APPEND_ENTRIES_MAX: u64 = 32;
/// Bytes of a snapshot in one message. As JSON they take four times as much.
const SNAPSHOT_CHUNK_BYTES: u64 = 256 << 10;
/// Most callers waiting for a confirmation that this member still leads.
const CONFIRMATIONS_MAX: usize = 256;
/// How long the file may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Times of the consensus group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTimes {
    /// How often the leader lets itself be heard.
    pub heartbeat: Duration,
}

impl Default for RaftTimes {
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(100) }
    }
}

/// What a member needs to start.
#[derive(Debug, Clone)]
pub struct PoolNodeConfig {
    /// Folder for `raft.redb`; made if missing.
    pub dir: PathBuf,
    /// Says which pool, which member, and whether it is a host or a quorum server.
    pub identity: Arc<Identity>,
    pub times: RaftTimes,
}

/// Why a member could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("making the folder {} failed: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the times of the consensus group don't fit together: {0}")]
    Times(#[from] openraft::ConfigError),
    #[error("starting the consensus failed: {0}")]
    Raft(#[from] openraft::error::Fatal<u64>),
}

/// Who leads, as this member knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Rises with each election.
    pub term: u64,
    /// The pool master, if it was heard lately. Never a quorum server.
    pub master: Option<MemberId>,
    /// Whether it is this member, and a majority confirmed it lately. Not a proof: see
    /// [`PoolNode::ensure_linearizable`].
    pub is_me: bool,
}

/// How a member takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VoterRole {
    Voter,
    Learner,
}

/// One member in [`PoolStatus`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub at: MemberAt,
    pub role: VoterRole,
    /// On the master: by how many entries it lags behind. `None` elsewhere, or when it was never heard.
    pub lag_entries: Option<u64>,
}

/// The consensus group as this member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolStatus {
    pub leadership: Leadership,
    pub members: Vec<MemberStatus>,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    /// Why the consensus has stopped for good, if it has; see [`PoolNode::failed`].
    pub stopped: Option<String>,
}

/// A member; cheap to clone. It stops when the last clone is dropped, or by [`Self::shutdown`].
#[derive(Clone)]
pub struct PoolNode {
    pub(crate) shared: Arc<Shared>,
    owned: Arc<Owned>,
}

/// What the tasks of the member share.
pub(crate) struct Shared {
    pub me: Peer,
    pub raft: Raft,
    pub log: Log,
    pub network: Network,
    pub state: watch::Receiver<Arc<PoolState>>,
    pub leadership: watch::Sender<Leadership>,
    pub confirmations: mpsc::Sender<oneshot::Sender<Result<(), crate::propose::ConfirmError>>>,
    /// When a leader was last heard, or a vote given.
    heard: Mutex<Instant>,
    /// A quorum server that leads and wants a host to take over.
    pub standing_down: AtomicBool,
}

/// Ends with the last clone of the node.
struct Owned {
    tasks: Mutex<JoinSet<()>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for PoolNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolNode").field("me", &self.shared.me).finish_non_exhaustive()
    }
}

impl PoolNode {
    /// Start from what the folder holds; with an empty folder the member waits to be added by the master, or for
    /// [`Self::initialize`]. Requests of others have to be handed to [`Self::answer`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: PoolNodeConfig) -> Result<Self, StartError> {
        let dir = config.dir;
        std::fs::create_dir_all(&dir).map_err(|source| StartError::Folder { path: dir.clone(), source })?;
        let path = dir.join("raft.redb");
        let (mut contents, writer, thread) = store::open(&path)?;
        let me = config.identity.peer();
        let raft_config = Arc::new(raft_config(me, &config.times).validate()?);
        let log = Log::new(&mut contents, writer.clone());
        let (machine, state) = Machine::new(&mut contents, writer, &path)?;
        let network = Network::new(PeerClient::new(&config.identity));
        let raft = Raft::new(me.member.0, raft_config, network.clone(), log.clone(), machine).await?;
        let (confirmations, waiting) = mpsc::channel(CONFIRMATIONS_MAX);
        let shared = Arc::new(Shared {
            me,
            raft,
            log,
            network,
            state,
            leadership: watch::channel(Leadership::default()).0,
            confirmations,
            heard: Mutex::new(Instant::now()),
            standing_down: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(driver::drive_elections(Arc::clone(&shared)));
        tasks.spawn(crate::propose::confirm_in_rounds(shared.raft.clone(), waiting));
        let owned = Owned { tasks: Mutex::new(tasks), writer: Mutex::new(Some(thread)) };
        Ok(Self { shared, owned: Arc::new(owned) })
    }

    /// Who this is.
    #[must_use]
    pub fn me(&self) -> Peer {
        self.shared.me
    }

    /// The replicated state as applied here; each change is seen.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<PoolState>> {
        self.shared.state.clone()
    }

    /// Who leads; each change is seen.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// The pool master, if one is known and was heard lately, and where its peer port is.
    #[must_use]
    pub fn leader(&self) -> Option<MemberAt> {
        let member = self.shared.leadership.borrow().master?;
        self.shared.locate(member)
    }

    /// Whether the state applied here has everything that was committed before the present master's term. Right after this member's start it
    /// may be older, although there is a master: what was committed last is learned from that.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        let metrics = self.shared.metrics();
        // Each leader commits an entry of its own term before any other.
        let applied = metrics.last_applied.is_some_and(|last| last.leader_id.term == metrics.current_term);
        applied && self.shared.leadership.borrow().master.is_some()
    }

    /// Whether this member is pool master. Not a proof: see [`Self::ensure_linearizable`].
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.shared.leadership.borrow().is_me
    }

    /// The group as this member sees it.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let metrics = self.shared.metrics();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let last = metrics.last_log_index;
        let lags = lags(&metrics);
        let member = |(id, node): (&u64, &openraft::BasicNode)| MemberStatus {
            at: MemberAt { member: MemberId(*id), addresses: addresses_of(node) },
            role: if voters.contains(id) { VoterRole::Voter } else { VoterRole::Learner },
            lag_entries: lags.get(&MemberId(*id)).copied(),
        };
        PoolStatus {
            leadership: *self.shared.leadership.borrow(),
            members: metrics.membership_config.nodes().map(member).collect(),
            last_log: last,
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            stopped: metrics.running_state.err().map(|fatal| fatal.to_string()),
        }
    }

    /// Ends when the consensus has stopped for good (its disk failed, say), with the reason. The process should then
    /// end too and be started anew.
    pub async fn failed(&self) -> String {
        let mut metrics = self.shared.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_and_update().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "the consensus task has ended".to_owned();
            }
        }
    }

    /// Ends when another member has said that this one was removed from the pool. One that was away when it happened
    /// learns it so: nothing is sent to it any more. `false` if the node itself is gone first.
    pub fn removed(&self) -> impl Future<Output = bool> + Send + use<> {
        self.shared.network.removed()
    }

    /// Answer a request of the consensus group. Requests that are none of it are given back, but for those of strangers
    /// and of members that were removed.
    ///
    /// # Errors
    /// The request, when it is for somebody else.
    pub async fn answer(&self, from: Peer, request: PeerRequest) -> Result<PeerResponse, PeerRequest> {
        match request {
            _ if from.pool != self.shared.me.pool => {
                Ok(PeerResponse::Failed("this is another pool: ask a member of the own one".to_owned()))
            }
            _ if self.shared.is_removed(from.member) => Ok(PeerResponse::Removed),
            PeerRequest::Raft { kind, body } => Ok(self.shared.answer_raft(kind, &body).await),
            PeerRequest::Command { body } => Ok(self.answer_command(from, &body).await),
            PeerRequest::Standing => Ok(PeerResponse::Standing(self.shared.standing())),
            other @ (PeerRequest::Report(_)
            | PeerRequest::Propose { .. }
            | PeerRequest::LibraryRead { .. }
            | PeerRequest::Dismiss) => Err(other),
        }
    }

    /// Stop, and wait until the file is closed so that it can be opened again.
    pub async fn shutdown(&self) {
        self.owned.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        if self.shared.raft.shutdown().await.is_err() {
            tracing::debug!("the consensus task ended by itself before");
        }
    }

    /// Stop and wait until the last user of the file is gone. For use when nothing else holds a clone.
    pub async fn close(self) {
        self.shutdown().await;
        let writer = self.owned.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(self);
        if let Some(writer) = writer {
            let joined = tokio::task::spawn_blocking(move || writer.join());
            if tokio::time::timeout(CLOSE_TIMEOUT, joined).await.is_err() {
                tracing::warn!("the pool's database is still in use after {} s", CLOSE_TIMEOUT.as_secs());
            }
        }
    }
}

fn raft_config(me: Peer, times: &RaftTimes) -> openraft::Config {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let detection = ms(DETECTION_MIN);
    openraft::Config {
        cluster_name: me.pool.to_string(),
        heartbeat_interval: ms(times.heartbeat),
        // Voters refuse candidates for the second of these after hearing a leader. A little less than the shortest detection
        // time, because a candidate asks as soon as that is over.
        election_timeout_min: detection * 8 / 10,
        election_timeout_max: detection * 9 / 10,
        enable_elect: false,
        install_snapshot_timeout: 2_000,
        max_payload_entries: APPEND_ENTRIES_MAX,
        replication_lag_threshold: SNAPSHOT_AFTER_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER_ENTRIES),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        max_in_snapshot_log_to_keep: LOG_KEPT_ENTRIES,
        ..openraft::Config::default()
    }
}

/// On the leader: by how many entries each member lags behind.
pub(crate) fn lags(metrics: &Metrics) -> BTreeMap<MemberId, u64> {
    let last = metrics.last_log_index.map_or(0, |index| index + 1);
    let replication = metrics.replication.iter().flatten();
    replication
        .filter_map(|(id, matched)| Some((MemberId(*id), last.saturating_sub(matched.as_ref()?.index + 1))))
        .collect()
}

pub(crate) fn position_of(id: LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, leader: MemberId(id.leader_id.node_id), index: id.index }
}

impl Shared {
    pub(crate) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    pub(crate) fn membership(&self) -> Arc<StoredMembership> {
        Arc::clone(&self.raft.metrics().borrow().membership_config)
    }

    /// Where a member is, by the group's membership.
    pub(crate) fn locate(&self, member: MemberId) -> Option<MemberAt> {
        let membership = self.membership();
        let addresses = addresses_of(membership.membership().get_node(&member.0)?);
        Some(MemberAt { member, addresses })
    }

    pub(crate) fn silence(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Start the wait for the leader anew.
    pub(crate) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(crate) fn role_of(&self, member: MemberId) -> Role {
        match self.state.borrow().members.get(&member).map(|member| member.kind) {
            Some(MemberKind::QuorumServer) => Role::Quorum,
            Some(MemberKind::Host) | None => Role::Host,
        }
    }

    /// Member numbers are never given twice: one below the next to be given that is not there was removed.
    fn is_removed(&self, member: MemberId) -> bool {
        let state = self.state.borrow();
        member.0 < state.next_member && !state.members.contains_key(&member)
    }

    /// By the pool's present settings.
    pub(crate) fn election_times(&self) -> ElectionTimes {
        ElectionTimes::of(Duration::from_millis(self.state.borrow().settings.detection_ms))
    }

    /// How this member stands, for others that think of an election.
    pub(crate) fn standing(&self) -> Standing {
        let metrics = self.metrics();
        let leads = metrics.state == ServerState::Leader && !self.standing_down.load(Ordering::Relaxed);
        let heard = self.silence() < self.election_times().detection;
        let leader = if leads { Some(self.me.member) } else { metrics.current_leader.filter(|_| heard).map(MemberId) };
        Standing {
            leader: leader.filter(|leader| leads || *leader != self.me.member),
            term: metrics.current_term,
            last_log: self.log.last_log_id().map(position_of),
        }
    }

    async fn answer_raft(&self, kind: RaftKind, body: &[u8]) -> PeerResponse {
        match kind {
            RaftKind::Append => {
                self.answer_with(body, async |message: openraft::raft::AppendEntriesRequest<TypeConfig>| {
                    let current = message.vote >= self.raft.metrics().borrow().vote;
                    // On arrival, too: the disk may take long, and the leader lives all the same.
                    if current {
                        self.hear();
                    }
                    let answer = self.raft.append_entries(message).await;
                    if current {
                        self.hear();
                    }
                    answer
                })
                .await
            }
            RaftKind::Vote => {
                self.answer_with(body, async |message| {
                    let answer = self.raft.vote(message).await;
                    if answer.as_ref().is_ok_and(|answer| answer.vote_granted) {
                        self.hear();
                    }
                    answer
                })
                .await
            }
            RaftKind::InstallSnapshot => {
                self.answer_with(body, async |message| {
                    self.hear();
                    self.raft.install_snapshot(message).await
                })
                .await
            }
        }
    }

    async fn answer_with<Q, A>(&self, body: &[u8], call: impl AsyncFnOnce(Q) -> A) -> PeerResponse
    where
        Q: DeserializeOwned,
        A: Serialize,
    {
        match serde_json::from_slice(body) {
            Ok(message) => PeerResponse::Raft { body: json(&call(message).await) },
            Err(error) => {
                PeerResponse::Failed(format!("a consensus message can't be read ({error}): upgrade the older member"))
            }
        }
    }

    /// Addresses of every member of the group but this one.
    pub(crate) fn others(&self) -> Vec<(MemberId, Vec<SocketAddr>)> {
        let membership = self.membership();
        let others = membership.nodes().filter(|(id, _)| **id != self.me.member.0);
        others.map(|(id, node)| (MemberId(*id), addresses_of(node))).collect()
    }
}
