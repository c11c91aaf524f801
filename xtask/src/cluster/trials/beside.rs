//! Another enforcer beside the agents, as while a cluster changes over from it: rules of iptables on every node, in the shape
//! that Azure NPM and Calico write them, and both are obeyed.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::inside;
use super::super::inside_pods::probe::now;
use super::super::plan::Machine;
use super::Stand;
use super::askers::{Askers, has_passed};
use super::space::{PodPlan, Space, Target, policy};

const SERVER: [(&str, &str); 1] = [("app", "server")];
const CHAIN: &str = "OTHER-ENFORCER";
/// Who asks, from where, with which labels, and whether each of the two admits him.
const CLIENTS: [(&str, &str, bool, bool); 5] = [
    ("both", "node1", true, true),
    ("both-far", "node2", true, true),
    ("only-ours", "node2", true, false),
    ("only-theirs", "node2", false, true),
    ("neither", "node1", false, false),
];

/// What either denies is denied; when the other goes, what the agents say is left, without a moment in which more passes.
pub(super) fn two_enforcers_enforce_both(stand: &Stand) -> Result<()> {
    let space = Space::new(stand, "trial-beside")?;
    let askers = Askers::new(&space)?;
    space.add_pod(&PodPlan::new("server", "node1").labels(&SERVER))?;
    askers.aim("all", [])?;
    for (client, node, ours, _) in CLIENTS {
        askers.add(client, node, if ours { &[("role", "friend")] } else { &[] }, "all")?;
    }
    let mut targets = space.add_service("server", &SERVER)?;
    space.await_pods()?;
    targets.extend(space.targets_of("server")?);
    targets.retain(|target| target.address().is_ipv4());
    let server = targets.last().context("the server has no address")?;
    let theirs = CLIENTS.iter().filter(|(_, _, _, theirs)| *theirs);
    let admitted: Vec<Target> =
        theirs.map(|(client, ..)| space.targets_of(client)).collect::<Result<Vec<_>>>()?.concat();
    askers.aim("all", &targets)?;
    let outcome = change_over(stand, &space, &askers, &targets, &rules(server, &admitted));
    let removed = on_all(stand, &removal());
    outcome.and(removed)
}

fn change_over(stand: &Stand, space: &Space<'_>, askers: &Askers<'_>, targets: &[Target], rules: &str) -> Result<()> {
    // First the other alone.
    on_all(stand, rules)?;
    let since = now();
    for (client, _, _, theirs) in CLIENTS {
        askers.expect(client, targets, theirs, since).context("by the other enforcer alone")?;
    }
    let friends = json!({"podSelector": {"matchLabels": {"role": "friend"}}});
    let rest = json!({"policyTypes": ["Ingress"], "ingress": [{"from": [friends]}]});
    space.apply(policy("friends-only", &SERVER, rest))?;
    for (client, _, ours, theirs) in CLIENTS {
        askers.expect(client, targets, ours && theirs, now()).context("with both side by side")?;
    }
    let since = now();
    on_all(stand, &removal())?;
    for (client, _, ours, _) in CLIENTS {
        askers.expect(client, targets, ours, now()).context("once the other has gone")?;
        let tries = askers.tries(client)?;
        if !ours && tries.iter().any(|one| one.begun >= since && has_passed(one)) {
            bail!("{client} passed when the other enforcer went");
        }
    }
    Ok(())
}

/// A chain before all forwarding: what is known goes on, what comes for the server from elsewhere than these does not.
fn rules(server: &Target, admitted: &[Target]) -> String {
    let mut script = format!(
        "iptables -w -N {CHAIN}\n\
         iptables -w -A {CHAIN} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    );
    for client in admitted.iter().filter(|client| client.address().is_ipv4()) {
        script += &format!("iptables -w -A {CHAIN} -d {} -s {} -j ACCEPT\n", server.address(), client.address());
    }
    script += &format!(
        "iptables -w -A {CHAIN} -d {} -j DROP\n\
         iptables -w -I FORWARD 1 -j {CHAIN}\n",
        server.address()
    );
    script
}

fn removal() -> String {
    format!(
        "iptables -w -C FORWARD -j {CHAIN} 2>/dev/null || exit 0\n\
         iptables -w -D FORWARD -j {CHAIN}\niptables -w -F {CHAIN}\niptables -w -X {CHAIN}\n"
    )
}

fn on_all(stand: &Stand, script: &str) -> Result<()> {
    let script = format!("set -e\n{script}");
    for node in stand.state.plan.nodes() {
        inside::output(&stand.state, Machine::Node(node), &["sh", "-c", &script])?;
    }
    Ok(())
}
