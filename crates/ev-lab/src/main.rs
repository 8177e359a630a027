//! `ev-lab`: hosts on this machine, to try Evenkeel on one machine and to see what it does when something fails.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ev-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
