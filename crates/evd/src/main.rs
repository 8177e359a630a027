//! `evd`: the control plane of one host.

mod api;
mod app;
mod clock;
mod config;
mod durable;
mod facts;
mod found;
mod heartbeats;
mod http;
mod identity;
mod images;
mod join;
mod library;
mod link_speed;
mod live;
mod local;
mod master;
mod member;
mod peer;
mod proxy;
mod scrub;
mod status;
mod upkeep;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The control plane of one Evenkeel host.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

/// Threads of the runtime: the control plane waits much and computes little.
const THREADS: usize = 2;
/// Scheduling priority (lower is more urgent), so that busy guests do not make a host look dead.
const NICENESS: i32 = -10;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    die_of_panics();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(ev_pool::DEFAULT_LOG_FILTER));
    // A log that can't be written (a full or failed disk) is no reason to end: without this, it would be a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    log.with_ansi(false).init();
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::warn!(%error, "cannot raise the daemon's priority; busy guests may delay heartbeats");
    }
    let config = config::Config::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(run(config))
}

/// A part of the daemon that broke an own assumption must not leave the rest half alive: the process ends, and is
/// started anew by its supervisor. VMs run on meanwhile.
fn die_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

async fn run(config: config::Config) -> anyhow::Result<()> {
    let app = app::App::new(config)?;
    let socket = app.config.local_socket();
    http::serve_local(&socket, api::router(Arc::clone(&app)))
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    upkeep::take_up(&app).await?;
    tokio::spawn(scrub::run(Arc::clone(&app)));
    tracing::info!(host = %app.config.name, socket = %socket.display(), "evd is up");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        failure = upkeep::watch(Arc::clone(&app)) => failure?,
    }
    if let Ok(member) = app.member() {
        member.stop().await;
    }
    // VMs run on: their AMs and QEMUs are nobody's children.
    Ok(())
}
