//! `cargo xtask bench mirror`: the same load, in turn and in one run, on one copy and on two.
//!
//! The machine may be small and busy with other things, so that single runs mean little: each case is a few short rounds, the
//! peers take turns within a round, each round begins with another one, and what is told is the median.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};

mod fio;
mod peers;
mod table;

use fio::{CASES, Case, Measured};
use peers::Peer;
pub use peers::PeerKind;
use table::{Report, Row};

use super::Output;
use crate::run;

/// Size of the disk. Written in full before; small enough to stay in the page cache, the same for all.
pub const DISK_BYTES: u64 = 512 << 20;

/// Runs all of it and prints the result.
pub fn run(output: Output, kinds: &[PeerKind], case_names: &[String], rounds: u32) -> Result<()> {
    fio::check()?;
    let cases: Vec<&Case> =
        CASES.iter().filter(|case| case_names.is_empty() || case_names.iter().any(|name| name == case.name)).collect();
    if cases.is_empty() {
        bail!("no case of that name; there are {}", CASES.map(|case| case.name).join(", "));
    }
    let kinds = if kinds.is_empty() { &PeerKind::ALL[..] } else { kinds };
    let folder = tempfile::Builder::new().prefix("evenkeel-bench-").tempdir().context("making a temporary folder")?;
    run::heading("starting the peers");
    let peers = kinds.iter().map(|&kind| Peer::start(kind, folder.path(), DISK_BYTES)).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for case in cases {
        run::heading(case.name);
        let runs = measure(case, &peers, folder.path(), rounds)?;
        rows.extend(peers.iter().zip(&runs).map(|(peer, runs)| Row::new(case.name, peer.kind, fio::median(runs))));
    }
    let report = Report { rows };
    match output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(())
}

/// The runs of each peer.
fn measure(case: &Case, peers: &[Peer], folder: &Path, rounds: u32) -> Result<Vec<Vec<Measured>>> {
    let mut runs = vec![Vec::new(); peers.len()];
    for round in 0..usize::try_from(rounds)? {
        for turn in 0..peers.len() {
            let at = (round + turn) % peers.len();
            let peer = &peers[at];
            // What earlier runs left in the page cache is not to be written out during this one.
            for image in peers.iter().flat_map(|peer| &peer.images) {
                File::open(image).and_then(|file| file.sync_all()).context("flushing an image")?;
            }
            let measured = fio::measure(case, &peer.uri, DISK_BYTES, folder)
                .with_context(|| format!("{} on {}", case.name, peer.kind.name()))?;
            eprintln!("{:<12} {:>9.0} IOPS", peer.kind.name(), measured.iops);
            runs[at].push(measured);
        }
    }
    Ok(runs)
}
