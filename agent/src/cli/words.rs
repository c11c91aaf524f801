//! Policies in words: rules as their manifests say them, and why one does not match.
//!
//! Selectors are written as `kubectl -l` takes them: `app=web`, `env in (dev, test)`, `app!=web`, `key`, `!key`.

use crate::evaluate::{LabelMiss, PeerMiss, PortMiss, PortMissReason, RuleReport, TrafficMiss};
use crate::model::{
    Action, Direction, Family, NamespaceScope, PeerAtom, PeerMatch, PortMatch, PortSpec, Rule, RuleOrigin, Selector,
    Traffic, TrafficMatch,
};

use super::explain::Sides;

/// A selector.
pub(super) fn selector(selector: &Selector) -> String {
    let list = |parts: &[Selector], between: &str| parts.iter().map(self::selector).collect::<Vec<_>>().join(between);
    let values = |values: &std::collections::BTreeSet<std::sync::Arc<str>>| {
        values.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(", ")
    };
    match selector {
        Selector::All(parts) if parts.is_empty() => "any labels".to_owned(),
        Selector::All(parts) => list(parts, ","),
        Selector::Any(parts) if parts.is_empty() => "nothing".to_owned(),
        Selector::Any(parts) => format!("({})", list(parts, " or ")),
        Selector::Not(part) => format!("not ({})", self::selector(part)),
        Selector::In(key, wanted) if wanted.len() == 1 => format!("{key}={}", values(wanted)),
        Selector::In(key, wanted) => format!("{key} in ({})", values(wanted)),
        Selector::NotIn(key, unwanted) if unwanted.len() == 1 => format!("{key}!={}", values(unwanted)),
        Selector::NotIn(key, unwanted) => format!("{key} notin ({})", values(unwanted)),
        Selector::Exists(key) => key.to_string(),
        Selector::DoesNotExist(key) => format!("!{key}"),
    }
}

fn selects_all(selector: &Selector) -> bool {
    matches!(selector, Selector::All(parts) if parts.is_empty())
}

fn pods(namespaces: &NamespaceScope, labels: &Selector) -> String {
    let which = if selects_all(labels) { "every pod".to_owned() } else { format!("pods with {}", selector(labels)) };
    match namespaces {
        NamespaceScope::Named(name) => format!("{which} in namespace {name}"),
        NamespaceScope::Matching(scope) if selects_all(scope) => format!("{which} in every namespace"),
        NamespaceScope::Matching(scope) => match names(scope) {
            Some(names) => format!("{which} in namespace {}", names.join(" or ")),
            None => format!("{which} in namespaces with {}", selector(scope)),
        },
    }
}

/// The namespaces that a selector names, where it does so by the label that every namespace has, and by nothing else.
fn names(scope: &Selector) -> Option<Vec<&str>> {
    match scope {
        Selector::All(parts) if parts.len() == 1 => names(parts.first()?),
        Selector::In(key, names) if **key == *"kubernetes.io/metadata.name" => {
            Some(names.iter().map(AsRef::as_ref).collect())
        }
        _ => None,
    }
}

/// A peer, in one line for each alternative.
pub(super) fn peers(peer: &PeerMatch) -> Vec<String> {
    match peer {
        PeerMatch::Any(parts) if parts.is_empty() => vec!["nobody".to_owned()],
        PeerMatch::Any(parts) => parts.iter().map(one_peer).collect(),
        other => vec![one_peer(other)],
    }
}

