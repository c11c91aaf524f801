//! Types and codes of ICMP in rules, from the model to the decision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portcullis::compile::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers};
use portcullis::index::Cluster;
use portcullis::model::*;
use portcullis::state::LocalId;
use portcullis::state::memory::MemoryTables;
use portcullis_common::decide::{self, Packet};
use portcullis_common::layout::{Size, interface_kind};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::{Ip, frame};
use crate::world::{OUTSIDE, address};

/// A pod that admits these kinds of ICMP and ICMPv6 from anybody, and nothing else.
fn tables(kinds: &[(Protocol, u16, u16)]) -> MemoryTables {
    let key = Name::new("x", "server");
    let pod = Pod {
        key: key.clone(),
        uid: "1".into(),
        labels: Labels::from_iter([("app", "server")]),
        addresses: vec![address(0, true), address(0, false)],
        node: None,
        host_network: false,
        finished: false,
        ports: vec![],
    };
    let any_of = kinds
        .iter()
        .map(|&(protocol, first, last)| PortMatch { protocol, port: PortSpec::Range(first, last) })
        .collect();
    let rule = Rule {
        origin: RuleOrigin::Spec(0),
        action: Action::Allow,
        peer: PeerMatch::anyone(),
        traffic: TrafficMatch { any_of, none_of: vec![] },
    };
    let here = NamespaceScope::Named("x".into());
    let policy = Policy {
        id: PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("x".into()), name: "icmp".into() },
        tier: Tier::DEFAULT.into(),
        order: Tier::NETWORK_POLICY_ORDER,
        subject: Subject { namespaces: here, pods: Selector::In("app".into(), BTreeSet::from(["server".into()])) },
        ingress: Some(vec![rule]),
        egress: None,
    };
    let mut cluster = Cluster::default();
    cluster.apply(Change::Set(Object::Pod(pod.clone())));
    cluster.apply(Change::Set(Object::Policy(policy)));
    let id = LocalId { pod: key, uid: "1".into() };
    let local = [LocalPod { id: id.clone(), pod: Arc::new(pod) }];
    let mut compiler = Compiler::new(Numbers::default(), BTreeMap::new());
    compiler.compile(&Input { cluster: &cluster, local: &local, node: &NodeFacts::default() }, &Dirty::all());
    let (tables, planner) = MemoryTables::holding(compiler.desired()).unwrap();
    tables.image.put_interface(100, interface_kind::ENDPOINT, planner.seats()[&id].slot).unwrap();
    tables
}

fn arrives(tables: &MemoryTables, v4: bool, kind: u8, code: u8) -> Result<(), Drop> {
    let ip = Ip::new(address(OUTSIDE, v4), address(0, v4));
    let frame = frame(ip, if v4 { 1 } else { 58 }, &[kind, code, 0, 0, 0, 7, 0, 1]);
    let mut packet = Packet {
        ifindex: 100,
        ingress_ifindex: 2,
        link: 14,
        size: Size::one(60),
        stamp: Stamp::OUTSIDE,
        ..Packet::default()
    };
    decide::to_pod(tables, &mut packet, &frame.as_slice())
}

#[test]
fn rules_name_types_and_codes() {
    let echo = [(Protocol::ICMP, 8 << 8, 8 << 8), (Protocol::ICMPV6, 128 << 8, 128 << 8)];
    let timestamp = [(Protocol::ICMP, 13 << 8, 13 << 8 | 255)];
    let node_information = [(Protocol::ICMPV6, 139 << 8, 139 << 8 | 255)];
    let extended = [(Protocol::ICMP, 42 << 8 | 3, 42 << 8 | 3)];
    let errors = [(Protocol::ICMP, 3 << 8, 3 << 8 | 255), (Protocol::ICMPV6, 1 << 8, 4 << 8 | 255)];
    type Row<'a> = (&'a str, &'a [(Protocol, u16, u16)], bool, u8, u8, Option<Drop>);
    let denied = Some(Drop::POLICY);
    let rows: [Row<'_>; 16] = [
        ("echo", &echo, true, 8, 0, None),
        ("echo with another code", &echo, true, 8, 1, denied),
        ("ICMPv6 echo", &echo, false, 128, 0, None),
        ("ICMPv6 echo with another code", &echo, false, 128, 1, denied),
        ("another type", &echo, true, 13, 0, denied),
        ("ICMP's type in ICMPv6", &echo, false, 8, 0, denied),
        ("any code", &timestamp, true, 13, 0, None),
        ("any code, the last", &timestamp, true, 13, 255, None),
        ("any code, the type before", &timestamp, true, 12, 255, Some(Drop::UNRELATED)),
        ("any code, the type behind", &timestamp, true, 14, 0, denied),
        ("any code of ICMPv6", &node_information, false, 139, 2, None),
        ("one code", &extended, true, 42, 3, None),
        ("one code, the one before", &extended, true, 42, 2, denied),
        ("one code, the one behind", &extended, true, 42, 4, denied),
        ("an error that a rule names, about no flow", &errors, true, 3, 4, Some(Drop::UNRELATED)),
        ("an ICMPv6 error that a rule names, about no flow", &errors, false, 2, 0, Some(Drop::UNRELATED)),
    ];
    for (message, kinds, v4, kind, code, expected) in rows {
        assert_eq!(arrives(&tables(kinds), v4, kind, code).err(), expected, "{message}");
    }
}
