//! What compiling costs at 100,000 pods, 10,000 policies and 250 local pods. Run it in release, by hand:
//! `cargo test --release -p portcullis --test compile_scale -- --ignored --nocapture`.
#![expect(clippy::print_stdout, reason = "the measurement is the test's answer")]
#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use portcullis::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers, Touched};
use portcullis::index::Cluster;
use portcullis::model::*;
use portcullis::state::LocalId;

const NAMESPACES: u32 = 1_000;
const PODS: u32 = 100;

fn namespace(index: u32) -> Arc<str> {
    format!("ns-{index}").into()
}

fn equals(key: &str, value: &str) -> Selector {
    Selector::In(key.into(), BTreeSet::from([value.into()]))
}

fn pod(namespace_index: u32, index: u32) -> Pod {
    let app = format!("app-{}", index % 20);
    let number = namespace_index * PODS + index;
    let labels = [
        ("app", app.clone()),
        ("pod-template-hash", format!("{namespace_index}-{app}")),
        ("tier", if index.is_multiple_of(2) { "front" } else { "back" }.to_owned()),
        ("version", format!("v{}", index % 3)),
    ];
    Pod {
        key: Name::new(namespace(namespace_index), format!("{app}-{index}")),
        uid: format!("{number:08x}").into(),
        labels: labels.into_iter().collect(),
        addresses: vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number))],
        node: None,
        host_network: false,
        finished: false,
        ports: vec![NamedPort {
            name: "http".into(),
            protocol: Protocol::TCP,
            number: 8000 + u16::try_from(index % 20).unwrap(),
        }],
    }
}