fn one_peer(peer: &PeerMatch) -> String {
    match peer {
        PeerMatch::All(parts) if parts.is_empty() => "anybody".to_owned(),
        PeerMatch::All(parts) => {
            let join = |words: Vec<String>, between: &str| words.join(between);
            let (out, into): (Vec<&PeerMatch>, Vec<&PeerMatch>) =
                parts.iter().partition(|part| matches!(part, PeerMatch::Not(_)));
            let wanted = join(into.into_iter().map(one_peer).collect(), " and ");
            let except = out.into_iter().map(|part| match part {
                PeerMatch::Not(part) => one_peer(part),
                other => one_peer(other),
            });
            let except = join(except.collect(), ", ");
            match (wanted.is_empty(), except.is_empty()) {
                (_, true) => wanted,
                (true, false) => format!("anybody except {except}"),
                (false, false) => format!("{wanted} except {except}"),
            }
        }
        PeerMatch::Any(_) => format!("({})", peers(peer).join(" or ")),
        PeerMatch::Not(part) => format!("anybody except {}", one_peer(part)),
        PeerMatch::Atom(PeerAtom::Pods { namespaces, pods }) => self::pods(namespaces, pods),
        PeerMatch::Atom(PeerAtom::Cidr(range)) => range.to_string(),
        PeerMatch::Atom(PeerAtom::Itself) => "the pod itself".to_owned(),
        PeerMatch::Atom(PeerAtom::OwnNode) => "the node that the pod runs on".to_owned(),
    }
}

/// One entry of a port list: `80/TCP`, `8000-8080/TCP`, `"web"/TCP`, `UDP`.
pub(super) fn port(port: &PortMatch) -> String {
    let protocol = port.protocol;
    match &port.port {
        PortSpec::Any => format!("every {protocol} port"),
        PortSpec::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortSpec::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortSpec::Named(name) => format!("{name:?}/{protocol}"),
    }
}

/// The ports of a rule.
pub(super) fn ports(traffic: &TrafficMatch) -> String {
    let list = |ports: &[PortMatch]| ports.iter().map(port).collect::<Vec<_>>().join(", ");
    let wanted = if traffic.any_of.is_empty() { "every protocol and port".to_owned() } else { list(&traffic.any_of) };
    if traffic.none_of.is_empty() { wanted } else { format!("{wanted} except {}", list(&traffic.none_of)) }
}

/// What is asked about: `80/TCP`, `ICMP`, `protocol 47`.
pub(super) fn traffic(traffic: Traffic) -> String {
    match traffic.protocol {
        protocol if protocol.has_ports() => format!("{}/{protocol}", traffic.port),
        crate::model::Protocol::ICMP | crate::model::Protocol::ICMPV6 => traffic.protocol.to_string(),
        protocol => format!("protocol {protocol}"),
    }
}

/// The rule's name within its policy.
pub(super) fn rule_name(origin: RuleOrigin) -> String {
    match origin {
        RuleOrigin::Spec(index) => format!("rule {index}"),
        RuleOrigin::Itself => "implied rule (a pod always reaches itself)".to_owned(),
        RuleOrigin::OwnNode => "implied rule (a pod always reaches the node that it runs on)".to_owned(),
    }
}

/// The rule as its manifest says it, a line for each part.
pub(super) fn rule(rule: &Rule, direction: Direction) -> Vec<String> {
    let (field, or) = match direction {
        Direction::Ingress => ("from:", "   or"),
        Direction::Egress => ("to:", " or"),
    };
    let mut lines: Vec<String> = match rule.action {
        Action::Allow => Vec::new(),
        Action::Deny => vec!["action: deny".to_owned()],
        Action::Pass => vec!["action: pass to the next tier".to_owned()],
        Action::Log => vec!["action: log and go on".to_owned()],
    };
    let first = std::iter::once(field).chain(std::iter::repeat(or));
    lines.extend(first.zip(peers(&rule.peer)).map(|(field, peer)| format!("{field} {peer}")));
    lines.push(format!("ports: {}", ports(&rule.traffic)));
    lines
}

/// Why a rule does not match, a line for each reason.
pub(super) fn misses(report: &RuleReport, sides: &Sides<'_>) -> Vec<String> {
    let by_peer = report.peer.iter().flat_map(|miss| peer_miss(miss, sides));
    let by_traffic = report.traffic.iter().flat_map(|miss| traffic_miss(miss, sides));
    by_peer.chain(by_traffic).collect()
}

