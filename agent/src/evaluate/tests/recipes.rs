//! The well-known policy recipes (github.com/ahmetb/kubernetes-network-policy-recipes), by their numbers.

use crate::evaluate::fixture::*;
use crate::model::{Object, PeerMatch, Pod, PortMatch, Protocol, Traffic};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;
const DNS: Traffic = Traffic { protocol: UDP, port: 53 };
const PING: Traffic = Traffic { protocol: Protocol::ICMP, port: 0x0800 };

/// Namespaces default, other (purpose=dev), prod (purpose=production), ops (team=operations) and kube-system.
fn namespaces() -> Vec<Object> {
    [
        ("default", ""),
        ("other", "purpose=dev"),
        ("prod", "purpose=production"),
        ("ops", "team=operations"),
        ("kube-system", ""),
    ]
    .map(|(name, more)| mk_namespace(name, more))
    .into()
}

/// Pods by their names, with the labels that the recipes give them.
fn pods() -> Vec<Pod> {
    let labelled = [
        ("default/web", "app=web"),
        ("default/bookstore-api", "app=bookstore,role=api"),
        ("default/bookstore", "app=bookstore"),
        ("default/apiserver", "app=apiserver"),
        ("default/monitoring", "role=monitoring"),
        ("default/db", "app=bookstore,role=db"),
        ("default/search", "app=bookstore,role=search"),
        ("default/inventory", "app=inventory,role=web"),
        ("default/foo", "app=foo"),
        ("default/plain", ""),
        ("other/plain", ""),
        ("other/bookstore", "app=bookstore"),
        ("other/monitoring", "type=monitoring"),
        ("prod/plain", ""),
        ("ops/plain", ""),
        ("ops/monitoring", "type=monitoring"),
        ("kube-system/dns", "k8s-app=kube-dns"),
    ];
    labelled.map(|(name, text)| Pod { labels: labels(text), ..mk_pod(name) }).into()
}

struct Recipe {
    name: &'static str,
    policies: Vec<Object>,
    /// From, to, traffic, passes.
    rows: Vec<(&'static str, &'static str, Traffic, bool)>,
}

fn ingress_of(pods: &str, rules: Vec<(Vec<PeerMatch>, Vec<PortMatch>)>) -> Object {
    let rules = rules.into_iter().map(|(peers, ports)| allow(peers, ports)).collect();
    mk_policy("default/recipe", with(pods)).ingress(rules).done()
}

fn egress_of(pods: &str, rules: Vec<(Vec<PeerMatch>, Vec<PortMatch>)>) -> Object {
    let rules = rules.into_iter().map(|(peers, ports)| allow(peers, ports)).collect();
    mk_policy("default/recipe", with(pods)).egress(rules).done()
}

fn own(text: &str) -> PeerMatch {
    pods_of("default", with(text))
}

fn check(recipes: Vec<Recipe>) {
    for Recipe { name, policies, rows } in recipes {
        let cluster = mk_cluster(pods(), namespaces().into_iter().chain(policies));
        for (from, to, traffic, expected) in rows {
            let sides = both_sides(&cluster, from, to, traffic);
            assert_eq!(passes(&cluster, from, to, traffic), expected, "{name}: {from} -> {to} {traffic:?}: {sides:?}");
        }
    }
}

