//! What can be asked of the pool state, and what it answers.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::state::{Alert, Compared, Member, Network, PoolInfo, Settings, Severity, Token};
use crate::authority::{Authority, AuthorityChange};
use crate::ids::{DiskId, Generation, HostId, MemberId, NetworkId, VmId};
use crate::vm::{Desired, Level, VmConfig};

/// A command and the time at which the member that proposed it did so: one entry of the replicated log. State changes
/// are recorded as events at that time, by applying, so none can be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    pub command: Command,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Brings the pool into being, with its first host, network and administrator's token (hash).
    PoolCreate {
        pool: PoolInfo,
        first: Box<Member>,
        network: Network,
        admin_token: String,
    },
    AdminTokenAdd {
        hash: String,
        /// Whose it is or what it is for.
        #[serde(default)]
        name: String,
    },
    /// Revokes the administrator's token whose hash begins so: only one may. Nobody is locked out by it: root on
    /// any host needs no token.
    AdminTokenRevoke {
        hash_start: String,
    },
    TokenAdd {
        hash: String,
        token: Token,
    },
    /// Uses a one-time token and adds the member that brought it, in one step: a token lets in one member or none.
    /// The member's `id` is set by the state: see [`Outcome::MemberAdded`].
    MemberJoin {
        token_hash: String,
        member: Box<Member>,
    },
    /// Adds a quorum server that was enlisted by the pool master itself.
    MemberAdd {
        member: Box<Member>,
    },
    /// A member came back with other addresses or another QEMU.
    MemberUpdate {
        member: Box<Member>,
    },
    MemberRemove {
        id: MemberId,
    },
    NetworkAdd {
        network: Network,
    },
    NetworkRemove {
        id: NetworkId,
    },
    SettingsSet {
        settings: Settings,
    },
    /// Creates a VM at level 0 on one host, which then makes the replicas.
    VmCreate {
        id: VmId,
        name: String,
        config: Box<VmConfig>,
        host: HostId,
    },
    VmRename {
        id: VmId,
        name: String,
    },
    /// Forgets the VM; its hosts then delete its files. Refused while it runs.
    VmDelete {
        id: VmId,
    },
    VmDesire {
        id: VmId,
        desired: Desired,
    },
    /// Changes the level and the hosts (protect, unprotect, move of the standby). Hosts that are taken away lose
    /// their replicas' good standing in the same step, and the record's generation rises.
    VmPlace {
        id: VmId,
        level: Level,
        hosts: BTreeSet<HostId>,
    },
    /// Changes the authority record if its generation is still `if_generation`.
    VmAuthority {
        id: VmId,
        if_generation: Generation,
        change: AuthorityChange,
    },
    /// Both replicas of a disk were compared. One that ended no later than the last is known already.
    DiskCompared {
        vm: VmId,
        disk: DiskId,
        outcome: Compared,
    },
    EventAdd {
        severity: Severity,
        object: String,
        text: String,
    },
    /// Raises (or rewords) the alert with this key. Raising one that is active as it stands changes nothing.
    AlertRaise {
        key: String,
        alert: Alert,
    },
    AlertClear {
        key: String,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    MemberAdded(MemberId),
    /// The record as it stands after the change.
    Authority(Authority),
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("this host already belongs to pool {0}: a host serves one pool; remove it there first (ev host-remove)")]
    PoolExists(String),
    #[error("there is no pool yet: make one with ev pool-create")]
    NoPool,
    #[error(
        "{0:?} is no valid name: use 1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit"
    )]
    BadName(String),
    #[error("the name {0} is taken: choose another one")]
    NameTaken(String),
    #[error("the token is not known to this pool: ask for a new one (ev host-token)")]
    TokenUnknown,
    #[error("the token was used already; it works once: ask for a new one (ev host-token)")]
    TokenUsed,
    #[error("no administrator's token has the id {0}, or more than one has: ev token-list shows them")]
    NoSuchAdminToken(String),
    #[error("a token's name has at most {0} bytes and no control characters: give a shorter one")]
    BadTokenName(usize),
    #[error("the token has expired: ask for a new one (ev host-token)")]
    TokenExpired,
    #[error("the token is for another kind of member: ask for one of the right kind (ev host-token, ev quorum-add)")]
    TokenForOther,
    #[error("this machine is already a member, under the name {0}: remove that member first (ev host-remove)")]
    MemberKnown(String),
    #[error("the update is of another machine than member {0}: nothing was changed")]
    OtherMember(String),
    #[error("the pool has {0} members, the most that it can have: remove one first")]
    TooManyMembers(usize),
    #[error("no such member: ev host-list shows them")]
    NoSuchMember,
    #[error("{host} still holds replicas of {vms}: unprotect or delete those VMs first")]
    HostInUse { host: String, vms: String },
    #[error("{0} is the only host of the pool and can't be removed")]
    LastHost(String),
    #[error("no such network: ev network-list shows them")]
    NoSuchNetwork,
    #[error("network {network} is used by {vms}: unplug or delete those VMs first")]
    NetworkInUse { network: String, vms: String },
    #[error("the pool has {0} of these, the most that it can have")]
    TooMany(usize),
    #[error("no such VM: ev vm-list shows them")]
    NoSuchVm,
    #[error("{0} runs: end it first (ev pvm-shutdown)")]
    VmRuns(String),
    #[error("disk {index} has {size_bytes} bytes, which is not a multiple of 512: round it up")]
    DiskSize { index: usize, size_bytes: u64 },
    #[error("disk {index} would have the identity of a disk of the pool, {disk}: draw a new one")]
    DiskTaken { index: usize, disk: DiskId },
    #[error("a VM has at most {max} {what}: this one would have {asked}")]
    TooManyDevices { what: String, max: usize, asked: usize },
    #[error("a VM needs at least one {0}")]
    TooFewDevices(String),
    #[error("the MAC address {0} is used by another NIC of the pool: choose another one")]
    MacTaken(String),
    #[error("level {level} needs {needed} hosts, and {given} were given")]
    WrongHostCount { level: u8, needed: usize, given: usize },
    #[error("{0} is the active host and can't be left out: it holds the running guest's replica")]
    ActiveHostLeftOut(String),
    #[error("no host with a good replica of every disk would be left")]
    NoGoodReplicaLeft,
    #[error("the record has moved on to generation {}", .0.generation)]
    Superseded(Authority),
    #[error("the last good replica of a disk can't be given up")]
    LastGoodReplica,
    #[error("that host is not one of the VM's hosts")]
    NotAHostOfTheVm,
    #[error("that host lacks a good replica of some disk, so it can't run the VM")]
    ReplicaNotGood,
    #[error(
        "that host has the newest state of every disk: there is nothing to go back to; start the VM (ev pvm-start)"
    )]
    NothingToRevert,
    #[error("the VM is not at level 3")]
    NotSystemLevel,
    #[error("that host is the active one")]
    IsActive,
    #[error("that host does not hold the guest's memory, so the guest can't go on there")]
    MemoryNotHeld,
    #[error("the other host holds the guest's memory: let the guest go on there instead of from the disk that is left")]
    MemoryIsElsewhere,
    #[error("the VM has no such disk")]
    NoSuchDisk,
    #[error("the VM is not wished to run")]
    NotDesired,
    #[error("the VM does not run")]
    NotRunning,
    #[error("{0}")]
    BadSettings(SettingsFault),
    #[error("the lease can't be shortened while protected VMs run ({0} does): longer ones are out; end them first")]
    LeasesOut(String),
}

/// A combination of times that would break a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SettingsFault {
    #[error("the lease must be 1,000 to 60,000 ms")]
    Lease,
    #[error("the report interval must be at least 100 ms and at most a third of the lease")]
    ReportInterval,
    #[error("detection must be at least four heartbeats, and a heartbeat at least 20 ms")]
    Detection,
    #[error("the partner timeout must be 200 to 30,000 ms")]
    PartnerTimeout,
}
