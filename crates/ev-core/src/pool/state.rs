//! What the pool state holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::ids::{DiskId, HostId, MemberId, NetworkId, PoolId, VmId};
use crate::vm::Vm;

/// Most members of a pool; one more is refused.
pub const MEMBERS_MAX: usize = 16;
/// Most pool networks; one more is refused.
pub const NETWORKS_MAX: usize = 64;
/// Most VMs of a pool; one more is refused. Each has a TCP port for its AMs.
pub const VMS_MAX: usize = 1_000;
/// Most one-time tokens that were neither used nor have expired; one more is refused.
pub const TOKENS_MAX: usize = 100;
/// Most API tokens of administrators; one more is refused.
pub const ADMIN_TOKENS_MAX: usize = 100;
/// Most active alerts; one more is refused (and raised when another one is over).
pub const ALERTS_MAX: usize = 10_000;
/// Events kept; the oldest is dropped for one more.
pub const EVENTS_MAX: usize = 10_000;

/// The whole state. `Default` is a pool that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolState {
    pub pool: Option<PoolInfo>,
    pub members: BTreeMap<MemberId, Member>,
    /// The number that the next member gets; never given twice.
    pub next_member: u64,
    pub networks: BTreeMap<NetworkId, Network>,
    pub vms: BTreeMap<VmId, Vm>,
    /// One-time tokens, by the BLAKE3 hash (hexadecimal) of their secret.
    pub tokens: BTreeMap<String, Token>,
    /// API tokens of administrators, by the BLAKE3 hash (hexadecimal) of their secret. Older states have the hashes alone.
    #[serde(deserialize_with = "admin_tokens")]
    pub admin_tokens: BTreeMap<String, AdminTokenInfo>,
    pub settings: Settings,
    /// Shared, so that a copy of the state costs little.
    pub events: VecDeque<Arc<Event>>,
    /// The number that the next event gets.
    pub next_event: u64,
    /// When the replicas of each disk were last compared as a whole, and what came of it.
    #[serde(default)]
    pub compared: BTreeMap<DiskId, Compared>,
    /// Active alerts, by their key.
    pub alerts: BTreeMap<String, Alert>,
}

/// The pool itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    pub id: PoolId,
    pub name: String,
}

/// What kind of member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberKind {
    Host,
    QuorumServer,
}

/// A host or a quorum server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub id: MemberId,
    pub uuid: Uuid,
    pub name: String,
    pub kind: MemberKind,
    /// Peer port on the management network (mutual TLS).
    pub peer: SocketAddr,
    /// HTTPS API; `None` for a quorum server.
    pub api: Option<SocketAddr>,
    /// UDP heartbeats are sent to this port of each address.
    pub heartbeat_port: u16,
    /// First TCP port of links between AMs; a VM's number is added.
    pub link_port_base: u16,
    /// Addresses on the private networks, the preferred one first.
    pub private: Vec<IpAddr>,
    pub cpu: CpuFacts,
    /// Version and machine types of the host's QEMU; empty for a quorum server.
    pub qemu_version: String,
    pub machines: Vec<String>,
    /// Whether a guest's memory can be followed from outside of QEMU there, which level 3 needs.
    #[serde(default)]
    pub memory_tracking: MemoryTracking,
}

/// What came of following the memory of a trial guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryTracking {
    /// It was not tried: a quorum server, or a host whose daemon is of before level 3.
    #[default]
    Untried,
    Works,
    /// In words that say what to do.
    Fails(String),
}

/// What a host's processor can do, as far as guests could see it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuFacts {
    /// Name that the processor gives itself.
    pub model: String,
    /// Its maker, in the processor's own words (`GenuineIntel`); empty: not told.
    #[serde(default)]
    pub vendor: String,
    /// Feature flags in the kernel's words.
    pub flags: BTreeSet<String>,
    /// Accelerator that guests will run with: `kvm` or `tcg`.
    pub accelerator: String,
}

/// A network that guests can be plugged into; a Linux bridge of one name on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub name: String,
    pub bridge: String,
}

