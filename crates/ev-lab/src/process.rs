//! Processes of a machine: started inside its namespace and control group, listed, and ended one by one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ev_failpoint::FOLDER_VARIABLE;
use rustix::process::{Pid, Signal};

use crate::cgroup::Cgroup;
use crate::config;
use crate::error::LabError;
use crate::plan::{Node, NodeKind, Plan};
use crate::record::Record;

/// Enters the control group `$0` and the namespace `$1`, then becomes the rest of the arguments. A shell, because a process
/// has to be in the group before it is anything else, and `ip netns exec` to have `/sys` show the machine's interfaces.
const ENTER: &str = "echo $$ > \"$0/cgroup.procs\" && ns=$1 && shift && exec ip netns exec \"$ns\" \"$@\"";

/// Starts a daemon again whenever it ends, as a service manager does (`Restart=always`).
const RESPAWN: &str = "while :; do \"$@\"; echo \"$1 ended with status $?; starting it again\"; sleep 0.2; done";

/// One process of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The program's file name.
    pub program: String,
    pub arguments: Vec<String>,
}

/// A command that will run inside a machine, with the product's programs first in its `PATH`.
pub fn command(record: &Record, node: &Node, cgroup: &Cgroup, program: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(ENTER).arg(cgroup.path()).arg(record.plan.namespace(node)).arg(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut search = record.bin_dir.clone().into_os_string();
    search.push(":");
    search.push(path);
    command.env("PATH", search);
    for (name, value) in environment(&record.plan, node) {
        command.env(name, value);
    }
    command
}

/// How `ev` and the daemons find their files in a machine of the lab. What `ev` remembers of the lab's pool is not to be found in
/// the home of the user who tries the lab.
fn environment(plan: &Plan, node: &Node) -> Vec<(&'static str, PathBuf)> {
    let mut variables = vec![("XDG_CONFIG_HOME", plan.node_dir(node).join("config"))];
    match node.kind {
        NodeKind::Host => {
            variables.push(("EV_SOCKET", plan.run_dir(node).join("evd.sock")));
            variables.push((FOLDER_VARIABLE, plan.failpoints_dir(node)));
        }
        NodeKind::QuorumServer | NodeKind::Client => {}
    }
    variables
}

/// Starts the machine's daemon under a loop that starts it again. Both run on when this process ends.
pub fn start_daemon(record: &Record, node: &Node, cgroup: &Cgroup) -> Result<(), LabError> {
    let Some(program) = config::daemon(record, node) else { return Ok(()) };
    if !program.exists() {
        return Err(LabError::MissingProgram { path: program });
    }
    let log_path = record.plan.log_path(node);
    let open = || fs::OpenOptions::new().create(true).append(true).open(&log_path);
    let log = open().map_err(LabError::file("open", &log_path))?;
    let errors = log.try_clone().map_err(LabError::file("open", &log_path))?;
    let mut command = command(record, node, cgroup, "/bin/sh");
    command.args(["-c", RESPAWN, "respawn"]).arg(&program).arg("--config").arg(record.plan.config_path(node));
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    command.current_dir("/");
    let child = command.spawn().map_err(|cause| LabError::Spawn { program: "sh".to_owned(), cause })?;
    // The child is inside as soon as its control group has it; the lab never waits for its end.
    let pid = child.id();
    crate::tool::wait_until("the daemon's process to start", std::time::Duration::from_secs(10), || {
        cgroup.processes().contains(&pid)
    })
}

pub fn list(cgroup: &Cgroup) -> Vec<Process> {
    cgroup.processes().into_iter().filter_map(look_up).collect()
}

fn look_up(pid: u32) -> Option<Process> {
    let proc_dir = Path::new("/proc").join(pid.to_string());
    let cmdline = fs::read(proc_dir.join("cmdline")).ok()?;
    let arguments = cmdline.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let program = fs::read_link(proc_dir.join("exe")).ok()?;
    let program = program.file_name()?.to_string_lossy();
    // A program that was built anew while it ran has this mark on its old file.
    let program = program.trim_end_matches(" (deleted)").to_owned();
    Some(Process { pid, program, arguments: arguments.filter(|word| !word.is_empty()).collect() })
}

/// Sends a signal to all processes of the machine whose program has that file name; how many there were.
pub fn signal(cgroup: &Cgroup, program: &str, signal: Signal) -> usize {
    let matching = list(cgroup).into_iter().filter(|process| process.program == program);
    matching.filter(|process| send(process.pid, signal)).count()
}

fn send(pid: u32, signal: Signal) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    rustix::process::kill_process(pid, signal).is_ok()
}
