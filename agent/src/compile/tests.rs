//! What the compiler promises beyond the meaning of the tables: numbers, problems, and how little a change touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Compiler, Dirty, Input, LocalPod, NodeFacts, Numbers, Problem, Touched, TouchedKeys};
use crate::index::Cluster;
use crate::model::{
    Action, Change, Labels, Name, NamespaceScope, Object, ObjectKey, PeerAtom, PeerMatch, Pod, Policy, PolicyId,
    PolicyKind, PortMatch, PortSpec, Protocol, Rule, RuleOrigin, Selector, Service, ServicePort, Subject, TargetPort,
    Tier, TrafficMatch,
};
use crate::state::{LocalId, RuleCause, RuleNumber, ServiceKeyPort, ServiceReach};

/// A cluster with a compiler that follows it.
struct World {
    cluster: Cluster,
    local: Vec<LocalPod>,
    node: NodeFacts,
    compiler: Compiler,
    dirty: Dirty,
}

impl World {
    fn new(compiler: Compiler) -> Self {
        let (cluster, local, node) = (Cluster::default(), Vec::new(), NodeFacts::default());
        Self { cluster, local, node, compiler, dirty: Dirty::default() }
    }

    fn set(&mut self, object: Object) {
        self.dirty.objects.insert(object.key());
        self.cluster.apply(Change::Set(object));
    }

    fn gone(&mut self, key: ObjectKey) {
        self.cluster.apply(Change::Gone(key.clone()));
        self.dirty.objects.insert(key);
    }

    fn enforce(&mut self, name: &str) {
        let pod = Arc::clone(&self.cluster.pods[&Name::new("x", name)]);
        let id = LocalId { pod: pod.key.clone(), uid: Arc::clone(&pod.uid) };
        self.dirty.local.insert(id.clone());
        self.local.push(LocalPod { id, pod });
    }

    fn compile(&mut self) {
        let input = Input { cluster: &self.cluster, local: &self.local, node: &self.node };
        self.compiler.compile(&input, &std::mem::take(&mut self.dirty));
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            self.compiler.settle();
            self.compile();
        }
    }

    fn touched(&self) -> &TouchedKeys {
        match self.compiler.touched() {
            Touched::Keys(keys) => keys,
            Touched::All => panic!("the first compile"),
        }
    }

    fn reach(&self, port: u16) -> ServiceReach {
        let desired = self.compiler.desired();
        let frontend = ServiceKeyPort { address: ip("10.96.0.1"), protocol: Protocol::TCP, port };
        let set = desired.endpoints.values().find_map(|policy| policy.egress).unwrap();
        let row = desired.reaches.get(&(set, desired.services[&frontend]));
        *row.unwrap_or_else(|| &desired.reach_defaults[&set])
    }
}

fn compiler() -> Compiler {
    Compiler::new(Numbers::default(), BTreeMap::new())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, uid: &str, app: &str, address: &str) -> Object {
    Object::Pod(Pod {
        key: Name::new("x", name),
        uid: uid.into(),
        labels: Labels::from_iter([("app", app)]),
        addresses: vec![ip(address)],
        node: None,
        host_network: false,
        finished: false,
        ports: vec![],
    })
}

fn app(name: &str) -> Selector {
    Selector::In("app".into(), BTreeSet::from([name.into()]))
}

fn policy_id(name: &str) -> PolicyId {
    PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("x".into()), name: name.into() }
}

/// Pods of app `subject` may talk with those of app `peer`, in both directions, on a TCP port.
fn policy(name: &str, subject: &str, peer: &str, port: u16) -> Object {
    let here = NamespaceScope::Named("x".into());
    let rule = Rule {
        origin: RuleOrigin::Spec(0),
        action: Action::Allow,
        peer: PeerMatch::Atom(PeerAtom::Pods { namespaces: here.clone(), pods: app(peer) }),
        traffic: TrafficMatch {
            any_of: vec![PortMatch { protocol: Protocol::TCP, port: PortSpec::Range(port, port) }],
            none_of: vec![],
        },
    };
    Object::Policy(Policy {
        id: policy_id(name),
        tier: Tier::DEFAULT.into(),
        order: Tier::NETWORK_POLICY_ORDER,
        subject: Subject { namespaces: here, pods: app(subject) },
        ingress: Some(vec![rule.clone()]),
        egress: Some(vec![rule]),
    })
}

