//! What Level 3 costs, and how long a host's death is seen: `cargo xtask bench checkpoint` runs it. One JSON object on standard output.
//!
//! The tiny guest with two processors, in a lab; everything is measured in one run: at Level 2 first, then at Level 3, then through deaths.

use std::path::Path;
use std::time::{Duration, Instant};

use ev_tests::{Stream, StreamReport, System, TestLab, TinyImage};

/// How long answers are counted, and processor time is.
const MEASURED: Duration = Duration::from_secs(15);
/// After a change of level, before anything is measured.
const SETTLING: Duration = Duration::from_secs(3);
/// Linux counts processor time in hundredths of a second on all its ordinary builds.
const TICKS_PER_S: f64 = 100.0;

fn main() {
    let kills: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    let lab = TestLab::up(2, 1);
    let system = System::idle(&lab, "2");
    let uuid = system.uuid();
    let vm = Vm { lab: &lab, uuid };
    let latency_before = latency(&lab);
    let idle_before = vm.processor_share();
    system.pool.ok("h1", &["pvm-protect", system.vm, "--level", "3", "--wait"]);
    system.protected("h1");
    let latency_after = latency(&lab);
    let idle_after = vm.processor_share();
    let median = |before: &StreamReport, after: &StreamReport, percent| {
        after.latency(percent).saturating_sub(before.latency(percent)).as_secs_f64() * 1_000.0
    };
    let (added_median, added_p99) =
        (median(&latency_before, &latency_after, 50), median(&latency_before, &latency_after, 99));
    let deaths = deaths(&vm, &system, kills);
    let blackouts = sorted_ms(deaths.iter().map(|death| death.blackout));
    let takeovers = sorted_ms(deaths.iter().filter_map(|death| death.takeover));
    let at = |values: &[f64], share: usize| values.get(values.len().saturating_sub(1) * share / 100).copied();
    println!(
        "{}",
        serde_json::json!({
            "added_latency_median_ms": added_median,
            "added_latency_p99_ms": added_p99,
            "idle_active_core_percent": (idle_after[0] - idle_before[0]).max(0.0),
            "idle_standby_core_percent": (idle_after[1] - idle_before[1]).max(0.0),
            "kills": kills,
            "blackout_median_ms": at(&blackouts, 50),
            "blackout_worst_ms": at(&blackouts, 100),
            "takeover_median_ms": at(&takeovers, 50),
        })
    );
}

/// What a client sees that sends a message every 5 ms.
fn latency(lab: &TestLab) -> StreamReport {
    std::thread::sleep(SETTLING);
    let stream = Stream::start(lab, TinyImage::ADDRESS);
    std::thread::sleep(MEASURED);
    stream.stop()
}

/// Where the VM is on each host.
struct Vm<'a> {
    lab: &'a TestLab,
    uuid: String,
}

impl Vm<'_> {
    /// Percent of a core that its programs take while nobody talks to it, on `h1` (active) and `h2`.
    fn processor_share(&self) -> [f64; 2] {
        std::thread::sleep(SETTLING);
        let folders = ["h1", "h2"].map(|host| {
            let node = self.lab.plan().node(host).expect("a host of the lab");
            self.lab.plan().run_dir(node).join("vms").join(&self.uuid)
        });
        let (before, start) = (folders.each_ref().map(|folder| ticks(folder)), Instant::now());
        std::thread::sleep(MEASURED);
        let seconds = start.elapsed().as_secs_f64();
        let after = folders.each_ref().map(|folder| ticks(folder));
        [after[0] - before[0], after[1] - before[1]].map(|ticks| ticks / TICKS_PER_S / seconds * 100.0)
    }

    /// The newest takeover that the AM's log on that host has: `running: 10.962969ms`.
    fn takeover(&self, host: &str) -> Option<Duration> {
        let node = self.lab.plan().node(host).expect("a host of the lab");
        let log = self.lab.plan().state_dir(node).join("logs").join(format!("{}.log", self.uuid));
        let text = std::fs::read_to_string(log).ok()?;
        let line = text.lines().rev().find(|line| line.contains("went on from its memory"))?;
        let time = line.split_once("running: ")?.1.split(' ').next()?;
        let (number, factor) = match time.strip_suffix("ms") {
            Some(number) => (number, 1e-3),
            None => (time.strip_suffix('s')?, 1.0),
        };
        Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * factor))
    }
}

/// Processor time of the VM's AM and QEMU on one host.
fn ticks(folder: &Path) -> f64 {
    ["am.pid", "qemu.pid"].iter().filter_map(|name| ticks_of(&folder.join(name))).sum()
}

fn ticks_of(pid_file: &Path) -> Option<f64> {
    let pid = std::fs::read_to_string(pid_file).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
    // After the program's name, which may contain spaces; user and system time are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some(number(14)? + number(15)?)
}

/// One host's death.
struct Death {
    /// For how long the client had no answer.
    blackout: Duration,
    /// From the device state to the running guest, by the AM's own word.
    takeover: Option<Duration>,
}

fn deaths(vm: &Vm<'_>, system: &System<'_>, kills: usize) -> Vec<Death> {
    let stream = Stream::start(vm.lab, TinyImage::ADDRESS);
    let mut asked = "h1".to_owned();
    let mut deaths = Vec::new();
    for kill in 1..=kills {
        let gone_on = system.kill_active(&stream, &asked);
        let takeover = vm.takeover(&gone_on.to);
        eprintln!(
            "kill {kill}: {} to {}, no answer for {:?}, takeover {takeover:?}",
            gone_on.from, gone_on.to, gone_on.blackout
        );
        deaths.push(Death { blackout: gone_on.blackout, takeover });
        system.bring_back(&stream, &gone_on);
        asked = gone_on.to;
    }
    stream.stop();
    deaths
}

fn sorted_ms(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1_000.0).collect();
    times.sort_by(f64::total_cmp);
    times
}
