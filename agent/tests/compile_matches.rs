//! The compiled tables say what the rules say: for random worlds, after every change of them, and at every moment on the
//! way from one state of the tables to the next.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[path = "compile_matches/read.rs"]
mod read;
#[path = "compile_matches/walk.rs"]
mod walk;
#[path = "compile_matches/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};

use portcullis::compile::{Compiler, Dirty, FIRST_RULE, Input, Numbers, RULE_NO_POLICY, Touched};
use portcullis::model::{Direction, Family, Traffic, Verdict};
use portcullis::state::{Desired, ServiceKeyPort, ServiceReach, TableVerdict};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use read::Kernel;
use walk::{Judgement, World, probes};
use world::{Step, addresses, steps};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Cases that failed once.
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compile_matches.proptest-regressions");

fn input(world: &World) -> Input<'_> {
    Input { cluster: &world.cluster, local: &world.local, node: &world.node }
}

fn compiler() -> Compiler {
    Compiler::new(Numbers::default(), BTreeMap::new())
}

fn named(desired: &Desired, verdict: TableVerdict) -> Judgement {
    let rule = (verdict.rule != RULE_NO_POLICY).then(|| {
        assert!(verdict.rule.0 >= FIRST_RULE, "{verdict:?} is below the first rule number");
        desired.rules.get(&verdict.rule).unwrap_or_else(|| panic!("{verdict:?} has no name")).clone()
    });
    (verdict.verdict, rule)
}

/// The tables say what the rules say.
fn check_meaning(world: &World, desired: &Desired, settled: bool) {
    let probes = probes();
    let kernel = Kernel::holding(desired, &probes);
    assert_eq!(desired.endpoints.len(), world.local.len(), "endpoints");
    for address in addresses() {
        let entry = kernel.peer(address);
        assert_eq!(entry.own_node, world.is_own_node(address), "own node: {address}");
        // What ceases to be translatable while endpoints flip stays so until the tables have settled.
        let stays = !settled && entry.translatable;
        assert!(stays || entry.translatable == world.is_translatable(address), "translatable: {address}");
    }
    for local in &world.local {
        assert_eq!(desired.endpoints[&local.id].addresses, local.pod.addresses, "addresses of {}", local.id.pod);
        for direction in DIRECTIONS {
            for peer in addresses() {
                for traffic in &probes {
                    let table = named(desired, kernel.judge(&local.id, direction, peer, *traffic));
                    let walk = world.judge(&local.pod, direction, peer, *traffic);
                    assert_eq!(table, walk, "{} {direction} {peer} {traffic:?}", local.id.pod);
                }
            }
        }
        check_services(world, &kernel, desired, local, settled);
    }
}

fn check_services(
    world: &World,
    kernel: &Kernel,
    desired: &Desired,
    local: &portcullis::compile::LocalPod,
    settled: bool,
) {
    let mut seen = BTreeSet::new();
    for service in world.cluster.services.values() {
        for port in &service.ports {
            let mut frontends = Vec::new();
            for address in service.cluster_ips.iter().chain(&service.external_ips) {
                frontends.push(ServiceKeyPort { address: *address, protocol: port.protocol, port: port.port });
            }
            for (address, number) in world.node.addresses.iter().zip(std::iter::repeat(port.node_port)) {
                let Some(port_number) = number else { continue };
                frontends.push(ServiceKeyPort { address: *address, protocol: port.protocol, port: port_number });
            }
            for frontend in frontends.into_iter().filter(|frontend| seen.insert(*frontend)) {
                assert!(desired.services.contains_key(&frontend), "{frontend:?} is known");
                let Some(reach) = kernel.reach(&local.id, &frontend) else { continue };
                let backends = world.backends(service, port, Family::of(&frontend.address));
                let Some(backends) = backends else {
                    assert_eq!(reach, ServiceReach::Part, "{frontend:?}: unknown backends");
                    continue;
                };
                let verdicts: Vec<Judgement> = (backends.iter())
                    .map(|backend| {
                        let traffic = Traffic { protocol: port.protocol, port: backend.port };
                        world.judge(&local.pod, Direction::Egress, backend.address, traffic)
                    })
                    .collect();
                let allowed = verdicts.iter().filter(|(verdict, _)| *verdict == Verdict::Allow).count();
                let to_local = backends
                    .iter()
                    .any(|backend| world.local.iter().any(|local| local.pod.addresses.contains(&backend.address)));
                match reach {
                    ServiceReach::All(_) | ServiceReach::None(_) if backends.is_empty() && settled => {
                        panic!("{frontend:?}: {reach:?} of no backends");
                    }
                    ServiceReach::All(rule) => {
                        assert_eq!(allowed, verdicts.len(), "{frontend:?}: all of {verdicts:?}");
                        let name = desired.rules.get(&rule).cloned();
                        for (_, deciding) in verdicts.iter().filter(|_| !to_local) {
                            assert_eq!(name, *deciding, "{frontend:?}: by one rule: {verdicts:?}");
                        }
                    }
                    ServiceReach::None(rule) => {
                        assert_eq!(allowed, 0, "{frontend:?}: none of {verdicts:?}");
                        let name = desired.rules.get(&rule).cloned();
                        if let Some((_, first)) = verdicts.first().filter(|_| !to_local) {
                            assert_eq!(name, *first, "{frontend:?}: the first backend's denial");
                        }
                    }
                    // Nothing can be said of no backends.
                    ServiceReach::Part if backends.is_empty() => {}
                    // Endpoints of one set may differ about a backend that is one of them.
                    ServiceReach::Part if !settled || to_local => {}
                    ServiceReach::Part => {
                        let rules: BTreeSet<_> = verdicts.iter().map(|(_, rule)| rule).collect();
                        let part = allowed > 0 && allowed < verdicts.len();
                        assert!(part || allowed > 0 && rules.len() > 1, "{frontend:?}: a part of {verdicts:?}");
                    }
                }
            }
        }
    }
    let known: BTreeSet<ServiceKeyPort> = desired.services.keys().copied().collect();
    assert_eq!(known, seen, "no other frontends");
}

