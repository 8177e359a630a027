//! `cargo xtask bench`: numbers, each printed as a table, or as one JSON object with `--output json`.

mod checkpoint;
mod delta_copy;
mod failover;
mod mirror;
mod servers;

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
    /// What Level 3 costs: pauses, latency, processors at rest; and for how long a host's death is seen
    Checkpoint {
        /// How often a host is killed
        #[arg(long, default_value_t = 20)]
        kills: u32,
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
        /// How often each case runs on each peer; the median is told
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
    /// What the partner's return costs after it was away: only what changed meanwhile
    DeltaCopy {
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
        /// Size of the disk, in GiB
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1024))]
        size_gib: u64,
        /// How much of it holds data, in GiB, spread over all of it
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
        filled_gib: u64,
        /// How much changes while the partner is away, in MiB; one absence for each
        #[arg(long, default_values_t = [10, 100, 400], value_delimiter = ',')]
        changed_mib: Vec<u64>,
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
        Bench::Checkpoint { kills, output } => checkpoint::run(*kills, *output),
        Bench::Mirror { output, peer, case, rounds } => mirror::run(*output, peer, case, *rounds),
        Bench::DeltaCopy { output, size_gib, filled_gib, changed_mib } => {
            delta_copy::run(*output, *size_gib, *filled_gib, changed_mib)
        }
    }
}
