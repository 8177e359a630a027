//! Level 3's engines between links that break, hosts that die, stand still or lose their power, and a record that moves on.
//!
//! The guest is a counter: at each step it rises, is written to memory and to two disks, and is sent to the outside now and then. What
//! must hold, at every step of every schedule:
//!
//! - Nothing that the outside has seen is undone: a guest that goes on elsewhere has at least every number that was released.
//! - It goes on from memory and disks of one and the same epoch.
//! - A number that was released late by the old side is one that the new side has as well.
//! - What was flushed and released is on the standby's storage durably.
//! - Free output and a standby that can go on exclude each other.
//! - When the faults end, the pair is protected again and output flows.

mod peer;
mod world;

pub use world::{Summary, run};
