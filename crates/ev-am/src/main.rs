//! `ev-am`: the Availability Manager, the process of one VM on one host.

mod clock;
mod config;
mod disks;
mod durable;
mod guest;
mod links;
mod lock;
mod master;
mod nics;
mod paths;
mod priority;
mod started;

fn main() {}
