//! A guest that does nothing: what a client waits longer, and what both hosts' processors do for it.

use std::path::Path;
use std::time::{Duration, Instant};

use ev_tests::{Pool, Stream, StreamReport, System, TestLab, TinyImage};
use serde_json::{Map, Value, json};

use super::{MEASURED, MEMORY_MIB, SETTLING, deaths};

/// Linux counts processor time in hundredths of a second on all its ordinary builds.
const TICKS_PER_S: f64 = 100.0;

/// Latency, processor time, and then the deaths of its hosts.
pub fn measure(lab: &TestLab, pool: Pool<'_>, kills: usize) -> Map<String, Value> {
    let arguments = TinyImage::find().create_measured_arguments("tiny", MEMORY_MIB, "");
    let system = System::unprotected(lab, pool, "tiny", &arguments);
    system.boot_id();
    let vm = Vm { lab, uuid: system.uuid() };
    let (alone, alone_share) = (latency(lab), vm.processor_share());
    pool.ok("h1", &["pvm-protect", system.vm, "--level", "3", "--wait"]);
    system.protected("h1");
    let (protected, share) = (latency(lab), vm.processor_share());
    eprintln!(
        "latency {:?} and {:?} (median), processors {alone_share:?} and {share:?} %",
        alone.latency(50),
        protected.latency(50)
    );
    let added = |percent| protected.latency(percent).saturating_sub(alone.latency(percent)).as_secs_f64() * 1_000.0;
    let mut measured = Map::new();
    let mut note = |name: &str, value: Value| measured.insert(name.to_owned(), value);
    note("added_latency_median_ms", json!(added(50)));
    note("added_latency_p99_ms", json!(added(99)));
    note("idle_active_core_percent", json!((share[0] - alone_share[0]).max(0.0)));
    note("idle_standby_core_percent", json!((share[1] - alone_share[1]).max(0.0)));
    measured.extend(deaths::measure(&vm, &system, kills));
    measured
}

/// What a client sees that sends a message every 5 ms.
fn latency(lab: &TestLab) -> StreamReport {
    std::thread::sleep(SETTLING);
    let stream = Stream::start(lab, TinyImage::ADDRESS);
    std::thread::sleep(MEASURED);
    stream.stop()
}

/// Where the VM is on each host.
pub struct Vm<'a> {
    pub lab: &'a TestLab,
    pub uuid: String,
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
    pub fn takeover(&self, host: &str) -> Option<Duration> {
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
