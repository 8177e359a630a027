//! `cargo xtask bench delta-copy`: the partner goes away, some of the disk changes, the partner comes back. What does that cost?
//!
//! Two processes as in `bench mirror`. The first copy, to an empty partner, is told for comparison. At the end both images are
//! compared, byte by byte.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Output;
use super::servers::{MirrorDisk, Server, wait_for};
use crate::run;

const MIB: u64 = 1 << 20;
/// Regions are what the mirror remembers changes by.
const REGION_BYTES: u64 = MIB;
/// How long a copy may take; the first one reads all of the disk on both sides.
const COPY_TIMEOUT: Duration = Duration::from_secs(200);
/// How long the coordinator may take to notice that its partner is away.
const LOST_TIMEOUT: Duration = Duration::from_secs(20);

/// One copy.
#[derive(Debug, Serialize)]
struct Row {
    copy: &'static str,
    changed_bytes: u64,
    /// By the mirror's own count.
    compared_bytes: u64,
    moved_bytes: u64,
    /// On the link's socket, both directions, by the kernel's count.
    wire_bytes: u64,
    /// From the link's beginning until both replicas count as good.
    copy_ms: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    size_bytes: u64,
    filled_bytes: u64,
    rows: Vec<Row>,
}

/// What `mirror-disk` says when both replicas are in step.
#[derive(Debug, Deserialize)]
struct InStep {
    full: bool,
    compared_bytes: u64,
    moved_bytes: u64,
    copy_ms: u64,
}

pub fn run(output: Output, size_gib: u64, filled_gib: u64, changed_mib: &[u64]) -> Result<()> {
    let (size_bytes, filled_bytes) = (size_gib << 30, filled_gib << 30);
    ensure!(filled_gib <= size_gib, "a disk of {size_gib} GiB can't hold {filled_gib} GiB; make --filled-gib smaller");
    let most = size_bytes / REGION_BYTES / 2;
    ensure!(changed_mib.iter().all(|&count| count <= most), "at most half of the disk can change: {most} MiB");
    let folder = tempfile::Builder::new().prefix("evenkeel-bench-").tempdir().context("making a temporary folder")?;
    let images = [folder.path().join("active.raw"), folder.path().join("standby.raw")];
    run::heading(&format!("writing {filled_gib} GiB into a disk of {size_gib} GiB"));
    fill(&images[0], size_bytes, filled_bytes).with_context(|| format!("filling {}", images[0].display()))?;
    File::create(&images[1]).and_then(|file| file.set_len(size_bytes)).context("making the standby's image")?;
    let socket = folder.path().join("nbd.sock");
    let pair = MirrorDisk::prepare(folder.path(), &socket, [&images[0], &images[1]], size_bytes)?;
    run::heading("the first copy");
    let mut replica = pair.replica()?;
    let coordinator = pair.coordinator()?;
    let mut rows = vec![copied(&pair, filled_bytes)?];
    for (round, &count) in changed_mib.iter().enumerate() {
        run::heading(&format!("{count} MiB change while the partner is away"));
        replica = absence(&pair, &socket, replica, Change { round, regions: count, of: size_bytes / REGION_BYTES })?;
        rows.push(copied(&pair, count * MIB)?);
    }
    run::heading("comparing both images");
    drop((replica, coordinator));
    let compare = ["compare", "-f", "raw", "-F", "raw"];
    run::quiet(Command::new("qemu-img").args(compare).args(&images)).context("both images must be the same")?;
    print(&Report { size_bytes, filled_bytes, rows }, output)
}

/// Data in every so many-th region. No two blocks are alike.
fn fill(path: &Path, size_bytes: u64, filled_bytes: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(size_bytes)?;
    let regions = filled_bytes / REGION_BYTES;
    let step = size_bytes / filled_bytes;
    for number in 0..regions {
        let mut region = vec![0; usize::try_from(REGION_BYTES)?];
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut region);
        file.write_all_at(&region, number * step * REGION_BYTES)?;
    }
    Ok(file.sync_all()?)
}