/// What a one-time token lets its bearer do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenPurpose {
    JoinHost,
    JoinQuorumServer,
}

/// A one-time token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub purpose: TokenPurpose,
    /// Not valid from this time on, in milliseconds since 1970.
    pub expires_unix_ms: u64,
    pub used: bool,
}

/// What is known of an administrator's token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdminTokenInfo {
    /// Whose it is or what it is for; empty if nobody said.
    pub name: String,
    /// When it was made, in milliseconds since 1970; `None`: before that was kept.
    pub created_unix_ms: Option<u64>,
}

fn admin_tokens<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<String, AdminTokenInfo>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Known(BTreeMap<String, AdminTokenInfo>),
        HashesAlone(BTreeSet<String>),
    }
    Ok(match Form::deserialize(source)? {
        Form::Known(tokens) => tokens,
        Form::HashesAlone(hashes) => hashes.into_iter().map(|hash| (hash, AdminTokenInfo::default())).collect(),
    })
}

/// Settings of the pool; times in milliseconds. `docs/internals/arbitration.md` has their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub lease_ms: u64,
    pub report_interval_ms: u64,
    pub grace_ms: u64,
    pub partner_timeout_ms: u64,
    pub detection_ms: u64,
    pub heartbeat_ms: u64,
    /// Most bytes per second that a copy of a disk, or of a guest's whole memory, moves; 0: no limit.
    pub copy_rate_limit_bytes: u64,
    /// Both replicas of each disk are compared in the background this often, in seconds; 0: never.
    #[serde(default = "weekly")]
    pub scrub_interval_s: u64,
    /// VMs of one host that may send their memory to their standbys at the same time.
    #[serde(default = "one")]
    pub sync_at_once: u32,
    /// A guest at level 3 is not to stand still for longer than about this at a time, for a synchronisation or a checkpoint.
    #[serde(default = "blackout")]
    pub blackout_ms: u64,
}

fn blackout() -> u64 {
    300
}

fn one() -> u32 {
    1
}

fn weekly() -> u64 {
    7 * 24 * 3600
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: 2_000,
            report_interval_ms: 400,
            grace_ms: 10_000,
            partner_timeout_ms: 1_000,
            detection_ms: 400,
            heartbeat_ms: 100,
            copy_rate_limit_bytes: 0,
            scrub_interval_s: weekly(),
            sync_at_once: one(),
            blackout_ms: blackout(),
        }
    }
}

/// Outcome of a comparison of both replicas that got to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// When it ended.
    pub unix_ms: u64,
    /// 0: there was none yet; a copy had brought them in step then.
    pub compared_bytes: u64,
    pub different_bytes: u64,
    pub repaired_bytes: u64,
}

/// How much an event or alert matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    /// A person must act.
    Error,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one; a gap at the front means that older ones were dropped.
    pub number: u64,
    pub unix_ms: u64,
    pub severity: Severity,
    /// Name of the host, VM or other object that it is about.
    pub object: String,
    pub text: String,
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub since_unix_ms: u64,
    pub severity: Severity,
    pub object: String,
    pub text: String,
    /// What a person should do about it.
    pub action: String,
}

impl PoolState {
    /// The hosts among the members.
    pub fn hosts(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.kind == MemberKind::Host)
    }

    /// The quorum servers among the members.
    pub fn quorum_servers(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.kind == MemberKind::QuorumServer)
    }

    /// The VM with this name.
    #[must_use]
    pub fn vm_named(&self, name: &str) -> Option<&Vm> {
        self.vms.values().find(|vm| vm.name == name)
    }

    /// The member with this name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.values().find(|member| member.name == name)
    }

    /// The name of a member, or its number where it is not a member any more.
    #[must_use]
    pub fn member_name(&self, id: MemberId) -> String {
        self.members.get(&id).map_or_else(|| format!("host {id}"), |member| member.name.clone())
    }

    /// The VMs that a host holds or is to hold replicas of.
    pub fn vms_on(&self, host: HostId) -> impl Iterator<Item = &Vm> {
        self.vms.values().filter(move |vm| vm.hosts.contains(&host))
    }
}
