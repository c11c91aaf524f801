//! While the tables change, no packet sees half a change.

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
#[path = "judges/updating.rs"]
mod updating;
#[path = "judges/world.rs"]
mod world;

use std::collections::HashSet;

use hooks::Memory;
use portcullis::state::{Desired, ServiceNumber, ServiceReach};
use updating::{find_broken_update, follow_random_streams};

#[test]
fn at_every_step_a_packet_has_the_old_verdict_or_the_new() {
    let judged = follow_random_streams(Memory::default(), 256, 5, 16);
    println!("{judged} packets were judged between steps");
    assert!(judged > 50_000, "only {judged} packets were judged between steps");
}

/// Updates that leave something out are caught: what follows them is as strict as it claims.
#[test]
fn broken_updates_are_caught() {
    type Break = fn(&Desired, &mut Desired);
    let breaks: [(&str, Break); 5] = [
        ("a class moved, and nobody judges again", |_, desired| desired.rejudge.clear()),
        ("an address became another kind, and nobody judges again", |before, desired| {
            let kind =
                |desired: &Desired, address| desired.addresses.get(address).map(|e| (e.translatable, e.own_node));
            let changed = desired.addresses.keys().chain(before.addresses.keys());
            let changed = changed.filter(|address| kind(before, address) != kind(desired, address)).count() > 0;
            if changed {
                desired.rejudge.clear();
            }
        }),
        ("an endpoint's sets stay those before", |before, desired| {
            for (id, endpoint) in &mut desired.endpoints {
                if let Some(known) = before.endpoints.get(id) {
                    (endpoint.ingress, endpoint.egress) = (known.ingress, known.egress);
                }
            }
        }),
        ("what an endpoint reaches of a Service stays what it was", |before, desired| {
            let ports: HashSet<ServiceNumber> = before.services.values().copied().collect();
            let sets = desired.endpoints.iter().filter_map(|(id, endpoint)| {
                let before = before.endpoints.get(id)?.egress?;
                Some((before, endpoint.egress?))
            });
            for ((known, set), port) in sets.flat_map(|sets| desired.services.values().map(move |port| (sets, *port))) {
                let reach = before.reaches.get(&(known, port)).or_else(|| before.reach_defaults.get(&known));
                let named = |reach: &&ServiceReach| match reach {
                    ServiceReach::All(rule) | ServiceReach::None(rule) => desired.rules.contains_key(rule),
                    ServiceReach::Part => true,
                };
                if let Some(reach) = reach.filter(|reach| ports.contains(&port) && named(reach)) {
                    desired.reaches.insert((set, port), *reach);
                }
            }
        }),
        ("sets reach nothing of any Service", |_, desired| {
            let Some(rule) = desired.rules.keys().next().copied() else { return };
            desired.reaches.values_mut().for_each(|reach| *reach = ServiceReach::None(rule));
        }),
    ];
    for (what, break_update) in breaks {
        assert!(find_broken_update(break_update, 1024), "not caught: {what}");
    }
}
