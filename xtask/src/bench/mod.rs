//! `cargo xtask bench`: numbers, each printed as a table, or as one JSON object with `--output json`.

mod failover;
mod mirror;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// From a host's death to the guest's first instruction on the other host
    Failover {
        /// How often a host is killed
        #[arg(long, default_value_t = 20)]
        runs: u32,
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// A mirrored disk beside QEMU's own means: one copy, and two by the quorum driver
    Mirror {
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
        /// Only these peers
        #[arg(long, value_enum)]
        peer: Vec<mirror::PeerKind>,
        /// Only these cases, by name
        #[arg(long)]
        case: Vec<String>,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Failover { runs, output } => failover::run(*runs, *output),
        Bench::Mirror { output, peer, case } => mirror::run(*output, peer, case),
    }
}
