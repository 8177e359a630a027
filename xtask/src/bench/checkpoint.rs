//! What Level 3 costs. Pauses are measured on a guest alone (`crates/ev-vm/examples/pause.rs`), the rest in a lab
//! (`tests/src/bin/ev-checkpoints`). Release builds, as users have them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::Output;
use crate::run::{cargo, heading, show, target};
use crate::{guests, setup};

/// Memory in GiB, MiB that were written once, pages written in each epoch.
const CASES: [(&str, &str); 3] =
    [("pause_idle", "1/256/0"), ("pause_5000", "1/256/5000"), ("pause_20000", "1/256/20000")];
/// The same dirty rate in memories of different sizes.
const SIZES_GIB: [u32; 3] = [1, 2, 4];
const DIRTY_PAGES: u32 = 5_000;

pub fn run(kills: u32, output: Output) -> Result<()> {
    setup::run()?;
    guests::make()?;
    heading("building");
    show(cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    show(cargo().args(["build", "--release", "--package", "ev-ramtrack"]))?;
    show(cargo().args(["build", "--release", "--package", "ev-vm", "--example", "pause"]))?;
    let mut measured = Map::new();
    heading("pauses");
    for (name, case) in CASES {
        let pause = pause(case)?;
        measured.insert(format!("{name}_median_ms"), pause["median"].clone());
        measured.insert(format!("{name}_p99_ms"), pause["p99"].clone());
    }
    let mut by_memory = Vec::new();
    for gib in SIZES_GIB {
        let pause = pause(&format!("{gib}/256/{DIRTY_PAGES}"))?;
        by_memory.push(json!({ "gib": gib, "median_ms": pause["median"] }));
    }
    measured.insert("pause_by_memory".to_owned(), Value::Array(by_memory));
    heading(&format!("in a lab: work, latency, processors at rest, {kills} deaths"));
    let program = target().join("release/ev-checkpoints");
    let lab = printed(Command::new(&program).arg(kills.to_string()))?;
    let lab: Map<String, Value> = serde_json::from_str(&lab).context("reading what was measured in the lab")?;
    measured.extend(lab);
    match output {
        Output::Json => println!("{}", Value::Object(measured)),
        Output::Table => {
            for (name, value) in &measured {
                println!("{name:<28} {value}");
            }
        }
    }
    Ok(())
}

/// Median and p99 of a case's pauses, in milliseconds.
fn pause(case: &str) -> Result<Value> {
    let text = printed(Command::new(target().join("release/examples/pause")).arg(case))?;
    let line: Value = serde_json::from_str(text.trim()).context("reading what was measured of a pause")?;
    eprintln!("{line}");
    Ok(line["pause_ms"].clone())
}

fn printed(command: &mut Command) -> Result<String> {
    let child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let result = child.wait_with_output()?;
    ensure!(result.status.success(), "the measuring failed ({}); its messages above say why", result.status);
    String::from_utf8(result.stdout).context("reading what was measured")
}
