//! Who reaches whom, and what is counted.

use anyhow::{Result, bail};
use serde_json::json;

use super::Stand;
use super::agents;
use super::space::{PORT, PodPlan, Space, policy};

const SERVER: [(&str, &str); 1] = [("app", "server")];
const FRIEND: [(&str, &str); 1] = [("role", "friend")];

/// By pod address and by Service, on the server's node and on the other, in both families.
pub(super) fn allows_and_denies(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-policy")?;
    space.add_pod(&PodPlan::new("server", "node1").labels(&SERVER))?;
    space.add_pod(&PodPlan::new("friend1", "node1").labels(&FRIEND))?;
    space.add_pod(&PodPlan::new("friend2", "node2").labels(&FRIEND))?;
    space.add_pod(&PodPlan::new("stranger1", "node1"))?;
    space.add_pod(&PodPlan::new("stranger2", "node2"))?;
    let mut targets = space.add_service("server", &SERVER)?;
    space.await_pods()?;
    targets.extend(space.targets_of("server")?);
    let all = ["friend1", "friend2", "stranger1", "stranger2"];
    all.iter().try_for_each(|pod| space.expect(pod, &targets, true))?;

    space.apply(policy(
        "friends-only",
        &SERVER,
        json!({"policyTypes": ["Ingress"], "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"role": "friend"}}}],
            "ports": [{"port": PORT}],
        }]}),
    ))?;
    ["stranger1", "stranger2"].iter().try_for_each(|pod| space.expect(pod, &targets, false))?;
    ["friend1", "friend2"].iter().try_for_each(|pod| space.expect(pod, &targets, true))?;

    space.output(&["label", "pod", "stranger2", "role=friend"])?;
    space.expect("stranger2", &targets, true)?;
    space.expect("stranger1", &targets, false)?;

    // What a pod sends is judged by where it ends, so a Service is no way round.
    space.apply(policy("silent", &FRIEND, json!({"policyTypes": ["Egress"], "egress": []})))?;
    ["friend1", "friend2", "stranger2"].iter().try_for_each(|pod| space.expect(pod, &targets, false))?;

    space.output(&["delete", "networkpolicy", "--all"])?;
    all.iter().try_for_each(|pod| space.expect(pod, &targets, true))
}

/// The counters of all nodes together are what was sent, to the packet.
pub(super) fn counters_add_up(stand: &Stand) -> Result<()> {
    const SENT: u64 = 20;
    let space = Space::new(stand, "trial-counters")?;
    for node in ["node1", "node2"] {
        let number = node.trim_start_matches("node");
        space.add_pod(&PodPlan::new(&format!("server{number}"), node).labels(&SERVER))?;
        space.add_pod(&PodPlan::new(&format!("friend{number}"), node).labels(&FRIEND))?;
        space.add_pod(&PodPlan::new(&format!("stranger{number}"), node))?;
    }
    space.await_pods()?;
    let mut addresses = Vec::new();
    for server in ["server1", "server2"] {
        addresses.extend(space.targets_of(server)?);
    }
    space.apply(policy(
        "counted",
        &SERVER,
        json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}),
    ))?;
    // In force everywhere before anything is counted. These connections are counted as well, so they are subtracted.
    for stranger in ["stranger1", "stranger2"] {
        space.expect(stranger, &addresses, false)?;
    }
    for friend in ["friend1", "friend2"] {
        space.expect(friend, &addresses, true)?;
    }
    // A closed connection may still send its last packets.
    let before = agents::settled(stand, "trial-counters/counted")?;
    let ping: String = addresses
        .iter()
        .map(|target| format!("ping -q -c {SENT} -i 0.05 -W 1 {} >/dev/null\n", target.address()))
        .collect();
    for pod in ["stranger1", "stranger2", "friend1", "friend2"] {
        space.script(pod, &format!("{ping}true"))?;
    }
    let after = agents::settled(stand, "trial-counters/counted")?;
    let pairs = 2 * addresses.len() as u64;
    let denied = after.of("isolation") - before.of("isolation");
    if denied != pairs * SENT {
        bail!("{} packets were denied, and {denied} were counted", pairs * SENT);
    }
    // An answer belongs to the flow, and so to the rule that admitted it.
    let allowed = after.of("0") - before.of("0");
    if allowed != 2 * pairs * SENT {
        bail!("{} packets were allowed, and {allowed} were counted", 2 * pairs * SENT);
    }
    Ok(())
}
