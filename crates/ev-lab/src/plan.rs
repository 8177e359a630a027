//! What a lab consists of: names, addresses and folders, all derived from its name, its folder and its size. No I/O.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// Most hosts of a lab; the address plan has room for them.
pub const HOSTS_MAX: u8 = 16;
/// Most quorum servers of a lab.
pub const QUORUM_SERVERS_MAX: u8 = 8;
/// Longest name of a lab: with it, paths of sockets stay under the kernel's 108 bytes.
pub const LAB_NAME_CHARS_MAX: usize = 24;
/// The client's last address byte on the VM network; guests have 10 to 99 to themselves there.
const CLIENT_ADDRESS: u8 = 200;

/// The name of a lab, unique on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabName(String);

impl LabName {
    /// Refuses what would not do as part of a file or namespace name.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > LAB_NAME_CHARS_MAX || !name.chars().all(fits) {
            return Err(LabError::BadName { name: name.to_owned(), max: LAB_NAME_CHARS_MAX });
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of one machine of the lab: `h1`, `h2`, …, `q1`, …, `client`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeName(String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lab's networks, each a bridge in the switch namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    Management,
    Private1,
    Private2,
    Vm,
}

impl Network {
    pub const ALL: [Network; 4] = [Network::Management, Network::Private1, Network::Private2, Network::Vm];

    /// The interface's name inside a machine.
    pub fn interface(self) -> &'static str {
        match self {
            Network::Management => "mgmt",
            Network::Private1 => "priv1",
            Network::Private2 => "priv2",
            Network::Vm => "vmnet",
        }
    }

    /// The bridge's name in the switch namespace.
    pub fn bridge(self) -> String {
        format!("br-{}", self.interface())
    }

    /// Third byte of the network's addresses, 10.10.N.0/24.
    fn subnet(self) -> u8 {
        match self {
            Network::Management => 0,
            Network::Private1 => 1,
            Network::Private2 => 2,
            Network::Vm => 3,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::Management => "management",
            Network::Private1 => "private1",
            Network::Private2 => "private2",
            Network::Vm => "vm",
        })
    }
}

/// What a machine of the lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    Host,
    QuorumServer,
    Client,
}

/// The two disks of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// `evd`'s state: pool state, certificates, library.
    System,
    /// The folders of the VMs: replicas and their metadata.
    Storage,
}

impl DiskKind {
    pub const ALL: [DiskKind; 2] = [DiskKind::System, DiskKind::Storage];

    fn image_name(self) -> &'static str {
        match self {
            DiskKind::System => "system.img",
            DiskKind::Storage => "storage.img",
        }
    }
}

/// One machine of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub kind: NodeKind,
    /// Last byte of its addresses.
    address: u8,
}

impl Node {
    /// The networks that the machine is plugged into.
    pub fn networks(&self) -> &'static [Network] {
        match self.kind {
            NodeKind::Host => &Network::ALL,
            NodeKind::QuorumServer => &[Network::Management],
            NodeKind::Client => &[Network::Vm],
        }
    }

    /// The machine's own address on a network. A host has none on the VM network, where its interface is a bridge's uplink.
    pub fn address(&self, network: Network) -> Option<Ipv4Addr> {
        let has = self.networks().contains(&network) && !(self.kind == NodeKind::Host && network == Network::Vm);
        has.then(|| Ipv4Addr::new(10, 10, network.subnet(), self.address))
    }

    /// The name of the switch's port that leads to this machine; at most 15 characters, the kernel's limit.
    pub fn port(&self, network: Network) -> String {
        format!("{}-{}", network.interface(), self.name)
    }

    pub fn disks(&self) -> &'static [DiskKind] {
        match self.kind {
            NodeKind::Host => &DiskKind::ALL,
            NodeKind::QuorumServer => &[DiskKind::System],
            NodeKind::Client => &[],
        }
    }
}

/// A whole lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub name: LabName,
    /// Disk images, logs and configuration.
    pub dir: PathBuf,
    pub nodes: Vec<Node>,
}

impl Plan {
    pub fn new(name: LabName, dir: PathBuf, hosts: u8, quorum_servers: u8) -> Result<Self, LabError> {
        if hosts == 0 || hosts > HOSTS_MAX {
            return Err(LabError::TooMany { what: "hosts", asked: hosts, max: HOSTS_MAX });
        }
        if quorum_servers > QUORUM_SERVERS_MAX {
            return Err(LabError::TooMany { what: "quorum servers", asked: quorum_servers, max: QUORUM_SERVERS_MAX });
        }
        let node = |name: String, kind, address| Node { name: NodeName(name), kind, address };
        let hosts = (1..=hosts).map(|n| node(format!("h{n}"), NodeKind::Host, 10 + n));
        let quorum_servers = (1..=quorum_servers).map(|n| node(format!("q{n}"), NodeKind::QuorumServer, 100 + n));
        let client = std::iter::once(node("client".to_owned(), NodeKind::Client, CLIENT_ADDRESS));
        Ok(Self { name, dir, nodes: hosts.chain(quorum_servers).chain(client).collect() })
    }

