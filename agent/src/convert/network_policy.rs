//! NetworkPolicies (networking.k8s.io/v1).

use std::sync::Arc;

use k8s_openapi::api::networking::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::field::{Converted, Field, Findings, Invalid};
use super::{address, meta, names, port, selector};
use crate::model::{
    Action, Direction, Name, NamespaceScope, PeerAtom, PeerMatch, Policy, PolicyId, PolicyKind, PortMatch, PortSpec,
    Rule, RuleOrigin, Selector, Subject, Tier, TrafficMatch,
};

const SPEC: Field<'static> = Field::Top("spec");

/// A NetworkPolicy: allow rules in the tier [`Tier::DEFAULT`], whose end denies what none of them matched.
///
/// Two rules that every NetworkPolicy implies come after its own: a pod may always talk to itself ("a pod cannot block
/// access to itself"), and traffic to the node where the pod runs is always allowed (kubernetes.io, "Network
/// Policies"). That a node's own processes reach its pods stands before all tiers and is no rule.
///
/// # Errors
/// All that an API server would refuse, each with its field.
pub fn network_policy(object: &v1::NetworkPolicy) -> Result<Converted<Policy>, Vec<Invalid>> {
    let mut findings = Findings::default();
    let key = meta::key(&object.metadata, names::dns_subdomain, &mut findings);
    meta::labels(&object.metadata, &mut findings);
    if object.spec.is_none() {
        findings.warn(&SPEC, "missing: the policy selects every pod of its namespace and denies all ingress");
    }
    let default_spec = v1::NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default_spec);
    let Some(key) = key else {
        return findings.finish(None);
    };
    let subject = pods_of(spec, &key, &mut findings);
    let governed = governed(spec, &mut findings);
    let ingress = spec.ingress.iter().flatten();
    let ingress = ingress.map(|rule| (rule.from.as_deref(), rule.ports.as_deref())).collect::<Vec<_>>();
    let ingress = rules(&ingress, Direction::Ingress, &key, &mut findings);
    let egress = spec.egress.iter().flatten();
    let egress = egress.map(|rule| (rule.to.as_deref(), rule.ports.as_deref())).collect::<Vec<_>>();
    let egress = rules(&egress, Direction::Egress, &key, &mut findings);
    findings.finish(Some(Policy {
        id: PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(key.namespace), name: key.name },
        tier: Tier::DEFAULT.into(),
        order: Tier::NETWORK_POLICY_ORDER,
        subject,
        ingress: governed.ingress.then_some(ingress),
        egress: governed.egress.then_some(egress),
    }))
}

/// The pods that a policy is about, whatever else is wrong with it; `None` where even that cannot be told.
#[must_use]
pub fn subject(object: &v1::NetworkPolicy) -> Option<Subject> {
    let mut findings = Findings::default();
    let key = meta::key(&object.metadata, names::dns_subdomain, &mut findings)?;
    let default_spec = v1::NetworkPolicySpec::default();
    let subject = pods_of(object.spec.as_ref().unwrap_or(&default_spec), &key, &mut findings);
    findings.finish(Some(subject)).ok().map(|converted| converted.value)
}

fn pods_of(spec: &v1::NetworkPolicySpec, key: &Name, findings: &mut Findings) -> Subject {
    let pods = spec.pod_selector.as_ref();
    let pods = pods.map(|pods| selector::selector(pods, &SPEC.field("podSelector"), findings));
    Subject {
        namespaces: NamespaceScope::Named(key.namespace.clone()),
        pods: pods.unwrap_or_else(Selector::everything),
    }
}

struct Governed {
    ingress: bool,
    egress: bool,
}

