//! A lab for one test: unique by name, taken down at its end, its logs and guests shown if the test failed.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ev_failpoint::{Failpoint, Step};
use ev_lab::{Lab, LabName, LabOptions, Network, Node};

use crate::forensics;
use crate::guests::programs;
use crate::owners::Owners;

/// Names another QEMU for the hosts than the installed one.
const QEMU_VARIABLE: &str = "EV_TEST_QEMU";
/// Names the folder that the packages of QEMU 10.0 were unpacked in; `cargo xtask test` sets it.
const QEMU_10_VARIABLE: &str = "EVENKEEL_QEMU_10";
/// Names a folder in which every lab leaves the whole logs of its machines, one folder a lab.
const LOGS_VARIABLE: &str = "EV_TEST_LOGS";
/// Most lines of each daemon's log that a failed test shows.
const LOG_LINES_MAX: usize = 80;

/// A lab that is removed when it goes out of scope.
#[derive(Debug)]
pub struct TestLab {
    owners: Owners,
    lab: Option<Lab>,
    dir: PathBuf,
}

impl TestLab {
    /// Hosts and quorum servers with the daemons of this build, no pool yet.
    ///
    /// # Panics
    /// If the lab does not come up: not root, no tools, no programs.
    pub fn up(hosts: u8, quorum_servers: u8) -> Self {
        Self::with(hosts, quorum_servers, Some(programs()), std::env::var_os(QEMU_VARIABLE).map(PathBuf::from), None)
    }

    /// The same with QEMU 10.0 on the hosts; `None` on a machine that has none, and says so.
    ///
    /// # Panics
    /// If the lab does not come up, or the named folder has no QEMU.
    pub fn up_with_qemu_10(hosts: u8, quorum_servers: u8) -> Option<Self> {
        let Some(root) = std::env::var_os(QEMU_10_VARIABLE).map(PathBuf::from) else {
            eprintln!("{QEMU_10_VARIABLE} is not set: nothing was tried with QEMU 10.0");
            return None;
        };
        let program = root.join("usr/bin/qemu-system-x86_64");
        assert!(program.exists(), "{QEMU_10_VARIABLE} is set, but {} does not exist", program.display());
        let data = root.join("usr/share/qemu");
        Some(Self::with(hosts, quorum_servers, Some(programs()), Some(program), Some(data)))
    }

    /// Hosts without daemons.
    ///
    /// # Panics
    /// If the lab does not come up: not root, no tools.
    pub fn bare(hosts: u8) -> Self {
        Self::with(hosts, 0, None, None, None)
    }

    fn with(
        hosts: u8,
        quorum_servers: u8,
        bin_dir: Option<PathBuf>,
        qemu: Option<PathBuf>,
        qemu_data_dir: Option<PathBuf>,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = LabName::new(&format!("t{}-{number}", std::process::id())).expect("a short name");
        let dir = Path::new("/var/tmp/ev-lab").join(name.to_string());
        let mut options = LabOptions::new(name);
        options.dir = dir.clone();
        options.hosts = hosts;
        options.quorum_servers = quorum_servers;
        options.bin_dir = bin_dir;
        options.qemu = qemu.unwrap_or(options.qemu);
        options.qemu_data_dir = qemu_data_dir;
        let lab = Lab::up(options).unwrap_or_else(|error| panic!("the lab does not come up: {error}"));
        Self { owners: Owners::watch(&lab), lab: Some(lab), dir }
    }

    /// The hosts that the lab's only guest was seen to speak from, in order.
    pub fn owners_seen(&self) -> Vec<String> {
        self.owners.seen()
    }

    /// How many bits a second a host sends on each private link at most; `None`: what it can.
    ///
    /// # Panics
    /// If there is no such host, or the kernel refuses it.
    pub fn set_private_rate(&self, host: &str, bits_per_s: Option<u64>) {
        for network in [Network::Private1, Network::Private2] {
            self.set_rate(host, network, bits_per_s).expect("the lab sets the rate");
        }
    }

    /// The next program of that host which comes to the step is to stop there.
    ///
    /// # Panics
    /// If there is no such host, or its folder can't be written.
    pub fn stop_at(&self, host: &str, step: Step) -> Failpoint {
        let node = self.plan().node(host).expect("a host of the lab");
        let failpoint = Failpoint::new(self.plan().failpoints_dir(node), step);
        failpoint.arm().expect("the lab's folders can be written");
        failpoint
    }

    /// The logs of a machine's daemon, AMs and guests.
    fn log_paths(&self, node: &Node) -> Vec<PathBuf> {
        let mut paths = vec![self.plan().log_path(node)];
        paths.extend(entries(&self.plan().state_dir(node).join("logs")));
        for dir in [self.plan().state_dir(node), self.plan().run_dir(node)] {
            let vms = entries(&dir.join("vms"));
            let files = vms.iter().flat_map(|vm| [entries(vm), entries(&vm.join("qemu"))]).flatten();
            paths.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "log")));
        }
        paths
    }

    /// The last lines of each log.
    fn logs(&self) -> String {
        let mut text = String::new();
        for path in self.plan().nodes.iter().flat_map(|node| self.log_paths(node)) {
            append_tail(&mut text, &path);
        }
        text
    }

    fn keep_logs(&self, folder: &Path) -> std::io::Result<()> {
        for node in &self.plan().nodes {
            let own = folder.join(self.plan().name.to_string()).join(node.name.to_string());
            std::fs::create_dir_all(&own)?;
            for path in self.log_paths(node).iter().filter(|path| path.exists()) {
                let vm = path.strip_prefix(&self.dir).unwrap_or(path).to_string_lossy().replace('/', "_");
                std::fs::copy(path, own.join(vm))?;
            }
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
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
            eprintln!("{}{}", self.logs(), forensics::describe(self));
        }
        if let Some(folder) = std::env::var_os(LOGS_VARIABLE)
            && let Err(error) = self.keep_logs(Path::new(&folder))
        {
            eprintln!("the logs were not kept in {}: {error}", Path::new(&folder).display());
        }
        let Some(lab) = self.lab.take() else { return };
        if let Err(error) = lab.down() {
            eprintln!("the lab in {} was not removed: {error}", self.dir.display());
        }
    }
}
