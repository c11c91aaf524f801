//! The nodes' network: a bridge in the control plane's namespace, which is also everybody's next hop, and routes to the
//! pods of each node, as a cloud's network has them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::plan::{self, Machine, Plan};
use super::state::{FOLDER, HOST_LINK, PREFIX};
use crate::process;

/// Makes namespaces, interfaces and routes. Machines turn forwarding on themselves.
pub(super) fn make(plan: &Plan) -> Result<()> {
    for machine in plan.machines() {
        process::run_silently(Command::new("ip").args(["netns", "add", &machine.namespace()]))?;
    }
    batch(None, &links(plan))?;
    batch(Some(Machine::Control), &of_control(plan))?;
    for node in plan.nodes() {
        batch(Some(Machine::Node(node)), &of_node(plan, node))?;
    }
    Ok(())
}

/// Takes a node's namespace away with all that is in it, and makes it anew. The interface keeps its hardware address, as a
/// machine's does: others remember it.
pub(super) fn remake(plan: &Plan, node: plan::Node) -> Result<()> {
    let (name, namespace) = (node.name(), Machine::Node(node).namespace());
    let control = Machine::Control.namespace();
    let listed = process::output_of(Command::new("ip").args(["-n", &namespace, "-o", "link", "show", "eth0"]))?;
    let address = listed.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let address = address.with_context(|| format!("eth0 of {name} has no hardware address"))?.to_owned();
    process::run_silently(Command::new("ip").args(["-n", &control, "link", "del", &name]))?;
    process::run_silently(Command::new("ip").args(["netns", "del", &namespace]))?;
    process::run_silently(Command::new("ip").args(["netns", "add", &namespace]))?;
    let pair =
        format!("link add eth0 address {address} netns {namespace} type veth peer name {name} netns {control}\n");
    batch(None, &pair)?;
    batch(Some(Machine::Control), &format!("link set {name} master br0 up\n"))?;
    batch(Some(Machine::Node(node)), &of_node(plan, node))
}

/// Removes all that [`make`] may have made.
pub(super) fn remove() -> Result<()> {
    if Path::new("/sys/class/net").join(HOST_LINK).exists() {
        process::run_silently(Command::new("ip").args(["link", "del", HOST_LINK]))?;
    }
    for name in namespaces() {
        process::run_silently(Command::new("ip").args(["netns", "del", &name]))?;
    }
    Ok(())
}

/// The cluster's named network namespaces that there are.
pub(super) fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(PREFIX)).collect()
}

/// Pairs from the control plane to each node, and one to this machine.
fn links(plan: &Plan) -> String {
    let control = Machine::Control.namespace();
    let mut script = format!("link add {HOST_LINK} type veth peer name host netns {control}\n");
    let _ = writeln!(script, "addr add {}/24 dev {HOST_LINK}", plan::HOST_V4);
    let _ = writeln!(script, "addr add {}/64 dev {HOST_LINK} nodad", plan::HOST_V6);
    let _ = writeln!(script, "link set {HOST_LINK} up");
    for node in plan.nodes() {
        let (name, namespace) = (node.name(), Machine::Node(node).namespace());
        let _ = writeln!(script, "link add eth0 netns {namespace} type veth peer name {name} netns {control}");
    }
    script
}

fn of_control(plan: &Plan) -> String {
    let mut script = String::from("link set lo up\nlink add br0 type bridge\nlink set host master br0 up\n");
    let _ =
        writeln!(script, "addr add {}/24 dev br0\naddr add {}/64 dev br0 nodad", plan::CONTROL_V4, plan::CONTROL_V6);
    script.push_str("link set br0 up\n");
    for node in plan.nodes() {
        let _ = writeln!(script, "link set {} master br0 up", node.name());
        let _ = writeln!(script, "route add {} via {}", node.pods_v4(), node.v4());
        let _ = writeln!(script, "route add {} via {}", node.pods_v6(), node.v6());
    }
    script
}

fn of_node(plan: &Plan, node: plan::Node) -> String {
    let mut script = String::from("link set lo up\n");
    let _ = writeln!(script, "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad", node.v4(), node.v6());
    script.push_str("link set eth0 up\n");
    let _ = writeln!(script, "route add default via {}\nroute add default via {}", plan::CONTROL_V4, plan::CONTROL_V6);
    for other in plan.nodes().filter(|other| *other != node) {
        let _ = writeln!(script, "route add {} via {}", other.pods_v4(), other.v4());
        let _ = writeln!(script, "route add {} via {}", other.pods_v6(), other.v6());
    }
    script
}

/// Has `ip` do all lines, in a machine's namespace or in this one.
fn batch(machine: Option<Machine>, script: &str) -> Result<()> {
    let file = Path::new(FOLDER).join("network.batch");
    fs::write(&file, script)?;
    let mut command = Command::new("ip");
    if let Some(machine) = machine {
        command.args(["-n", &machine.namespace()]);
    }
    process::run_silently(command.arg("-batch").arg(&file)).context("cannot make the nodes' network")
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Cni, Proxy};
    use super::*;

    #[test]
    fn every_node_knows_the_way_to_the_pods_of_all_others() {
        let plan = Plan { nodes: 3, cni: Cni::Azv, proxy: Proxy::Iptables };
        for node in plan.nodes() {
            let script = of_node(&plan, node);
            for other in plan.nodes() {
                let (v4, v6) = (format!("route add {} ", other.pods_v4()), format!("route add {} ", other.pods_v6()));
                let expected = usize::from(other != node);
                assert_eq!(script.matches(&v4).count(), expected, "{} to {}", node.name(), other.name());
                assert_eq!(script.matches(&v6).count(), expected, "{} to {}", node.name(), other.name());
            }
        }
    }
}
