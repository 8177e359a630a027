//! `ev`: the command line of a pool.

mod args;
mod command;
mod connect;
mod exit;
mod output;
mod progress;
mod terminal;
mod wait;

use clap::Parser;

fn main() -> std::process::ExitCode {
    exit::report(command::run(args::Arguments::parse()))
}
