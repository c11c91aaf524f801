//! The decision: what each hook does with a packet.
//!
//! Direction is the pod's view. `from_pod` judges egress (or defers it to the packet's exit where the host may translate
//! the destination), `to_pod` and `to_uplink` judge deferred egress, and `to_pod` judges ingress by the true source.

use crate::address::Address;
use crate::classify::{EndpointView, Question, classify, endpoint_slot, interface, peer_value, seed, service_reach};
use crate::flow::{FlowEntry, FlowKey, advance, find, state, store};
use crate::layout::{VerdictWord, endpoint_flag, interface_kind, interface_kind_of, node_flag, peer, reach, rule};
use crate::packet::{Drop, Frame, Headers, Shape, protocol};
use crate::stamp::Stamp;
use crate::tables::{Event, Tables, read};

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// The device that the program runs on.
    pub ifindex: u32,
    /// The last device that received it, 0 if none did: a cross-check only.
    pub ingress_ifindex: u32,
    /// Its length in bytes, as counters count it.
    pub length: u32,
    /// The length of its link-layer header: 14 or 0.
    pub link: usize,
    /// Whether it carries a VLAN tag in metadata.
    pub vlan: bool,
    /// The stamp that it came with, and after the decision the one that it goes on with.
    pub stamp: Stamp,
}

/// Lets a packet go on, or says why not.
pub type Outcome = Result<(), Drop>;

/// A packet leaves a pod: tc ingress of the pod's host veth.
#[inline(always)]
pub fn from_pod<T: Tables, F: Frame>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    let Some(slot) = endpoint_slot(t, packet.ifindex) else { return Err(Drop::UnknownEndpoint) };
    let Some(endpoint) = EndpointView::of(t, slot) else { return Err(Drop::UnknownEndpoint) };
    packet.stamp = Stamp::judged(slot, endpoint.generation);
    let mut headers = Headers::default();
    let shape = shape_of(packet, frame, &mut headers);
    let checks = endpoint.checks_addresses();
    let own = endpoint.address(t, headers.v4);
    match shape {
        Shape::Ip => {}
        Shape::Arp => {
            let probe = headers.source.same(Address::v4(0));
            return accept(!checks || probe || headers.source.same(own), Drop::Discovery);
        }
        Shape::Discovery => {
            let honest = headers.source.same(own)
                || headers.source.same(Address::UNSPECIFIED)
                || headers.source.is_link_local() && !is_own_node(t, endpoint.bank, &headers.source);
            return accept(!checks || honest, Drop::Discovery);
        }
        Shape::Router => return Err(Drop::Router),
        Shape::Bad(why) => return accept(!endpoint.is_enforced(), why),
    }
    if checks && !headers.source.same(own) {
        return Err(Drop::Source);
    }
    if matches!(headers.protocol, protocol::IPIP | protocol::IPV6 | protocol::GRE)
        && endpoint.flags & endpoint_flag::TUNNELS == 0
    {
        return Err(Drop::Tunnel);
    }
    judge_outgoing(t, packet, &endpoint, &headers)
}

#[inline(always)]
fn judge_outgoing<T: Tables>(t: T, packet: &mut Packet, endpoint: &EndpointView, headers: &Headers) -> Outcome {
    let seed = seed(t);
    let mut flow = flow_of(headers, true, endpoint.incarnation);
    let hash = flow.key.hash(seed);
    let Some(bucket) = t.flows(endpoint.slot, hash as u32) else { return Err(Drop::UnknownEndpoint) };
    if find(t, bucket, hash, &mut flow) && !headers.opens {
        let known = flow.state;
        if known & state::INGRESS != 0 {
            // A reply. Where it reverses a flow that was deferred at another pod's veth, its exit has recorded that.
            if has_node_flag(t, node_flag::CONFIRM) && confirmed(t, seed, headers) {
                packet.stamp = packet.stamp.with_reply();
            }
            flow.state = advance(known, headers, true);
            if flow.revision != endpoint.revision {
                t.note(Event::Rejudged);
                let source = stored_source(t, endpoint, headers, &flow);
                let verdict = ingress_verdict(t, seed, endpoint, headers, &source);
                if !verdict.allows() {
                    t.count(verdict.rule(), packet.length);
                    return Err(Drop::Policy);
                }
                flow.revision = endpoint.revision;
                flow.rule = verdict.rule();
                store(t, bucket, hash, &flow);
            } else if flow.state != known {
                store(t, bucket, hash, &flow);
            }
            t.count(flow.rule, packet.length);
            return Ok(());
        }
        if flow.revision == endpoint.revision {
            flow.state = advance(known, headers, false);
            if flow.state != known {
                store(t, bucket, hash, &flow);
            }
            if known & state::DEFERRED != 0 {
                packet.stamp = Stamp::deferred(endpoint.slot, endpoint.generation);
            } else {
                t.count(flow.rule, packet.length);
            }
            return Ok(());
        }
        t.note(Event::Rejudged);
    }
    begin(&mut flow, headers, endpoint.revision);
    flow.peer_incarnation = 0;
    flow.provenance = packet.stamp.provenance();
    let verdict = egress_verdict(t, seed, endpoint, headers, FIRST_HOOK);
    if verdict.defers() {
        packet.stamp = Stamp::deferred(endpoint.slot, endpoint.generation);
        flow.state |= deferral(verdict);
        flow.rule = 0;
        store(t, bucket, hash, &flow);
        return Ok(());
    }
    t.count(verdict.rule(), packet.length);
    if !verdict.allows() {
        return Err(Drop::Policy);
    }
    flow.rule = verdict.rule();
    store(t, bucket, hash, &flow);
    Ok(())
}

