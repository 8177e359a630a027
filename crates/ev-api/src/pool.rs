//! The pool as a whole: creation, joining, consensus group, networks.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::AlertView;

/// `POST /v1/pool`, local socket only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCreate {
    pub name: String,
}

/// Answer to [`PoolCreate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCreated {
    pub uuid: Uuid,
    pub name: String,
    /// API address of the first host.
    pub address: SocketAddr,
    /// The administrator's token: shown once, kept only as a hash.
    pub token: String,
    /// Certificate of the pool's authority, PEM.
    pub authority_certificate: String,
}

/// `GET /v1/pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    pub uuid: Uuid,
    pub name: String,
    /// Name of the host that is pool master.
    pub master: Option<String>,
    /// The consensus group.
    pub members: Vec<MemberView>,
    pub networks: Vec<NetworkView>,
    pub vms: usize,
    /// In words: which failures the pool survives without a person.
    pub survives: String,
    /// What is wrong now.
    pub alerts: Vec<AlertView>,
    /// Certificate of the pool's authority, PEM.
    pub authority_certificate: String,
}

/// Kind of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberKind {
    Host,
    QuorumServer,
}

/// One member of the consensus group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub id: u64,
    pub name: String,
    pub kind: MemberKind,
    pub address: SocketAddr,
    /// Whether it votes; else it only learns.
    pub votes: bool,
    pub master: bool,
    /// Whether the master hears from it.
    pub reachable: bool,
}

/// `POST /v1/pool/join`, local socket only: this host joins the pool that issued the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinPool {
    pub token: String,
}

/// Answer to [`JoinPool`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedPool {
    pub pool: String,
    pub uuid: Uuid,
    pub host: String,
    pub id: u64,
    /// What the user should know, such as processor features that will not be used.
    pub warnings: Vec<String>,
}

/// `POST /v1/tokens/host`: a one-time token for a joining host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRequest {
    /// How long the token can be used.
    pub valid_s: u64,
}

/// Answer to [`JoinTokenRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub token: String,
    pub expires: jiff::Timestamp,
}

/// `POST /v1/tokens`: a further administrator's token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreate {
    /// Whose it is or what it is for.
    #[serde(default)]
    pub name: String,
}

/// `GET /v1/tokens`: an administrator's token that counts. `DELETE /v1/tokens/{id}` revokes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Beginning of the hash that the pool keeps; the token itself is shown only when it is made.
    pub id: String,
    pub name: String,
    /// Absent for one that was made before that was kept.
    pub created: Option<jiff::Timestamp>,
    /// Whether it is the one that this question was asked with.
    pub yours: bool,
}

/// Answer to [`TokenCreate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    pub token: String,
}

/// `GET /v1/settings`, and `PUT` with those that are to change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsView {
    /// Both replicas of each disk are compared in the background this often, in seconds; 0: never.
    #[serde(default)]
    pub scrub_interval_s: Option<u64>,
    /// Most bytes per second that a copy of a disk, or of a guest's whole memory, moves; 0: no limit.
    #[serde(default)]
    pub copy_rate_limit_bytes: Option<u64>,
    /// VMs of one host that may send their memory to their standbys at the same time.
    #[serde(default)]
    pub sync_at_once: Option<u32>,
    /// A guest at level 3 is not to stand still for longer than about this at a time, for a synchronisation or a checkpoint; 20 to 1000.
    #[serde(default)]
    pub blackout_ms: Option<u64>,
}

/// `POST /v1/quorum-servers`: takes in a quorum server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumAdd {
    /// What to call it.
    pub name: String,
    /// The line that `ev-quorumd invite` prints on the quorum server.
    pub invitation: String,
}

/// `POST /v1/networks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAdd {
    pub name: String,
    /// Name of the Linux bridge on every host; derived from the name if absent.
    #[serde(default)]
    pub bridge: Option<String>,
}

/// `GET /v1/networks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    pub uuid: Uuid,
    pub name: String,
    pub bridge: String,
}

/// An address of a host, with the network that it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressView {
    /// `management`, `private1`, …
    pub network: String,
    pub address: IpAddr,
}
