//! Random small worlds and random changes of them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis::compile::{Dirty, LocalPod};
use portcullis::model::*;
use portcullis::state::LocalId;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::walk::World;

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Object(Change),
    /// A pod is enforced here from now on (if the cluster has it), or no more.
    Local(PodKey, bool),
    OwnAddresses(Vec<IpAddr>),
    ServiceRanges(Vec<IpNet>),
}

/// Changes, and whether the tables settle before they are compiled.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) ops: Vec<Op>,
    pub(crate) settle: bool,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn addresses() -> Vec<IpAddr> {
    let texts = [
        "10.1.0.1",
        "10.1.0.2",
        "10.1.0.3",
        "10.1.1.1",
        "10.1.1.2",
        "10.96.0.1",
        "10.96.0.2",
        "192.0.2.1",
        "192.0.2.2",
        "172.16.0.1",
        "fd00::1",
        "fd00::2",
        "fd00::3",
        "fd00:1::1",
        "2001:db8::1",
    ];
    texts.iter().map(|text| ip(text)).collect()
}

fn pod_addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    let v4 = option::weighted(0.9, select(addresses()[..5].to_vec()));
    let v6 = option::weighted(0.5, select(addresses()[10..14].to_vec()));
    (v4, v6).prop_map(|(v4, v6)| v4.into_iter().chain(v6).collect())
}

fn cidr() -> impl Strategy<Value = IpNet> {
    let texts = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/24",
        "10.1.0.1/32",
        "10.96.0.0/16",
        "192.0.2.0/24",
        "::/0",
        "fd00::/64",
        "10.96.0.0/30",
    ];
    select(texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>())
}

fn namespace() -> impl Strategy<Value = Arc<str>> {
    select(vec!["a", "b"]).prop_map(Arc::from)
}

fn name() -> impl Strategy<Value = Arc<str>> {
    select(vec!["p", "q", "r"]).prop_map(Arc::from)
}

fn key() -> impl Strategy<Value = Name> {
    (namespace(), name()).prop_map(|(namespace, name)| Name { namespace, name })
}

fn labels() -> impl Strategy<Value = Labels> {
    btree_map(select(vec!["k", "l"]), select(vec!["x", "y"]), 0..=2).prop_map(Labels::from_iter)
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || subsequence(vec!["x", "y"], 1..=2).prop_map(|values| values.into_iter().map(Arc::from).collect());
    let label = || select(vec!["k", "l"]).prop_map(Arc::from);
    prop_oneof![
        2 => Just(Selector::everything()),
        3 => (label(), values()).prop_map(|(label, values)| Selector::In(label, values)),
        1 => (label(), values()).prop_map(|(label, values)| Selector::NotIn(label, values)),
        1 => label().prop_map(Selector::Exists),
        1 => label().prop_map(Selector::DoesNotExist),
    ]
}

fn scope() -> impl Strategy<Value = NamespaceScope> {
    prop_oneof![namespace().prop_map(NamespaceScope::Named), selector().prop_map(NamespaceScope::Matching)]
}

fn atom() -> impl Strategy<Value = PeerMatch> {
    prop_oneof![
        4 => (scope(), selector()).prop_map(|(namespaces, pods)| PeerAtom::Pods { namespaces, pods }),
        2 => cidr().prop_map(PeerAtom::Cidr),
        1 => Just(PeerAtom::Itself),
        1 => Just(PeerAtom::OwnNode),
    ]
    .prop_map(PeerMatch::Atom)
}