fn settle_fully(compiler: &mut Compiler, world: &World) {
    for _ in 0..8 {
        if !compiler.settle() {
            compiler.compile(&input(world), &Dirty::default());
            return;
        }
        compiler.compile(&input(world), &Dirty::default());
    }
    panic!("the tables never settle");
}

/// Applies one compile element by element in the documented order, and looks after each write.
fn check_way(before: &Kernel, after: &Desired, seed: u64) {
    let probes = probes();
    let end = Kernel::holding(after, &probes);
    let mut kernel = before.clone();
    let mut random = seed | 1;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 16).unwrap()
    };

    type Write<'a> = Box<dyn Fn(&mut Kernel) + 'a>;
    let mut phases: Vec<(&str, Vec<Write<'_>>)> = Vec::new();
    macro_rules! writes {
        ($name:literal, $($table:ident),*; $which:expr) => {{
            let mut writes: Vec<Write<'_>> = Vec::new();
            $({
                let keys = before.rows.$table.keys().chain(after.$table.keys());
                for key in keys {
                    let (old, new) = (before.rows.$table.get(key), after.$table.get(key));
                    if old == new || !$which(old.is_some(), new.is_some()) {
                        continue;
                    }
                    let (key, new) = (key.clone(), new.cloned());
                    writes.push(Box::new(move |kernel: &mut Kernel| {
                        match &new {
                            Some(new) => {
                                kernel.rows.$table.insert(key.clone(), new.clone());
                            }
                            None => {
                                kernel.rows.$table.remove(&key);
                            }
                        }
                    }));
                }
            })*
            phases.push(($name, writes));
        }};
    }
    let stays = |_: bool, new: bool| new;
    let goes = |_: bool, new: bool| !new;
    let any = |_: bool, _: bool| true;
    for (key, verdict) in &before.rows.verdicts {
        assert!(after.verdicts.get(key).is_none_or(|now| now == verdict), "verdict {key:?} changed in place");
    }
    for (key, profile) in &before.rows.profiles {
        assert!(after.profiles.get(key).is_none_or(|now| now == profile), "profile {key:?} changed in place");
    }
    for (key, profile) in &before.rows.set_defaults {
        assert!(after.set_defaults.get(key).is_none_or(|now| now == profile), "default of {key:?} changed in place");
    }
    for (key, verdict) in &before.rows.profile_defaults {
        assert!(after.profile_defaults.get(key).is_none_or(|now| now == verdict), "default of {key:?} changed");
    }
    for (key, name) in &before.rows.rules {
        assert!(after.rules.get(key).is_none_or(|now| now == name), "rule {key:?} changed its name");
    }
    for ((set, port), reach) in &before.rows.reaches {
        if let Some(now) = after.reaches.get(&(*set, *port)).filter(|now| *now != reach) {
            let part = [*now, *reach].contains(&ServiceReach::Part);
            assert!(part, "{set:?} {port:?} goes from {reach:?} to {now:?} at once");
        }
    }
    writes!("rows", verdicts, profile_defaults, profiles, set_defaults, reaches, reach_defaults, rules; stays);
    let mut ports: Vec<Write<'_>> = Vec::new();
    for (port, class) in end.ports.iter().filter(|(port, class)| before.ports.get(port) != Some(class)) {
        ports.push(Box::new(move |kernel: &mut Kernel| {
            kernel.ports.insert(*port, *class);
        }));
    }
    phases.push(("ports", ports));
    writes!("ranges", ranges; stays);
    writes!("addresses", addresses; any);
    writes!("ranges gone", ranges; goes);
    writes!("services", services; any);
    writes!("endpoints", endpoints; any);
    writes!("rows gone", verdicts, profile_defaults, profiles, set_defaults, reaches, reach_defaults, rules; goes);

    let endpoints: Vec<_> = before.rows.endpoints.keys().filter(|id| after.endpoints.contains_key(id)).collect();
    let addresses = addresses();
    let frontends: BTreeSet<ServiceKeyPort> =
        before.rows.services.keys().chain(after.services.keys()).copied().collect();
    for (phase, mut writes) in phases {
        while !writes.is_empty() {
            let write = writes.swap_remove(next() % writes.len());
            write(&mut kernel);
            for endpoint in &endpoints {
                for _ in 0..40 {
                    let peer = addresses[next() % addresses.len()];
                    let traffic = probes[next() % probes.len()];
                    let direction = DIRECTIONS[next() % 2];
                    let judged = kernel.judge(endpoint, direction, peer, traffic);
                    let old = before.judge(endpoint, direction, peer, traffic);
                    let new = end.judge(endpoint, direction, peer, traffic);
                    assert!(
                        judged == old || judged == new,
                        "{phase}: {} {direction} {peer} {traffic:?}: {judged:?} is neither {old:?} nor {new:?}",
                        endpoint.pod
                    );
                }
                for frontend in &frontends {
                    let reach = kernel.reach(endpoint, frontend);
                    // A number and a set that are both in force may meet, whichever of them came first.
                    let known = [before, &end].map(|numbers| {
                        let sets = [before, &end].map(|sets| end.reach_between(sets, numbers, endpoint, frontend));
                        [numbers.reach(endpoint, frontend), sets[0], sets[1]]
                    });
                    let known: Vec<_> = known.into_iter().flatten().chain([Some(ServiceReach::Part)]).collect();
                    assert!(
                        known.contains(&reach),
                        "{phase}: {} {frontend:?}: {reach:?} not in {known:?}",
                        endpoint.pod
                    );
                }
            }
        }
    }
    for endpoint in &endpoints {
        if after.rejudge.contains(endpoint) {
            continue;
        }
        for direction in DIRECTIONS {
            for peer in &addresses {
                for traffic in &probes {
                    let old = before.judge(endpoint, direction, *peer, *traffic);
                    let new = end.judge(endpoint, direction, *peer, *traffic);
                    assert_eq!(old, new, "{} is not judged again: {direction} {peer} {traffic:?}", endpoint.pod);
                }
            }
        }
    }
}

