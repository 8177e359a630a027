//! End-to-end scenarios, one file each. Each has a lab of its own and runs alone: see `.config/nextest.toml`.

mod harness;
mod level2_failover;
