//! What an AM tells the pool master twice a second: what is so on its host, for decisions and for the user's eyes.
//! Reports are volatile: the pool master keeps the last one of each AM in memory and nothing on disk.

use serde::{Deserialize, Serialize};

use crate::authority::Power;
use crate::ids::{DiskId, Generation, HostId, VmId};

/// The guest as its AM sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// No guest here.
    Absent,
    /// QEMU is being started under the record `since`.
    Starting {
        since: Generation,
    },
    Running {
        since: Generation,
    },
    /// Stopped for want of a lease.
    Paused {
        since: Generation,
    },
    /// It ran under `since` and has ended; all replicas were flushed if `clean`.
    Ended {
        since: Generation,
        cause: EndCause,
        clean: bool,
    },
}

/// Why a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndCause {
    /// The guest powered itself off, by itself or because it was asked to.
    GuestShutdown,
    /// `ev pvm-force-off`, or a forced reboot.
    Forced,
    /// QEMU died or was killed; the text says what is known.
    Crashed(String),
    /// QEMU could not be started; the text says why.
    StartFailed(String),
    /// The record names another host, or another start.
    Superseded,
    /// The lease ran out and the grace time after it too.
    LeaseLost,
}

/// State of one replica, as seen from the AM that reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// Holds every acknowledged write.
    Online,
    /// Is being written by a copy and can't be used until that ends.
    Copying,
    /// Reads or writes on it failed.
    Failed,
    /// Its host can't be reached, or nothing is known of it.
    Unreachable,
    /// Reachable, lagging behind, and waiting for a copy.
    Stale,
}

/// Progress of a delta or full copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    pub full: bool,
    /// Bytes to look at in all, and looked at so far.
    pub total_bytes: u64,
    pub done_bytes: u64,
    /// Bytes that differed and crossed the wire.
    pub moved_bytes: u64,
    /// Whole seconds left at the present rate, when one can be told.
    pub left_s: Option<u64>,
}

/// A comparison of both replicas: under way, or the last one since this AM started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    pub total_bytes: u64,
    pub compared_bytes: u64,
    pub different_bytes: u64,
    pub repaired_bytes: u64,
    /// When it ended, in milliseconds since 1970; `None` while it is under way.
    pub ended_unix_ms: Option<u64>,
    /// Whether it got to the end; not so when the link broke, a replica failed, or the replicas were not in step to begin with.
    pub complete: bool,
}

/// One disk in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub disk: DiskId,
    pub local: ReplicaState,
    /// The partner's replica; `None` where there is to be only one.
    pub partner: Option<ReplicaState>,
    /// The copy under way, or the last one since this AM started (then `done_bytes == total_bytes`).
    pub copy: Option<CopyProgress>,
    pub comparison: Option<Comparison>,
    /// Counters since this AM started.
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Why the disk is not fully healthy, in words, if it isn't.
    pub trouble: Option<String>,
}

/// How far a guest is protected at Level 3, as its active AM sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level3State {
    /// No checkpoints are taken: why, in words.
    Simplex(String),
    /// It waits for its turn to be synchronised: 1 is the next one.
    Queued { position: u32 },
    /// The whole memory is on its way to the standby.
    Synchronising,
    /// The first checkpoint is there or on its way; the record does not name the standby yet.
    Joining,
    /// The standby can go on at any moment.
    Protected,
    /// The standby was given up; output waits for a record without it.
    Parting,
}

/// Level 3 in a report: state, and what it costs. Times are of the last seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level3Report {
    pub state: Level3State,
    /// Newest epoch that the standby has confirmed in this session.
    pub confirmed: u64,
    /// Mean length of an epoch.
    pub epoch_us: u64,
    pub pause_median_us: u64,
    pub pause_p99_us: u64,
    /// Part of the time for which the guest stood still: in pauses, and to be slowed when it writes more than is sent.
    #[serde(default)]
    pub stood_still_permille: u64,
    /// What was sent per second.
    pub pages_per_s: u64,
    pub bytes_per_s: u64,
    /// What holding frames back adds to their latency.
    pub latency_median_us: u64,
    pub latency_p99_us: u64,
    /// From the end of a pause to the standby's confirmation.
    pub lag_median_us: u64,
    /// Why the last session ended, if one has.
    pub last_end: Option<String>,
    /// For how long the guest stood still when it went on on this host from its memory: from its last checkpoint to its first instruction
    /// here. `None`: it was started here.
    #[serde(default)]
    pub blackout_us: Option<u64>,
}

/// A report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmReport {
    pub vm: VmId,
    pub host: HostId,
    /// Generation of the newest record that this AM has acted on.
    pub generation: Generation,
    /// `Power` as this AM has carried it out.
    pub power: Power,
    pub guest: GuestState,
    pub disks: Vec<DiskReport>,
    /// Accelerator of the running guest: `kvm` or `tcg`.
    pub accelerator: Option<String>,
    /// Of a guest that runs here and is to be at Level 3.
    #[serde(default)]
    pub level3: Option<Level3Report>,
    /// What a person should know and can act on.
    pub troubles: Vec<String>,
}
