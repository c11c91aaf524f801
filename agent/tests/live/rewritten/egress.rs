//! What a pod sends to a Service is judged by who gets it.

use portcullis_testbed::{ExternalTrafficPolicy, Masquerade, Protocol};
use serde_json::{Value, json};

use super::ground::{Front, Ground, PORT, TARGET, Who, block};
use super::rows::{self, Row};

/// What x/client may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allows {
    /// Pods by label.
    Selector,
    /// Pods, an address outside, and another node, by address.
    Block,
    /// A named port, wherever it is.
    NamedPort,
    /// The Services' port, which nobody has behind them.
    ServicePort,
    Everything,
}

const ALL: [Allows; 5] = [Allows::Selector, Allows::Block, Allows::NamedPort, Allows::ServicePort, Allows::Everything];

impl Allows {
    /// The client may neither be reached nor reach anything else. The servers, isolated too, only answer.
    pub(super) fn policies(self, ground: &Ground) -> Vec<(&'static str, Value)> {
        let rule = match self {
            Self::Selector => {
                json!({"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "good"}}}]})
            }
            Self::Block => {
                let both = [true, false];
                let mut addresses: Vec<_> = [Who::Near, Who::Far, Who::Outside]
                    .iter()
                    .flat_map(|who| both.map(|v4| ground.address(*who, v4)))
                    .collect();
                addresses.extend(ground.node_addresses(1));
                addresses.push(super::ground::WIRE_SERVER.into());
                json!({"to": addresses.into_iter().map(block).collect::<Vec<Value>>()})
            }
            Self::NamedPort => {
                json!({"ports": [{"port": "app-tcp", "protocol": "TCP"}, {"port": "app-udp", "protocol": "UDP"}]})
            }
            Self::ServicePort => {
                json!({"ports": [{"port": PORT, "protocol": "TCP"}, {"port": PORT, "protocol": "UDP"}]})
            }
            Self::Everything => json!({}),
        };
        let client = json!({
            "podSelector": {"matchLabels": {"pod": "client"}}, "policyTypes": ["Ingress", "Egress"], "egress": [rule],
        });
        let servers = json!({
            "podSelector": {"matchLabels": {"app": "good"}}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}],
        });
        vec![("x/client", client.clone()), ("y/client", client), ("x/servers", servers.clone()), ("y/servers", servers)]
    }

    /// Whether x/client reaches somebody's target port.
    pub(super) fn allows(self, who: Who) -> bool {
        match who {
            // Itself and its node: the API's texts put both outside policy.
            Who::Itself | Who::Node => true,
            Who::Near | Who::Far => self != Self::ServicePort,
            Who::NearBad | Who::FarBad | Who::OtherOutside => self == Self::Everything,
            Who::OtherNode | Who::Outside => matches!(self, Self::Block | Self::Everything),
        }
    }
}

/// Whom the agents can know to be behind an address.
enum Behind {
    Known(Who),
    /// An address that is no Service's to them: it is judged as the host outside that it seems to be, on the port that it
    /// is asked for.
    Unknown,
}

fn rows(ground: &Ground) -> Vec<Row<Behind>> {
    let mut rows = Vec::new();
    for v4 in [true, false] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for who in Who::ALL.into_iter().filter(|who| *who != Who::Itself) {
                rows.push(Row {
                    what: format!("{who:?} itself"),
                    from: ground.host(Who::Itself),
                    source: None,
                    to: ground.address(who, v4),
                    protocol,
                    port: TARGET,
                    backend: None,
                    answer: who.name().to_owned(),
                    key: Behind::Known(who),
                });
            }
            // No policy denies what nobody gets.
            rows.push(Row {
                what: "a Service without backends".to_owned(),
                from: ground.host(Who::Itself),
                source: None,
                to: ground.front("empty").vip(v4),
                protocol,
                port: PORT,
                backend: None,
                answer: rows::REFUSED.to_owned(),
                key: Behind::Known(Who::Itself),
            });
            for front in &ground.fronts {
                services(ground, front, protocol, v4, &mut rows);
            }
        }
    }
    rows
}

/// The ways to a Service's backends.
fn services(ground: &Ground, front: &Front, protocol: Protocol, v4: bool, rows: &mut Vec<Row<Behind>>) {
    let own = ground.node_addresses(0).into_iter().filter(|address| address.is_ipv4() == v4);
    // An external address masquerades the client, unless backends are to see it.
    let masqueraded = front.policy == ExternalTrafficPolicy::Cluster;
    let mut ways = vec![("the cluster address", front.vip(v4), PORT, front.masquerade == Masquerade::All)];
    // The others have the same rules; these tell how they may end.
    if front.name.starts_with("mixed") && front.masquerade != Masquerade::All {
        ways.push(("the external address", front.external(v4), PORT, masqueraded));
        ways.push(("the load balancer's address", front.balancer(v4), PORT, masqueraded));
        ways.extend(own.map(|address| ("the node's port", address, front.node_port(), masqueraded)));
    }
    for (way, to, port, masqueraded) in ways {
        for (at, &who) in front.backends.iter().enumerate() {
            if matches!(who, Who::Near | Who::NearBad) && ground.bridged_past_the_node(masqueraded) {
                continue;
            }
            let unknown = !ground.setting.known_services && [front.external(v4), front.balancer(v4)].contains(&to);
            rows.push(Row {
                what: format!("{who:?} by {way} of {}", front.name),
                from: ground.host(Who::Itself),
                source: None,
                to,
                protocol,
                port,
                backend: Some(at),
                answer: who.name().to_owned(),
                key: if unknown { Behind::Unknown } else { Behind::Known(who) },
            });
        }
    }
}

pub(super) fn judge(ground: &Ground) -> Vec<String> {
    let rows = rows(ground);
    let mut wrong = rows::judge("no policy", &rows, |_| true);
    for allows in ALL {
        ground.enforce(&allows.policies(ground));
        wrong.extend(rows::judge(&format!("client allowed {allows:?}"), &rows, |behind| match behind {
            Behind::Known(who) => allows.allows(*who),
            Behind::Unknown => matches!(allows, Allows::ServicePort | Allows::Everything),
        }));
    }
    ground.enforce(&[]);
    wrong
}
