//! From a host's death to the guest's first instruction on the other host; the measuring is `tests/src/bin/ev-failover.rs`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Output;
use crate::run::{cargo, heading, show, target};
use crate::{guests, setup};

/// What the measuring program prints.
#[derive(Debug, Deserialize)]
struct Measured {
    runs: u32,
    median_ms: u64,
    worst_ms: u64,
}

pub fn run(runs: u32, output: Output) -> Result<()> {
    setup::run()?;
    guests::make()?;
    heading("building");
    show(cargo().args(["build", "--workspace", "--bins"]))?;
    heading(&format!("killing a host {runs} times"));
    let program = target().join("debug/ev-failover");
    let child = Command::new(&program).arg(runs.to_string()).stdout(Stdio::piped()).spawn();
    let result = child.with_context(|| format!("starting {}", program.display()))?.wait_with_output()?;
    ensure!(result.status.success(), "the measuring failed ({}); its messages above say why", result.status);
    let text = String::from_utf8(result.stdout).context("reading what was measured")?;
    let measured: Measured = serde_json::from_str(text.trim()).context("reading what was measured")?;
    match output {
        Output::Json => println!("{}", text.trim()),
        Output::Table => {
            println!("host killed to guest's first instruction on the other host");
            println!("{:>8} {:>12} {:>12}", "runs", "median", "worst");
            println!("{:>8} {:>9} ms {:>9} ms", measured.runs, measured.median_ms, measured.worst_ms);
        }
    }
    Ok(())
}