/// What is written while the partner is away.
#[derive(Debug, Clone, Copy)]
struct Change {
    round: usize,
    regions: u64,
    /// Of so many.
    of: u64,
}

impl Change {
    /// Regions in no order, none twice, others in each round.
    fn numbers(self) -> Vec<u64> {
        let seed = |number: u64| *blake3::hash(format!("{} {number}", self.round).as_bytes()).as_bytes();
        let mut all: Vec<u64> = (0..self.of).collect();
        all.sort_by_cached_key(|&number| seed(number));
        all.truncate(usize::try_from(self.regions).expect("at most the disk's regions"));
        all
    }
}

/// The partner is killed, the disk changes, the partner comes back.
fn absence(pair: &MirrorDisk, socket: &Path, replica: Server, change: Change) -> Result<Server> {
    drop(replica);
    wait_for("the coordinator's going on alone", LOST_TIMEOUT, || !pair.ready().exists())?;
    write(socket, change)?;
    pair.replica()
}

/// By QEMU's own NBD client.
fn write(socket: &Path, change: Change) -> Result<()> {
    UnixStream::connect(socket).context("connecting to the coordinator")?;
    let mut client = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(format!("nbd+unix:///?socket={}", socket.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting qemu-io; run `cargo xtask setup` if it is missing")?;
    let mut commands = client.stdin.take().context("its input was asked for")?;
    for number in change.numbers() {
        let pattern = 1 + (number + u64::try_from(change.round)?) % 250;
        writeln!(commands, "write -q -P {pattern} {} {REGION_BYTES}", number * REGION_BYTES)?;
    }
    writeln!(commands, "flush")?;
    drop(commands);
    let status = client.wait()?;
    ensure!(status.success(), "qemu-io failed ({status}); its messages above say why");
    Ok(())
}

/// Waits until both are in step and takes the numbers of the copy.
fn copied(pair: &MirrorDisk, changed_bytes: u64) -> Result<Row> {
    let ready = pair.ready();
    wait_for("the copy's end", COPY_TIMEOUT, || ready.exists())?;
    let text = std::fs::read_to_string(&ready).context("reading what the copy took")?;
    let InStep { full, compared_bytes, moved_bytes, copy_ms } =
        serde_json::from_str(&text).context("reading what the copy took")?;
    let copy = if full { "full" } else { "delta" };
    Ok(Row { copy, changed_bytes, compared_bytes, moved_bytes, wire_bytes: wire_bytes(pair.port())?, copy_ms })
}

/// What has passed the replica's end of the link. It is a new connection after each absence, and so counts from 0.
fn wire_bytes(port: u16) -> Result<u64> {
    let text = run::quiet(Command::new("ss").args(["-tniH", "state", "established"]).arg(format!("sport = :{port}")))
        .context("ss (of iproute2) is needed; run `cargo xtask setup`")?;
    let sum = ["bytes_sent:", "bytes_received:"].map(|name| {
        let numbers = text.split_whitespace().filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
        numbers.sum::<u64>()
    });
    ensure!(sum[1] > 0, "ss shows no link on port {port}: {text}");
    Ok(sum[0] + sum[1])
}

fn print(report: &Report, output: Output) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let gib = |bytes: u64| bytes >> 30;
    println!("a disk of {} GiB, {} GiB of it data; MiB", gib(report.size_bytes), gib(report.filled_bytes));
    println!(
        "{:<6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "copy", "changed", "compared", "moved", "on wire", "ms", "of changed"
    );
    for row in &report.rows {
        println!(
            "{:<6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>12}",
            row.copy,
            row.changed_bytes / MIB,
            row.compared_bytes / MIB,
            row.moved_bytes / MIB,
            row.wire_bytes / MIB,
            row.copy_ms,
            format!("{} %", row.wire_bytes * 100 / row.changed_bytes.max(1)),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_spread_and_none_comes_twice() {
        let change = |round| Change { round, regions: 100, of: 10_240 }.numbers();
        let mut numbers = change(0);
        assert_ne!(numbers, change(1));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 100);
        assert!(numbers[0] < 1_000 && numbers[99] > 9_000);
    }
}
