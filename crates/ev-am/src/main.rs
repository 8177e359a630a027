//! `ev-am`: the Availability Manager, the process of one VM on one host.

mod clock;
mod config;
mod durable;
mod lock;
mod master;
mod paths;
mod started;

fn main() {}
