//! The daemon: one port for all pools, and the local socket.

use std::sync::Arc;

use anyhow::Context;
use ev_wire::identity::server_config_for;
use ev_wire::quorum::ENLIST_SERVER_NAME;
use ev_wire::transport::PeerServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin;
use crate::config::Config;
use crate::enlist::EnlistHandler;
use crate::invitations;
use crate::pools::{PoolDoors, Pools};

/// Threads for everything; voting is little work.
const WORKER_THREADS: usize = 2;

pub fn run(config: Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(ev_pool::DEFAULT_LOG_FILTER));
    // A log that can't be written (a full or failed disk) is no reason to end: without this, it would be a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    log.with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let own = invitations::own_certificate(&config)?;
    let enlist_config = server_config_for(&own.certificate_pem, &own.key_pem)
        .context("server.crt and server.key in the state folder are damaged: remove both and start again")?;
    let pools = Pools::open(&config.state_dir).await?;
    let listen = config.listen();
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen} failed: is that an address of this machine, and free?"))?;
    let enlist = EnlistHandler { pools: Arc::clone(&pools), state_dir: config.state_dir.clone() };
    let doors = PoolDoors {
        pools: Arc::clone(&pools),
        enlist_name: ENLIST_SERVER_NAME,
        enlist_config,
        enlist: Arc::new(enlist),
    };
    let server = PeerServer::start_with_doors(listener, Arc::new(doors))?;
    // Whoever reads below that it serves may ask for its status.
    let socket = admin::listen(&config.socket())?;
    let name = config.name.as_deref().unwrap_or("quorum server");
    tracing::info!(name, %listen, pools = pools.served().len(), "serving");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = admin::serve(socket, Arc::clone(&pools)) => {}
        _ = terminate.recv() => tracing::info!("asked to end"),
        _ = tokio::signal::ctrl_c() => tracing::info!("interrupted"),
    }
    drop(server);
    pools.close().await;
    Ok(())
}
