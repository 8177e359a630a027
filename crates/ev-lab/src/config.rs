//! The daemons' configuration files, as an administrator would write them for real hosts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::LabError;
use crate::plan::{Network, Node, NodeKind, Plan};
use crate::record::Record;

/// Writes the configuration of a machine's daemon.
pub fn write(record: &Record, node: &Node) -> Result<(), LabError> {
    let path = record.plan.config_path(node);
    let text = match node.kind {
        NodeKind::Host => host(record, node),
        NodeKind::QuorumServer => quorum_server(&record.plan, node),
        NodeKind::Client => return Ok(()),
    };
    fs::write(&path, text).map_err(LabError::file("write", path))
}

/// A string in TOML. The lab's paths and names hold nothing that TOML and Rust escape differently.
fn quoted(text: impl AsRef<Path>) -> String {
    format!("{:?}", text.as_ref().to_string_lossy())
}

fn host(record: &Record, node: &Node) -> String {
    let plan = &record.plan;
    let address = |network| node.address(network).map(|address| address.to_string()).unwrap_or_default();
    let mut text = String::new();
    text += &format!("name = {}\n", quoted(node.name.to_string()));
    text += &format!("management_address = {}\n", quoted(address(Network::Management)));
    text += &format!(
        "private_addresses = [{}, {}]\n",
        quoted(address(Network::Private1)),
        quoted(address(Network::Private2))
    );
    text += &format!("state_dir = {}\n", quoted(plan.state_dir(node)));
    text += &format!("run_dir = {}\n", quoted(plan.run_dir(node)));
    text += &format!("qemu = {}\n", quoted(&record.qemu));
    if let Some(data_dir) = &record.qemu_data_dir {
        text += &format!("qemu_data_dir = {}\n", quoted(data_dir));
    }
    text += "qemu_user = \"nobody\"\n";
    text += &format!("\n[networks.vm]\nuplink = {}\n", quoted(Network::Vm.interface()));
    text
}

fn quorum_server(plan: &Plan, node: &Node) -> String {
    let address = node.address(Network::Management).map(|address| address.to_string()).unwrap_or_default();
    format!(
        "name = {}\naddress = {}\nstate_dir = {}\n",
        quoted(node.name.to_string()),
        quoted(address),
        quoted(plan.state_dir(node))
    )
}

/// The daemon of a machine, if it has one.
pub fn daemon(record: &Record, node: &Node) -> Option<PathBuf> {
    match node.kind {
        NodeKind::Host => Some(record.bin_dir.join("evd")),
        NodeKind::QuorumServer => Some(record.bin_dir.join("ev-quorumd")),
        NodeKind::Client => None,
    }
}
