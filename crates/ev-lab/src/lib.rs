//! Hosts on one machine: network namespaces, disks and control groups in which the product's daemons run as they would
//! on machines of their own, with faults on demand. Nothing in the product knows that it runs here.

mod cgroup;
mod config;
mod error;
mod faults;
mod lab;
mod network;
mod plan;
mod power;
mod process;
mod record;
mod storage;
mod tool;

pub use error::LabError;
pub use lab::{Lab, LabOptions, NodeStatus, default_dir};
pub use network::Direction;
pub use plan::{DiskKind, LabName, Network, Node, NodeKind, NodeName, Plan};
pub use power::PowerState;
pub use process::Process;
pub use storage::RepairKind;