fn peer() -> impl Strategy<Value = PeerMatch> {
    prop_oneof![
        2 => Just(PeerMatch::anyone()),
        4 => atom(),
        1 => vec(atom(), 0..=2).prop_map(PeerMatch::Any),
        1 => (atom(), atom()).prop_map(|(one, not)| PeerMatch::All(vec![one, PeerMatch::Not(Box::new(not))])),
    ]
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let protocol = || select(vec![Protocol::TCP, Protocol::TCP, Protocol::UDP]);
    prop_oneof![
        1 => select(vec![Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol(47)])
            .prop_map(|protocol| PortMatch { protocol, port: PortSpec::Any }),
        3 => (protocol(), select(vec![(80, 80), (80, 100), (53, 90), (0, 80), (90, u16::MAX), (8080, 8080)]))
            .prop_map(|(protocol, (first, last))| PortMatch { protocol, port: PortSpec::Range(first, last) }),
        3 => (protocol(), select(vec!["http", "dns"]))
            .prop_map(|(protocol, name)| PortMatch { protocol, port: PortSpec::Named(name.into()) }),
    ]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let action = || prop_oneof![5 => Just(Action::Allow), 2 => Just(Action::Deny), 2 => Just(Action::Pass), 1 => Just(Action::Log)];
    let any_of = prop_oneof![1 => Just(vec![]), 1 => vec(port_match(), 1..=2)];
    let none_of = prop_oneof![4 => Just(vec![]), 1 => vec(port_match(), 1..=2)];
    let rule = (action(), peer(), any_of, none_of);
    option::weighted(
        0.8,
        vec(rule, 0..=3).prop_map(|rules| {
            let rule = |(index, (action, peer, any_of, none_of)): (usize, _)| Rule {
                origin: RuleOrigin::Spec(u32::try_from(index).unwrap()),
                action,
                peer,
                traffic: TrafficMatch { any_of, none_of },
            };
            rules.into_iter().enumerate().map(rule).collect()
        }),
    )
}

fn policy_id() -> impl Strategy<Value = PolicyId> {
    (option::weighted(0.8, namespace()), name()).prop_map(|(namespace, name)| PolicyId {
        kind: PolicyKind::NetworkPolicy,
        namespace,
        name,
    })
}

fn tier_name() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![3 => Just("default"), 1 => Just("t1"), 1 => Just("t2")].prop_map(Arc::from)
}

fn order() -> impl Strategy<Value = Order> {
    select(vec![Order(Some(1.0)), Order(Some(2.0)), Order(None), Tier::NETWORK_POLICY_ORDER])
}

fn policy() -> impl Strategy<Value = Policy> {
    (policy_id(), tier_name(), order(), scope(), selector(), rules(), rules()).prop_map(
        |(id, tier, order, namespaces, pods, ingress, egress)| Policy {
            id,
            tier,
            order,
            subject: Subject { namespaces, pods },
            ingress,
            egress,
        },
    )
}

