//! Everything a developer runs: `cargo xtask help`.

mod bench;
mod ci;
mod demo;
mod dependencies;
mod guests;
mod packages;
mod run;
mod second_qemu;
mod setup;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything a developer of Evenkeel runs")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine: Debian packages, cargo-nextest, a second QEMU
    Setup,
    /// Make the guests of the tests and the demo (cached below target/guests)
    Guests,
    /// Set up, build, and run every test, the end-to-end scenarios included
    Test {
        /// Passed on to `cargo nextest run`, such as `-p ev-core` or `-E 'test(takeover)'`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        nextest: Vec<String>,
    },
    /// Show the main job: two hosts, a guest at Level 3 and a real one at Level 2, clients; hosts are killed, nothing that was seen is lost
    Demo {
        /// How many hosts are killed at each level, in turn
        #[arg(long, default_value_t = 2)]
        rounds: u32,
        /// Delete one acknowledged row in between, to see that the demo misses it and fails
        #[arg(long)]
        lose_a_row: bool,
    },
    /// Measure
    #[command(subcommand)]
    Bench(bench::Bench),
    /// What continuous integration runs: formatting, lints, documents, tidy, tests
    Ci,
    /// Check licences, bans and sources of dependencies by deny.toml
    Deny,
    /// Check sizes of files and functions, first lines, and leftovers
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::run(),
        Command::Guests => setup::run().and_then(|()| guests::make()),
        Command::Test { nextest } => ci::test(&nextest),
        Command::Demo { rounds, lose_a_row } => demo::run(rounds, lose_a_row),
        Command::Bench(bench) => bench::run(&bench),
        Command::Ci => ci::all(),
        Command::Deny => dependencies::check(),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
