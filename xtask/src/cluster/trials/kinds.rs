//! Pods that come about in other ways than most: static pods, pods with init containers, and pods that get the address of
//! one that has ended.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::images::AGNHOST;
use super::super::plan::Machine;
use super::super::state::folder_of;
use super::Stand;
use super::askers::{Askers, has_passed, pod_of};
use super::space::{PodPlan, Space, Target, eventually, policy};

const SILENT: [(&str, &str); 1] = [("role", "silent")];
const SERVER: [(&str, &str); 1] = [("app", "server")];
const FRIEND: [(&str, &str); 1] = [("role", "friend")];
const STATIC: &str = "static";
const NODE: &str = "node2";
/// Where host-local keeps who has which address, on the node's disk.
const ADDRESSES: &str = "root/var/lib/cni/networks/portcullis";

pub(super) fn pods_of_every_kind_are_enforced(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-kinds")?;
    let askers = Askers::new(&space)?;
    space.add_pod(&PodPlan::new("server", "node1").labels(&SERVER))?;
    space.apply(policy("silent", &SILENT, json!({"policyTypes": ["Egress"], "egress": []})))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    askers.aim("all", &targets)?;
    let file = write_static(&space, &askers)?;
    let outcome = try_kinds(&space, &askers, &targets);
    // Kubelet removes the pod.
    let _ = fs::remove_file(file);
    outcome
}

fn try_kinds(space: &Space<'_>, askers: &Askers<'_>, targets: &[Target]) -> Result<()> {
    // Both families, from the first packet of its first container.
    let mut spec = askers.spec(Some(NODE), "all", &[]);
    spec["initContainers"] = json!([first_container(targets)]);
    space.apply(pod_of("prepared", &SILENT, &spec))?;
    askers.add("free", NODE, &[], "all")?;
    space.await_pods()?;
    for name in ["prepared", &format!("{STATIC}-{NODE}")] {
        askers.expect(name, targets, false, 0).with_context(|| format!("{name}, which may send nothing"))?;
        if askers.tries(name)?.iter().any(has_passed) {
            bail!("{name} sent something before its policy was in force");
        }
    }
    askers.expect("free", targets, true, 0)?;
    heirs_are_strangers(space, askers, targets)
}

/// An init container that tries each address, and fails if it can be reached.
fn first_container(targets: &[Target]) -> Value {
    let tries: String = targets
        .iter()
        .map(|target| format!("/agnhost connect '{target}' --timeout=1s && echo {target} answers && exit 1\n"))
        .collect();
    json!({
        "name": "first",
        "image": AGNHOST,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", format!("{tries}exit 0")],
    })
}

/// A pod that kubelet runs from a file, and that nobody else has asked for. The API server is shown a copy, whose name has
/// the node's behind it.
fn write_static(space: &Space<'_>, askers: &Askers<'_>) -> Result<PathBuf> {
    let mut pod = pod_of(STATIC, &SILENT, &askers.spec(None, "all", &[]));
    pod["metadata"]["namespace"] = json!(space.name);
    let place = folder_of(node()?).join("root/var/lib/kubelet/manifests/trial.json");
    let draft = place.with_extension("draft");
    fs::write(&draft, serde_json::to_vec(&pod)?)?;
    fs::rename(&draft, &place).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(place)
}

/// A pod that has ended, well or badly, is no peer any more, though its object stays: whoever gets its address next is not
/// taken for it.
fn heirs_are_strangers(space: &Space<'_>, askers: &Askers<'_>, targets: &[Target]) -> Result<()> {
    let friends = json!({"podSelector": {"matchLabels": {"role": "friend"}}});
    let rest = json!({"policyTypes": ["Ingress"], "ingress": [{"from": [friends]}]});
    space.apply(policy("friends-only", &SERVER, rest))?;
    askers.add("friend", NODE, &FRIEND, "all")?;
    let ends = [("succeeded", "Succeeded", 0), ("failed", "Failed", 1)];
    for (name, _, code) in ends {
        let mut spec = PodPlan::new(name, NODE).script(format!("sleep 3; exit {code}")).spec();
        spec["restartPolicy"] = json!("Never");
        space.apply(pod_of(name, &FRIEND, &spec))?;
    }
    for (name, phase, _) in ends {
        let address = address_left_by(space, name, phase)?;
        next_address(address)?;
        let heir = format!("heir-of-{name}");
        askers.add(&heir, NODE, &[], "all")?;
        askers.expect(&heir, targets, false, 0).with_context(|| format!("the heir of {name}"))?;
        let own: Vec<Target> = space.targets_of(&heir)?;
        if !own.iter().any(|target| target.address() == address) {
            bail!("{heir} was to get {address}, which {name} had, and has {own:?}");
        }
        if askers.tries(&heir)?.iter().any(has_passed) {
            bail!("{heir} was taken for {name}, whose address it has");
        }
    }
    askers.expect("friend", targets, true, 0)
}

/// The address of a pod that has ended, once nobody has it.
fn address_left_by(space: &Space<'_>, pod: &str, wanted: &str) -> Result<Ipv4Addr> {
    let word = |path: &str| space.output(&["get", "pod", pod, &format!("--output=jsonpath={{.status.{path}}}")]);
    let mut address = None;
    eventually("a pod's address", || {
        address = word("podIP")?.parse().ok();
        address.map(drop).context("it has none yet")
    })?;
    let address: Ipv4Addr = address.context("no address")?;
    let reservation = folder_of(node()?).join(ADDRESSES).join(address.to_string());
    eventually("a pod's end", || match word("phase")?.as_str() {
        phase if phase != wanted => bail!("{pod} is {phase}"),
        _ if reservation.exists() => bail!("{pod} still has its address"),
        _ => Ok(()),
    })?;
    Ok(address)
}

/// Has the node's next pod get this address: they are handed out in turn, and this says whose turn it was.
fn next_address(address: Ipv4Addr) -> Result<()> {
    let last = Ipv4Addr::from(u32::from(address) - 1);
    let place = folder_of(node()?).join(ADDRESSES).join("last_reserved_ip.0");
    fs::write(&place, last.to_string()).with_context(|| format!("cannot write {}", place.display()))
}

fn node() -> Result<Machine> {
    Machine::named(NODE).context("there is no such node")
}
