//! What makes this host a member of its pool, on its disk: number, keys, certificates.
//!
//! | file in `<state>/pool/` | content |
//! |---|---|
//! | `member.json` | [`MemberFile`]; written last, so that its presence means that the rest is there |
//! | `authority.pem`, `authority.key` | the pool's certificate authority; every host can issue certificates when it is master |
//! | `host.pem`, `host.key` | this host's certificate and key |
//! | `heartbeat.key` | 32 bytes that all hosts share, in hexadecimal digits |
//! | `pending.json` | [`PendingJoin`], while a join is under way |
//! | `raft.redb` | pool state (`ev-pool`) |

use std::io;
use std::path::{Path, PathBuf};

use ev_core::ids::{HostId, PoolId};
use ev_wire::identity::{AuthorityError, Identity, IdentityError, PoolAuthority};
use serde::{Deserialize, Serialize};

use crate::durable;

/// `member.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFile {
    /// 1.
    pub version: u32,
    pub pool: PoolId,
    pub pool_name: String,
    pub host: HostId,
    pub phase: Phase,
}

/// How far this host has come into the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The pool is being made here. Found at start: the making was interrupted, and is undone.
    Creating,
    /// It has its certificate and has not seen itself in the pool state yet.
    Joining,
    /// It belongs to the pool.
    Member,
}

/// `pending.json`: a join that was begun. With it a join whose answer was lost is finished by asking again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingJoin {
    pub uuid: uuid::Uuid,
    /// PEM.
    pub key: String,
    /// PEM.
    pub request: String,
}

/// The secrets, as a joining host gets them and as they lie on disk.
#[derive(Clone)]
pub struct Papers {
    pub authority_certificate: String,
    pub authority_key: String,
    pub certificate: String,
    pub key: String,
    /// Hexadecimal digits.
    pub heartbeat_secret: String,
}

/// Why the papers can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PapersError {
    #[error("cannot read or write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {source}. Restore it from a backup, or remove this host from the pool and let it join again", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The folder `<state>/pool`.
#[derive(Debug, Clone)]
pub struct PapersFolder(PathBuf);

impl PapersFolder {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("pool"))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.join("host.pem")
    }

    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.join("host.key")
    }

    #[must_use]
    pub fn authority_certificate(&self) -> PathBuf {
        self.0.join("authority.pem")
    }

    fn member_file(&self) -> PathBuf {
        self.0.join("member.json")
    }

    /// The membership, if there is one.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub fn member(&self) -> Result<Option<MemberFile>, PapersError> {
        let path = self.member_file();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| PapersError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PapersError::Io { path, source }),
        }
    }

    /// Keeps all of it; the membership last.
    ///
    /// # Errors
    /// The disk is full or faulty: then there is no membership.
    pub fn keep(&self, member: &MemberFile, papers: &Papers) -> Result<(), PapersError> {
        std::fs::create_dir_all(&self.0).map_err(|source| PapersError::Io { path: self.0.clone(), source })?;
        for (path, text) in [
            (self.authority_certificate(), &papers.authority_certificate),
            (self.0.join("authority.key"), &papers.authority_key),
            (self.certificate(), &papers.certificate),
            (self.key(), &papers.key),
            (self.0.join("heartbeat.key"), &papers.heartbeat_secret),
        ] {
            durable::replace(&path, text.as_bytes()).map_err(|source| PapersError::Io { path, source })?;
        }
        self.keep_member(member)
    }

    /// Replaces the membership alone.
    ///
    /// # Errors
    /// The disk is full or faulty.
    pub fn keep_member(&self, member: &MemberFile) -> Result<(), PapersError> {
        let path = self.member_file();
        let text = serde_json::to_vec_pretty(member).expect("a membership has no map with odd keys");
        durable::replace(&path, &text).map_err(|source| PapersError::Io { path, source })
    }

    /// A join that was begun earlier and not finished.
    #[must_use]
    pub fn pending(&self) -> Option<PendingJoin> {
        serde_json::from_slice(&std::fs::read(self.0.join("pending.json")).ok()?).ok()
    }

    /// Keeps what a join is begun with.
    ///
    /// # Errors
    /// The disk is full or faulty.
    pub fn keep_pending(&self, pending: &PendingJoin) -> Result<(), PapersError> {
        let path = self.0.join("pending.json");
        let text = serde_json::to_vec(pending).expect("a pending join has no map with odd keys");
        std::fs::create_dir_all(&self.0)
            .and_then(|()| durable::replace(&path, &text))
            .map_err(|source| PapersError::Io { path, source })
    }

    /// The join came to its end.
    pub fn drop_pending(&self) {
        let _ = durable::remove_all(&self.0.join("pending.json"));
    }

    /// This host leaves: nothing of the pool stays here. The membership goes first.
    ///
    /// # Errors
    /// The disk is faulty.
    pub fn remove(&self) -> Result<(), PapersError> {
        let fault = |source| PapersError::Io { path: self.0.clone(), source };
        durable::remove_all(&self.member_file()).map_err(fault)?;
        durable::remove_all(&self.0).map_err(fault)
    }

    fn read(&self, name: &str) -> Result<String, PapersError> {
        let path = self.0.join(name);
        std::fs::read_to_string(&path).map_err(|source| PapersError::Io { path, source })
    }

    /// This host's certificate and key.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn identity(&self) -> Result<Identity, PapersError> {
        Ok(Identity::load(&self.certificate(), &self.key(), &self.authority_certificate())?)
    }

    /// The pool's certificate authority.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn authority(&self) -> Result<PoolAuthority, PapersError> {
        Ok(PoolAuthority::from_pem(&self.read("authority.pem")?, &self.read("authority.key")?)?)
    }

    /// The secret that heartbeat keys are derived from.
    ///
    /// # Errors
    /// The file is missing.
    pub fn heartbeat_secret(&self) -> Result<String, PapersError> {
        self.read("heartbeat.key")
    }
}
