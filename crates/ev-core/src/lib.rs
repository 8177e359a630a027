//! The decisions of Evenkeel: who may run a PVM, which replica is good, which host is dead.
//!
//! Nothing here does I/O, reads a clock, starts a thread, draws a random number or uses unsafe code. Every engine is a
//! plain struct that is told what happened and answers what is to be done, so it can be model-checked, simulated with
//! faults by the million, and read in one sitting.
#![forbid(unsafe_code)]

pub mod authority;
pub mod availability;
pub mod candidacy;
pub mod checkpoint;
pub mod ids;
pub mod mirror;
pub mod pool;
pub mod report;
pub mod scrub;
pub mod time;
pub mod vm;
