//! Simulators and models that try to break the decisions of `ev-core`. Development only.
//!
//! A simulation is a seed: the same seed gives the same run. A failing one prints its seed; `EVENKEEL_SEED=n` runs
//! that one alone.

pub mod availability;
pub mod checkpoint;
pub mod joint;
pub mod mirror;
pub mod rng;
pub mod schedules;