#[inline(always)]
fn flow_of(headers: &Headers, outgoing: bool, incarnation: u32) -> FlowEntry {
    FlowEntry { key: FlowKey::new(headers, outgoing), incarnation, ..FlowEntry::default() }
}

/// Makes of what was found of a flow what it is when judged anew by its opener's packet: what it has gone through stays,
/// unless the packet begins another flow of the same tuple.
#[inline(always)]
fn begin(flow: &mut FlowEntry, headers: &Headers, revision: u32) {
    let kept = if headers.opens || flow.state & state::INGRESS != 0 { 0 } else { flow.state };
    flow.state = advance(kept & !(state::DEFERRED | state::CONFIRM), headers, false);
    flow.revision = revision;
}

/// A packet is about to enter a pod: tc egress of the pod's host veth.
#[inline(always)]
pub fn to_pod<T: Tables, F: Frame>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    let stamp = core::mem::take(&mut packet.stamp);
    let Some(slot) = endpoint_slot(t, packet.ifindex) else { return Err(Drop::UnknownEndpoint) };
    let Some(endpoint) = EndpointView::of(t, slot) else { return Err(Drop::UnknownEndpoint) };
    let mut headers = Headers::default();
    match shape_of(packet, frame, &mut headers) {
        Shape::Ip => {}
        Shape::Arp | Shape::Discovery | Shape::Router => return Ok(()),
        Shape::Bad(why) => return accept(!endpoint.is_enforced() && !stamp.is_deferred(), why),
    }
    // On a bridge a pod chooses the MAC, and frames flood: before anything is looked up or written.
    if endpoint.checks_addresses()
        && !headers.destination.same(endpoint.address(t, headers.v4))
        && !headers.destination.is_multicast(headers.v4)
    {
        return Err(Drop::Destination);
    }
    let (sender, stamp) = sender(t, packet, stamp)?;
    if let Some(sender) = &sender
        && (stamp.is_deferred() || stamp.is_none())
    {
        judge_exit(t, sender, &headers, packet.length, stamp.is_deferred())?;
    }
    judge_incoming(t, packet, &endpoint, &headers, stamp, sender.as_ref())
}

/// A packet leaves the host elsewhere than into an endpoint: tc egress of an exit. Only a pod's deferred egress is
/// judged here, and what lost its stamp.
#[inline(always)]
pub fn to_uplink<T: Tables, F: Frame>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    let stamp = core::mem::take(&mut packet.stamp);
    if !stamp.is_none() && !stamp.is_deferred() {
        return Ok(());
    }
    let (sender, _) = sender(t, packet, stamp)?;
    let Some(sender) = sender else { return Ok(()) };
    let mut headers = Headers::default();
    match shape_of(packet, frame, &mut headers) {
        Shape::Ip => judge_exit(t, &sender, &headers, packet.length, stamp.is_deferred()),
        Shape::Arp | Shape::Discovery | Shape::Router => Ok(()),
        Shape::Bad(why) => accept(!sender.is_enforced(), why),
    }
}

/// A packet enters the host elsewhere than from an endpoint: tc ingress of an exit. Nothing is dropped here.
#[inline(always)]
pub fn from_uplink<T: Tables, F: Frame>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    packet.stamp = Stamp::OUTSIDE;
    if !has_node_flag(t, node_flag::CONFIRM) {
        return Ok(());
    }
    let mut headers = Headers::default();
    if shape_of(packet, frame, &mut headers) == Shape::Ip && confirmed(t, seed(t), &headers) {
        packet.stamp = packet.stamp.with_reply();
    }
    Ok(())
}