/// The directions that the policy governs: those of `policyTypes`; where it is left out, ingress, and egress too if
/// there are egress rules (so a policy that denies all egress must name it).
fn governed(spec: &v1::NetworkPolicySpec, findings: &mut Findings) -> Governed {
    let has_egress_rules = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    let has_ingress_rules = spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return Governed { ingress: true, egress: has_egress_rules };
    }
    let list = SPEC.field("policyTypes");
    if types.len() > 2 {
        findings.refuse(&list, "has more than two entries: use Ingress, Egress or both");
    }
    let mut governed = Governed { ingress: false, egress: false };
    for (index, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => governed.ingress = true,
            "Egress" => governed.egress = true,
            other => findings.refuse(&list.at(index), format!("{other:?} is no policy type: use Ingress or Egress")),
        }
    }
    for (name, rules, governed, type_name) in [
        ("ingress", has_ingress_rules, governed.ingress, "Ingress"),
        ("egress", has_egress_rules, governed.egress, "Egress"),
    ] {
        if rules && !governed {
            let message = format!("these rules have no effect, because spec.policyTypes leaves out {type_name}");
            findings.warn(&SPEC.field(name), message);
        }
    }
    governed
}

type ApiRule<'a> = (Option<&'a [v1::NetworkPolicyPeer]>, Option<&'a [v1::NetworkPolicyPort]>);

fn rules(listed: &[ApiRule<'_>], direction: Direction, key: &Name, findings: &mut Findings) -> Vec<Rule> {
    let (list, peers_name, implied): (_, _, &[_]) = match direction {
        Direction::Ingress => (SPEC.field("ingress"), "from", &[(RuleOrigin::Itself, PeerAtom::Itself)]),
        Direction::Egress => (
            SPEC.field("egress"),
            "to",
            &[(RuleOrigin::Itself, PeerAtom::Itself), (RuleOrigin::OwnNode, PeerAtom::OwnNode)],
        ),
    };
    let mut rules = Vec::with_capacity(listed.len() + implied.len());
    for ((index, (peers, ports)), number) in listed.iter().enumerate().zip(0_u32..) {
        let field = list.at(index);
        rules.push(Rule {
            origin: RuleOrigin::Spec(number),
            action: Action::Allow,
            peer: peer_match(peers.unwrap_or_default(), &field.field(peers_name), key, findings),
            traffic: traffic(ports.unwrap_or_default(), &field.field("ports"), findings),
        });
    }
    rules.extend(implied.iter().map(|(origin, atom)| Rule {
        origin: *origin,
        action: Action::Allow,
        peer: PeerMatch::Atom(atom.clone()),
        traffic: TrafficMatch::default(),
    }));
    rules
}

/// A list without room for more: every node keeps every policy of the cluster, and most lists are of one.
pub(super) fn exactly<T>(parts: impl Iterator<Item = T>) -> Vec<T> {
    let mut parts: Vec<T> = parts.collect();
    parts.shrink_to_fit();
    parts
}

/// Missing and empty lists are the same: everybody, outsiders too.
fn peer_match(peers: &[v1::NetworkPolicyPeer], field: &Field<'_>, key: &Name, findings: &mut Findings) -> PeerMatch {
    if peers.is_empty() {
        return PeerMatch::anyone();
    }
    let converted = peers.iter().enumerate();
    PeerMatch::Any(exactly(converted.filter_map(|(index, one)| peer(one, &field.at(index), key, findings))))
}

fn peer(peer: &v1::NetworkPolicyPeer, field: &Field<'_>, key: &Name, findings: &mut Findings) -> Option<PeerMatch> {
    let pods = peer.pod_selector.as_ref();
    let pods = pods.map(|pods| selector::selector(pods, &field.field("podSelector"), findings));
    let namespaces = peer.namespace_selector.as_ref();
    let namespaces =
        namespaces.map(|namespaces| selector::selector(namespaces, &field.field("namespaceSelector"), findings));
    let block = peer.ip_block.as_ref().map(|block| ip_block(block, &field.field("ipBlock"), findings));
    if block.is_some() && (pods.is_some() || namespaces.is_some()) {
        findings.refuse(field, "ipBlock stands alone: put podSelector and namespaceSelector into a peer of their own");
    }
    match (block, namespaces, pods) {
        (Some(block), _, _) => block,
        (None, None, None) => {
            findings.refuse(field, "a peer must have a podSelector, a namespaceSelector or an ipBlock");
            None
        }
        (None, None, Some(pods)) => {
            Some(PeerMatch::Atom(PeerAtom::Pods { namespaces: NamespaceScope::Named(key.namespace.clone()), pods }))
        }
        (None, Some(namespaces), pods) => Some(PeerMatch::Atom(PeerAtom::Pods {
            namespaces: NamespaceScope::Matching(namespaces),
            pods: pods.unwrap_or_else(Selector::everything),
        })),
    }
}

fn ip_block(block: &v1::IPBlock, field: &Field<'_>, findings: &mut Findings) -> Option<PeerMatch> {
    let cidr_field = field.field("cidr");
    if block.cidr.is_empty() {
        findings.refuse(&cidr_field, "missing: give the range of addresses");
    }
    let cidr = if block.cidr.is_empty() { None } else { address::cidr(&block.cidr, &cidr_field, findings) };
    let list = field.field("except");
    let mut parts: Vec<PeerMatch> = cidr.map(|cidr| PeerMatch::Atom(PeerAtom::Cidr(cidr))).into_iter().collect();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let entry = list.at(index);
        let Some(except) = address::cidr(text, &entry, findings) else { continue };
        if let Some(cidr) = cidr.filter(|cidr| !cidr.contains(&except) || *cidr == except) {
            findings.refuse(&entry, format!("{except} is no strict subset of {cidr}: except only narrows its cidr"));
        }
        parts.push(PeerMatch::Not(Box::new(PeerMatch::Atom(PeerAtom::Cidr(except)))));
    }
    cidr?;
    // One part needs no brackets.
    if parts.len() == 1 { parts.pop() } else { Some(PeerMatch::All(exactly(parts.into_iter()))) }
}

