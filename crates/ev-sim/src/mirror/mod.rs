//! The mirror's engines between storage that lies, a link that breaks, hosts that lose power, and a record that moves on.
//!
//! What must hold, at every step of every schedule:
//!
//! - What was acknowledged and flushed is read back after recovery from the replica that the guest is started on; what was only
//!   acknowledged too, unless that replica's host lost its power since.
//! - Reads give what was written, and never an older state.
//! - Replicas that are in step, with nothing under way, are the same byte for byte.
//! - A replica that a copy is overwriting is never called good, and no guest starts from it.
//! - A delta copy looks only at regions that were written.
//! - The guest sees no error while a good replica can be reached.
//! - With checkpoints (Level 3): who goes on from memory finds on its disk exactly what the guest's had at the end of that epoch. Who is started
//!   from a replica that was written ahead of finds at least what was flushed in epochs that were confirmed.
//! - When the faults end, everything asked for is answered and both replicas are in step again.

mod check;
pub(crate) mod disk;
mod guest;
pub(crate) mod host;
pub(crate) mod link;
mod master;
mod memory;
mod oracle;
mod protect;
mod run;
mod world;

pub use run::{Cut, run, run_protected_with_cut, run_with_cut};
pub use world::Summary;
