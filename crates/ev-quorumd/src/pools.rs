//! The pools that this quorum server votes in: one folder and one member of the consensus group each.
//!
//! ```text
//! <state_dir>/pools/<pool>/pool.json      name of the pool and our number in it
//!                          member.crt .key  our certificate, and its key, which was made here
//!                          authority.crt  the pool's certificate authority
//!                          raft.redb      log, vote, snapshot
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use ev_core::ids::{MemberId, PoolId};
use ev_pool::{PoolNode, PoolNodeConfig, RaftTimes};
use ev_wire::identity::{Identity, Peer, Role, server_name};
use ev_wire::peer::{PeerRequest, PeerResponse};
use ev_wire::transport::{BoxFuture, Door, Doors, PeerHandler, StreamHandler};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::files;

/// Most pools; one more is refused.
pub const POOLS_MAX: usize = 32;

/// What is kept of a pool beside certificates and log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    pub name: String,
    pub member: MemberId,
}

/// Certificates of a new pool.
pub struct Papers {
    pub certificate: String,
    pub key: String,
    pub authority: String,
}

/// A pool that was found in the state folder.
pub struct Served {
    pub record: PoolRecord,
    pub state: ServedState,
}

/// Whether it is being served.
pub enum ServedState {
    Running {
        node: PoolNode,
        config: Arc<ServerConfig>,
    },
    /// It could not be started; the text says why.
    Failed(String),
}

/// All pools.
pub struct Pools {
    state_dir: PathBuf,
    served: Mutex<BTreeMap<PoolId, Served>>,
    /// One enlistment or dismissal at a time.
    changing: tokio::sync::Mutex<()>,
}

fn pools_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("pools")
}

/// Remove a pool's folder; for when the pool is gone and the daemon does not run.
pub fn forget(config: &Config, pool: PoolId) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::os::unix::net::UnixStream::connect(config.socket()).is_err(),
        "ev-quorumd runs: stop it first (systemctl stop ev-quorumd)"
    );
    remove_folder(&pools_dir(&config.state_dir).join(pool.to_string()))
}

/// Out of the way first, in one step, then bit by bit.
fn remove_folder(dir: &Path) -> anyhow::Result<()> {
    let aside = dir.with_extension("gone");
    let removed = std::fs::rename(dir, &aside).and_then(|()| std::fs::remove_dir_all(&aside));
    removed.with_context(|| format!("removing {} failed", dir.display()))
}

impl Pools {
    /// Start every pool in the state folder. One that can't be started does not keep the others from it.
    pub async fn open(state_dir: &Path) -> anyhow::Result<Arc<Self>> {
        let dir = pools_dir(state_dir);
        files::make_folder(&dir)?;
        let pools = Arc::new(Self {
            state_dir: state_dir.to_owned(),
            served: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        });
        for entry in std::fs::read_dir(&dir).with_context(|| format!("reading {} failed", dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match name.parse() {
                Ok(pool) => pools.take_up(PoolId(pool), &path).await,
                // Left over from an enlistment or dismissal that was cut off.
                Err(_) => std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?,
            }
        }
        Ok(pools)
    }

    async fn take_up(self: &Arc<Self>, pool: PoolId, dir: &Path) {
        let served = match self.start(pool, dir).await {
            Ok(served) => served,
            Err(error) => {
                let reason = format!("{error:#}");
                tracing::error!(%pool, reason, "this pool can't be served");
                let record = read_record(dir).unwrap_or(PoolRecord { name: String::new(), member: MemberId(0) });
                Served { record, state: ServedState::Failed(reason) }
            }
        };
        self.served().insert(pool, served);
    }

    pub fn served(&self) -> MutexGuard<'_, BTreeMap<PoolId, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why an enlistment would be refused, before anything is made for it.
    pub fn objection(&self, pool: PoolId, member: MemberId) -> Option<String> {
        let served = self.served();
        match served.get(&pool) {
            Some(known) if known.record.member >= member => Some(format!(
                "it already is member {} of this pool: remove it there first (ev quorum-remove)",
                known.record.member
            )),
            None if served.len() >= POOLS_MAX => Some(format!("it serves {POOLS_MAX} pools, the most that it can")),
            Some(_) | None => None,
        }
    }

    /// Take a pool into service, durably. An older membership in the same pool ends: its number was given up there.
    pub async fn enlist(self: &Arc<Self>, pool: PoolId, record: PoolRecord, papers: &Papers) -> anyhow::Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        if let Some(objection) = self.objection(pool, record.member) {
            anyhow::bail!(objection);
        }
        let identity = Identity::from_pem(&papers.certificate, &papers.key, &papers.authority)?;
        let due = Peer { pool, member: record.member, role: Role::Quorum };
        anyhow::ensure!(identity.peer() == due, "the certificate is for another member than this one is to be");
        let dir = pools_dir(&self.state_dir);
        let (new, place) = (dir.join(format!("{pool}.new")), dir.join(pool.to_string()));
        if new.exists() {
            std::fs::remove_dir_all(&new)?;
        }
        files::make_folder(&new)?;
        files::write(&new.join("member.crt"), &papers.certificate)?;
        files::write(&new.join("member.key"), &papers.key)?;
        files::write(&new.join("authority.crt"), &papers.authority)?;
        files::write(&new.join("pool.json"), &serde_json::to_string(&record)?)?;
        let old = self.served().remove(&pool);
        if let Some(old) = old {
            stop(old).await;
            remove_folder(&place)?;
        }
        std::fs::rename(&new, &place)?;
        files::sync_folder(&dir)?;
        let served = self.start(pool, &place).await?;
        self.served().insert(pool, served);
        Ok(())
    }