/// Missing and empty lists are the same: all protocols and ports.
fn traffic(ports: &[v1::NetworkPolicyPort], field: &Field<'_>, findings: &mut Findings) -> TrafficMatch {
    let ports = ports.iter().enumerate();
    TrafficMatch {
        any_of: exactly(ports.filter_map(|(index, port)| port_match(port, &field.at(index), findings))),
        none_of: Vec::new(),
    }
}

fn port_match(declared: &v1::NetworkPolicyPort, field: &Field<'_>, findings: &mut Findings) -> Option<PortMatch> {
    let protocol = port::protocol(declared.protocol.as_deref(), &field.field("protocol"), findings);
    let port_field = field.field("port");
    let end_field = field.field("endPort");
    let spec = match (&declared.port, declared.end_port) {
        (None, None) => Some(PortSpec::Any),
        (None, Some(_)) => {
            findings.refuse(&end_field, "may not stand without port: give the first port of the range as port");
            None
        }
        (Some(IntOrString::Int(first)), end) => {
            let last = end.unwrap_or(*first);
            if last < *first {
                findings.refuse(
                    &end_field,
                    format!("{last} is below port, {first}: a range ends where it begins or later"),
                );
            }
            let last = match end {
                Some(end) => port::number(end, &end_field, findings),
                None => u16::try_from(*first).ok(),
            };
            port::number(*first, &port_field, findings).zip(last).map(|(first, last)| PortSpec::Range(first, last))
        }
        (Some(IntOrString::String(name)), end) => {
            findings.check(&port_field, names::port_name(name));
            if end.is_some() {
                findings.refuse(&end_field, "may not stand with a named port: give the first port as a number");
            }
            Some(PortSpec::Named(Arc::from(name.as_str())))
        }
    };
    Some(PortMatch { protocol: protocol?, port: spec? })
}
