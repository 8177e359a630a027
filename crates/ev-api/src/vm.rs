//! VMs, their protection, their disks.

use ev_core::report::Level3Report;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::library::LibraryView;

/// Where a new VM boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum BootSpec {
    Disk,
    Iso { iso: LibraryView },
    Kernel { kernel: LibraryView, initrd: Option<LibraryView>, command_line: String },
}

/// One disk of a new VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// A multiple of 512. With an image: at least the image's size.
    pub size_bytes: u64,
    /// A converted image on the home host that becomes this disk.
    #[serde(default)]
    pub image: Option<Uuid>,
}

/// One NIC of a new VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Name of the pool network.
    pub network: String,
    /// Drawn if absent.
    #[serde(default)]
    pub mac: Option<String>,
}

/// `POST /v1/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCreate {
    pub name: String,
    pub vcpus: u16,
    pub memory_mib: u32,
    pub uefi: bool,
    pub boot: BootSpec,
    pub disks: Vec<DiskSpec>,
    pub nics: Vec<NicSpec>,
    /// The home host; chosen by the pool if absent.
    #[serde(default)]
    pub host: Option<String>,
    /// Lower starts earlier.
    #[serde(default)]
    pub start_order: u32,
    /// Start the guest at once.
    #[serde(default)]
    pub start: bool,
}

/// `PUT /v1/vms/{vm}/protection`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protect {
    /// 0, 1, 2 or 3.
    pub level: u8,
    /// The other host; chosen by the pool if absent.
    #[serde(default)]
    pub host: Option<String>,
}

/// `GET /v1/vms/{vm}/candidacy`: one line for each level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidacyView {
    pub level: u8,
    pub candidate: bool,
    /// Why not, or what to know.
    pub reasons: Vec<String>,
}

/// `PUT /v1/vms/{vm}/desired`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredChange {
    pub desired: DesiredState,
}

/// What a user wants of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredState {
    Running,
    Shutdown,
    ForceOff,
    Reboot,
    ForceReboot,
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    Off,
    Starting,
    Running,
    Paused,
    Stopping,
    /// It is to run and nothing is heard of it.
    Unknown,
}

/// How well a VM is as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As protected as its level says.
    Good,
    /// Served, but a further failure may stop it.
    Degraded,
    /// Not served although it should be.
    Down,
}

/// `GET /v1/vms`, `GET /v1/vms/{vm}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    pub uuid: Uuid,
    pub name: String,
    pub number: u16,
    pub level: u8,
    pub power: PowerState,
    pub desired: DesiredState,
    pub health: Health,
    /// Names of hosts.
    pub active: Option<String>,
    pub standby: Option<String>,
    /// (Level 3) The host that can go on from the guest's memory at any moment.
    #[serde(default)]
    pub memory: Option<String>,
    /// Of a guest that runs at Level 3.
    #[serde(default)]
    pub level3: Option<Level3View>,
    pub hosts: Vec<String>,
    /// Of the authority record.
    pub generation: u64,
    pub vcpus: u16,
    pub memory_mib: u32,
    pub firmware: String,
    pub machine: String,
    pub cpu_model: String,
    pub boot: BootSpec,
    /// `kvm`, `tcg`, or unknown.
    pub accelerator: Option<String>,
    pub disks: Vec<DiskView>,
    pub nics: Vec<NicView>,
    pub start_order: u32,
    /// What a person should know and can act on.
    pub troubles: Vec<String>,
}

/// How far a running guest is protected at Level 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level3State {
    /// Not at all for now: why, in words.
    Simplex(String),
    /// It waits for its turn to be synchronised: 1 is the next one.
    Queued { position: u32 },
    /// Its memory is on its way to the standby.
    Synchronising,
    /// The standby has it; the pool has not confirmed that yet.
    Joining,
    /// The standby can go on at any moment.
    Protected,
    /// The standby was given up; what the guest sends waits until the pool has confirmed that.
    Parting,
}