fn run(steps: &[Step], each: impl Fn(&World, &Desired, &Compiler, &Desired)) -> (World, Compiler) {
    let mut world = World::default();
    let mut compiler = compiler();
    let mut before = Desired::default();
    for step in steps {
        let dirty = world.apply(&step.ops);
        if step.settle {
            compiler.settle();
        }
        compiler.compile(&input(&world), &dirty);
        let after = compiler.desired().clone();
        each(&world, &before, &compiler, &after);
        before = after;
    }
    (world, compiler)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn tables_say_what_the_rules_say(steps in steps()) {
        let (world, mut compiler) = run(&steps, |world, _, _, after| check_meaning(world, after, false));
        settle_fully(&mut compiler, &world);
        check_meaning(&world, compiler.desired(), true);
    }

    #[test]
    fn what_was_touched_leads_from_before_to_after(steps in steps()) {
        run(&steps, |_, before, compiler, after| {
            let mut applied = before.clone();
            compiler.touched().apply(&mut applied, after);
            assert_eq!(&applied, after);
        });
    }

    #[test]
    fn nothing_is_left_over(steps in steps()) {
        let (world, mut compiler) = run(&steps, |_, _, _, _| {});
        settle_fully(&mut compiler, &world);
        let Touched::Keys(keys) = compiler.touched() else { panic!("not the first compile") };
        prop_assert!(keys.is_empty(), "{keys:?} after the tables have settled");
        let mut scratch = self::compiler();
        scratch.compile(&input(&world), &Dirty::all());
        let sizes = |desired: &Desired| {
            let entries = desired.addresses.values().chain(desired.ranges.values());
            let classes: BTreeSet<_> = entries.map(|entry| entry.class).collect();
            (
                desired.addresses.len(),
                desired.ranges.len(),
                classes.len(),
                desired.set_defaults.len(),
                desired.services.len(),
                desired.rules.len(),
                desired.reach_defaults.len(),
            )
        };
        prop_assert_eq!(sizes(compiler.desired()), sizes(scratch.desired()));
        compiler.compile(&input(&world), &Dirty::all());
        let Touched::Keys(keys) = compiler.touched() else { panic!("not the first compile") };
        prop_assert!(keys.is_empty(), "{keys:?} after looking at everything again");
    }

    #[test]
    fn every_moment_of_an_update_is_old_or_new(steps in steps(), seed in any::<u64>()) {
        run(&steps, |_, before, _, after| check_way(&Kernel::holding(before, &probes()), after, seed));
    }
}
