//! Faults on demand: cuts, cables, disks, and the end of single programs.

use rustix::process::Signal;

use crate::error::LabError;
use crate::lab::Lab;
use crate::network::{self, Direction};
use crate::plan::{DiskKind, Network, Node, NodeKind};
use crate::process;
use crate::storage::{self, RepairKind};

impl Lab {
    /// Loses what two machines send each other, on one network or on all that both are on.
    pub fn cut(&self, first: &str, second: &str, on: Option<Network>, way: Direction) -> Result<(), LabError> {
        let (first, second) = (self.plan().node(first)?, self.plan().node(second)?);
        let networks = match on {
            Some(network) => {
                self.on_network(first, network)?;
                self.on_network(second, network)?;
                vec![network]
            }
            None => common_networks(first, second),
        };
        network::cut(self.plan(), first, second, &networks, way)
    }

    /// Ends all cuts.
    pub fn heal(&self) -> Result<(), LabError> {
        network::heal(self.plan())
    }

    /// Pulls a cable: the interface loses its carrier, and nothing passes.
    pub fn unplug(&self, name: &str, network: Network) -> Result<(), LabError> {
        let node = self.running(name)?;
        self.on_network(node, network)?;
        network::set_carrier(self.plan(), node, network, false)
    }

    /// Puts a cable back.
    pub fn plug(&self, name: &str, network: Network) -> Result<(), LabError> {
        let node = self.running(name)?;
        self.on_network(node, network)?;
        network::set_carrier(self.plan(), node, network, true)
    }

    /// Lets a machine send only so many bits per second into a network; `None` ends that.
    pub fn set_rate(&self, name: &str, network: Network, bits_per_second: Option<u64>) -> Result<(), LabError> {
        let node = self.running(name)?;
        self.on_network(node, network)?;
        network::set_rate(self.plan(), node, network, bits_per_second)
    }

    /// From now on, every access to the disk fails with an I/O error.
    pub fn fail_disk(&self, name: &str, disk: DiskKind) -> Result<(), LabError> {
        storage::fail(self.plan(), self.running_host(name)?, disk)
    }

    /// Puts the failed disk back, or a blank one in its place.
    pub fn repair_disk(&self, name: &str, disk: DiskKind, kind: RepairKind) -> Result<(), LabError> {
        let node = self.running_host(name)?;
        storage::repair(self.plan(), node, disk, kind, self.record().storage_bytes)
    }

    /// Fills the disk up to `leave` bytes.
    pub fn fill_disk(&self, name: &str, disk: DiskKind, leave: u64) -> Result<(), LabError> {
        storage::fill(self.plan(), self.running_host(name)?, disk, leave)
    }

    /// Takes away what [`Lab::fill_disk`] put there.
    pub fn unfill_disk(&self, name: &str, disk: DiskKind) -> Result<(), LabError> {
        storage::unfill(self.plan(), self.running_host(name)?, disk)
    }

    /// SIGKILL to the processes of one program on a machine; how many there were.
    pub fn kill_program(&self, name: &str, program: &str) -> Result<usize, LabError> {
        Ok(process::signal(&self.cgroup(self.running(name)?), program, Signal::KILL))
    }

    fn running_host(&self, name: &str) -> Result<&Node, LabError> {
        let node = self.running(name)?;
        match node.kind {
            NodeKind::Host => Ok(node),
            NodeKind::QuorumServer | NodeKind::Client => Err(LabError::NotAHost { name: node.name.clone() }),
        }
    }

    fn on_network(&self, node: &Node, network: Network) -> Result<(), LabError> {
        if node.networks().contains(&network) {
            return Ok(());
        }
        Err(LabError::NotOnNetwork { name: node.name.clone(), network })
    }
}

fn common_networks(first: &Node, second: &Node) -> Vec<Network> {
    first.networks().iter().copied().filter(|network| second.networks().contains(network)).collect()
}
