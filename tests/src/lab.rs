//! A lab for one test: unique by name, taken down at its end, its logs shown if the test failed.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ev_lab::{Lab, LabName, LabOptions};

use crate::guests::programs;

/// Names another QEMU for the hosts than the installed one.
const QEMU_VARIABLE: &str = "EV_TEST_QEMU";
/// Most lines of each daemon's log that a failed test shows.
const LOG_LINES_MAX: usize = 80;

/// A lab that is removed when it goes out of scope.
#[derive(Debug)]
pub struct TestLab {
    lab: Option<Lab>,
    dir: PathBuf,
}

impl TestLab {
    /// Hosts and quorum servers with the daemons of this build, no pool yet.
    ///
    /// # Panics
    /// If the lab does not come up: not root, no tools, no programs.
    pub fn up(hosts: u8, quorum_servers: u8) -> Self {
        Self::with(hosts, quorum_servers, Some(programs()))
    }

    /// Hosts without daemons.
    ///
    /// # Panics
    /// If the lab does not come up: not root, no tools.
    pub fn bare(hosts: u8) -> Self {
        Self::with(hosts, 0, None)
    }

    fn with(hosts: u8, quorum_servers: u8, bin_dir: Option<PathBuf>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = LabName::new(&format!("t{}-{number}", std::process::id())).expect("a short name");
        let dir = Path::new("/var/tmp/ev-lab").join(name.to_string());
        let mut options = LabOptions::new(name);
        options.dir = dir.clone();
        options.hosts = hosts;
        options.quorum_servers = quorum_servers;
        options.bin_dir = bin_dir;
        if let Some(qemu) = std::env::var_os(QEMU_VARIABLE) {
            options.qemu = qemu.into();
        }
        let lab = Lab::up(options).unwrap_or_else(|error| panic!("the lab does not come up: {error}"));
        Self { lab: Some(lab), dir }
    }

    /// What the machine's daemon and AMs logged, the last lines of each file.
    fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.plan().nodes {
            append_tail(&mut text, &self.plan().log_path(node));
            let vms = self.plan().state_dir(node).join("vms");
            for vm in std::fs::read_dir(vms).into_iter().flatten().flatten() {
                for file in std::fs::read_dir(vm.path()).into_iter().flatten().flatten() {
                    if file.path().extension().is_some_and(|extension| extension == "log") {
                        append_tail(&mut text, &file.path());
                    }
                }
            }
        }
        text
    }
}

fn append_tail(text: &mut String, path: &Path) {
    let Ok(bytes) = std::fs::read(path) else { return };
    let log = String::from_utf8_lossy(&bytes);
    let skipped = log.lines().count().saturating_sub(LOG_LINES_MAX);
    let tail: Vec<&str> = log.lines().skip(skipped).collect();
    *text += &format!("==== {}\n{}\n", path.display(), tail.join("\n"));
}

impl Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab.as_ref().expect("a lab is there until it is dropped")
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let Some(lab) = self.lab.take() else { return };
        if let Err(error) = lab.down() {
            eprintln!("the lab in {} was not removed: {error}", self.dir.display());
        }
    }
}
