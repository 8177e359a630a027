//! A lab's life: up, open, status, down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cgroup;
use crate::error::LabError;
use crate::network;
use crate::plan::{LabName, Node, Plan};
use crate::power::PowerState;
use crate::process::{self, Process};
use crate::record::{Daemons, Record};
use crate::storage;
use crate::tool::run;

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct LabOptions {
    pub name: LabName,
    /// Disk images, logs and configuration; made if missing.
    pub dir: PathBuf,
    pub hosts: u8,
    pub quorum_servers: u8,
    /// The folder with `evd`, `ev`, `ev-am` and `ev-quorumd`; `None`: bare machines without daemons.
    pub bin_dir: Option<PathBuf>,
    pub qemu: PathBuf,
    pub qemu_data_dir: Option<PathBuf>,
    /// Size of each host's storage disk; the image is sparse.
    pub storage_bytes: u64,
}

impl LabOptions {
    /// Two hosts and a quorum server, in the default folder.
    pub fn new(name: LabName) -> Self {
        Self {
            dir: default_dir(&name),
            name,
            hosts: 2,
            quorum_servers: 1,
            bin_dir: None,
            qemu: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            qemu_data_dir: None,
            storage_bytes: 64 << 30,
        }
    }
}

/// Where a lab is if nothing else is said.
pub fn default_dir(name: &LabName) -> PathBuf {
    PathBuf::from("/var/tmp/ev-lab").join(name.to_string())
}

/// A lab that is up, or was when it was opened. Dropping it leaves it up; [`Lab::down`] removes it.
#[derive(Debug)]
pub struct Lab {
    record: Record,
}

/// One machine's present state.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    pub node: Node,
    pub power: PowerState,
    pub processes: Vec<Process>,
}

impl Lab {
    /// Builds a lab and switches its machines on. On an error, what was made so far is removed again.
    pub fn up(options: LabOptions) -> Result<Self, LabError> {
        require_root()?;
        let plan = Plan::new(options.name, options.dir, options.hosts, options.quorum_servers)?;
        refuse_second(&plan)?;
        let bin_dir = options.bin_dir.clone().unwrap_or_default();
        let mut record = Record::new(plan, bin_dir, options.qemu, cgroup::find_root()?);
        record.qemu_data_dir = options.qemu_data_dir;
        record.storage_bytes = options.storage_bytes;
        record.daemons = if options.bin_dir.is_some() { Daemons::Started } else { Daemons::Absent };
        record.create()?;
        let lab = Self { record };
        match lab.build() {
            Ok(()) => Ok(lab),
            Err(error) => {
                // The first error is the one to tell.
                let _ = lab.down();
                Err(error)
            }
        }
    }

    fn build(&self) -> Result<(), LabError> {
        network::create_switch(self.plan())?;
        for node in &self.plan().nodes {
            for dir in [self.plan().node_dir(node), self.plan().run_dir(node)] {
                fs::create_dir_all(&dir).map_err(LabError::file("make the folder", &dir))?;
                storage::share_dir(&dir)?;
            }
            storage::create_disks(self.plan(), node, self.record.storage_bytes)?;
        }
        self.plan().nodes.iter().try_for_each(|node| self.boot(node))
    }

    /// The lab in that folder.
    pub fn open(dir: &Path) -> Result<Self, LabError> {
        require_root()?;
        Ok(Self { record: Record::load(dir)? })
    }

    pub fn plan(&self) -> &Plan {
        &self.record.plan
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// A command that will run inside a machine: in its namespace, its control group, with the product's programs in `PATH`.
    pub fn command(&self, name: &str, program: &str) -> Result<Command, LabError> {
        let node = self.running(name)?;
        Ok(process::command(&self.record, node, &self.cgroup(node), program))
    }

    pub fn processes(&self, name: &str) -> Result<Vec<Process>, LabError> {
        Ok(process::list(&self.cgroup(self.running(name)?)))
    }

    pub fn status(&self) -> Result<Vec<NodeStatus>, LabError> {
        let status = |node: &Node| -> Result<NodeStatus, LabError> {
            let power = self.power(&node.name.to_string())?;
            Ok(NodeStatus { node: node.clone(), power, processes: process::list(&self.cgroup(node)) })
        };
        self.plan().nodes.iter().map(status).collect()
    }

    /// The cuts in force.
    pub fn cuts(&self) -> Result<Vec<String>, LabError> {
        network::cuts(self.plan())
    }

    /// Removes all that the lab made, and whatever runs in it. Works on what a crash left behind, too.
    pub fn down(self) -> Result<(), LabError> {
        self.remove_machines()?;
        network::remove_namespace(&self.plan().switch_namespace())?;
        let plan = self.plan();
        for dir in [plan.dir.clone(), plan.run_root()] {
            storage::unmount_below(&dir)?;
        }
        for node in &plan.nodes {
            remove_dir(&plan.node_dir(node))?;
        }
        remove_dir(&plan.run_root())?;
        self.record.remove()?;
        // Only if nobody put anything else there.
        let _ = fs::remove_dir(&plan.dir);
        Ok(())
    }

    fn remove_machines(&self) -> Result<(), LabError> {
        let groups: Vec<_> =
            self.plan().nodes.iter().map(|node| self.cgroup(node)).filter(cgroup::Cgroup::exists).collect();
        for group in &groups {
            group.kill()?;
        }
        for group in &groups {
            group.wait_empty()?;
            group.remove()?;
        }
        for node in &self.plan().nodes {
            network::remove_namespace(&self.plan().namespace(node))?;
        }
        let lab_group = self.record.cgroup_root.join(self.plan().cgroup());
        if lab_group.exists() {
            fs::remove_dir(&lab_group).map_err(LabError::file("remove", lab_group))?;
        }
        Ok(())
    }
}

fn remove_dir(dir: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(LabError::File { action: "remove", path: dir.to_owned(), cause }),
    }
}

fn require_root() -> Result<(), LabError> {
    let uid = rustix::process::geteuid();
    if uid.is_root() { Ok(()) } else { Err(LabError::NotRoot { uid: uid.as_raw() }) }
}

/// A lab of the same name elsewhere would share its namespaces.
fn refuse_second(plan: &Plan) -> Result<(), LabError> {
    run("ip", &["-V"])?;
    if !network::namespaces()?.contains(&plan.switch_namespace()) {
        return Ok(());
    }
    Err(LabError::AlreadyUp { name: plan.name.to_string(), dir: plan.dir.clone() })
}