fn small() -> World {
    let mut world = World::new(compiler());
    world.set(pod("server", "1", "server", "10.0.0.1"));
    world.set(pod("client", "2", "client", "10.0.0.2"));
    world.set(pod("other", "3", "other", "10.0.0.3"));
    world.set(policy("main", "server", "client", 80));
    world.enforce("server");
    world.compile();
    world
}

#[test]
fn rule_numbers_stay_while_the_rule_is_there_and_over_restarts() {
    let mut world = small();
    let before = world.compiler.desired().rules.clone();
    assert_eq!(before.len(), 4, "a rule and an isolation for each direction");
    assert!(before.keys().all(|rule| rule.0 >= super::FIRST_RULE));

    world.set(policy("main", "server", "client", 81));
    world.compile();
    world.settle();
    assert_eq!(world.compiler.desired().rules, before, "another port is the same rule");

    let shifted: BTreeMap<_, _> = before.iter().map(|(rule, name)| (RuleNumber(rule.0 + 100), name.clone())).collect();
    let mut again = World::new(Compiler::new(Numbers::default(), shifted.clone()));
    again.cluster = world.cluster.clone();
    again.enforce("server");
    again.compile();
    assert_eq!(again.compiler.desired().rules, shifted, "adopted");

    world.gone(ObjectKey::Policy(policy_id("main")));
    world.compile();
    assert_eq!(world.compiler.desired().rules, before, "named until the tables have settled");
    world.settle();
    assert!(world.compiler.desired().rules.is_empty(), "gone");
    world.set(policy("main", "server", "client", 80));
    world.compile();
    assert!(world.compiler.desired().rules.keys().all(|rule| !before.contains_key(rule)), "fresh numbers");
}

#[test]
fn numbers_start_where_they_are_told() {
    let first = Numbers { class: 100, set: 200, profile: 300, port_class: 400, service: 500, rule: 600 };
    let mut world = World::new(Compiler::new(first, BTreeMap::new()));
    world.cluster = small().cluster;
    world.enforce("server");
    world.compile();
    let desired = world.compiler.desired();
    let classes = desired.addresses.values().map(|entry| entry.class.0);
    assert_eq!(classes.min(), Some(100), "classes");
    assert_eq!(desired.set_defaults.keys().map(|set| set.0).min(), Some(200), "sets");
    assert_eq!(desired.profile_defaults.keys().map(|profile| profile.0).min(), Some(300), "profiles");
    assert_eq!(desired.ports.values().map(|(_, class)| class.0).min(), Some(400), "port classes");
    assert_eq!(desired.rules.keys().map(|rule| rule.0).min(), Some(600), "rules");
}

#[test]
fn only_addresses_that_matter_are_named() {
    let world = small();
    let named: Vec<_> = world.compiler.desired().addresses.keys().copied().collect();
    assert_eq!(named, [ip("10.0.0.2")], "nothing is asked of the others");
}

#[test]
fn a_change_touches_what_depends_on_it() {
    let mut world = small();
    world.settle();

    world.set(pod("another", "4", "client", "10.0.0.4"));
    world.compile();
    let touched = world.touched().clone();
    assert_eq!(touched.addresses.len(), 1, "a pod like others: one address");
    assert_eq!(TouchedKeys { addresses: Default::default(), ..touched }, TouchedKeys::default(), "and nothing else");
    assert_eq!(world.compiler.desired().rejudge.len(), 1, "an address that the endpoint's sets tell apart moved");

    world.set(pod("another", "4", "whoever", "10.0.0.5"));
    world.compile();
    world.settle();
    world.set(pod("another", "4", "someone", "10.0.0.5"));
    world.compile();
    assert!(world.touched().is_empty(), "a label that nobody asks about");
    assert!(world.compiler.desired().rejudge.is_empty(), "moves nothing");
}

#[test]
fn classes_keep_their_numbers_when_policies_come_and_go() {
    let mut world = small();
    world.set(policy("second", "server", "client", 90));
    world.compile();
    assert!(world.touched().addresses.is_empty(), "the same question of the same pods");
    world.settle();

    // Everybody of whom the first question holds answers the second alike: no address moves.
    let mut wide = policy("third", "server", "client", 91);
    if let Object::Policy(policy) = &mut wide {
        let not_other = Selector::NotIn("app".into(), BTreeSet::from(["server".into(), "other".into()]));
        let here = NamespaceScope::Named("x".into());
        let peer = PeerMatch::Atom(PeerAtom::Pods { namespaces: here, pods: not_other });
        policy.ingress.iter_mut().flatten().for_each(|rule| rule.peer = peer.clone());
    }
    world.set(wide);
    world.compile();
    assert!(world.touched().addresses.is_empty(), "the class is renamed in place");
    world.gone(ObjectKey::Policy(policy_id("third")));
    world.compile();
    world.settle();
    assert!(world.touched().is_empty());
    assert_eq!(world.compiler.desired().set_defaults.len(), 2, "what retired is gone");
}