#[inline(always)]
fn shape_of<F: Frame>(packet: &Packet, frame: &F, headers: &mut Headers) -> Shape {
    if packet.vlan { Shape::Bad(Drop::Ethertype) } else { headers.parse(frame, packet.link) }
}

#[inline(always)]
const fn accept(condition: bool, otherwise: Drop) -> Outcome {
    if condition { Ok(()) } else { Err(otherwise) }
}

#[inline(always)]
fn has_node_flag<T: Tables>(t: T, flag: u64) -> bool {
    // SAFETY: the pointer is a table's.
    t.node().is_some_and(|node| unsafe { read(&raw const (*node).flags) } & flag != 0)
}

#[inline(always)]
fn is_own_node<T: Tables>(t: T, bank: u32, address: &Address) -> bool {
    peer_value(t, seed(t), bank, address) & peer::OWN_NODE != 0
}

/// The endpoint of this node that sent a packet, and the stamp that counts: the packet's own, or, where it has none but
/// the last receiving device is still the pod's, none at all (the packet is then judged in full).
#[inline(always)]
fn sender<T: Tables>(t: T, packet: &Packet, stamp: Stamp) -> Result<(Option<EndpointView>, Stamp), Drop> {
    if stamp.is_local() {
        return match EndpointView::of(t, stamp.slot()) {
            Some(sender) if sender.generation == stamp.generation() => Ok((Some(sender), stamp)),
            // It waited while its slot was handed on: nobody can say any more whose it is.
            _ => Err(Drop::Stamp),
        };
    }
    if !stamp.is_none() || packet.ingress_ifindex == 0 {
        return Ok((None, stamp));
    }
    let word = interface(t, packet.ingress_ifindex);
    match interface_kind_of(word) {
        interface_kind::ENDPOINT => {
            t.note(Event::Unstamped);
            Ok((EndpointView::of(t, crate::layout::interface_slot_of(word)), Stamp::NONE))
        }
        interface_kind::BRIDGE if has_node_flag(t, node_flag::ARMED) => Err(Drop::Unattributed),
        _ => Ok((None, stamp)),
    }
}

/// Judges a pod's egress where the packet leaves, on its final destination, and records what is allowed: in the pod's
/// share under the true destination, and node-wide under the tuple as it leaves, so that replies are known.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn judge_exit<T: Tables>(t: T, sender: &EndpointView, headers: &Headers, length: u32, deferred: bool) -> Outcome {
    let seed = seed(t);
    let own = sender.address(t, headers.v4);
    let mut flow = flow_of(headers, true, sender.incarnation);
    flow.key.local = own;
    let hash = flow.key.hash(seed);
    let Some(bucket) = t.flows(sender.slot, hash as u32) else { return Err(Drop::UnknownEndpoint) };
    // A packet that was judged at neither hook may be a reply; a deferred one never is.
    let other = if deferred { state::INGRESS | state::DEFERRED } else { state::DEFERRED };
    if find(t, bucket, hash, &mut flow) && !headers.opens && flow.revision == sender.revision && flow.state & other == 0
    {
        t.count(flow.rule, length);
        return Ok(());
    }
    let verdict = egress_verdict(t, seed, sender, headers, EXIT);
    t.count(verdict.rule(), length);
    if !verdict.allows() {
        return Err(Drop::Policy);
    }
    begin(&mut flow, headers, sender.revision);
    flow.rule = verdict.rule();
    flow.provenance = Stamp::judged(sender.slot, sender.generation).provenance();
    flow.peer_incarnation = 0;
    store(t, bucket, hash, &flow);
    // As the reply will carry it: from the backend, to whatever the packet's source has become.
    flow.key = FlowKey::new(headers, false);
    flow.incarnation = 0;
    flow.peer_incarnation = sender.incarnation;
    let hash = flow.key.hash(seed);
    if let Some(bucket) = t.confirmed(hash as u32) {
        store(t, bucket, hash, &flow);
    }
    Ok(())
}

