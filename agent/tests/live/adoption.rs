//! Agents that end and start while flows last: what was open goes on if policy allows it, however long there was none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_common::flow::Lifetime;
use portcullis_testbed::{Protocol, Shape};

use crate::agent::Agent;
use crate::lasting::{Flow, all_pass, none_pass};
use crate::long_lived::{ROLES, all_allowed, cluster, flows, policies};

const SHAPES: [Shape; 2] = [Shape::Routed, Shape::Bridged];

/// Every lifetime. What is used is used more often than that on a busy machine too.
const SHORT: Duration = Duration::from_secs(4);

/// Ends a thread, also when something else has failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_agent_that_was_away_for_longer_than_every_lifetime_ends_only_what_policy_has_ended_meanwhile() {
    let arguments: Vec<String> = (Lifetime::ALL.iter())
        .flat_map(|(_, name, _)| ["--flow-lifetime".to_owned(), format!("{name}={}s", SHORT.as_secs())])
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for shape in SHAPES {
        let mut cluster = cluster(shape, true, &arguments);
        cluster.enforce(&all_allowed());
        // Nobody says anything on these meanwhile; what the kernel knows of UDP flows would be over when they are.
        let mut idle: Vec<Flow> = flows(&cluster).into_iter().filter(|flow| flow.protocol == Protocol::Tcp).collect();
        all_pass("at first", &mut idle);
        let (mut used, mut denied): (Vec<Flow>, Vec<Flow>) =
            flows(&cluster).into_iter().partition(|flow| flow.server == "y/b");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let user = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    all_pass(&format!("{shape:?}, used"), &mut used);
                }
            });
            let ended = End(&stop);
            cluster.agents.iter_mut().for_each(Agent::terminate);
            let fence = cluster.write_policies(&policies(&ROLES[..1], &["y", "z"]));
            // Nothing can be awaited but time itself.
            std::thread::sleep(SHORT + SHORT / 2);
            cluster.agents.iter_mut().for_each(Agent::spawn);
            cluster.agents.iter().for_each(Agent::await_ready);
            cluster.await_fence(&fence);
            drop(ended);
            user.join().unwrap();
        });
        all_pass(&format!("{shape:?}, used"), &mut used);
        let (mut idle, idle_and_denied): (Vec<Flow>, Vec<Flow>) =
            idle.into_iter().partition(|flow| flow.server == "y/b");
        all_pass(&format!("{shape:?}, idle"), &mut idle);
        denied.extend(idle_and_denied);
        none_pass(&format!("{shape:?}, denied meanwhile"), &cluster, &mut denied);
    }
}