/// State and cost of Level 3, as of the last seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level3View {
    pub state: Level3State,
    /// Number of the newest checkpoint that the standby has confirmed.
    pub confirmed: u64,
    /// Mean time between checkpoints.
    pub epoch_us: u64,
    /// For how long the guest stands still for one.
    pub pause_median_us: u64,
    pub pause_p99_us: u64,
    /// Part of the time for which it stands still: for checkpoints, and to be slowed when it writes more than can be sent.
    #[serde(default)]
    pub stood_still_permille: u64,
    /// What is sent to the standby.
    pub pages_per_s: u64,
    pub bytes_per_s: u64,
    /// What holding frames back until their checkpoint is confirmed adds to their way.
    pub latency_median_us: u64,
    pub latency_p99_us: u64,
    /// From the end of a pause to the confirmation.
    pub lag_median_us: u64,
    /// Why the last session with a standby ended.
    pub last_end: Option<String>,
    /// For how long the guest stood still when it went on on its active host from its memory; `None`: it was started there.
    #[serde(default)]
    pub blackout_us: Option<u64>,
}

impl From<Level3Report> for Level3View {
    fn from(report: Level3Report) -> Self {
        use ev_core::report::Level3State as Reported;
        Self {
            state: match report.state {
                Reported::Simplex(why) => Level3State::Simplex(why),
                Reported::Queued { position } => Level3State::Queued { position },
                Reported::Synchronising => Level3State::Synchronising,
                Reported::Joining => Level3State::Joining,
                Reported::Protected => Level3State::Protected,
                Reported::Parting => Level3State::Parting,
            },
            confirmed: report.confirmed,
            epoch_us: report.epoch_us,
            pause_median_us: report.pause_median_us,
            pause_p99_us: report.pause_p99_us,
            stood_still_permille: report.stood_still_permille,
            pages_per_s: report.pages_per_s,
            bytes_per_s: report.bytes_per_s,
            latency_median_us: report.latency_median_us,
            latency_p99_us: report.latency_p99_us,
            lag_median_us: report.lag_median_us,
            last_end: report.last_end,
            blackout_us: report.blackout_us,
        }
    }
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicView {
    pub mac: String,
    pub network: String,
    pub bridge: String,
}

/// State of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaView {
    Online,
    Copying,
    Failed,
    Unreachable,
    Stale,
}

/// One replica of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReplica {
    pub host: String,
    pub state: ReplicaView,
    /// Whether the record counts it as holding every acknowledged write.
    pub good: bool,
}

/// A copy under way, or the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    /// Full mirror copy; else delta copy.
    pub full: bool,
    pub running: bool,
    pub total_bytes: u64,
    pub done_bytes: u64,
    pub moved_bytes: u64,
    pub left_s: Option<u64>,
}

/// One disk: part of [`VmView`], and `GET /v1/disks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    pub uuid: Uuid,
    pub vm: String,
    /// Place on the guest's bus, from 0.
    pub index: usize,
    pub size_bytes: u64,
    pub replicas: Vec<DiskReplica>,
    /// Whether as many replicas are good as the level asks for.
    pub in_sync: bool,
    pub copy: Option<CopyView>,
    /// None since this disk was mirrored, or it has one replica.
    pub comparison: Option<ComparisonView>,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub trouble: Option<String>,
}

/// A comparison of both replicas: under way, or the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparisonView {
    pub running: bool,
    pub total_bytes: u64,
    pub compared_bytes: u64,
    pub different_bytes: u64,
    pub repaired_bytes: u64,
    /// Whether it got to the end.
    pub complete: bool,
    pub ended: Option<jiff::Timestamp>,
}

/// `POST /v1/vms/{vm}/verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    pub repair: bool,
}

/// Answer to [`Verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// What the active host said.
    pub message: String,
}

/// `POST /v1/vms/{vm}/revert`: `host`'s replicas go back to the older state that was kept of them, and are good alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revert {
    pub host: String,
    /// Must be said: what was written since is lost.
    pub give_up_newer_writes: bool,
}

/// Answer between daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reverted {
    /// When the oldest of the states was kept, if it was kept for a copy.
    pub kept_at: Option<jiff::Timestamp>,
}

/// Answer of calls that only do or don't.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What the user should know.
    #[serde(default)]
    pub notes: Vec<String>,
}