/// Whether a packet reverses a flow that an exit has allowed. Judged again here if its endpoint's revision rose since:
/// the backend is this packet's source, so no one needs to ask the kernel's connection table.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn confirmed<T: Tables>(t: T, seed: u64, headers: &Headers) -> bool {
    // In this table `peer` is where the reply goes to and `local` where it comes from.
    let mut flow = flow_of(headers, true, 0);
    let hash = flow.key.hash(seed);
    let Some(bucket) = t.confirmed(hash as u32) else { return false };
    if !find(t, bucket, hash, &mut flow) {
        return false;
    }
    let Some(client) = EndpointView::of(t, Stamp(flow.provenance).slot()) else { return false };
    if client.incarnation != flow.peer_incarnation {
        return false;
    }
    let known = flow.state;
    flow.state = advance(known, headers, true);
    if client.revision != flow.revision {
        let verdict = egress_verdict(t, seed, &client, headers, EXIT | ANSWERED);
        if !verdict.allows() {
            return false;
        }
        flow.revision = client.revision;
        flow.rule = verdict.rule();
        store(t, bucket, hash, &flow);
    } else if flow.state != known {
        store(t, bucket, hash, &flow);
    }
    true
}

/// Where and of what egress is asked; see [`egress_verdict`].
type Asked = u32;
/// At the pod's veth: what the host may translate onwards is deferred.
const FIRST_HOOK: Asked = 0;
/// Where the packet leaves: its destination is final.
const EXIT: Asked = 1;
/// The packet answers the flow that is asked about: its source is the flow's destination.
const ANSWERED: Asked = 2;

/// The egress verdict of an endpoint.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn egress_verdict<T: Tables>(t: T, seed: u64, endpoint: &EndpointView, headers: &Headers, asked: Asked) -> VerdictWord {
    if endpoint.egress == 0 && !endpoint.is_closed() {
        return VerdictWord::new(true, rule::NO_POLICY);
    }
    let (to, port) = if asked & ANSWERED != 0 {
        (&headers.source, headers.answered_port())
    } else {
        (&headers.destination, headers.policy_port)
    };
    let peer = peer_value(t, seed, endpoint.bank, to);
    if endpoint.is_closed() && peer & peer::OWN_NODE == 0 {
        return VerdictWord::new(false, rule::CLOSED);
    }
    if peer & peer::TRANSLATABLE != 0 && asked & EXIT == 0 {
        let reached = service_reach(t, seed, endpoint, to, headers.protocol, port);
        return if reach::is_none(reached) {
            VerdictWord::new(false, reached as u32)
        } else {
            VerdictWord::deferred(!reach::is_all(reached))
        };
    }
    if endpoint.is_closed() {
        return VerdictWord::new(true, rule::CLOSED);
    }
    let itself = to.same(endpoint.address(t, headers.v4));
    classify(t, seed, &question(endpoint, endpoint.egress, peer, itself, headers.protocol, port))
}

/// The state of a flow whose egress is deferred.
#[inline(always)]
const fn deferral(verdict: VerdictWord) -> u16 {
    state::DEFERRED | if verdict.needs_confirmation() { state::CONFIRM } else { 0 }
}

#[inline(always)]
const fn question(endpoint: &EndpointView, set: u32, peer: u64, itself: bool, protocol: u8, port: u16) -> Question {
    Question { set, bank: endpoint.bank, peer, itself, protocol, port }
}

#[inline(always)]
fn judge_incoming<T: Tables>(
    t: T,
    packet: &Packet,
    endpoint: &EndpointView,
    headers: &Headers,
    stamp: Stamp,
    sender: Option<&EndpointView>,
) -> Outcome {
    let seed = seed(t);
    let mut flow = flow_of(headers, false, endpoint.incarnation);
    let hash = flow.key.hash(seed);
    let Some(bucket) = t.flows(endpoint.slot, hash as u32) else { return Err(Drop::UnknownEndpoint) };
    let provenance = match sender {
        Some(sender) => Stamp::judged(sender.slot, sender.generation).provenance(),
        None => stamp.provenance(),
    };
    let from_node = stamp.is_none() && packet.ingress_ifindex == 0;
    if find(t, bucket, hash, &mut flow) && !headers.opens {
        let known = flow.state;
        if known & state::INGRESS == 0 {
            let current = flow.revision == endpoint.revision;
            if current {
                flow.state = advance(known, headers, true);
            } else {
                rejudge_own_flow(t, seed, endpoint, headers, packet.length, &mut flow)?;
            }
            // A process of this node answers without passing an exit.
            if flow.state & state::CONFIRM != 0 && !stamp.is_reply() && !from_node {
                return Err(Drop::Unconfirmed);
            }
            if flow.state & state::DEFERRED == 0 {
                t.count(flow.rule, packet.length);
            }
            if !current || flow.state != known {
                store(t, bucket, hash, &flow);
            }
            return Ok(());
        }
        if flow.revision == endpoint.revision && flow.provenance == provenance {
            t.count(flow.rule, packet.length);
            flow.state = advance(known, headers, false);
            if flow.state != known {
                store(t, bucket, hash, &flow);
            }
            return Ok(());
        }
        t.note(Event::Rejudged);
    }
    let source = source_of(t, endpoint, headers, sender, from_node);
    let verdict = ingress_verdict(t, seed, endpoint, headers, &source);
    t.count(verdict.rule(), packet.length);
    if !verdict.allows() {
        return Err(Drop::Policy);
    }
    // A flow that the pod itself opened is another's now.
    flow.state ^= state::INGRESS;
    begin(&mut flow, headers, endpoint.revision);
    flow.state |= state::INGRESS;
    flow.rule = verdict.rule();
    flow.provenance = provenance;
    flow.peer_incarnation = sender.map_or(0, |sender| sender.incarnation);
    store(t, bucket, hash, &flow);
    Ok(())
}