#[test]
fn two_pods_with_one_address_are_reported() {
    let mut world = small();
    assert_eq!(world.compiler.problems(), []);
    world.set(pod("ghost", "0", "client", "10.0.0.3"));
    world.compile();
    let problem = Problem::AddressClaimedTwice {
        address: ip("10.0.0.3"),
        taken_as: Name::new("x", "other"),
        others: vec![Name::new("x", "ghost")],
    };
    assert_eq!(world.compiler.problems(), [problem], "the greater uid has it");
    assert!(!world.compiler.desired().addresses.contains_key(&ip("10.0.0.3")), "it is no client's");
    world.gone(ObjectKey::Pod(Name::new("x", "other")));
    world.compile();
    assert_eq!(world.compiler.problems(), [], "mended");
    assert!(world.compiler.desired().addresses.contains_key(&ip("10.0.0.3")), "it is a client's now");
}

#[test]
fn services_reach_all_a_part_or_none() {
    let service = |selector| {
        Object::Service(Service {
            key: Name::new("x", "service"),
            cluster_ips: vec![ip("10.96.0.1")],
            external_ips: vec![],
            selector,
            ports: vec![ServicePort {
                name: "".into(),
                protocol: Protocol::TCP,
                port: 8080,
                node_port: None,
                target: TargetPort::Number(80),
            }],
        })
    };
    let any = |names: &[&str]| Selector::In("app".into(), names.iter().map(|name| Arc::from(*name)).collect());
    let egress_rule = |world: &World, wanted: &dyn Fn(&RuleCause) -> bool| {
        let mut rules = world.compiler.desired().rules.iter();
        let egress = |name: &crate::state::RuleIdentity| {
            name.direction == crate::model::Direction::Egress && wanted(&name.cause)
        };
        *rules.find(|(_, name)| egress(name)).unwrap().0
    };
    let mut world = small();
    let denied = ServiceReach::None(egress_rule(&world, &|cause| *cause == RuleCause::Isolation));
    let allowing = egress_rule(&world, &|cause| *cause == RuleCause::Rule(RuleOrigin::Spec(0)));
    let rows = [
        ("all allowed", Some(any(&["client"])), ServiceReach::All(allowing)),
        ("one of two", Some(any(&["client", "other"])), ServiceReach::Part),
        ("none of them", Some(any(&["other"])), denied),
        ("no backends", Some(any(&["nobody"])), ServiceReach::Part),
        ("not known", None, ServiceReach::Part),
    ];
    for (what, selector, reach) in &rows {
        world.set(service(selector.clone()));
        world.compile();
        let on_the_way = world.reach(8080);
        world.settle();
        assert_eq!(world.reach(8080), *reach, "{what}");
        assert!(on_the_way == ServiceReach::Part || on_the_way == *reach, "{what}: {on_the_way:?} on the way");
    }
    assert!(world.compiler.desired().addresses[&ip("10.96.0.1")].translatable, "its address is translatable");
}

#[test]
fn a_namespace_that_changes_its_answer_moves_its_pods() {
    let mut world = small();
    let mut asking = policy("asking", "server", "client", 90);
    if let Object::Policy(policy) = &mut asking {
        let team = NamespaceScope::Matching(Selector::Exists("team".into()));
        let peer = PeerMatch::Atom(PeerAtom::Pods { namespaces: team, pods: Selector::everything() });
        policy.ingress.iter_mut().flatten().for_each(|rule| rule.peer = peer.clone());
    }
    world.set(asking);
    world.compile();
    world.settle();
    let class = world.compiler.desired().addresses[&ip("10.0.0.2")].class;
    let labels = Labels::from_iter([("team", "a"), ("kubernetes.io/metadata.name", "x")]);
    world.set(Object::Namespace(crate::model::Namespace { name: "x".into(), labels }));
    world.compile();
    assert_eq!(world.touched().addresses.len(), 3, "the question was asked before: its rows keep their meaning");
    assert_ne!(world.compiler.desired().addresses[&ip("10.0.0.2")].class, class, "another class, not another meaning");
}

