//! What reaches a pod is judged by who sent it, as far as the pod's node can know: whoever another rule of a node has
//! given the node's address is judged as that address, unless a pod or process of the pod's own node is behind it.

use std::net::IpAddr;

use portcullis_testbed::{Host, Protocol, Proxy};
use serde_json::{Value, json};

use super::ground::{Ground, PORT, TARGET, WIRE_SERVER, Who, block, of_family};
use super::rows::{self, Row};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// A pod of node 0 that policies admit by label.
    Client,
    /// A pod of node 0 that no policy speaks of.
    Free,
    /// Such a pod of node 1.
    FarFree,
    /// The server.
    Itself,
    /// A process of a node.
    Node(usize),
    Outside,
    /// A load balancer's health probe.
    Wire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Direct,
    ClusterAddress,
    ClusterAddressMasqueraded,
    NodePort(usize),
    /// With externalTrafficPolicy Local.
    NodePortLocal(usize),
    External,
    /// A load balancer's address, with externalTrafficPolicy Cluster.
    Balancer,
    /// A load balancer's address, with externalTrafficPolicy Local.
    BalancerLocal,
}

/// As whom the server's node knows the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Pod(From),
    NodeProcess,
    NodeAddress(usize),
    Outside,
    Wire,
}

const FROM: [From; 8] =
    [From::Client, From::Free, From::FarFree, From::Itself, From::Node(0), From::Node(1), From::Outside, From::Wire];
const WAYS: [Way; 10] = [
    Way::Direct,
    Way::ClusterAddress,
    Way::ClusterAddressMasqueraded,
    Way::NodePort(0),
    Way::NodePort(1),
    Way::NodePortLocal(0),
    Way::NodePortLocal(1),
    Way::External,
    Way::Balancer,
    Way::BalancerLocal,
];

impl From {
    /// The node of a pod or process.
    fn node(self, server: usize) -> Option<usize> {
        match self {
            Self::Client | Self::Free => Some(0),
            Self::FarFree => Some(1),
            Self::Itself => Some(server),
            Self::Node(node) => Some(node),
            Self::Outside | Self::Wire => None,
        }
    }

    fn is_pod(self) -> bool {
        matches!(self, Self::Client | Self::Free | Self::FarFree | Self::Itself)
    }

    fn host(self, ground: &Ground, server: Who) -> Host {
        match self {
            Self::Client => ground.host(Who::Itself),
            Self::Free => Host::clone(ground.cluster.pod("x/free")),
            Self::FarFree => Host::clone(ground.cluster.pod("y/free")),
            Self::Itself => ground.host(server),
            Self::Node(node) => Host::clone(ground.cluster.bed.node(node)),
            Self::Outside | Self::Wire => ground.host(Who::Outside),
        }
    }
}

impl Way {
    /// The node that translates the address.
    fn translated_at(self, from: From, server: usize) -> Option<usize> {
        match self {
            Self::Direct => None,
            Self::NodePort(node) | Self::NodePortLocal(node) => Some(node),
            // From outside, the load balancer chooses node 0.
            _ => Some(from.node(server).unwrap_or(0)),
        }
    }

    fn is_local(self) -> bool {
        matches!(self, Self::NodePortLocal(_) | Self::BalancerLocal)
    }

    fn masquerades(self, from: From, server: usize) -> bool {
        let of_the_node = !from.is_pod() && from.node(server) == self.translated_at(from, server);
        match self {
            Self::Direct => false,
            Self::ClusterAddress => !from.is_pod() || from == From::Itself,
            Self::ClusterAddressMasqueraded | Self::NodePort(_) | Self::External | Self::Balancer => true,
            // Its own node's processes are; pods are not, except one that reaches itself.
            Self::NodePortLocal(_) | Self::BalancerLocal => of_the_node || from == From::Itself,
        }
    }

    /// Whether the network carries this at all.
    fn works(self, from: From, server: usize, ground: &Ground) -> bool {
        let (node, at) = (from.node(server), self.translated_at(from, server));
        let masqueraded = self.masquerades(from, server);
        let known_to_outside = matches!(self, Self::ClusterAddress | Self::ClusterAddressMasqueraded) && node.is_none();
        // Egress of a server is isolated, and its way to itself leads by its own node alone, and by what that knows.
        let external = matches!(self, Self::External | Self::Balancer | Self::BalancerLocal);
        let unknown = external && !ground.setting.known_services;
        let itself = from == From::Itself && (self == Self::Direct || at != Some(server) || unknown);
        // With externalTrafficPolicy Local a node gives nobody but its own processes and pods another node's backends, and
        // pods of another node would not recognise the answer.
        let elsewhere = self.is_local() && at != Some(server) && at != node;
        let around = node == Some(server) && at == node && from.is_pod() && ground.bridged_past_the_node(masqueraded);
        // kube-proxy's nftables mode asks for local backends before it translates what a node's own process sends.
        let of_process = self == Self::BalancerLocal && !from.is_pod() && at != Some(server);
        let refused = of_process && ground.setting.proxy == Proxy::Nftables;
        !(known_to_outside || itself || elsewhere || around || refused)
    }

