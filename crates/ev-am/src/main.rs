//! `ev-am`: the Availability Manager, the process of one VM on one host.

mod am;
mod checkpoint;
mod config;
mod disks;
mod durable;
mod guest;
mod links;
mod local;
mod lock;
mod master;
mod nics;
mod paths;
mod priority;
mod started;
mod storage;

use std::path::PathBuf;

use clap::Parser;

/// Runs everything that one VM's bytes pass through on this host. Started by evd.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// The VM's am.json, as evd wrote it.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // A log that can't be written (a full or failed disk) is no reason to end: without this, it would be a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    log.with_ansi(false).init();
    priority::raise();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(am::run(&options.config))
}