    /// The machine of that name, or an error that names those there are.
    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        self.nodes.iter().find(|node| node.name.0 == name).ok_or_else(|| LabError::UnknownNode {
            name: name.to_owned(),
            known: self.nodes.iter().map(|node| node.name.0.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    pub fn record_path(dir: &Path) -> PathBuf {
        dir.join("lab.json")
    }

    /// The namespace that holds the bridges, so that the machine's own network stays as it was.
    pub fn switch_namespace(&self) -> String {
        format!("ev-{}-switch", self.name)
    }

    pub fn namespace(&self, node: &Node) -> String {
        format!("ev-{}-{}", self.name, node.name)
    }

    /// The lab's folder below the root of the control group file system.
    pub fn cgroup(&self) -> String {
        format!("ev-lab-{}", self.name)
    }

    pub fn node_dir(&self, node: &Node) -> PathBuf {
        self.dir.join(&node.name.0)
    }

    /// Where a test arms the steps at which the machine's programs stop.
    pub fn failpoints_dir(&self, node: &Node) -> PathBuf {
        self.node_dir(node).join("failpoints")
    }

    pub fn state_dir(&self, node: &Node) -> PathBuf {
        self.node_dir(node).join("state")
    }

    pub fn image(&self, node: &Node, disk: DiskKind) -> PathBuf {
        self.node_dir(node).join(disk.image_name())
    }

    /// Where a disk is mounted. The storage disk holds the VMs' folders inside the state folder.
    pub fn mount_point(&self, node: &Node, disk: DiskKind) -> PathBuf {
        match disk {
            DiskKind::System => self.state_dir(node),
            DiskKind::Storage => self.state_dir(node).join("vms"),
        }
    }

    /// The volatile folders of all machines; short, as sockets are in them.
    pub fn run_root(&self) -> PathBuf {
        PathBuf::from("/run/ev-lab").join(&self.name.0)
    }

    pub fn run_dir(&self, node: &Node) -> PathBuf {
        self.run_root().join(&node.name.0)
    }

    pub fn config_path(&self, node: &Node) -> PathBuf {
        match node.kind {
            NodeKind::Host | NodeKind::Client => self.node_dir(node).join("evd.toml"),
            NodeKind::QuorumServer => self.node_dir(node).join("quorumd.toml"),
        }
    }

    /// What the machine's daemon printed, over all its starts.
    pub fn log_path(&self, node: &Node) -> PathBuf {
        self.node_dir(node).join("daemon.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let name = LabName::new("a-name-of-24-characters0").expect("it fits");
        Plan::new(name, PathBuf::from("/somewhere"), HOSTS_MAX, QUORUM_SERVERS_MAX).expect("within the limits")
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        for node in &plan().nodes {
            for network in node.networks() {
                assert!(node.port(*network).len() <= 15, "{}", node.port(*network));
            }
        }
    }

    #[test]
    fn addresses_are_unique_on_each_network() {
        let plan = plan();
        for network in Network::ALL {
            let mut seen = std::collections::BTreeSet::new();
            for address in plan.nodes.iter().filter_map(|node| node.address(network)) {
                assert!(seen.insert(address), "{address} twice on {network}");
            }
        }
    }

    #[test]
    fn sockets_of_a_vm_fit_the_kernel() {
        let plan = plan();
        let run = plan.run_dir(plan.node("client").expect("every lab has one"));
        let socket = run.join("vms/00000000-0000-0000-0000-000000000000/serial.sock");
        assert!(socket.as_os_str().len() < 108, "{}", socket.display());
    }

    #[test]
    fn names_that_would_not_do_are_refused() {
        for name in ["", "Upper", "a/b", "a b", "a-name-of-25-characters-00"] {
            assert!(LabName::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn an_unknown_machine_is_answered_with_those_there_are() {
        let plan = Plan::new(LabName::new("x").expect("fits"), PathBuf::from("/x"), 2, 1).expect("small");
        let message = plan.node("h3").expect_err("there are two").to_string();
        assert!(message.contains("h1, h2, q1, client"), "{message}");
    }
}
