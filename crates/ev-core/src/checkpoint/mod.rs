//! Third decision: which checkpoint is complete, and what the guest's peers may see of it (Level 3).
//!
//! An **epoch** is the time between two checkpoints. The guest runs on while the checkpoint at the end of an epoch is sent; what
//! it sends to the network meanwhile is held until the standby has that checkpoint (output commit). Two engines decide:
//!
//! ```text
//! Primary (active host)                              Standby (other host)
//!   capture 1, the whole memory ──── memory, disks ───► staged, whole epochs only
//!   from here on: disks write ahead, output is held     │ all parts of n are here: n is complete, decided in this moment
//!   capture n ───────────────────────────────────────►  │ its disk writes are applied (durably, if the guest flushed)
//!   output of epochs ≤ n is released ◄── confirm n ─────┘
//!                                                       takeover: go on from the newest complete epoch; discard the rest
//! ```
//!
//! Why it is safe, whoever stops when:
//! - A frame of epoch n leaves only after the standby has decided n, and the standby goes on from the newest epoch that it has decided.
//!   So nothing that was seen is undone. No lease is needed for that.
//! - Memory and disks of the standby always belong to one epoch: both are decided at once, and applied before it goes on.
//! - If the standby is given up, output waits for a record without it. From then on nobody can take over from its memory.

mod pace;
mod primary;
mod standby;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use pace::{Pace, PaceLimits};
pub use primary::{Action, Event, Output, Phase, Primary, Proposal, Standing};
pub use standby::{Standby, StandbyAction, StandbyEvent};

/// One life of the memory image on a standby, from a copy of the whole memory on. Drawn at random by the active side, so that
/// nothing of an earlier one is taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(pub u64);

/// Number of an epoch in its session; the first ends with the first checkpoint. 0: before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Nothing is complete.
    pub const NONE: Self = Self(0);
    /// The one that ends with the checkpoint of the whole memory.
    pub const FIRST: Self = Self(1);

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