fn peer_miss(miss: &PeerMiss, sides: &Sides<'_>) -> Vec<String> {
    let peer = &sides.peer_name;
    let line = match miss {
        PeerMiss::Alternatives(misses) if misses.is_empty() => "it names nobody".to_owned(),
        PeerMiss::Alternatives(misses) => {
            let mut lines: Vec<String> = misses.iter().flat_map(|miss| peer_miss(miss, sides)).collect();
            // Alternatives often miss for one reason; saying it once is enough, wherever it was said before.
            let mut said = std::collections::BTreeSet::new();
            lines.retain(|line| said.insert(line.clone()));
            return lines;
        }
        PeerMiss::LeftOut(PeerMatch::Atom(PeerAtom::Cidr(range))) => {
            format!("{} is in {range}, which the rule leaves out", sides.peer_address())
        }
        PeerMiss::LeftOut(left_out) => format!("the rule leaves out {}", peers(left_out).join(", ")),
        PeerMiss::NoPod if sides.peer_on_host_network => {
            format!("pod {peer} uses its node's network, so selectors never match it")
        }
        PeerMiss::NoPod => format!("{peer} is no pod of the cluster, and selectors match pods alone"),
        PeerMiss::Namespace(wanted) => {
            format!("pod {peer} is in namespace {}, not in {wanted}", sides.peer_namespace())
        }
        PeerMiss::NamespaceLabels(miss) => match names(&miss.requirement) {
            Some(names) => {
                format!("pod {peer} is in namespace {}, not in {}", sides.peer_namespace(), names.join(" or "))
            }
            None => format!("namespace {} {}", sides.peer_namespace(), label_miss(miss)),
        },
        PeerMiss::PodLabels(miss) => format!("pod {peer} {}", label_miss(miss)),
        PeerMiss::Outside(range) => match sides.peer.address {
            None => format!("{peer} has no address yet that could be in {range}"),
            Some(address) if address.is_ipv4() != range.addr().is_ipv4() => {
                let family = |address| Family::of(&address);
                format!("{address} is {}, {range} is {}", family(address), family(range.addr()))
            }
            Some(_) => format!("{} is not in {range}", sides.peer_address()),
        },
        PeerMiss::NotItself => format!("{peer} is not the pod itself"),
        PeerMiss::NotOwnNode => format!("{peer} is not the node that the pod runs on"),
    };
    vec![line]
}

fn label_miss(miss: &LabelMiss) -> String {
    let wanted = selector(&miss.requirement);
    match (&miss.requirement, &miss.found) {
        (Selector::NotIn(key, _), Some(value)) => format!("has {key}={value}, which is left out by {wanted}"),
        (Selector::DoesNotExist(key), Some(value)) => format!("has {key}={value}, and must not have the label {key}"),
        (Selector::In(key, _), Some(value)) => format!("has {key}={value}, and {wanted} is wanted"),
        (Selector::In(key, _), None) => format!("has no label {key}, and {wanted} is wanted"),
        (Selector::Exists(key), _) => format!("has no label {key}, and must have it"),
        _ => format!("does not satisfy {wanted}"),
    }
}

fn traffic_miss(miss: &TrafficMiss, sides: &Sides<'_>) -> Vec<String> {
    let asked = traffic(sides.traffic);
    let misses = match miss {
        TrafficMiss::LeftOut(port) => return vec![format!("{asked} is left out by {}", self::port(port))],
        TrafficMiss::Alternatives(misses) => misses,
    };
    let wanted = misses.iter().map(|miss| port(&miss.wanted)).collect::<Vec<_>>().join(", ");
    let summary = match misses.as_slice() {
        [_] => format!("{asked} is not {wanted}"),
        _ => format!("{asked} is none of {wanted}"),
    };
    std::iter::once(summary).chain(misses.iter().filter_map(|miss| named_port(miss, &sides.destination_name))).collect()
}

/// What became of a port's name, where that is the reason.
fn named_port(miss: &PortMiss, destination: &str) -> Option<String> {
    let port = port(&miss.wanted);
    match miss.reason {
        PortMissReason::Protocol | PortMissReason::Number => None,
        PortMissReason::DeclaredAs(number) => Some(format!("{port} is port {number} on {destination}")),
        PortMissReason::NotDeclared => Some(format!("{destination} declares no container port {port}")),
        PortMissReason::NoPod => {
            Some(format!("{port} is the name of a container port, and {destination} is no pod that could declare one"))
        }
    }
}

/// The first few names, and how many more there are.
pub(super) fn listed(mut names: Vec<String>) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{tail}", names.join(", "))
}
