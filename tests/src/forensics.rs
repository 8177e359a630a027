//! What is shown of a lab whose test failed, besides its logs: what the hosts say of their VMs, what each QEMU's threads do, and what
//! the guest's kernel has logged.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ev_lab::{Lab, PowerState};

use crate::pool::Pool;

/// Where the log of a Linux kernel begins: with this line, and not far after it the next one.
const LOG_FIRST: &[u8] = b"Linux version ";
const LOG_SECOND: &[u8] = b"Command line: ";
const LOG_SECOND_WITHIN: usize = 400;
/// A log has no gap as long as this, and is not longer than that.
const LOG_GAP: usize = 4 << 10;
const LOG_BYTES_MAX: usize = 256 << 10;
/// Shorter ones may be numbers that look like letters.
const LOG_LINE_MIN: usize = 8;
/// What is mapped as a guest's memory, as its file is named (`ev_vm::ram`).
const GUEST_MEMORY: &str = "/memfd:evenkeel-ram";
const LOG_LINES_SHOWN: usize = 40;
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
                let _ = writeln!(text, "==== {host}, kernel of its guest\n{}", kernel_log(process.pid));
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

/// The last lines, found in the guest's memory: of a boot that hangs they are nowhere else.
fn kernel_log(pid: u32) -> String {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_memory =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with(GUEST_MEMORY));
    let Some(memory) = files.filter(is_memory).find_map(|path| fs::read(path).ok()) else {
        return "its memory can't be read".to_owned();
    };
    let is_log = |at: &usize| {
        let near = &memory[*at..memory.len().min(at + LOG_SECOND_WITHIN)];
        near.windows(LOG_SECOND.len()).any(|bytes| bytes == LOG_SECOND)
    };
    let first = memory.windows(LOG_FIRST.len()).enumerate().filter(|(_, bytes)| *bytes == LOG_FIRST);
    let Some(start) = first.map(|(at, _)| at).find(is_log) else {
        return "no log was found in its memory".to_owned();
    };
    let mut lines: Vec<String> = Vec::new();
    let (mut at, mut end) = (0, 0);
    let is_text = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    for run in memory[start..memory.len().min(start + LOG_BYTES_MAX)].chunk_by(|a, b| is_text(a) == is_text(b)) {
        if run.len() >= LOG_LINE_MIN && is_text(&run[0]) {
            if at - end > LOG_GAP {
                break;
            }
            end = at + run.len();
            lines.push(String::from_utf8_lossy(run).into_owned());
        }
        at += run.len();
    }
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

/// On a processor so far.
fn nanoseconds(task: &Path) -> u64 {
    read(task, "schedstat").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn read(task: &Path, name: &str) -> String {
    fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned()
}
