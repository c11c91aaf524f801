//! Who is meant by a peer: selectors, ranges, the node.

use crate::evaluate::fixture::*;
use crate::evaluate::{Evaluator, NodeView, Party, PeerView};
use crate::index::Cluster;
use crate::model::{Direction, Family, Object, PeerAtom, PeerMatch, Pod, Selector, Service, TierDefault};

fn labelled(name: &str, text: &str) -> Pod {
    Pod { labels: labels(text), ..mk_pod(name) }
}

fn on_host(name: &str, node: &str, address: &str) -> Pod {
    Pod { host_network: true, node: Some(node.into()), addresses: vec![ip(address)], ..mk_pod(name) }
}

fn without_address(name: &str) -> Pod {
    Pod { addresses: vec![], ..mk_pod(name) }
}

fn admit(peers: Vec<PeerMatch>) -> Object {
    mk_policy("x/p", with("pod=a")).ingress(vec![allow(peers, vec![])]).done()
}

fn admits(source: Pod, peers: Vec<PeerMatch>, objects: Vec<Object>) -> bool {
    let from = source.key.to_string();
    let cluster = mk_cluster([mk_pod("x/a"), source], objects.into_iter().chain([admit(peers)]));
    ingress(&cluster, &from, "x/a", TCP_80) == "allow x/p#0"
}

#[test]
fn selectors() {
    let rows: Vec<(&str, Selector, &str, bool)> = vec![
        ("{} selects a pod without labels", everything(), "", true),
        ("matchLabels", with("app=web"), "app=web,more=1", true),
        ("matchLabels, another value", with("app=web"), "app=db", false),
        ("matchLabels, absent", with("app=web"), "", false),
        ("matchLabels wants all of them", with("app=web,tier=1"), "app=web", false),
        ("In", within("app", &["web", "db"]), "app=db", true),
        ("In, absent", within("app", &["web"]), "", false),
        ("NotIn, another value", not_within("app", &["web"]), "app=db", true),
        ("NotIn, that value", not_within("app", &["web"]), "app=web", false),
        ("NotIn holds for an absent label", not_within("app", &["web"]), "", true),
        ("Exists", Selector::Exists("app".into()), "app=", true),
        ("Exists, absent", Selector::Exists("app".into()), "", false),
        ("DoesNotExist", Selector::DoesNotExist("app".into()), "app=web", false),
        ("DoesNotExist holds for an absent label", Selector::DoesNotExist("app".into()), "", true),
    ];
    for (why, selector, text, expected) in rows {
        let by_pod = admits(labelled("x/b", text), vec![pods_of("x", selector.clone())], vec![]);
        assert_eq!(by_pod, expected, "{why}: podSelector");
        let peers = vec![pods_in(selector.clone(), everything())];
        let by_namespace = admits(mk_pod("y/b"), peers, vec![mk_namespace("y", text)]);
        assert_eq!(by_namespace, expected, "{why}: namespaceSelector");
        let cluster =
            mk_cluster([mk_pod("y/b"), labelled("x/a", text)], [mk_policy("x/p", selector).ingress(vec![]).done()]);
        let isolated = ingress(&cluster, "y/b", "x/a", TCP_80) == "deny x/p";
        assert_eq!(isolated, expected, "{why}: subject");
    }
}

#[test]
fn selectors_of_pods_and_namespaces() {
    let prod = || with("env=prod");
    let web = || with("app=web");
    let both = || vec![pods_in(prod(), web())];
    let either = || vec![pods_in(prod(), everything()), pods_of("x", web())];
    let namespaces = || vec![mk_namespace("x", ""), mk_namespace("y", "env=prod"), mk_namespace("z", "env=dev")];
    let rows = [
        ("both in one item: both hold", "y/b", "app=web", both(), true),
        ("both in one item: namespace alone", "y/b", "app=db", both(), false),
        ("both in one item: pod alone", "z/b", "app=web", both(), false),
        ("two items: namespace alone", "y/b", "app=db", either(), true),
        ("two items: own pod alone", "x/b", "app=web", either(), true),
        ("two items: the pod's labels count in the own namespace alone", "z/b", "app=web", either(), false),
        ("podSelector alone is about the own namespace", "y/b", "app=web", vec![pods_of("x", web())], false),
        ("namespaceSelector {}", "z/b", "", vec![pods_in(everything(), everything())], true),
        ("nobody", "x/b", "app=web", vec![PeerMatch::Any(vec![])], false),
    ];
    for (why, source, text, peers, expected) in rows {
        assert_eq!(admits(labelled(source, text), peers, namespaces()), expected, "{why}");
    }
}

