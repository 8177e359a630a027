//! Between `evd` and the AMs on its host: the configuration file that `evd` writes, and calls on the AM's local socket.

use std::net::SocketAddr;
use std::path::PathBuf;

use ev_core::ids::{HostId, MemberId, PoolId, VmId};
use ev_core::report::AmReport;
use ev_core::vm::Vm;
use serde::{Deserialize, Serialize};

/// `am.json` in the VM's state folder: all that an AM needs to start without asking anyone. `evd` replaces it
/// (write, fsync, rename) when something in it changes and then sends [`AmCall::Reload`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmConfig {
    /// 1. A newer program reads 1 as well.
    pub version: u32,
    pub pool: PoolId,
    pub host: HostId,
    /// The VM as `evd` last knew it. The AM prefers a newer record from the pool master.
    pub vm: Vm,
    pub vm_id: VmId,
    /// Durable folder of this VM on this host: replicas, their metadata, UEFI variables, `started` marker.
    pub state_dir: PathBuf,
    /// Volatile folder of this VM (sockets, pid files); gone after a reboot.
    pub run_dir: PathBuf,
    /// Folder of library files (named by their hash).
    pub library_dir: PathBuf,
    /// Where every member's peer port is, hosts and quorum servers: the AM looks for the pool master there.
    pub members: Vec<MemberEndpoint>,
    /// Addresses on which this AM listens for its partner's AM, private links first, then management.
    pub link_listen: Vec<SocketAddr>,
    /// The partner's addresses in the order of preference; empty without a partner.
    pub link_partner: Vec<SocketAddr>,
    /// The partner host, if the VM has two hosts.
    pub partner: Option<HostId>,
    /// This host's certificate chain and key and the pool's certificate authority, in PEM files.
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority_certificate: PathBuf,
    /// The QEMU program, the user that it runs as, and its data folder if not the default one.
    pub qemu: PathBuf,
    pub qemu_user: String,
    pub qemu_data_dir: Option<PathBuf>,
    pub times: Times,
    /// Most bytes per second that a copy of a disk, or of the guest's whole memory, moves; `None`: as fast as it goes.
    pub copy_rate_limit: Option<u64>,
    pub turns: Turns,
    /// A guest at level 3 is not to stand still for longer than about this at a time, for a synchronisation or a checkpoint.
    pub blackout_ms: u64,
}

/// How the VMs of a host take turns at sending their memory to their standbys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// Folder of those that wait or have their turn, common to all AMs of the host.
    pub folder: PathBuf,
    pub at_once: u32,
}

/// One member's peer port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEndpoint {
    pub member: MemberId,
    pub address: SocketAddr,
}

/// The pool's times, in milliseconds; `docs/internals/arbitration.md` has the limits that keep the rules true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How long a lease counts from the moment of asking.
    pub lease_ms: u64,
    /// How often an AM reports (and so renews).
    pub report_interval_ms: u64,
    /// How long after the end of its lease a guest stays paused before it is ended.
    pub grace_ms: u64,
    /// How long the partner's AM may be silent on all links before the active AM asks for a record without it.
    pub partner_timeout_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { lease_ms: 2_000, report_interval_ms: 400, grace_ms: 10_000, partner_timeout_ms: 1_000 }
    }
}

/// What `evd` asks of an AM over `am.sock` in the VM's run folder (frames of `ev-wire`, one call at a time).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AmCall {
    /// The configuration file was replaced.
    Reload,
    /// A newer record, straight from this host's copy of the pool state.
    Vm(Box<Vm>),
    /// The present report.
    Status,
    /// Compare both replicas of all disks, at most so many bytes a second each, and repair from the good side if `repair`.
    Verify { repair: bool, bytes_per_s: Option<u64> },
    /// Bring this host's replicas back to the older state that was kept of them. Refused while the guest is on.
    Revert,
    /// Stop serving and exit. The guest must have ended; refused otherwise.
    Quit,
}

/// Answers of an AM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AmAnswer {
    Done,
    Status(Box<AmReport>),
    /// All replicas hold an older state; when the oldest one was kept, in seconds since 1970, if it was kept for a copy.
    Reverted {
        kept_at_unix_s: Option<u64>,
    },
    Refused(String),
}
