//! Two hosts, a quorum server and one PVM, with everything that can go wrong between them.
//!
//! The engines are the real ones: a `Master` on each host and a `Keeper` per AM. Around them, in place of processes and
//! Raft: a store that commits one command at a time for whoever leads *and* reaches a majority; messages that are late,
//! lost or doubled; hosts that crash, freeze and thaw; links that are cut; clocks that run up to 2.5 % fast or slow.
//!
//! Held at every instant (`World::check`):
//! - never are two gates open at once (the lease does its work);
//! - a guest is started at most once per `since`, and only by the host that the record names;
//! - a guest that acts (its gate open) is the one that the record, or a record whose lease still counts, names.
//!
//! Held at the end, when all faults are healed: the guest runs on one host, with its gate open, and is redundant.

mod host;
mod run;
mod world;

pub use run::{Summary, run};
