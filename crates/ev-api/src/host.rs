//! Hosts as users see them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::pool::AddressView;

/// How the pool master sees a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Heard on at least one path.
    Online,
    /// Silent on every path for the detection time.
    Dead,
    /// The master is too new to know.
    Unknown,
}

/// `GET /v1/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    pub id: u64,
    pub name: String,
    pub state: HostState,
    pub master: bool,
    pub votes: bool,
    pub api_address: SocketAddr,
    pub addresses: Vec<AddressView>,
    /// Processor, as its maker calls it.
    pub cpu: String,
    pub cpus: u32,
    pub memory_mib: u64,
    pub qemu_version: String,
    /// `kvm`, or `tcg` with the reason.
    pub accelerator: String,
    /// From which hosts, on which networks, this host hears.
    pub paths: Vec<PathView>,
    /// What is wrong on this host.
    pub troubles: Vec<String>,
    /// Names of VMs whose active host this is.
    pub vms: Vec<String>,
}

/// One direction of one network between two hosts, as the receiver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathView {
    pub from: String,
    pub network: String,
    pub heard: bool,
}

/// `DELETE /v1/hosts/{host}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRemove {
    /// Remove it although it is dead and cannot be told.
    #[serde(default)]
    pub force: bool,
}
