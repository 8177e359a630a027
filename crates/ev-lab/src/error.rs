//! What can go wrong while a lab is built, used or removed; each message ends with what to do.

use std::path::PathBuf;
use std::process::ExitStatus;

use crate::plan::{Network, NodeName};

/// Errors of all operations on a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    #[error(
        "a lab needs root (it makes network namespaces, mounts and control groups), and this process has user id {uid}; \
         run it with sudo"
    )]
    NotRoot { uid: u32 },
    #[error("there is already a lab named {name} in {dir}; remove it with `ev-lab --name {name} down`, or give another --name", dir = dir.display())]
    AlreadyUp { name: String, dir: PathBuf },
    #[error("there is no lab in {dir}; make one with `ev-lab up`", dir = dir.display())]
    NoLab { dir: PathBuf },
    #[error("{name:?} cannot be the name of a lab; use 1 to {max} characters out of a-z, 0-9 and -")]
    BadName { name: String, max: usize },
    #[error("a lab has 1 to {max} {what}, and {asked} were asked for; ask for fewer")]
    TooMany { what: &'static str, asked: u8, max: u8 },
    #[error("the lab has nothing named {name}; it has {known}")]
    UnknownNode { name: String, known: String },
    #[error("{name} is no host, and only hosts have that; name one of the hosts")]
    NotAHost { name: NodeName },
    #[error("{name} is switched off; start it with `ev-lab start {name}`")]
    SwitchedOff { name: NodeName },
    #[error("{name} is already running; `ev-lab kill {name}` switches it off")]
    AlreadyRunning { name: NodeName },
    #[error("{name} has no interface on the {network} network; `ev-lab status` shows what each has")]
    NotOnNetwork { name: NodeName, network: Network },
    #[error("found no control group file system of version 2; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    #[error("the program {path} is missing; build it with `cargo build --workspace --bins`", path = path.display())]
    MissingProgram { path: PathBuf },
    #[error("could not run {program}; install it (`cargo xtask setup` does): {cause}")]
    Spawn { program: String, cause: std::io::Error },
    #[error("`{line}` failed ({status}): {stderr}; `ev-lab down` removes what was made so far")]
    Tool { line: String, status: ExitStatus, stderr: String },
    #[error("could not {action} {path}: {cause}; see that the path is there and has room", path = path.display())]
    File { action: &'static str, path: PathBuf, cause: std::io::Error },
    #[error("{path} is no record of a lab ({cause}); remove the folder by hand if nothing of it runs", path = path.display())]
    Record { path: PathBuf, cause: serde_json::Error },
    #[error("waited {seconds} s in vain for {what}; look at `ev-lab status`, then remove the lab with `ev-lab down`")]
    Timeout { what: String, seconds: u64 },
}

impl LabError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> LabError {
        let path = path.into();
        move |cause| LabError::File { action, path, cause }
    }
}