#[test]
fn what_a_full_table_refused_goes_before_the_tables_settle() {
    let mut compiler = compiler();
    compiler.limit_rules(40);
    let mut world = World::new(compiler);
    world.set(pod("a", "1", "web", "10.0.0.1"));
    world.set(pod("b", "2", "db", "10.0.0.2"));
    world.set(policy("first", "web", "db", 1));
    world.enforce("a");
    world.compile();
    world.compiler.taken();
    world.settle();
    let before = world.compiler.desired().clone();
    let numbers = |world: &World| world.compiler.desired().rules.keys().map(|rule| rule.0).max().unwrap();
    assert!(numbers(&world) < 40);

    // More rules than have counters, then one that would fit but gets no number that does.
    for i in 0..40 {
        world.set(policy(&format!("large-{i}"), "web", "db", 100 + i));
    }
    world.compile();
    assert!(numbers(&world) >= 40, "no room");
    world.compiler.refused();
    for i in 0..40 {
        world.gone(ObjectKey::Policy(policy_id(&format!("large-{i}"))));
    }
    world.set(policy("second", "web", "db", 2));
    world.compile();
    world.compiler.refused();
    world.compile();
    assert!(numbers(&world) < 40, "room again, though nothing has settled: {:?}", world.compiler.desired().rules);
    let desired = world.compiler.desired();
    let kept = before.set_defaults.keys().all(|set| desired.set_defaults.contains_key(set));
    assert!(kept, "what is in force keeps its rows");
    let policy = desired.endpoints.values().next().unwrap();
    assert_ne!(Some(policy), before.endpoints.values().next(), "the endpoint is to flip");

    // And the tables are what they are without the detour.
    world.compiler.taken();
    world.settle();
    let rules: BTreeSet<_> = world.compiler.desired().rules.values().map(|rule| rule.policy.name.to_string()).collect();
    assert_eq!(rules, BTreeSet::from(["first".to_owned(), "second".to_owned()]));
}

#[test]
fn a_service_with_processes_of_the_node_is_closed_where_some_are_denied_and_others_allowed() {
    let service = Object::Service(Service {
        key: Name::new("x", "service"),
        cluster_ips: vec![ip("10.96.0.1")],
        external_ips: vec![],
        selector: None,
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::TCP,
            port: 8080,
            node_port: None,
            target: TargetPort::Number(80),
        }],
    });
    let slice = |addresses: &[&str]| {
        Object::EndpointSlice(crate::model::EndpointSlice {
            key: Name::new("x", "slice"),
            service: Name::new("x", "service"),
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            ports: vec![("".into(), Protocol::TCP, 80)],
        })
    };
    // The rule allows pods of app client, of which 10.0.0.2 is one; 172.18.0.1 is the node.
    let mut world = small();
    world.node.addresses.insert(ip("172.18.0.1"));
    world.dirty.node = true;
    world.set(service);
    let isolation = |world: &World| {
        let egress = |name: &&crate::state::RuleIdentity| {
            name.direction == crate::model::Direction::Egress && name.cause == RuleCause::Isolation
        };
        let mut rules = world.compiler.desired().rules.iter();
        ServiceReach::None(*rules.find(|(_, name)| egress(name)).unwrap().0)
    };
    let rows: [(&str, &[&str], bool, bool); 5] = [
        ("only the node", &["172.18.0.1"], true, false),
        ("the node and who is allowed", &["172.18.0.1", "10.0.0.2"], true, true),
        ("the node and who is denied", &["172.18.0.1", "10.0.0.3"], true, false),
        ("without the node", &["10.0.0.2", "10.0.0.3"], false, false),
        ("the node again", &["172.18.0.1", "10.0.0.2"], true, true),
    ];
    for (what, addresses, closed, mixed) in rows {
        world.set(slice(addresses));
        world.compile();
        if closed {
            assert_eq!(world.reach(8080), isolation(&world), "{what}: at once");
        }
        world.settle();
        assert_eq!(world.reach(8080) == isolation(&world), closed, "{what}");
        let problem = Problem::NodeBehindService {
            service: Name::new("x", "service"),
            protocol: Protocol::TCP,
            port: 8080,
            pod: Name::new("x", "server"),
        };
        assert_eq!(world.compiler.problems().contains(&problem), mixed, "{what}: {:?}", world.compiler.problems());
    }
    // Another node's address is no process of this one.
    world.node.addresses.clear();
    world.dirty.node = true;
    world.compile();
    world.settle();
    assert_eq!(world.reach(8080), ServiceReach::Part, "judged where it leaves");
    assert!(world.compiler.problems().is_empty(), "{:?}", world.compiler.problems());
    world.gone(ObjectKey::Service(Name::new("x", "service")));
    world.compile();
    world.settle();
    assert!(world.compiler.problems().is_empty());
}