#[test]
fn a_namespace_without_an_object_has_its_name_alone() {
    let rows = [
        ("its name", namespace_named("y"), true),
        ("another name", namespace_named("z"), false),
        ("no other label", with("env=prod"), false),
        ("absent labels are absent", Selector::DoesNotExist("env".into()), true),
        ("it is a namespace", everything(), true),
    ];
    for (why, selector, expected) in rows {
        assert_eq!(admits(mk_pod("y/b"), vec![pods_in(selector, everything())], vec![]), expected, "{why}");
    }
}

#[test]
fn selectors_mean_pods_alone() {
    let anywhere = || vec![pods_in(everything(), everything())];
    let finished = Pod { finished: true, ..mk_pod("x/b") };
    assert!(admits(mk_pod("x/b"), anywhere(), vec![]), "a running pod");
    assert!(admits(without_address("x/b"), anywhere(), vec![]), "a pod without an address, by selectors");
    assert!(!admits(finished, anywhere(), vec![]), "a finished pod");
    assert!(!admits(on_host("x/b", "n2", "192.0.2.2"), anywhere(), vec![]), "a host-network pod");
    let cluster = mk_cluster([mk_pod("x/a")], [admit(anywhere())]);
    assert_eq!(ingress(&cluster, "203.0.113.1", "x/a", TCP_80), "deny x/p", "an outside address");
    let cluster = mk_cluster([mk_pod("x/a")], [admit(vec![])]);
    assert_eq!(ingress(&cluster, "203.0.113.1", "x/a", TCP_80), "allow x/p#0", "no peers at all means outside too");
}

#[test]
fn ranges() {
    let rows = [
        ("inside", "203.0.113.7", vec![block("203.0.113.0/24", &[])], true),
        ("outside", "203.0.114.7", vec![block("203.0.113.0/24", &[])], false),
        ("first address", "203.0.113.0", vec![block("203.0.113.0/24", &[])], true),
        ("last address", "203.0.113.255", vec![block("203.0.113.0/24", &[])], true),
        ("everything", "203.0.113.7", vec![block("0.0.0.0/0", &[])], true),
        ("everything of the other family", "2001:db8::1", vec![block("0.0.0.0/0", &[])], false),
        ("IPv6", "2001:db8::1", vec![block("2001:db8::/32", &[])], true),
        ("except", "203.0.113.7", vec![block("203.0.113.0/24", &["203.0.113.0/28"])], false),
        ("beside except", "203.0.113.17", vec![block("203.0.113.0/24", &["203.0.113.0/28"])], true),
        (
            "second except",
            "203.0.113.200",
            vec![block("203.0.113.0/24", &["203.0.113.0/28", "203.0.113.192/26"])],
            false,
        ),
        (
            "except is no denial",
            "203.0.113.7",
            vec![block("203.0.113.0/24", &["203.0.113.0/28"]), block("203.0.113.7/32", &[])],
            true,
        ),
    ];
    for (why, source, peers, expected) in rows {
        let expected = if expected { "allow x/p#0" } else { "deny x/p" };
        let cluster = mk_cluster([mk_pod("x/a")], [admit(peers)]);
        assert_eq!(ingress(&cluster, source, "x/a", TCP_80), expected, "{why}");
    }
}