fn pod() -> impl Strategy<Value = Pod> {
    let numbers = || option::weighted(0.6, select(vec![80_u16, 90, 8080]));
    let ports = (numbers(), numbers()).prop_map(|(http, dns)| {
        let port = |name: &str, protocol, number| NamedPort { name: name.into(), protocol, number };
        let http = http.map(|number| port("http", Protocol::TCP, number));
        let dns = dns.map(|number| port("dns", Protocol::UDP, number));
        http.into_iter().chain(dns).collect()
    });
    let odd = || proptest::bool::weighted(0.05);
    (key(), select(vec!["1", "2"]), labels(), pod_addresses(), ports, odd(), odd()).prop_map(
        |(key, uid, labels, addresses, ports, host_network, finished)| Pod {
            key,
            uid: uid.into(),
            labels,
            addresses,
            node: None,
            host_network,
            finished,
            ports,
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let target =
        prop_oneof![select(vec![80_u16, 90]).prop_map(TargetPort::Number), Just(TargetPort::Named("http".into())),];
    let port = (select(vec![80_u16, 53]), option::weighted(0.3, Just(30080_u16)), target).prop_map(
        |(port, node_port, target)| ServicePort {
            name: "main".into(),
            protocol: Protocol::TCP,
            port,
            node_port,
            target,
        },
    );
    let cluster_ip = option::weighted(0.8, select(vec![ip("10.96.0.1"), ip("10.96.0.2"), ip("fd00:1::1")]));
    let external = option::weighted(0.3, select(vec![ip("192.0.2.1"), ip("172.16.0.1")]));
    (key(), cluster_ip, external, option::weighted(0.8, selector()), vec(port, 1..=1)).prop_map(
        |(key, cluster_ip, external, selector, ports)| Service {
            key,
            cluster_ips: cluster_ip.into_iter().collect(),
            external_ips: external.into_iter().collect(),
            selector,
            ports,
        },
    )
}

fn object() -> impl Strategy<Value = Object> {
    let namespace = (namespace(), labels()).prop_map(|(name, labels)| {
        let own = [("kubernetes.io/metadata.name", &*name)];
        let labels = labels.iter().chain(own).collect();
        Object::Namespace(Namespace { name: name.clone(), labels })
    });
    let tier = (tier_name(), order(), any::<bool>()).prop_map(|(name, order, deny)| {
        Object::Tier(Tier { name, order, default: if deny { TierDefault::Deny } else { TierDefault::Pass } })
    });
    let slice = (key(), key(), vec(select(addresses()), 0..=3), select(vec![80_u16, 90])).prop_map(
        |(key, service, addresses, number)| {
            let ports = vec![("main".into(), Protocol::TCP, number)];
            Object::EndpointSlice(EndpointSlice { key, service, addresses, ports })
        },
    );
    prop_oneof![
        8 => pod().prop_map(Object::Pod),
        8 => policy().prop_map(Object::Policy),
        2 => namespace,
        1 => tier,
        3 => service().prop_map(Object::Service),
        1 => slice,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let gone = prop_oneof![
        3 => key().prop_map(ObjectKey::Pod),
        3 => policy_id().prop_map(ObjectKey::Policy),
        1 => namespace().prop_map(ObjectKey::Namespace),
        1 => key().prop_map(ObjectKey::Service),
        1 => key().prop_map(ObjectKey::EndpointSlice),
        1 => tier_name().prop_map(ObjectKey::Tier),
    ];
    let own = subsequence(vec![ip("10.1.1.1"), ip("192.0.2.1"), ip("fd00::1"), ip("172.16.0.1")], 0..=4);
    let ranges = subsequence(vec!["10.96.0.0/16", "10.96.0.0/30", "192.0.2.0/24", "fd00:1::/64"], 0..=3)
        .prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect());
    prop_oneof![
        12 => object().prop_map(|object| Op::Object(Change::Set(object))),
        2 => gone.prop_map(|key| Op::Object(Change::Gone(key))),
        6 => (key(), proptest::bool::weighted(0.85)).prop_map(|(key, here)| Op::Local(key, here)),
        1 => own.prop_map(Op::OwnAddresses),
        1 => ranges.prop_map(Op::ServiceRanges),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = |ops| (vec(op(), ops), any::<bool>()).prop_map(|(ops, settle)| Step { ops, settle });
    (step(0..=25), vec(step(0..=3), 0..=8)).prop_map(|(first, mut rest)| {
        rest.insert(0, first);
        rest
    })
}

impl World {
    /// Applies changes; tells what they made dirty.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Dirty {
        let mut dirty = Dirty::default();
        for op in ops {
            match op {
                Op::Object(change) => {
                    let key = match change {
                        Change::Set(object) => object.key(),
                        Change::Gone(key) => key.clone(),
                    };
                    if self.cluster.apply(change.clone()) {
                        dirty.objects.insert(key.clone());
                    }
                    let ObjectKey::Pod(key) = key else { continue };
                    let Some(pod) = self.cluster.pods.get(&key) else { continue };
                    for local in self.local.iter_mut().filter(|local| local.id.pod == key && local.id.uid == pod.uid) {
                        local.pod = Arc::clone(pod);
                        dirty.local.insert(local.id.clone());
                    }
                }
                Op::Local(key, here) => {
                    dirty.local.extend(self.local.iter().map(|local| local.id.clone()).filter(|id| id.pod == *key));
                    self.local.retain(|local| local.id.pod != *key);
                    if let Some(pod) = self.cluster.pods.get(key).filter(|pod| *here && !pod.host_network) {
                        let id = LocalId { pod: key.clone(), uid: pod.uid.clone() };
                        dirty.local.insert(id.clone());
                        self.local.push(LocalPod { id, pod: Arc::clone(pod) });
                    }
                }
                Op::OwnAddresses(addresses) => {
                    self.node.addresses = addresses.iter().copied().collect();
                    dirty.node = true;
                }
                Op::ServiceRanges(ranges) => {
                    self.node.service_ranges.clone_from(ranges);
                    dirty.node = true;
                }
            }
        }
        // A pod that turns host-networked is no endpoint.
        self.local.retain(|local| !local.pod.host_network);
        dirty
    }
}
