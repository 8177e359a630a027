//! Switching machines on and off: as a power cut does it, not as a shutdown would.

use crate::cgroup::Cgroup;
use crate::config;
use crate::error::LabError;
use crate::lab::Lab;
use crate::network;
use crate::plan::Node;
use crate::process;
use crate::record::Daemons;
use crate::storage;

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    On,
    Frozen,
    Off,
}

impl std::fmt::Display for PowerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PowerState::On => "on",
            PowerState::Frozen => "frozen",
            PowerState::Off => "off",
        })
    }
}

impl Lab {
    /// Whether a machine runs, by whether it has its control group.
    pub fn power(&self, name: &str) -> Result<PowerState, LabError> {
        let cgroup = self.cgroup(self.plan().node(name)?);
        Ok(match (cgroup.exists(), cgroup.is_frozen()) {
            (false, _) => PowerState::Off,
            (true, true) => PowerState::Frozen,
            (true, false) => PowerState::On,
        })
    }

    /// Ends a machine as a power cut does: all processes at once, without a last word on any network, and without what
    /// had not been flushed to its disks.
    pub fn kill(&self, name: &str) -> Result<(), LabError> {
        let node = self.running(name)?;
        let cgroup = self.cgroup(node);
        // Frozen first: else the kernel would say goodbye for the dying processes' connections.
        cgroup.freeze()?;
        network::pull_out(self.plan(), node)?;
        cgroup.kill()?;
        cgroup.wait_empty()?;
        network::remove_namespace(&self.plan().namespace(node))?;
        storage::lose_power(self.plan(), node)?;
        cgroup.remove()
    }

    /// Switches a machine on after [`Lab::kill`]: its disks are as they were, its memory is not.
    pub fn start(&self, name: &str) -> Result<(), LabError> {
        let node = self.plan().node(name)?;
        if self.cgroup(node).exists() {
            return Err(LabError::AlreadyRunning { name: node.name.clone() });
        }
        self.boot(node)
    }

    pub(crate) fn boot(&self, node: &Node) -> Result<(), LabError> {
        let cgroup = self.cgroup(node);
        network::plug_in(self.plan(), node)?;
        storage::mount_all(self.plan(), node)?;
        config::write(self.record(), node)?;
        cgroup.create()?;
        match self.record().daemons {
            Daemons::Started => process::start_daemon(self.record(), node, &cgroup),
            Daemons::Absent => Ok(()),
        }
    }

    /// Stops all processes of a machine where they are, as when its processors get no time.
    pub fn freeze(&self, name: &str) -> Result<(), LabError> {
        self.cgroup(self.running(name)?).freeze()
    }

    pub fn thaw(&self, name: &str) -> Result<(), LabError> {
        self.cgroup(self.running(name)?).thaw()
    }

    /// The machine of that name, if it is not switched off.
    pub(crate) fn running(&self, name: &str) -> Result<&Node, LabError> {
        let node = self.plan().node(name)?;
        if self.cgroup(node).exists() { Ok(node) } else { Err(LabError::SwitchedOff { name: node.name.clone() }) }
    }

    pub(crate) fn cgroup(&self, node: &Node) -> Cgroup {
        Cgroup::new(&self.record().cgroup_root, &self.plan().cgroup(), &node.name.to_string())
    }
}
