//! What is shown of a lab whose test failed, besides its logs: what the hosts say of their VMs, and what each QEMU's threads do.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ev_lab::{Lab, PowerState};

use crate::pool::Pool;

/// Between the two looks at the threads.
const WATCHED_MS: u64 = 1_000;

/// As text, with a heading for each part.
pub fn describe(lab: &Lab) -> String {
    let mut text = String::new();
    let hosts: Vec<String> = lab.plan().nodes.iter().map(|node| node.name.to_string()).collect();
    // Nothing answers in a machine that is off or frozen.
    let is_on = |name: &&String| name.starts_with('h') && lab.power(name).is_ok_and(|power| power == PowerState::On);
    for host in hosts.iter().filter(is_on) {
        for vm in names(lab, host) {
            let said = Pool::of(lab).ev(host, &["pvm-show", &vm, "--output", "json"]);
            let _ = writeln!(text, "==== {host} of {vm}\n{}", said.unwrap_or_else(|failure| failure.to_string()));
        }
        for process in lab.processes(host).into_iter().flatten() {
            if process.program.starts_with("qemu-system") {
                let _ = writeln!(text, "==== {host}, threads of QEMU {}\n{}", process.pid, threads(process.pid));
            }
        }
    }
    text
}

fn names(lab: &Lab, host: &str) -> Vec<String> {
    let listed = Pool::of(lab).try_json::<Vec<serde_json::Value>>(host, &["vm-list"]).unwrap_or_default();
    listed.iter().filter_map(|vm| vm.get("name")?.as_str().map(str::to_owned)).collect()
}

/// One line for each: its name, where it waits in the kernel, and its share of a processor.
fn threads(pid: u32) -> String {
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|entry| entry.path());
    let before: Vec<(PathBuf, u64)> = tasks().map(|task| (task.clone(), nanoseconds(&task))).collect();
    std::thread::sleep(Duration::from_millis(WATCHED_MS));
    let mut text = String::new();
    for (task, then) in before {
        let percent = nanoseconds(&task).saturating_sub(then) / (WATCHED_MS * 10_000);
        let _ = writeln!(text, "{} {} {percent} %", read(&task, "comm"), read(&task, "wchan"));
    }
    text
}

/// On a processor so far.
fn nanoseconds(task: &Path) -> u64 {
    read(task, "schedstat").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn read(task: &Path, name: &str) -> String {
    fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned()
}
