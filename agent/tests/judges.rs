//! The evaluator and `decide` over compiled tables give the same verdict by the same rule, for random clusters and packets.
//! The third judge, the loaded programs, is asked in `judges_live`.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test, whose modules are shared with others that use other parts of them"
)]

#[path = "judges/compare.rs"]
mod compare;
#[path = "judges/documents.rs"]
mod documents;
#[path = "judges/hooks.rs"]
mod hooks;
#[path = "judges/journey.rs"]
mod journey;
#[path = "judges/oracle.rs"]
mod oracle;
#[path = "judges/packets.rs"]
mod packets;
#[path = "judges/sequences.rs"]
mod sequences;
#[path = "judges/world.rs"]
mod world;

use compare::{Court, judge_random_clusters};
use hooks::Memory;
use portcullis::cli::{Engine, EvaluatorEngine, TablesEngine};
use portcullis::evaluate::{NodeView, Party};
use portcullis::model::{Direction, Protocol, Traffic};
use proptest::prelude::*;
use world::World;

#[test]
fn evaluator_and_tables_agree() {
    let judged = judge_random_clusters(Court::<Memory>::new(None), 500);
    println!("{judged} packets were judged");
    assert!(judged >= 10_000, "only {judged} packets were judged");
}

/// The questions of `portcullis matrix`, answered by both of its engines.
#[test]
fn engines_of_the_matrix_agree() {
    let traffic =
        |protocol, ports: &[u16]| ports.iter().map(move |port| Traffic { protocol, port: *port }).collect::<Vec<_>>();
    let asked = [
        traffic(Protocol::TCP, &[53, 80, 90, 443, 8080]),
        traffic(Protocol::UDP, &[53, 80, 90]),
        traffic(Protocol::SCTP, &[80, 7000]),
    ]
    .concat();
    proptest!(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }, |(spec in world::cluster())| {
        let cluster = World::of(&spec).cluster;
        // A host-network pod is its node to the evaluator; tables only see its address, which may be a Service's.
        let nodes_own = |ip: &std::net::IpAddr| cluster.nodes.values().any(|node| node.addresses.contains(ip));
        prop_assume!(!cluster.services.values().any(|service| service.external_ips.iter().any(nodes_own)));
        let (evaluator, tables) = (EvaluatorEngine::new(&cluster), TablesEngine::new(&cluster).unwrap());
        let nodes = NodeView::of(&cluster);
        // The matrix leaves finished pods out: their addresses may be others' already.
        let pods: Vec<_> = cluster.pods.values().filter(|pod| !pod.finished).collect();
        for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (*from, *to))) {
            for family in Party::Pod(from).families(&Party::Pod(to)) {
                let egress = nodes.view(from, Direction::Egress, Party::Pod(to), family);
                let ingress = nodes.view(to, Direction::Ingress, Party::Pod(from), family);
                for traffic in &asked {
                    for (pod, direction, view) in [(from, Direction::Egress, &egress), (to, Direction::Ingress, &ingress)] {
                        let ours = tables.decide(pod, direction, view, *traffic);
                        let right = evaluator.decide(pod, direction, view, *traffic);
                        prop_assert_eq!(ours, right, "{} of {} to {}, {} {:?}", direction, from.key, to.key, family, traffic);
                    }
                }
            }
        }
    });
}

/// Tables that a broken compiler might make are caught: the judges are as strict as they claim.
#[test]
fn broken_tables_are_caught() {
    use portcullis::model::Verdict;
    use portcullis::state::{ClassId, Desired, PortClass, RuleCause, ServiceReach};
    type Break = fn(&mut Desired);
    let breaks: [(&str, Break); 12] = [
        ("a verdict is swapped", |desired| {
            for verdict in desired.verdicts.values_mut() {
                verdict.verdict = if verdict.verdict == Verdict::Allow { Verdict::Deny } else { Verdict::Allow };
            }
        }),
        ("the default of a profile is another", |desired| {
            for verdict in desired.profile_defaults.values_mut() {
                verdict.verdict = if verdict.verdict == Verdict::Allow { Verdict::Deny } else { Verdict::Allow };
            }
        }),
        ("rules are counted under their neighbours' numbers", |desired| {
            desired.verdicts.values_mut().for_each(|verdict| verdict.rule.0 += 1);
        }),
        ("sets do not know their classes", |desired| desired.profiles.retain(|(_, _, itself), _| *itself)),
        ("the endpoint itself is a peer like others", |desired| {
            desired.profiles.retain(|(_, _, itself), _| !itself);
        }),
        ("a run of ports ends one too late", |desired| {
            desired.ports.values_mut().for_each(|(last, _)| *last = last.saturating_add(1));
        }),
        ("ports have no class", |desired| desired.ports.values_mut().for_each(|(_, class)| *class = PortClass(0))),
        ("except is forgotten", |desired| {
            let longest = desired.ranges.keys().max_by_key(|net| net.prefix_len()).copied();
            longest.map(|net| desired.ranges.remove(&net));
        }),
        ("pods have no class", |desired| desired.addresses.values_mut().for_each(|entry| entry.class = ClassId(0))),
        ("Services are not translatable", |desired| {
            desired.addresses.values_mut().for_each(|entry| entry.translatable = false);
        }),
        ("the node is nobody", |desired| desired.addresses.values_mut().for_each(|entry| entry.own_node = false)),
        ("no Service can be reached", |desired| {
            let isolation = desired.rules.iter().find(|(_, rule)| rule.cause == RuleCause::Isolation);
            let Some(rule) = isolation.map(|(number, _)| *number) else { return };
            desired.reach_defaults.values_mut().for_each(|reach| *reach = ServiceReach::None(rule));
        }),
    ];
    for (what, break_tables) in breaks {
        let caught = compare::find_disagreement(break_tables, 1000);
        assert!(caught, "not caught: {what}");
    }
}
