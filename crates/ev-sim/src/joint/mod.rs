//! Level 3 as a whole: checkpoints, mirror and authority in one simulation.
//!
//! All engines are the real ones: a `Master` on each host and the pool state that it changes, a `Keeper` per AM, the checkpoint
//! `Primary` and `Standby`, the mirror's `Coordinator` and `Replica` with what they stage and write. Around them, in place of processes: storage that
//! loses, tears and reorders what was not flushed, a link that breaks and is late, lanes beside it, a store that commits for whoever leads
//! and reaches a majority, and what `ev-am` does between them (`glue`, `active`, `standby`). Hosts lose their power, stand still and go on;
//! AMs and QEMUs die; clocks run up to 2.5 % fast or slow.
//!
//! The guest numbers its writes. Its memory is the list of those that were answered, so that it says what exactly its disk must hold. Now and then it
//! flushes, and tells the outside how far it is. Held at every step:
//!
//! - What was seen is never undone: a guest that goes on has done all that the outside was told, and whatever the old side lets out
//!   later, the new one has done too.
//! - Memory and disk belong to one epoch: the disk under a guest that goes on is what its memory says, sector for sector.
//! - What was acknowledged is never lost: a guest that boots finds all writes that the outside was told of; those that were flushed if
//!   the host had lost its power, or what it held back for the replica; and nothing of a history that was given up.
//! - Two hosts never let something out that nobody confirmed, and a guest is started once per record.
//!
//! When the faults end, the guest runs, is seen, and can go on on the other host.

mod active;
mod disk;
mod glue;
mod guest;
mod host;
mod link;
mod run;
mod standby;
mod world;

pub use run::{Summary, run};
