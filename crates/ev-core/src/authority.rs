//! The authority record: which host may run a PVM and which replicas are good, at which generation.
//!
//! It lives in the pool state and changes only by a conditional commit ("if the generation is still g"), and each
//! change raises the generation. Four rules follow from it; `docs/internals/arbitration.md` argues them.
//!
//! 1. A host runs a PVM only under a record that names it active.
//! 2. A write or flush is acknowledged to the guest only when it is on every replica that the record calls good.
//! 3. (Level 3) A frame leaves only when its epoch is complete on the standby that the record names.
//! 4. (Levels 1 and 2) The active host also needs a lease.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{DiskId, Generation, HostId};

/// Whether the guest is to run, and since which record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// No host runs the guest.
    Off,
    /// The active host runs the guest. `since` is the generation of the record that started it: a host that has
    /// already started (and lost) a guest under this `since` does not start it again; only a new record does.
    On { since: Generation },
}

/// How the guest comes to life under the record's `since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It boots from its disks.
    #[default]
    Boot,
    /// (Level 3) It goes on from the memory that the host held as standby.
    Memory,
}

/// The record. `Default` is the record of a VM that nobody may run yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Rises with each change.
    pub generation: Generation,
    /// The only host that may run the guest.
    pub active: Option<HostId>,
    /// The host that may be made active without losing anything: all of its replicas are good.
    pub standby: Option<HostId>,
    /// Whether the guest runs.
    pub power: Power,
    /// Whether the guest's last end was clean: its replicas were flushed and are alike. False while it runs.
    pub clean: bool,
    /// For each disk the hosts whose replica is good: it holds every acknowledged write.
    pub good: BTreeMap<DiskId, BTreeSet<HostId>>,
    /// (Level 3) The host that may go on from the guest's memory at any moment. Only while the guest runs, and never the
    /// active host; that host holds a good replica of every disk.
    #[serde(default)]
    pub memory: Option<HostId>,
    /// How the guest comes to life under the present `since`.
    #[serde(default)]
    pub origin: Origin,
}

impl Default for Authority {
    fn default() -> Self {
        Self {
            generation: Generation::NONE,
            active: None,
            standby: None,
            power: Power::Off,
            clean: true,
            good: BTreeMap::new(),
            memory: None,
            origin: Origin::Boot,
        }
    }
}

impl Authority {
    /// Whether `host` holds a good replica of every disk, so that it may be made active.
    #[must_use]
    pub fn holds_all_good(&self, host: HostId) -> bool {
        self.good.values().all(|hosts| hosts.contains(&host))
    }
}

/// A change that an AM or the pool master asks for. The pool state applies it only if the record's generation is
/// still the one that the proposer saw, and only if it breaks no rule; else it is refused and nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthorityChange {
    /// The active host cannot reach the replica of `disk` on `host`, or that replica failed: it no longer counts.
    /// Refused when it is the last good one.
    ReplicaLost { disk: DiskId, host: HostId },
    /// The replica of `disk` on `host` was copied and flushed: it counts again.
    ReplicaGood { disk: DiskId, host: HostId },
    /// Start the guest on `host`, which holds all disks; `good` names the replicas that count from then on (only
    /// `host`'s own after an unclean end, so that the other one is brought in step by delta copy).
    Start { host: HostId, clean: bool },
    /// The guest has ended and its replicas were flushed (`clean`) or not.
    Ended { clean: bool },
    /// A person gives up what was written since the older state that lies on `host`: its replicas alone are good. Only
    /// while the guest is off; never asked for by an AM.
    Revert { host: HostId },
    /// (Level 3) `host` holds a complete checkpoint: it may go on from the guest's memory.
    MemoryHeld { host: HostId },
    /// (Level 3) What `host` holds no longer counts: neither its memory nor, in the same change, its replicas. Refused
    /// when it has the last good replica of a disk.
    StandbyLost { host: HostId },
    /// (Level 3) The guest goes on on `host` from its memory. No lease is waited for: what the old active host lets out
    /// after its last confirmed checkpoint, it would let out only after `host` had confirmed it.
    Continue { host: HostId },
}
