//! A node that is rebooted starts its pods and its agent beside each other: for how long pods run without policy.

use anyhow::Result;
use serde_json::json;

use super::super::super::inside_pods::probe::now;
use super::super::super::say;
use super::super::Stand;
use super::super::askers::{Askers, has_passed, pod_of};
use super::super::failures::power_fails;
use super::super::space::{PodPlan, Space, policy};
use super::spread;

/// How many pods the node has beside the agent.
const PODS: usize = 8;
const NODE: &str = "node2";
const SILENT: [(&str, &str); 1] = [("role", "silent")];

/// Has a node lose power again and again, while pods on it try what policy denies them.
pub(super) fn measure(stand: &Stand, times: usize) -> Result<()> {
    let space = Space::new(stand, "bench-reboots")?;
    let askers = Askers::new(&space)?;
    space.add_pod(&PodPlan::new("server", "node1"))?;
    space.apply(policy("silent", &SILENT, json!({"policyTypes": ["Egress"], "egress": []})))?;
    space.await_pods()?;
    let targets = space.targets_of("server")?;
    askers.aim("all", &targets[..1])?;
    let names: Vec<String> = (0..PODS).map(|number| format!("silent-{number}")).collect();
    for name in &names {
        let spec = askers.spec(Some(NODE), "all", &["--pause=5", "--timeout=20"]);
        space.apply(pod_of(name, &SILENT, &spec))?;
    }
    space.await_pods()?;
    let (mut back, mut open, mut closed) = (Vec::new(), Vec::new(), 0);
    for _ in 0..times {
        let begun = now();
        power_fails(stand, NODE)?;
        let ready = now();
        back.push(seconds(begun, ready));
        space.await_pods()?;
        for name in &names {
            askers.expect(name, &targets[..1], false, ready)?;
            let tries = askers.tries(name)?;
            let mut passed = tries.iter().filter(|one| one.begun >= begun && has_passed(one));
            match (passed.next(), passed.next_back()) {
                (Some(first), last) => open.push(seconds(first.begun, last.unwrap_or(first).ended)),
                (None, _) => closed += 1,
            }
        }
    }
    let [half, _, all] = spread(back);
    say(&format!(
        "{times} reboots of a node with {PODS} pods that may send nothing: its agent was ready after {half:.1} s, at most {all:.1} s"
    ));
    let (count, [half, _, all]) = (open.len(), spread(open));
    if count == 0 {
        say("no pod sent anything before its policy was in force");
    } else {
        say(&format!(
            "{closed} pods of {} sent nothing; the others could for {half:.1} s, at most {all:.1} s",
            closed + count
        ));
    }
    Ok(())
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}
