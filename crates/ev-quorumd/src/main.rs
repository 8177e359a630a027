//! `ev-quorumd`: a vote for pools on a third machine. It runs no VMs and never is pool master.

mod admin;
mod config;
mod daemon;
mod enlist;
mod files;
mod invitations;
mod pools;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::Config;

/// A quorum server: votes in the consensus of pools, on a machine that runs no VMs.
#[derive(Debug, Parser)]
#[command(version, after_help = "Without a command it runs as a daemon.")]
struct Arguments {
    /// Configuration file
    #[arg(long, default_value = config::DEFAULT_PATH, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print an invitation for `ev quorum-add`; good for one use, for an hour
    Invite,
    /// Show the pools that this quorum server votes in
    Status {
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Forget a pool that can't dismiss this quorum server any more; the daemon must be stopped
    Forget {
        /// Identity of the pool, as `status` shows it
        pool: uuid::Uuid,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    match arguments.command {
        None => daemon::run(config),
        Some(Command::Invite) => {
            println!("{}", invitations::invite(&config)?);
            Ok(())
        }
        Some(Command::Status { output }) => {
            let status = admin::fetch(&config)?;
            match output {
                Output::Text => print!("{}", status.as_text()),
                Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
            }
            Ok(())
        }
        Some(Command::Forget { pool }) => pools::forget(&config, ev_core::ids::PoolId(pool)),
    }
}
