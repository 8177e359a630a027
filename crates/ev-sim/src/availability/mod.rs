//! Two hosts, a quorum server and one PVM, at level 2 or 3, with everything that can go wrong between them.
//!
//! The engines are the real ones: a `Master` on each host, a `Keeper` per AM, and at level 3 a checkpoint `Primary` per guest.
//! Around them, in place of processes and Raft: a mirror that knows which writes each replica has; a standby that confirms
//! checkpoints; a store that commits one command at a time for whoever leads *and* reaches a majority; messages that are late,
//! lost or doubled; hosts that crash, freeze and thaw; links that are cut; clocks that run up to 2.5 % fast or slow.
//!
//! Held at every instant (`World::check`):
//! - never do two guests let something out that nobody confirmed (the lease does its work);
//! - a guest is started at most once per `since`, and only by the host that the record names;
//! - a guest that acts (its gate open) is the one that the record, or a record whose lease still counts, names; or what it lets
//!   out was confirmed by its standby;
//! - a guest goes on only on the host that the record named as the holder of its memory, and has then done all that the
//!   outside has seen of it; a guest that starts from its disks has all writes that had been acknowledged when something
//!   was last seen of it;
//! - what a host that was replaced still lets out was done by the guest that runs elsewhere too, and it comes soon.
//!
//! Held at the end, when all faults are healed: the guest runs on one host and is seen, is redundant, and at level 3 can go on.

mod checkpoints;
mod content;
mod host;
mod mirror;
mod run;
pub(crate) mod world;

pub use run::{Summary, run};