#[test]
fn ingress_recipes() {
    const OUTSIDE: &str = "203.0.113.1";
    let deny = || mk_policy("default/deny", with("app=web")).ingress(vec![]).done();
    check(vec![
        Recipe {
            name: "01 deny all",
            policies: vec![deny()],
            rows: vec![
                ("default/plain", "default/web", TCP_80, false),
                ("other/plain", "default/web", TCP_80, false),
                (OUTSIDE, "default/web", TCP_80, false),
                ("default/web", "default/plain", TCP_80, true),
            ],
        },
        Recipe {
            name: "02 limit to an application",
            policies: vec![ingress_of("app=bookstore,role=api", vec![(vec![own("app=bookstore")], vec![])])],
            rows: vec![
                ("default/bookstore", "default/bookstore-api", TCP_80, true),
                ("default/plain", "default/bookstore-api", TCP_80, false),
                ("other/bookstore", "default/bookstore-api", TCP_80, false),
            ],
        },
        Recipe {
            name: "02a allow all, beside 01",
            policies: vec![deny(), ingress_of("app=web", vec![(vec![], vec![])])],
            rows: vec![
                ("default/plain", "default/web", TCP_80, true),
                ("other/plain", "default/web", TCP_80, true),
                (OUTSIDE, "default/web", TCP_80, true),
            ],
        },
        Recipe {
            name: "03 deny what is not listed in a namespace",
            policies: vec![ingress_of("", vec![])],
            rows: vec![
                ("default/plain", "default/web", TCP_80, false),
                ("default/web", "default/plain", TCP_80, false),
                ("default/web", "other/plain", TCP_80, true),
            ],
        },
        Recipe {
            name: "04 deny from other namespaces",
            policies: vec![ingress_of("", vec![(vec![own("")], vec![])])],
            rows: vec![
                ("default/plain", "default/web", TCP_80, true),
                ("other/plain", "default/web", TCP_80, false),
                (OUTSIDE, "default/web", TCP_80, false),
            ],
        },
        Recipe {
            name: "05 allow from all namespaces",
            policies: vec![ingress_of("app=web", vec![(vec![pods_in(everything(), everything())], vec![])])],
            rows: vec![
                ("default/plain", "default/web", TCP_80, true),
                ("other/plain", "default/web", TCP_80, true),
                (OUTSIDE, "default/web", TCP_80, false),
            ],
        },
        Recipe {
            name: "06 allow from a namespace",
            policies: vec![ingress_of(
                "app=web",
                vec![(vec![pods_in(with("purpose=production"), everything())], vec![])],
            )],
            rows: vec![
                ("prod/plain", "default/web", TCP_80, true),
                ("other/plain", "default/web", TCP_80, false),
                ("default/plain", "default/web", TCP_80, false),
            ],
        },
        Recipe {
            name: "07 some pods in another namespace",
            policies: vec![ingress_of(
                "app=web",
                vec![(vec![pods_in(with("team=operations"), with("type=monitoring"))], vec![])],
            )],
            rows: vec![
                ("ops/monitoring", "default/web", TCP_80, true),
                ("other/monitoring", "default/web", TCP_80, false),
                ("ops/plain", "default/web", TCP_80, false),
            ],
        },
        Recipe {
            name: "08 external clients, on one port",
            policies: vec![ingress_of("app=web", vec![(vec![], vec![port(TCP, 80)])])],
            rows: vec![
                (OUTSIDE, "default/web", TCP_80, true),
                ("other/plain", "default/web", TCP_80, true),
                (OUTSIDE, "default/web", tcp(81), false),
                (OUTSIDE, "default/web", Traffic { protocol: UDP, port: 80 }, false),
            ],
        },
        Recipe {
            name: "09 only a port: the target port counts, not the Service's",
            policies: vec![ingress_of("app=apiserver", vec![(vec![own("role=monitoring")], vec![port(TCP, 5000)])])],
            rows: vec![
                ("default/monitoring", "default/apiserver", tcp(5000), true),
                ("default/monitoring", "default/apiserver", tcp(5001), false),
                ("default/monitoring", "default/apiserver", tcp(8000), false),
                ("default/plain", "default/apiserver", tcp(5000), false),
            ],
        },
        Recipe {
            name: "10 multiple selectors",
            policies: vec![ingress_of(
                "app=bookstore,role=db",
                vec![(
                    vec![
                        own("app=bookstore,role=search"),
                        own("app=bookstore,role=api"),
                        own("app=inventory,role=web"),
                    ],
                    vec![],
                )],
            )],
            rows: vec![
                ("default/search", "default/db", TCP_80, true),
                ("default/bookstore-api", "default/db", TCP_80, true),
                ("default/inventory", "default/db", TCP_80, true),
                ("default/web", "default/db", TCP_80, false),
            ],
        },
    ]);
}

#[test]
fn egress_recipes() {
    const OUTSIDE: &str = "203.0.113.1";
    let dns_ports = || vec![port(UDP, 53), port(TCP, 53)];
    let to_dns = || pods_in(namespace_named("kube-system"), with("k8s-app=kube-dns"));
    check(vec![
        Recipe {
            name: "11 deny egress",
            policies: vec![egress_of("app=foo", vec![])],
            rows: vec![
                ("default/foo", "default/web", TCP_80, false),
                ("default/foo", "kube-system/dns", DNS, false),
                ("default/foo", OUTSIDE, PING, false),
                ("default/plain", "default/foo", TCP_80, true),
            ],
        },
        Recipe {
            name: "11 deny egress but DNS",
            policies: vec![egress_of("app=foo", vec![(vec![to_dns()], dns_ports())])],
            rows: vec![
                ("default/foo", "kube-system/dns", DNS, true),
                ("default/foo", "kube-system/dns", tcp(53), true),
                ("default/foo", "kube-system/dns", PING, false),
                ("default/foo", "default/web", TCP_80, false),
                ("default/foo", OUTSIDE, TCP_80, false),
                ("default/foo", "203.0.113.1", DNS, false),
            ],
        },
        Recipe {
            name: "12 deny egress of a namespace",
            policies: vec![egress_of("", vec![])],
            rows: vec![
                ("default/plain", "default/web", TCP_80, false),
                ("default/plain", "kube-system/dns", DNS, false),
                ("other/plain", "default/web", TCP_80, true),
            ],
        },
        Recipe {
            name: "14 deny external egress: the printed manifest allows DNS and nothing else",
            policies: vec![egress_of(
                "app=foo",
                vec![(vec![pods_in(everything(), with("k8s-app=kube-dns"))], dns_ports())],
            )],
            rows: vec![
                ("default/foo", "kube-system/dns", DNS, true),
                ("default/foo", "default/web", TCP_80, false),
                ("default/foo", OUTSIDE, TCP_80, false),
            ],
        },
    ]);
}
