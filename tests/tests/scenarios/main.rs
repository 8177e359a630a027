//! End-to-end scenarios, one file each. Each has a lab of its own and runs alone: see `.config/nextest.toml`.

mod bad_input;
mod database_rounds;
mod disks;
mod harness;
mod hosts;
mod images;
mod level2_failover;
mod level3;
mod members;
mod networks;
mod older_state;
mod pools;
mod programs;
mod protection;