fn policy(namespace_index: u32, index: u32) -> Policy {
    let here = NamespaceScope::Named(namespace(namespace_index));
    let pods =
        |namespaces: &NamespaceScope, pods| PeerMatch::Atom(PeerAtom::Pods { namespaces: namespaces.clone(), pods });
    let port = |protocol, port| TrafficMatch { any_of: vec![PortMatch { protocol, port }], none_of: vec![] };
    let everywhere = NamespaceScope::Matching(Selector::everything());
    let (peer, traffic) = match index % 5 {
        0 => (pods(&here, Selector::everything()), TrafficMatch::default()),
        1 => (pods(&here, equals("app", &format!("app-{index}"))), port(Protocol::TCP, PortSpec::Named("http".into()))),
        2 => {
            let team = NamespaceScope::Matching(equals("team", &format!("team-{}", namespace_index % 50)));
            (pods(&team, equals("tier", "front")), port(Protocol::TCP, PortSpec::Range(8000, 8010)))
        }
        3 => (pods(&everywhere, equals("app", "app-3")), port(Protocol::UDP, PortSpec::Range(53, 53))),
        _ => {
            let net = format!("203.0.{}.0/24", namespace_index % 100);
            (PeerMatch::Atom(PeerAtom::Cidr(net.parse().unwrap())), port(Protocol::TCP, PortSpec::Range(443, 443)))
        }
    };
    let rule = |origin, peer, traffic| Rule { origin, action: Action::Allow, peer, traffic };
    let mut rules = vec![
        rule(RuleOrigin::Spec(0), peer, traffic),
        rule(RuleOrigin::Itself, PeerMatch::Atom(PeerAtom::Itself), TrafficMatch::default()),
    ];
    let ingress = Some(rules.clone());
    rules.push(rule(RuleOrigin::OwnNode, PeerMatch::Atom(PeerAtom::OwnNode), TrafficMatch::default()));
    Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some(namespace(namespace_index)),
            name: format!("policy-{index}").into(),
        },
        tier: Tier::DEFAULT.into(),
        order: Tier::NETWORK_POLICY_ORDER,
        subject: Subject {
            namespaces: here,
            pods: if index < 5 { Selector::everything() } else { equals("tier", "front") },
        },
        ingress,
        egress: Some(rules),
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for index in 0..NAMESPACES {
        let labels =
            [("kubernetes.io/metadata.name", namespace(index).to_string()), ("team", format!("team-{}", index % 50))];
        let object = Namespace { name: namespace(index), labels: labels.into_iter().collect() };
        cluster.apply(Change::Set(Object::Namespace(object)));
        for pod_index in 0..PODS {
            cluster.apply(Change::Set(Object::Pod(pod(index, pod_index))));
        }
        for policy_index in 0..10 {
            cluster.apply(Change::Set(Object::Policy(policy(index, policy_index))));
        }
        for app in 0..5 {
            let service = Service {
                key: Name::new(namespace(index), format!("app-{app}")),
                cluster_ips: vec![IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + index * 8 + app))],
                external_ips: vec![],
                selector: Some(equals("app", &format!("app-{app}"))),
                ports: vec![ServicePort {
                    name: "".into(),
                    protocol: Protocol::TCP,
                    port: 80,
                    node_port: None,
                    target: TargetPort::Named("http".into()),
                }],
            };
            cluster.apply(Change::Set(Object::Service(service)));
        }
    }
    cluster
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "a measurement"]
fn measure() {
    let mut cluster = cluster();
    let local: Vec<LocalPod> = (0..250)
        .map(|index| {
            let pod = Arc::clone(&cluster.pods[&pod(index * 4, index % PODS).key]);
            LocalPod { id: LocalId { pod: pod.key.clone(), uid: pod.uid.clone() }, pod }
        })
        .collect();
    let node = NodeFacts {
        addresses: BTreeSet::from(["10.200.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap()]),
        service_ranges: vec!["11.0.0.0/16".parse().unwrap()],
    };
    println!("cluster: {} MB resident", resident_megabytes());
    let mut compiler = Compiler::new(Numbers::default(), BTreeMap::new());
    let start = Instant::now();
    let desired = compiler.compile(&Input { cluster: &cluster, local: &local, node: &node }, &Dirty::all());
    println!("first compile: {:?}, {} MB resident", start.elapsed(), resident_megabytes());
    println!(
        "addresses {}, ranges {}, ports {}, sets {}, profile rows {}, profiles {}, verdict rows {}, services {}, reaches {}, rules {}",
        desired.addresses.len(),
        desired.ranges.len(),
        desired.ports.len(),
        desired.set_defaults.len(),
        desired.profiles.len(),
        desired.profile_defaults.len(),
        desired.verdicts.len(),
        desired.services.len(),
        desired.reaches.len(),
        desired.rules.len()
    );

    let mut change = |name: &str, change: Change, compiler: &mut Compiler| {
        let key = match &change {
            Change::Set(object) => object.key(),
            Change::Gone(key) => key.clone(),
        };
        cluster.apply(change);
        let input = Input { cluster: &cluster, local: &local, node: &node };
        let dirty = Dirty { objects: BTreeSet::from([key]), ..Dirty::default() };
        let start = Instant::now();
        compiler.compile(&input, &dirty);
        let took = start.elapsed();
        let Touched::Keys(keys) = compiler.touched() else { panic!("not the first") };
        let touched =
            [keys.addresses.len(), keys.profiles.len(), keys.verdicts.len(), keys.reaches.len(), keys.endpoints.len()];
        compiler.settle();
        let start = Instant::now();
        compiler.compile(&input, &Dirty::default());
        println!(
            "{name}: {took:?}, then {:?} to settle; addresses, profiles, verdicts, reaches, endpoints touched: {touched:?}",
            start.elapsed()
        );
    };
    compiler.settle();
    change("nothing new", Change::Set(Object::Pod(pod(8, 7))), &mut compiler);
    let mut new = pod(8, 7);
    new.key.name = "new".into();
    new.addresses = vec!["10.100.0.1".parse().unwrap()];
    change("pod added", Change::Set(Object::Pod(new.clone())), &mut compiler);
    new.labels = [("app", "app-1"), ("tier", "front")].into_iter().collect();
    change("pod relabelled", Change::Set(Object::Pod(new.clone())), &mut compiler);
    change("pod gone", Change::Gone(ObjectKey::Pod(new.key)), &mut compiler);
    change("policy added", Change::Set(Object::Policy(policy(8, 16))), &mut compiler);
    change("policy gone", Change::Gone(ObjectKey::Policy(policy(8, 16).id)), &mut compiler);
    let mut wide = policy(8, 17);
    wide.ingress.as_mut().unwrap()[0].peer = PeerMatch::Atom(PeerAtom::Pods {
        namespaces: NamespaceScope::Matching(Selector::everything()),
        pods: equals("version", "v1"),
    });
    change("policy about a third of all pods added", Change::Set(Object::Policy(wide.clone())), &mut compiler);
    change("policy about a third of all pods gone", Change::Gone(ObjectKey::Policy(wide.id)), &mut compiler);
    let labels = [("kubernetes.io/metadata.name", "ns-8"), ("team", "other")].into_iter().collect();
    change(
        "namespace relabelled",
        Change::Set(Object::Namespace(Namespace { name: "ns-8".into(), labels })),
        &mut compiler,
    );
    println!("{} MB resident", resident_megabytes());
}