    async fn start(self: &Arc<Self>, pool: PoolId, dir: &Path) -> anyhow::Result<Served> {
        let record = read_record(dir)?;
        let (certificate, key) = (dir.join("member.crt"), dir.join("member.key"));
        let identity = Arc::new(Identity::load(&certificate, &key, &dir.join("authority.crt"))?);
        let config = identity.server_config();
        let times = RaftTimes::default();
        let node = PoolNode::start(PoolNodeConfig { dir: dir.to_owned(), identity, times }).await?;
        let (pools, removed) = (Arc::downgrade(self), node.removed());
        let member = record.member;
        tokio::spawn(async move {
            if removed.await
                && let Some(pools) = pools.upgrade()
            {
                pools.leave(pool, member).await;
            }
        });
        Ok(Served { record, state: ServedState::Running { node, config } })
    }

    /// A host says that its pool needs us no more.
    async fn dismiss(&self, from: Peer) -> anyhow::Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let old = self.served().remove(&from.pool).context("it does not serve this pool")?;
        stop(old).await;
        remove_folder(&pools_dir(&self.state_dir).join(from.pool.to_string()))?;
        tracing::info!(pool = %from.pool, by = %from.member, "dismissed");
        Ok(())
    }

    /// The pool let go of us while we were away, as every member that is asked now says.
    async fn leave(&self, pool: PoolId, member: MemberId) {
        let _one_at_a_time = self.changing.lock().await;
        let old = {
            let mut served = self.served();
            // It may have been enlisted anew meanwhile, under another number.
            if served.get(&pool).is_none_or(|served| served.record.member != member) {
                return;
            }
            served.remove(&pool)
        };
        if let Some(old) = old {
            stop(old).await;
        }
        match remove_folder(&pools_dir(&self.state_dir).join(pool.to_string())) {
            Ok(()) => tracing::info!(%pool, "the pool has removed this quorum server"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(%pool, error, "what was known of a pool that has removed us stays: use ev-quorumd forget");
            }
        }
    }

    fn node(&self, pool: PoolId) -> Option<PoolNode> {
        match &self.served().get(&pool)?.state {
            ServedState::Running { node, .. } => Some(node.clone()),
            ServedState::Failed(_) => None,
        }
    }

    /// Stop all pools.
    pub async fn close(&self) {
        let all = std::mem::take(&mut *self.served());
        for served in all.into_values() {
            stop(served).await;
        }
    }
}

async fn stop(served: Served) {
    match served.state {
        ServedState::Running { node, .. } => node.close().await,
        ServedState::Failed(_) => {}
    }
}

fn read_record(dir: &Path) -> anyhow::Result<PoolRecord> {
    let path = dir.join("pool.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {} failed", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Finds the pool by the server name that the client asks for, and the quorum server itself by another.
pub struct PoolDoors {
    pub pools: Arc<Pools>,
    pub enlist_name: &'static str,
    pub enlist_config: Arc<ServerConfig>,
    pub enlist: Arc<dyn StreamHandler>,
}

impl Doors for PoolDoors {
    fn door(&self, name: Option<&str>) -> Option<Door> {
        let name = name?;
        if name == self.enlist_name {
            return Some(Door::Stream { config: Arc::clone(&self.enlist_config), handler: Arc::clone(&self.enlist) });
        }
        let served = self.pools.served();
        let (_, found) = served.iter().find(|(pool, _)| server_name(**pool).to_str() == name)?;
        match &found.state {
            ServedState::Running { config, .. } => Some(Door::Peers {
                config: Arc::clone(config),
                handler: Arc::new(Voter { pools: Arc::clone(&self.pools) }),
            }),
            ServedState::Failed(_) => None,
        }
    }
}

/// Answers members of a pool.
struct Voter {
    pools: Arc<Pools>,
}

impl PeerHandler for Voter {
    fn call(&self, from: Peer, request: PeerRequest) -> BoxFuture<'_, PeerResponse> {
        Box::pin(async move {
            let Some(node) = self.pools.node(from.pool) else {
                return PeerResponse::Failed("this quorum server does not serve the pool any more".to_owned());
            };
            match node.answer(from, request).await {
                Ok(answer) => answer,
                Err(PeerRequest::Dismiss) => {
                    if from.role != Role::Host {
                        return PeerResponse::Failed("only a host of the pool may dismiss it".to_owned());
                    }
                    drop(node);
                    match self.pools.dismiss(from).await {
                        Ok(()) => PeerResponse::Dismissed,
                        Err(error) => PeerResponse::Failed(format!("{error:#}")),
                    }
                }
                // Reports and proposals are for the pool master, which a quorum server never is.
                Err(_) => PeerResponse::NotMaster { master: node.leader().map(|leader| leader.member) },
            }
        })
    }
}
