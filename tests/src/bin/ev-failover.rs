//! From a host's death to the guest's first instruction on the other host: `cargo xtask bench failover` runs it.
//!
//! The guest is a boot sector that writes a line to its serial port; the host's death is the moment at which its processes are
//! stopped; the line is read from the log of the serial port on the other host.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use ev_tests::{BootSector, Pool, Protected, TestLab, eventually};

const VM: &str = "marker";
/// The pool works in peace for so long between a return and the next death. Two deaths at once are another matter: then the newest
/// entry of the pool state can be where nobody is, and the quorum server has to bring it to the returning host first.
const STEADY: Duration = Duration::from_secs(5);
/// A run that takes longer has failed, and the benchmark with it.
const RUN_LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let runs: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let lab = TestLab::up(2, 1);
    let pool = Pool::create(&lab);
    pool.ok("h1", &BootSector::find().import_arguments(VM));
    pool.ok("h1", &["pvm-protect", VM, "--level", "2", "--wait"]);
    pool.ok("h1", &["pvm-start", VM]);
    let protected = Protected { lab: &lab, pool, vm: VM };
    let mut asked = "h1".to_owned();
    let mut times: Vec<u128> = Vec::with_capacity(runs);
    for run in 1..=runs {
        let view = protected.in_sync(&asked);
        std::thread::sleep(STEADY);
        let dead = view.active.expect("a running guest has an active host");
        asked = if dead == "h1" { "h2".to_owned() } else { "h1".to_owned() };
        let node = lab.plan().node(&asked).expect("a host");
        let log = lab.plan().run_dir(node).join("vms").join(view.uuid.to_string()).join("qemu/serial.log");
        let before = length(&log);
        let death = Instant::now();
        lab.kill(&dead).expect("the host dies");
        wait_for_marker(&log, before);
        let took = death.elapsed();
        eprintln!("run {run}: {dead} killed, first instruction on {asked} after {} ms", took.as_millis());
        times.push(took.as_millis());
        lab.start(&dead).expect("the host returns");
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    println!("{{\"runs\":{runs},\"median_ms\":{median},\"worst_ms\":{worst}}}");
}

/// Waits until the log has the marker behind where it ended before.
fn wait_for_marker(log: &Path, before: u64) {
    eventually("the guest's first line", RUN_LIMIT, || {
        // A log that is begun anew with each start is shorter than before.
        let from = if length(log) < before { 0 } else { before };
        if contains_marker(log, from) { Ok(()) } else { Err("no such line in the log of its serial port") }
    });
}

fn length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |metadata| metadata.len())
}

fn contains_marker(path: &Path, from: u64) -> bool {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().is_ok_and(|text| text.contains("EVENKEEL-GUEST first instruction"))
}