#[test]
fn ranges_mean_pods_too() {
    let everywhere = || vec![block("0.0.0.0/0", &[]), block("::/0", &[])];
    assert!(admits(mk_pod("x/b"), everywhere(), vec![]), "a pod's address");
    assert!(!admits(without_address("x/b"), everywhere(), vec![]), "a pod without an address");
    assert!(admits(on_host("x/b", "n2", "192.0.2.2"), vec![block("192.0.2.2/32", &[])], vec![]), "a node's address");
    let range = "10.0.0.0/8";
    let cluster = mk_cluster([mk_pod("x/a"), mk_pod("x/b")], [admit(vec![block(range, &[])])]);
    let [v4, v6] = [Family::V4, Family::V6].map(|family| {
        let [from, to] = ["x/b", "x/a"].map(|pod| Party::Pod(&cluster.pods[&key(pod)]));
        side(&cluster, from, to, TCP_80, family)[1].as_ref().map(brief).expect("a pod")
    });
    assert_eq!((v4.as_str(), v6.as_str()), ("allow x/p#0", "deny x/p"), "each family is judged by its own address");
}

fn isolated_on_n1(objects: Vec<Object>) -> Cluster {
    let closed = mk_policy("x/p", everything()).ingress(vec![]).egress(vec![]).done();
    let pods =
        [mk_pod("x/a"), on_host("kube-system/own", "n1", "192.0.2.1"), on_host("kube-system/other", "n2", "192.0.2.2")];
    let nodes = [mk_node("n1", &["192.0.2.1", "198.51.100.1"]), mk_node("n2", &["192.0.2.2"])];
    mk_cluster(pods, nodes.into_iter().chain([closed]).chain(objects))
}

#[test]
fn the_own_node() {
    let cluster = isolated_on_n1(vec![]);
    let rows = [
        ("a host-network pod of the node", "kube-system/own", "allow node", "allow x/p#own-node"),
        ("an address of the node", "192.0.2.1", "allow node", "allow x/p#own-node"),
        ("another address of the node", "198.51.100.1", "allow node", "allow x/p#own-node"),
        ("a host-network pod of another node", "kube-system/other", "deny x/p", "deny x/p"),
        ("an address of another node", "192.0.2.2", "deny x/p", "deny x/p"),
        ("an outside address", "203.0.113.1", "deny x/p", "deny x/p"),
    ];
    for (why, other, into, out) in rows {
        assert_eq!(ingress(&cluster, other, "x/a", TCP_80), into, "{why}: ingress");
        assert_eq!(egress(&cluster, "x/a", other, TCP_80), out, "{why}: egress");
    }
    let evaluator = Evaluator::new(&cluster);
    let endpoint = &cluster.pods[&key("x/a")];
    let masqueraded = NodeView::masqueraded(ip("192.0.2.1"));
    assert_eq!(
        brief(&evaluator.decide(endpoint, Direction::Ingress, &masqueraded, TCP_80)),
        "deny x/p",
        "the node's address alone does not make a process of the node"
    );
    let unplaced = mk_cluster([Pod { node: None, ..mk_pod("x/a") }], cluster_objects());
    assert_eq!(ingress(&unplaced, "192.0.2.1", "x/a", TCP_80), "deny x/p", "a pod without a node has no own node");
}

fn cluster_objects() -> Vec<Object> {
    vec![mk_node("n1", &["192.0.2.1"]), mk_policy("x/p", everything()).ingress(vec![]).done()]
}

#[test]
fn processes_of_the_node_come_before_all_tiers() {
    let first = mk_tier("first", Some(1.0), TierDefault::Deny);
    let deny = mk_policy("x/deny", everything()).tier("first").bare_ingress(vec![act(
        crate::model::Action::Deny,
        vec![],
        vec![],
    )]);
    let cluster = isolated_on_n1(vec![first, deny.done()]);
    assert_eq!(ingress(&cluster, "192.0.2.1", "x/a", TCP_80), "allow node", "denied by name");
    let open = mk_cluster([mk_pod("x/a")], [mk_node("n1", &["192.0.2.1"])]);
    assert_eq!(ingress(&open, "192.0.2.1", "x/a", TCP_80), "allow node", "and where no policy applies");
}

