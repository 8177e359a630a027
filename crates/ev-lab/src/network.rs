//! Namespaces, the switch's bridges and ports, and the cuts between machines.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::LabError;
use crate::plan::{Network, Node, Plan};
use crate::tool::{run, run_with_input};

/// Which way a cut goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    BothWays,
    /// Only what the first machine sends to the second is lost.
    FirstToSecond,
}

/// The switch's rule table; its only chain holds a rule per cut.
const CUT_TABLE: &str = "add table bridge cuts\n\
                         add chain bridge cuts forward { type filter hook forward priority 0; }\n";

/// Names of the namespaces that there are now.
pub fn namespaces() -> Result<BTreeSet<String>, LabError> {
    let list = run("ip", &["netns", "list"])?;
    Ok(list.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// The switch: a namespace with a bridge for each network.
pub fn create_switch(plan: &Plan) -> Result<(), LabError> {
    let switch = plan.switch_namespace();
    run("ip", &["netns", "add", &switch])?;
    let mut lines = String::new();
    for network in Network::ALL {
        let bridge = network.bridge();
        lines += &format!("link add name {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n");
        lines += &format!("link set dev {bridge} up\n");
    }
    run_with_input("ip", &["-n", &switch, "-batch", "-"], &lines)?;
    nft(plan, CUT_TABLE)
}

/// A machine's namespace, and its cables into the switch.
pub fn plug_in(plan: &Plan, node: &Node) -> Result<(), LabError> {
    let (switch, namespace) = (plan.switch_namespace(), plan.namespace(node));
    run("ip", &["netns", "add", &namespace])?;
    let (mut cables, mut ports, mut own) = (String::new(), String::new(), String::from("link set dev lo up\n"));
    for network in node.networks() {
        let (interface, port, bridge) = (network.interface(), node.port(*network), network.bridge());
        cables += &format!("link add name {interface} netns {namespace} type veth peer name {port} netns {switch}\n");
        ports += &format!("link set dev {port} master {bridge} up\n");
        own += &format!("link set dev {interface} up\n");
        if let Some(address) = node.address(*network) {
            own += &format!("addr add {address}/24 dev {interface}\n");
        }
    }
    run_with_input("ip", &["-batch", "-"], &cables)?;
    run_with_input("ip", &["-n", &switch, "-batch", "-"], &ports)?;
    run_with_input("ip", &["-n", &namespace, "-batch", "-"], &own).map(|_| ())
}

/// Takes a machine's cables away, at once for the others and without a word from the machine.
pub fn pull_out(plan: &Plan, node: &Node) -> Result<(), LabError> {
    let lines: String =
        node.networks().iter().map(|network| format!("link del dev {}\n", node.port(*network))).collect();
    run_with_input("ip", &["-n", &plan.switch_namespace(), "-batch", "-"], &lines).map(|_| ())
}

/// Carrier of one interface, off or on, as when a cable is pulled or put back.
pub fn set_carrier(plan: &Plan, node: &Node, network: Network, up: bool) -> Result<(), LabError> {
    let state = if up { "up" } else { "down" };
    run("ip", &["-n", &plan.switch_namespace(), "link", "set", "dev", &node.port(network), state]).map(|_| ())
}

/// Lets a machine send only so many bits per second into a network; `None`: as many as it can.
pub fn set_rate(plan: &Plan, node: &Node, network: Network, bits_per_second: Option<u64>) -> Result<(), LabError> {
    let (namespace, interface) = (plan.namespace(node), network.interface());
    let tc = |words: &[&str]| run("tc", &[&["-n", &namespace, "qdisc"], words].concat()).map(|_| ());
    match bits_per_second {
        // What a real switch's port would queue.
        Some(rate) => {
            let rate = format!("{rate}bit");
            tc(&["replace", "dev", interface, "root", "tbf", "rate", &rate, "burst", "32kb", "latency", "50ms"])
        }
        None => tc(&["del", "dev", interface, "root"]),
    }
}

pub fn remove_namespace(name: &str) -> Result<(), LabError> {
    if !Path::new("/run/netns").join(name).exists() {
        return Ok(());
    }
    run("ip", &["netns", "del", name]).map(|_| ())
}

/// Loses all frames between two machines on the given networks.
pub fn cut(plan: &Plan, first: &Node, second: &Node, networks: &[Network], way: Direction) -> Result<(), LabError> {
    nft(plan, &cut_rules(first, second, networks, way))
}

/// The switch's rules for a cut, in nft(8)'s language.
fn cut_rules(first: &Node, second: &Node, networks: &[Network], way: Direction) -> String {
    let rule = |from: &Node, to: &Node, network: Network| {
        let (from, to) = (from.port(network), to.port(network));
        format!("add rule bridge cuts forward iifname \"{from}\" oifname \"{to}\" counter drop\n")
    };
    networks
        .iter()
        .map(|network| match way {
            Direction::FirstToSecond => rule(first, second, *network),
            Direction::BothWays => rule(first, second, *network) + &rule(second, first, *network),
        })
        .collect()
}

/// Ends all cuts.
pub fn heal(plan: &Plan) -> Result<(), LabError> {
    nft(plan, "flush chain bridge cuts forward\n")
}

/// The cuts in force, one a line, as the switch's rules say them.
pub fn cuts(plan: &Plan) -> Result<Vec<String>, LabError> {
    let list =
        run("ip", &["netns", "exec", &plan.switch_namespace(), "nft", "list", "chain", "bridge", "cuts", "forward"])?;
    Ok(list.lines().filter(|line| line.contains("iifname")).filter_map(describe_cut).collect())
}

/// `mgmt-h1 to mgmt-h2` out of a rule.
fn describe_cut(rule: &str) -> Option<String> {
    let mut quoted = rule.split('"').skip(1).step_by(2);
    Some(format!("{} to {}", quoted.next()?, quoted.next()?))
}

fn nft(plan: &Plan, rules: &str) -> Result<(), LabError> {
    run_with_input("ip", &["netns", "exec", &plan.switch_namespace(), "nft", "-f", "-"], rules).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::plan::LabName;

    #[test]
    fn a_one_way_cut_has_one_rule_a_network_and_a_full_one_two() {
        let plan = Plan::new(LabName::new("x").expect("fits"), PathBuf::from("/x"), 2, 0).expect("small");
        let (h1, h2) = (plan.node("h1").expect("there"), plan.node("h2").expect("there"));
        let one = cut_rules(h1, h2, &[Network::Private1], Direction::FirstToSecond);
        assert_eq!(one, "add rule bridge cuts forward iifname \"priv1-h1\" oifname \"priv1-h2\" counter drop\n");
        assert_eq!(describe_cut(&one).as_deref(), Some("priv1-h1 to priv1-h2"));
        let both = cut_rules(h1, h2, &[Network::Private1, Network::Vm], Direction::BothWays);
        assert_eq!(both.lines().count(), 4);
    }
}