    fn seen(self, from: From, server: usize) -> Seen {
        let (node, at) = (from.node(server), self.translated_at(from, server));
        if self.masquerades(from, server) && at != Some(server) || self.masquerades(from, server) && node != at {
            return Seen::NodeAddress(at.unwrap_or(0));
        }
        match from {
            From::Node(node) if node == server => Seen::NodeProcess,
            From::Node(node) => Seen::NodeAddress(node),
            From::Outside => Seen::Outside,
            From::Wire => Seen::Wire,
            pod => Seen::Pod(pod),
        }
    }

    fn destination(self, ground: &Ground, server: Who, v4: bool) -> (IpAddr, u16) {
        let name = server.name().split('/').nth(1).unwrap_or_default();
        let front = |suffix: &str| ground.front(&format!("{name}{suffix}"));
        let node_address = |node: usize| of_family(&ground.cluster.bed.node(node).addresses(), v4);
        match self {
            Self::Direct => (ground.address(server, v4), TARGET),
            Self::ClusterAddress => (front("").vip(v4), PORT),
            Self::ClusterAddressMasqueraded => (front("-masqueraded").vip(v4), PORT),
            Self::NodePort(node) => (node_address(node), front("").node_port()),
            Self::NodePortLocal(node) => (node_address(node), front("-local").node_port()),
            Self::External => (front("").external(v4), PORT),
            Self::Balancer => (front("").balancer(v4), PORT),
            Self::BalancerLocal => (front("-local").balancer(v4), PORT),
        }
    }
}

fn rows(ground: &Ground) -> Vec<Row<Seen>> {
    let mut rows: Vec<Row<Seen>> = Vec::new();
    for v4 in [true, false] {
        for (node, server) in [(0, Who::Near), (1, Who::Far)] {
            for from in FROM.into_iter().filter(|from| v4 || *from != From::Wire) {
                for way in WAYS.into_iter().filter(|way| way.works(from, node, ground)) {
                    let (to, port) = way.destination(ground, server, v4);
                    let source = match from {
                        From::Outside => Some(of_family(&ground.cluster.bed.outside().addresses(), v4)),
                        From::Wire => Some(WIRE_SERVER.into()),
                        _ => None,
                    };
                    let seen = way.seen(from, node);
                    rows.push(Row {
                        what: format!("{from:?} by {way:?}, seen as {seen:?}"),
                        from: from.host(ground, server),
                        source,
                        to,
                        // Every way is asked in both protocols, one in each family.
                        protocol: if rows.len().is_multiple_of(2) == v4 { Protocol::Tcp } else { Protocol::Udp },
                        port,
                        backend: None,
                        answer: server.name().to_owned(),
                        key: seen,
                    });
                }
            }
        }
    }
    rows
}

/// Whom the servers admit, by peers of a policy.
fn admissions(ground: &Ground) -> Vec<(&'static str, Vec<Value>, Vec<Seen>)> {
    let client = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}},
        "podSelector": {"matchLabels": {"pod": "client"}},
    });
    let outside: Vec<Value> =
        [true, false].map(|v4| block(of_family(&ground.cluster.bed.outside().addresses(), v4))).into();
    let node = |node: usize| ground.node_addresses(node).into_iter().map(block).collect::<Vec<Value>>();
    let wire = vec![block(WIRE_SERVER.into())];
    vec![
        (
            "a client and somebody outside",
            [vec![client], outside].concat(),
            vec![Seen::Pod(From::Client), Seen::Outside],
        ),
        ("node 0's addresses", node(0), vec![Seen::NodeAddress(0)]),
        (
            "node 1's addresses, and the load balancer's probes",
            [node(1), wire].concat(),
            vec![Seen::NodeAddress(1), Seen::Wire],
        ),
    ]
}

pub(super) fn judge(ground: &Ground) -> Vec<String> {
    let rows = rows(ground);
    let mut wrong = rows::judge("ingress, no policy", &rows, |_| true);
    for (whom, peers, admitted) in admissions(ground) {
        // Isolated in the other direction too: they may only answer.
        let servers = json!({
            "podSelector": {"matchLabels": {"app": "good"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers}],
        });
        ground.enforce(&[("x/servers", servers.clone()), ("y/servers", servers)]);
        // A node's own processes and the pod itself stand outside policy.
        let always = [Seen::NodeProcess, Seen::Pod(From::Itself)];
        wrong.extend(rows::judge(&format!("servers admit {whom}"), &rows, |seen| {
            admitted.contains(seen) || always.contains(seen)
        }));
    }
    ground.enforce(&[]);
    wrong
}