#[test]
fn what_a_service_names_does_not_take_an_address_from_the_node() {
    let service = Service {
        key: key("x/s"),
        cluster_ips: vec![ip("198.51.100.7")],
        external_ips: vec![ip("198.51.100.1")],
        selector: None,
        ports: vec![],
    };
    let cluster = isolated_on_n1(vec![Object::Service(service)]);
    let rows = [
        ("198.51.100.1", "allow x/p#own-node", "anybody may write a node's address into externalIPs"),
        ("192.0.2.1", "allow x/p#own-node", "the node's other address"),
        ("198.51.100.7", "deny x/p", "a cluster address is no node's"),
    ];
    for (address, expected, why) in rows {
        assert_eq!(egress(&cluster, "x/a", address, TCP_80), expected, "{why}");
    }
}

#[test]
fn what_a_view_says_counts_where_it_means_something() {
    let rules = || vec![allow(vec![pods_in(everything(), everything())], vec![])];
    let policy = mk_policy("x/p", everything()).ingress(rules()).egress(rules()).done();
    let host = on_host("x/h", "n1", "192.0.2.1");
    let gone = Pod { finished: true, ..on_host("x/gone", "n1", "192.0.2.9") };
    let cluster = mk_cluster([mk_pod("x/a"), host, gone], [policy]);
    let evaluator = Evaluator::new(&cluster);
    let [endpoint, host] = ["x/a", "x/h"].map(|pod| &*cluster.pods[&key(pod)]);
    let process = PeerView { node_process_of_own_node: true, ..PeerView::default() };
    let node = PeerView { own_node_destination: true, ..PeerView::default() };
    let on_host = PeerView { pod: Some(host), ..PeerView::default() };
    let rows = [
        ("a process that sends to the pod", endpoint, Direction::Ingress, process, "allow node"),
        ("a process that the pod sends to", endpoint, Direction::Egress, process, "deny x/p"),
        ("a process that sends to a pod on the node's network", host, Direction::Ingress, process, "allow no-policy"),
        ("the node as destination", endpoint, Direction::Egress, node, "allow x/p#own-node"),
        ("the node as source", endpoint, Direction::Ingress, node, "deny x/p"),
        ("a pod on its node's network", endpoint, Direction::Ingress, on_host, "deny x/p"),
    ];
    for (why, endpoint, direction, view, expected) in rows {
        assert_eq!(brief(&evaluator.decide(endpoint, direction, &view, TCP_80)), expected, "{why}");
    }
    // Implied rules of the other direction, as kinds that state them for ingress may bring them.
    let own_node = PeerMatch::Atom(PeerAtom::OwnNode);
    let stated = mk_policy("x/p", everything()).bare_ingress(vec![allow(vec![own_node], vec![])]).done();
    let cluster = mk_cluster([mk_pod("x/a")], [stated]);
    let decision = Evaluator::new(&cluster).decide(endpoint, Direction::Ingress, &node, TCP_80);
    assert_eq!(brief(&decision), "deny x/p", "the own node is meant as a destination");
}

#[test]
fn views() {
    let pods = [
        mk_pod("x/a"),
        Pod { finished: true, ..mk_pod("x/f") },
        on_host("x/h", "n1", "192.0.2.1"),
        Pod { finished: true, ..on_host("x/gone", "n1", "192.0.2.9") },
        on_host("x/far", "n2", "192.0.2.2"),
    ];
    let cluster = mk_cluster(pods, []);
    let nodes = NodeView::of(&cluster);
    let pod = |name: &str| &*cluster.pods[&key(name)];
    let view = |other| nodes.view(pod("x/a"), Direction::Egress, other, Family::V4);
    let of_pod = |name| view(Party::Pod(pod(name)));
    let rows = [
        ("itself", of_pod("x/a"), (true, true, false)),
        ("a finished pod is no pod", of_pod("x/f"), (false, false, false)),
        ("a pod on the node's network is the node", of_pod("x/h"), (false, false, true)),
        ("one of another node is not", of_pod("x/far"), (false, false, false)),
        ("its address", view(Party::Address(ip("192.0.2.1"))), (false, false, true)),
        ("a finished one leaves no address", view(Party::Address(ip("192.0.2.9"))), (false, false, false)),
    ];
    for (why, view, expected) in rows {
        assert_eq!((view.pod.is_some(), view.itself, view.own_node_destination), expected, "{why}");
    }
}