/// Who an ingress verdict is asked about.
#[derive(Clone, Copy)]
struct Source {
    /// Its true address.
    address: Address,
    /// Whether it is the endpoint itself.
    itself: bool,
    /// Whether it may be a process of this node.
    may_be_node: bool,
    /// What policy calls the port.
    port: u16,
}

/// The ingress verdict of an endpoint.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn ingress_verdict<T: Tables>(
    t: T,
    seed: u64,
    endpoint: &EndpointView,
    headers: &Headers,
    source: &Source,
) -> VerdictWord {
    if endpoint.ingress == 0 && !endpoint.is_closed() {
        return VerdictWord::new(true, rule::NO_POLICY);
    }
    let peer = peer_value(t, seed, endpoint.bank, &source.address);
    if source.may_be_node && peer & peer::OWN_NODE != 0 {
        return VerdictWord::new(true, rule::NODE_PROCESS);
    }
    if endpoint.is_closed() {
        return VerdictWord::new(false, rule::CLOSED);
    }
    let asked = question(endpoint, endpoint.ingress, peer, source.itself, headers.protocol, source.port);
    classify(t, seed, &asked)
}

/// The source of a packet that enters a pod: a stamp names the pod that sent it, whatever its address has become.
#[inline(always)]
fn source_of<T: Tables>(
    t: T,
    endpoint: &EndpointView,
    headers: &Headers,
    sender: Option<&EndpointView>,
    may_be_node: bool,
) -> Source {
    let port = headers.policy_port;
    match sender {
        Some(sender) => Source {
            address: sender.address(t, headers.v4),
            itself: sender.slot == endpoint.slot,
            may_be_node: false,
            port,
        },
        None => Source { address: headers.source, itself: false, may_be_node, port },
    }
}

/// The source of a flow that a peer opened, asked at a reply: by the provenance that the entry stores, since a reply
/// cannot tell it any more.
#[inline(always)]
fn stored_source<T: Tables>(t: T, endpoint: &EndpointView, headers: &Headers, flow: &FlowEntry) -> Source {
    let port = headers.answered_port();
    let stored = Stamp(flow.provenance);
    if stored.is_local()
        && let Some(sender) = EndpointView::of(t, stored.slot())
        && sender.incarnation == flow.peer_incarnation
    {
        let itself = sender.slot == endpoint.slot;
        return Source { address: sender.address(t, headers.v4), itself, may_be_node: false, port };
    }
    Source { address: headers.destination, itself: false, may_be_node: stored.is_none(), port }
}

/// Judges a flow that the pod opened again, at a reply. An address that the host translates is never classified: what is
/// behind it decides.
#[inline(always)]
fn rejudge_own_flow<T: Tables>(
    t: T,
    seed: u64,
    endpoint: &EndpointView,
    headers: &Headers,
    length: u32,
    flow: &mut FlowEntry,
) -> Outcome {
    t.note(Event::Rejudged);
    let verdict = egress_verdict(t, seed, endpoint, headers, ANSWERED);
    if !verdict.allows() {
        t.count(verdict.rule(), length);
        return Err(Drop::Policy);
    }
    flow.state = advance(flow.state, headers, true) & !(state::DEFERRED | state::CONFIRM);
    if verdict.defers() {
        flow.state |= deferral(verdict);
    }
    flow.rule = verdict.rule();
    flow.revision = endpoint.revision;
    Ok(())
}
