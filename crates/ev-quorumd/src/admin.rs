//! `ev-quorumd status`: the daemon writes its status, as JSON, to whoever connects to its local socket.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ev_core::ids::{MemberId, PoolId};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::config::Config;
use crate::pools::{Pools, ServedState};

/// How long either side waits for the other.
const TIMEOUT: Duration = Duration::from_secs(5);

/// After a failure on the local socket: what there is too little of may be there again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pools: Vec<PoolStatus>,
}

/// One pool in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub pool: PoolId,
    pub name: String,
    /// Our number in the pool.
    pub member: MemberId,
    /// Whether we vote there.
    pub votes: bool,
    /// Name of the pool master, if one is heard.
    pub master: Option<String>,
    pub term: u64,
    /// Last entry of our log, and last one applied.
    pub last_entry: Option<u64>,
    pub applied_entry: Option<u64>,
    /// Why the pool is not served.
    pub failed: Option<String>,
}

impl Status {
    pub fn of(pools: &Pools) -> Self {
        let served = pools.served();
        let pools = served.iter().map(|(pool, served)| {
            let mut status = PoolStatus {
                pool: *pool,
                name: served.record.name.clone(),
                member: served.record.member,
                votes: false,
                master: None,
                term: 0,
                last_entry: None,
                applied_entry: None,
                failed: None,
            };
            match &served.state {
                ServedState::Failed(reason) => status.failed = Some(reason.clone()),
                ServedState::Running { node, .. } => status.fill(node),
            }
            status
        });
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), pools: pools.collect() }
    }

    pub fn as_text(&self) -> String {
        if self.pools.is_empty() {
            return "This quorum server serves no pool yet. Make an invitation with `ev-quorumd invite` and take it \
                    to a host of the pool: `ev quorum-add NAME INVITATION`.\n"
                .to_owned();
        }
        let mut text = String::new();
        for pool in &self.pools {
            let _ = writeln!(text, "{} ({})", pool.name, pool.pool);
            if let Some(failed) = &pool.failed {
                let _ = writeln!(text, "  not served: {failed}");
                continue;
            }
            let votes = if pool.votes { "votes" } else { "does not vote yet" };
            let _ = writeln!(text, "  member {}, {votes}", pool.member);
            let _ = writeln!(text, "  master: {}", pool.master.as_deref().unwrap_or("none heard"));
            let entry = |entry: Option<u64>| entry.map_or("none".to_owned(), |entry| entry.to_string());
            let _ = writeln!(text, "  log: entry {}, applied {}", entry(pool.last_entry), entry(pool.applied_entry));
        }
        text
    }
}

impl PoolStatus {
    fn fill(&mut self, node: &ev_pool::PoolNode) {
        let status = node.status();
        let me = node.me().member;
        let voter = |one: &ev_pool::MemberStatus| one.at.member == me && one.role == ev_pool::VoterRole::Voter;
        self.votes = status.members.iter().any(voter);
        self.master = status.leadership.master.map(|master| node.state().borrow().member_name(master));
        self.term = status.leadership.term;
        self.last_entry = status.last_log;
        self.applied_entry = status.applied;
        self.failed = status.stopped;
    }
}

/// The socket, for [`serve`]; one that an earlier daemon left is replaced.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old socket {} failed", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {} failed", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("making {} private failed", path.display()))?;
    Ok(listener)
}

/// Answers on the socket for ever. What fails there costs a status, and nobody's vote.
pub async fn serve(listener: UnixListener, pools: Arc<Pools>) {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting on the local socket failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let text = serde_json::to_vec(&Status::of(&pools)).expect("a status is text, numbers and nothing else");
        // Whoever does not read it, or is gone, has no status, and keeps nobody else from having one.
        tokio::spawn(async move { tokio::time::timeout(TIMEOUT, stream.write_all(&text)).await });
    }
}

/// Ask the daemon.
pub fn fetch(config: &Config) -> anyhow::Result<Status> {
    let path = config.socket();
    let mut stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "connecting to {} failed: start ev-quorumd first, and run this as the same user or root",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("ev-quorumd did not answer")?;
    serde_json::from_str(&text).context("the answer of ev-quorumd can't be read: is it another version?")
}
