//! The decision: what each hook does with a packet.
//!
//! Direction is the pod's view. `from_pod` judges egress (or defers it to the packet's exit where the host may translate
//! the destination), `to_pod` and `to_uplink` judge deferred egress, and `to_pod` judges ingress by the true source.

use crate::classify::{EndpointView, endpoint_slot, interface};
use crate::exit;
use crate::flow::{self, FlowEntry, FlowKey, advance, state};
use crate::fragment::hook;
use crate::layout::{
    Size, VerdictWord, endpoint_flag, interface_kind, interface_kind_of, interface_slot_of, node_flag, rule,
};
use crate::packet::{Drop, Headers, Readable, Shape, is_tunnel, protocol, tcp};
use crate::stamp::Stamp;
use crate::tables::{Event, Tables, Work, read};
use crate::unusual::{Came, Course};
use crate::verdict::Asked;

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    /// The device that the program runs on.
    pub ifindex: u32,
    /// The last device that received it, 0 if none did: a cross-check only.
    pub ingress_ifindex: u32,
    /// Its size, as counters count it.
    pub size: Size,
    /// The length of its link-layer header: 14 or 0.
    pub link: usize,
    /// Whether it carries a VLAN tag in metadata.
    pub vlan: bool,
    /// The stamp that it came with, and after the decision the one that it goes on with.
    pub stamp: Stamp,
}

/// Lets a packet go on, or says why not.
pub type Outcome = Result<(), Drop>;

/// The flow of the working memory that is the judged endpoint's.
const OWN: u32 = 0;
/// No endpoint.
pub(crate) const NOBODY: u32 = u32::MAX;

/// A packet leaves a pod: tc ingress of the pod's host veth.
#[inline(always)]
pub fn from_pod<T: Tables, F: Readable>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    let slot = endpoint_slot(t, packet.ifindex).ok_or(Drop::UNKNOWN_ENDPOINT)?;
    let endpoint = EndpointView::of(t, slot).ok_or(Drop::UNKNOWN_ENDPOINT)?;
    let work = t.work().ok_or(Drop::UNKNOWN_ENDPOINT)?;
    packet.stamp = Stamp::judged(slot, endpoint.generation);
    if endpoint.flags & endpoint_flag::PINNED != 0 && !endpoint.may_speak_for(t, frame.source_mac()) {
        return Err(Drop::SOURCE_MAC);
    }
    // SAFETY: the working memory is this decision's own.
    let shape = unsafe { shape_of(packet, frame, work) };
    if shape != Shape::IP {
        // Asked here and not where it is judged: kernels before 6.8 round every frame up to 32 bytes, and four of them, one
        // inside the other, would be more than the 512 that there are.
        let confirmed = shape == Shape::RELATED
            && has_node_flag(t, node_flag::CONFIRM)
            // SAFETY: the working memory is this decision's own.
            && is_honest(t, &endpoint, unsafe { &(*work).headers })
            && t.related_confirms(packet.size);
        let course = t.unusual_from_pod(slot, shape, packet.size);
        if course != Course::JUDGE {
            match course {
                Course::DEFER => packet.stamp = Stamp::deferred(slot, endpoint.generation),
                Course::PASS if confirmed => packet.stamp = packet.stamp.with_reply(),
                _ => {}
            }
            return course.outcome();
        }
    }
    // SAFETY: as above.
    let headers = unsafe { &(*work).headers };
    if !is_honest(t, &endpoint, headers) {
        return Err(Drop::SOURCE);
    }
    if is_tunnel(headers.protocol) && endpoint.flags & endpoint_flag::TUNNELS == 0 {
        return Err(Drop::TUNNEL);
    }
    // SAFETY: as above.
    judge_outgoing(t, packet, &endpoint, headers, unsafe { &raw mut (*work).flows[OWN as usize] })?;
    if headers.first_fragment {
        let outcome = t.remember_fragment(slot, hook::FROM_POD);
        return accept(outcome.0 == 0, outcome);
    }
    Ok(())
}

/// Whether a packet's source is its pod's address. A pod without an address of a family sends none of it.
#[inline(always)]
fn is_honest<T: Tables>(t: T, endpoint: &EndpointView, headers: &Headers) -> bool {
    let own = endpoint.address(t, headers.v4);
    !endpoint.checks_addresses() || headers.source.same(own) && !own.is_unspecified()
}

#[inline(always)]
fn judge_outgoing<T: Tables>(
    t: T,
    packet: &mut Packet,
    endpoint: &EndpointView,
    headers: &Headers,
    flow: *mut FlowEntry,
) -> Outcome {
    // SAFETY: the working memory is this decision's own. A reference is made only after the look-up, which fills the flow
    // in through the tables.
    unsafe {
        (*flow).key = FlowKey::new(headers, true);
        (*flow).incarnation = endpoint.incarnation;
    }
    let found = flow::find(t, OWN, endpoint.slot);
    let at = flow;
    // SAFETY: as above.
    let flow = unsafe { &mut *at };
    // A reply whose entry has given way to others here is still one: an exit has let out what it answers, and knows for whom.
    let answers = !found && !headers.opens && answer_deferred(t, packet);
    if answers {
        let work = t.work().ok_or(Drop::UNKNOWN_ENDPOINT)?;
        // SAFETY: the working memory's other flow, which `exit_confirms` has filled in.
        let let_out = unsafe { &(*work).flows[1 - OWN as usize] };
        flow.provenance = let_out.provenance;
        flow.peer_incarnation = let_out.peer_incarnation;
        flow.state = state::INGRESS;
    }
    if (found || answers) && !headers.opens {
        let known = flow.state;
        let current = flow.revision == endpoint.revision || keeps(t, OWN, endpoint.slot, endpoint.slot);
        // SAFETY: as above. Anew, since that may have changed it.
        let flow = unsafe { &mut *at };
        if known & state::INGRESS != 0 {
            flow.state = advance(known, headers, true);
            let mut rides = true;
            if !current {
                t.note(Event::Rejudged);
                let verdict = verdict_of_stored(t, endpoint.slot, headers, flow);
                rides = verdict.allows();
                if !rides && !may_open(headers) {
                    t.count(verdict.rule(), packet.size);
                    return Err(Drop::POLICY);
                }
                flow.revision = endpoint.revision;
                flow.rule = verdict.rule();
            }
            if rides {
                t.count(flow.rule, packet.size);
                if flow.state != known {
                    t.store_flow(OWN, endpoint.slot);
                }
                if !answers {
                    answer_deferred(t, packet);
                }
                return Ok(());
            }
            // From here on it opens a flow of its own, and answers none.
            packet.stamp = Stamp::judged(endpoint.slot, endpoint.generation);
        } else if current {
            flow.state = advance(known, headers, false);
            if known & state::DEFERRED != 0 {
                packet.stamp = deferred_stamp(endpoint, known);
            }
            if known & (state::DEFERRED | state::ENDS_HERE) != state::DEFERRED {
                t.count(flow.rule, packet.size);
            }
            if flow.state != known {
                t.store_flow(OWN, endpoint.slot);
            }
            return Ok(());
        } else {
            t.note(Event::Rejudged);
        }
    }
    let verdict = t.egress(endpoint.slot, headers.destination, Asked::opener(headers));
    if !verdict.allows() {
        t.count(verdict.rule(), packet.size);
        if !found && is_midstream(headers) {
            t.note(Event::NotTakenUp);
        }
        return Err(if verdict.rule() == rule::TUNNEL { Drop::TUNNEL } else { Drop::POLICY });
    }
    begin(flow, headers, endpoint.revision);
    flow.peer_incarnation = 0;
    flow.provenance = packet.stamp.provenance();
    flow.rule = verdict.rule();
    if verdict.defers() {
        flow.state |= deferral(verdict, found || is_midstream(headers));
        packet.stamp = deferred_stamp(endpoint, flow.state);
    } else {
        t.count(verdict.rule(), packet.size);
    }
    if found || take_up(t, headers, flow) {
        t.store_flow(OWN, endpoint.slot);
    }
    Ok(())
}

/// Whether a flow of another revision is taken as it was judged, where the operator wants established connections to outlive
/// changes of policy. Then it is of this revision from now on, but no rule's any more: between two revisions the tables may
/// have given its rule's number to another.
///
/// Connections only (TCP, SCTP): the host may lead the next datagram of a flow elsewhere than the last (another backend), or
/// take it in itself (a tunnel's port), so datagrams are judged. So is what nobody has judged yet (a seed, whose revision is
/// 0), and what nothing restricts any more: such a flow waits for no exit's word.
///
/// `which` flow of the working memory it is, of the endpoint in `slot`, and kept in `owner`'s share.
#[inline(always)]
pub(crate) fn keeps<T: Tables>(t: T, which: u32, slot: u32, owner: u32) -> bool {
    has_node_flag(t, node_flag::KEEP) && t.keep(which, slot, owner)
}

/// Keeps that flow if it may be kept. Out of line: what it asks about would not fit into its callers' frames.
#[inline(always)]
#[must_use]
pub fn keep<T: Tables>(t: T, which: u32, slot: u32, owner: u32) -> bool {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, slot), t.work()) else { return false };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let flow = &raw mut (*work).flows[(which & 1) as usize];
        let restricted = if (*flow).state & state::INGRESS != 0 { endpoint.ingress } else { endpoint.egress };
        let connection = matches!((*flow).key.protocol(), protocol::TCP | protocol::SCTP);
        if (*flow).revision == 0 || restricted == 0 || !connection {
            return false;
        }
        (*flow).revision = endpoint.revision;
        if (*flow).rule >= rule::FIRST {
            (*flow).rule = rule::KEPT;
        }
    }
    t.store_flow(which, owner);
    true
}

/// Where a reply reverses a flow that was deferred at another pod's veth, its exit has recorded that. Tells whether it has.
#[inline(always)]
fn answer_deferred<T: Tables>(t: T, packet: &mut Packet) -> bool {
    let answers = has_node_flag(t, node_flag::CONFIRM) && t.exit_confirms(packet.size);
    if answers {
        packet.stamp = packet.stamp.with_reply();
    }
    answers
}

/// The stamp of a packet of a deferred flow.
#[inline(always)]
const fn deferred_stamp(endpoint: &EndpointView, flow: u16) -> Stamp {
    let stamp = Stamp::deferred(endpoint.slot, endpoint.generation);
    if flow & state::CONFIRM != 0 { stamp.with_reply() } else { stamp }
}

/// Makes of what was found of a flow what it is when judged anew by its opener's packet: what it has gone through stays,
/// unless the packet begins another flow of the same tuple. A flow that lives is another only when the other side says so,
/// by an answer that takes it (see [`advance`]): else a forged SYN would end it.
#[inline(always)]
pub(crate) fn begin(flow: &mut FlowEntry, headers: &Headers, revision: u32) {
    let over = headers.opens && (flow.state & state::ASSURED == 0 || flow.state & (state::FINS | state::RSTS) != 0);
    let kept = if over || flow.state & state::INGRESS != 0 { 0 } else { flow.state };
    let proven = if headers.opens { state::TAKEN_UP } else { 0 };
    flow.state = advance(kept & !(state::DEFERRED | state::CONFIRM | state::ENDS_HERE | proven), headers, false);
    flow.revision = revision;
}

/// Whether the packet belongs to a flow that began before it, by its own headers.
#[inline(always)]
const fn is_midstream(headers: &Headers) -> bool {
    !headers.opens && matches!(headers.protocol, protocol::TCP | protocol::SCTP)
}

/// Whether a packet that nothing marks as a flow's first may still be one, as every packet of UDP and of protocols without
/// ports may. Then a flow of the other direction that policy denies now must not stand in the way of its own: packets keep
/// the entry alive, and nothing else would ever end it.
#[inline(always)]
const fn may_open(headers: &Headers) -> bool {
    match headers.protocol {
        protocol::TCP | protocol::SCTP => false,
        protocol::ICMP | protocol::ICMPV6 => !headers.is_answer(headers.policy_port as u32 >> 8),
        _ => true,
    }
}

/// Whether a flow of which nothing was known may be entered by a packet that policy allows, if its sender has opened it.
///
/// A packet in the middle of a TCP connection does not say who opened that: the entry is older than the agent, or gave way,
/// or there never was a connection. It is judged as its sender's own flow, so it never passes where that could not be
/// opened: an ACK from outside meets ingress policy like a SYN, and a scan with ACK, FIN or no flags learns what a scan
/// with SYN does. What remains is the flow's other direction, which rides on the entry. A pod that ingress policy closes to
/// a peer could let the peer's denied connection in by sending first, as if it were its own, but a pod that may send to
/// that peer could have opened a connection itself; and one that egress policy closes to a peer answers it only after
/// ingress policy has let the peer's packet in. So neither direction lets anything pass that no rule allows; it may only
/// go on under the rule of the wrong direction. Therefore the entry is marked: the agent, which sees the event, reads the
/// kernel's connection table, and where that says that the other side has opened the flow, another entry takes its place
/// which is judged in that direction before the next packet passes.
///
/// SYN-ACK and RST enter nothing: an answer to a SYN that was not let through is none, and what a RST ends was not there.
/// Of other protocols every packet may be the first; the mark is the same, and nobody is woken.
#[inline(always)]
fn take_up<T: Tables>(t: T, headers: &Headers, flow: &mut FlowEntry) -> bool {
    if headers.opens {
        return true;
    }
    flow.state |= state::TAKEN_UP;
    if headers.tcp_flags & (tcp::SYN | tcp::RST) != 0 {
        return false;
    }
    if is_midstream(headers) {
        t.note(Event::TakenUp);
    }
    true
}

/// The state of a flow whose egress is deferred. That one rule allows all backends says nothing of the backend of a flow
/// that began before it was asked: that may have left the Service since, and the kernel still leads the flow there. So an
/// older flow needs the exit's word; the exit has recorded it, and judges the backend by what holds now.
#[inline(always)]
pub(crate) const fn deferral(verdict: VerdictWord, older: bool) -> u16 {
    state::DEFERRED | if older || verdict.needs_confirmation() { state::CONFIRM } else { 0 }
}

/// A packet is about to enter a pod: tc egress of the pod's host veth.
#[inline(always)]
pub fn to_pod<T: Tables, F: Readable>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    let stamp = core::mem::take(&mut packet.stamp);
    let slot = endpoint_slot(t, packet.ifindex).ok_or(Drop::UNKNOWN_ENDPOINT)?;
    let endpoint = EndpointView::of(t, slot).ok_or(Drop::UNKNOWN_ENDPOINT)?;
    let work = t.work().ok_or(Drop::UNKNOWN_ENDPOINT)?;
    // SAFETY: the working memory is this decision's own.
    let shape = unsafe { shape_of(packet, frame, work) };
    if shape != Shape::IP {
        let course = t.unusual_to_pod(slot, shape, packet.size, Came::new(stamp, packet.ingress_ifindex));
        if course != Course::JUDGE {
            return course.outcome();
        }
    }
    // SAFETY: as above.
    let headers = unsafe { &(*work).headers };
    // On a bridge a pod chooses the MAC, and frames flood: before anything is looked up or written.
    if endpoint.checks_addresses()
        && !headers.destination.same(endpoint.address(t, headers.v4))
        && !headers.destination.is_multicast(headers.v4)
    {
        return Err(Drop::DESTINATION);
    }
    let sender = sender(t, packet.ingress_ifindex, stamp)?;
    let leaves = sender != NOBODY && (stamp.is_deferred() || stamp.is_none());
    if leaves && !exit::goes_on(t, sender, stamp, packet.size) {
        let outcome = t.judge_exit(sender, stamp, packet.size);
        if outcome.0 != 0 {
            return Err(outcome);
        }
    }
    // SAFETY: as above.
    let flow = unsafe { &raw mut (*work).flows[OWN as usize] };
    judge_incoming(t, packet, &endpoint, headers, flow, stamp, sender)?;
    if headers.first_fragment {
        let outcome = t.remember_fragment(slot, hook::TO_POD);
        if outcome.0 != 0 {
            return Err(outcome);
        }
        if leaves {
            let outcome = t.remember_fragment(sender, hook::EXIT);
            return accept(outcome.0 == 0, outcome);
        }
    }
    Ok(())
}

#[inline(always)]
fn judge_incoming<T: Tables>(
    t: T,
    packet: &Packet,
    endpoint: &EndpointView,
    headers: &Headers,
    flow: *mut FlowEntry,
    stamp: Stamp,
    sender: u32,
) -> Outcome {
    // SAFETY: the working memory is this decision's own. A reference is made only after the look-up, which fills the flow
    // in through the tables.
    unsafe {
        (*flow).key = FlowKey::new(headers, false);
        (*flow).incarnation = endpoint.incarnation;
    }
    let from_node = stamp.is_none() && packet.ingress_ifindex == 0;
    let sender = if sender == NOBODY { None } else { EndpointView::of(t, sender) };
    let provenance = match &sender {
        Some(sender) => Stamp::judged(sender.slot, sender.generation).provenance(),
        None => stamp.provenance(),
    };
    let sender_incarnation = match &sender {
        Some(sender) => sender.incarnation,
        None => 0,
    };
    let found = flow::find(t, OWN, endpoint.slot);
    let at = flow;
    // SAFETY: as above.
    let flow = unsafe { &mut *at };
    if found && !headers.opens {
        let known = flow.state;
        let current = flow.revision == endpoint.revision || keeps(t, OWN, endpoint.slot, endpoint.slot);
        // SAFETY: as above. Anew, since that may have changed it.
        let flow = unsafe { &mut *at };
        if known & state::INGRESS == 0 {
            let mut rides = true;
            if current {
                flow.state = advance(known, headers, true);
            } else {
                rides = rejudge_own_flow(t, endpoint, headers, packet.size, flow)?;
            }
            // A process of this node answers without passing an exit. And while programs are attached for the first time, the
            // one that would mark the reply may not be there yet.
            if rides && flow.state & state::CONFIRM != 0 && !stamp.is_reply() && !from_node {
                accept(stamp.is_none() && has_node_flag(t, node_flag::STARTING), Drop::UNCONFIRMED)?;
            }
            if rides {
                // What needs the exit's word is counted where that is found, but what a process of this node answers: here,
                // if the rule is known.
                if flow.state & state::CONFIRM == 0 || from_node && flow.rule != rule::NO_POLICY {
                    t.count(flow.rule, packet.size);
                    if from_node && flow.state & state::DEFERRED != 0 {
                        flow.state |= state::ENDS_HERE;
                    }
                }
                if flow.state != known {
                    t.store_flow(OWN, endpoint.slot);
                }
                return Ok(());
            }
        } else {
            // Generations of a slot come again, incarnations never do.
            let same_peer = flow.provenance == provenance && flow.peer_incarnation == sender_incarnation;
            if current && same_peer {
                t.count(flow.rule, packet.size);
                flow.state = advance(known, headers, false);
                if flow.state != known {
                    t.store_flow(OWN, endpoint.slot);
                }
                return Ok(());
            }
            t.note(Event::Rejudged);
        }
    }
    let asked = Asked::opener(headers);
    let verdict = match &sender {
        // The stamp names the pod that sent it, whatever its address has become.
        Some(sender) => {
            let address = sender.address(t, headers.v4);
            t.ingress(endpoint.slot, address, asked.itself(sender.slot == endpoint.slot))
        }
        None => {
            let from_node = from_node || passes_masqueraded(t, headers, stamp);
            t.ingress(endpoint.slot, headers.source, asked.may_be_node(from_node))
        }
    };
    t.count(verdict.rule(), packet.size);
    if !verdict.allows() {
        if !found && is_midstream(headers) {
            t.note(Event::NotTakenUp);
        }
        let masqueraded = stamp.is_outside() && verdict.is_of_own_node();
        return Err(if masqueraded { Drop::MASQUERADED } else { Drop::POLICY });
    }
    // A flow that the pod itself opened is another's now.
    flow.state ^= state::INGRESS;
    begin(flow, headers, endpoint.revision);
    flow.state |= state::INGRESS;
    flow.rule = verdict.rule();
    flow.provenance = provenance;
    flow.peer_incarnation = sender.map_or(0, |sender| sender.incarnation);
    if found || take_up(t, headers, flow) {
        t.store_flow(OWN, endpoint.slot);
    }
    Ok(())
}

/// The ingress verdict of a flow that a peer opened, asked at a reply: by the provenance that the entry stores, since a
/// reply cannot tell it any more.
#[inline(always)]
pub(crate) fn verdict_of_stored<T: Tables>(t: T, slot: u32, headers: &Headers, flow: &FlowEntry) -> VerdictWord {
    let asked = Asked::answer(headers);
    let stored = Stamp(flow.provenance);
    if stored.is_local()
        && let Some(sender) = EndpointView::of(t, stored.slot())
        && sender.incarnation == flow.peer_incarnation
    {
        return t.ingress(slot, sender.address(t, headers.v4), asked.itself(sender.slot == slot));
    }
    let from_node = stored.is_none() || passes_masqueraded(t, headers, stored);
    t.ingress(slot, headers.destination, asked.may_be_node(from_node))
}

/// Judges a flow that the pod opened again, at a reply. An address that the host translates is never classified: what is
/// behind it decides. Tells whether the packet may ride on the flow; if not, it may open one of its own.
#[inline(always)]
fn rejudge_own_flow<T: Tables>(
    t: T,
    endpoint: &EndpointView,
    headers: &Headers,
    size: Size,
    flow: &mut FlowEntry,
) -> Result<bool, Drop> {
    t.note(Event::Rejudged);
    let verdict = t.egress(endpoint.slot, headers.source, Asked::answer(headers));
    if !verdict.allows() {
        if may_open(headers) {
            return Ok(false);
        }
        t.count(verdict.rule(), size);
        return Err(Drop::POLICY);
    }
    flow.state = advance(flow.state, headers, true) & !(state::DEFERRED | state::CONFIRM | state::ENDS_HERE);
    if verdict.defers() {
        flow.state |= deferral(verdict, true);
    }
    flow.rule = verdict.rule();
    flow.revision = endpoint.revision;
    Ok(true)
}

/// A packet leaves the host elsewhere than into an endpoint: tc egress of an exit. Only a pod's deferred egress is
/// judged here, and what lost its stamp.
#[inline(always)]
pub fn to_uplink<T: Tables, F: Readable>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    let stamp = packet.stamp;
    if !stamp.is_none() && !stamp.is_deferred() {
        return Ok(());
    }
    let sender = sender(t, packet.ingress_ifindex, stamp)?;
    if sender == NOBODY {
        return Ok(());
    }
    let work = t.work().ok_or(Drop::UNKNOWN_ENDPOINT)?;
    // SAFETY: the working memory is this decision's own.
    let shape = unsafe { shape_of(packet, frame, work) };
    if shape != Shape::IP {
        let course = t.unusual_at_exit(sender, shape, packet.size);
        if course != Course::JUDGE {
            return course.outcome();
        }
    }
    let goes_on = exit::goes_on(t, sender, stamp, packet.size);
    let outcome = if goes_on { Drop(0) } else { t.judge_exit(sender, stamp, packet.size) };
    // It may leave through a second device, below a VLAN's or a bond's, and the kernel still calls the pod's veth the last
    // that received it: without a stamp it would be judged again, as what it no longer is.
    packet.stamp = if stamp.is_deferred() { Stamp(stamp.provenance()) } else { judged_stamp(t, sender) };
    // SAFETY: as above.
    if outcome.0 == 0 && unsafe { (*work).headers.first_fragment } {
        let outcome = t.remember_fragment(sender, hook::EXIT);
        return accept(outcome.0 == 0, outcome);
    }
    accept(outcome.0 == 0, outcome)
}

#[inline(always)]
fn judged_stamp<T: Tables>(t: T, slot: u32) -> Stamp {
    EndpointView::of(t, slot).map_or(Stamp::NONE, |endpoint| Stamp::judged(slot, endpoint.generation))
}

/// A packet enters the host elsewhere than from an endpoint: tc ingress of an exit. Nothing is dropped here.
#[inline(always)]
pub fn from_uplink<T: Tables, F: Readable>(t: T, packet: &mut Packet, frame: &F) -> Outcome {
    packet.stamp = Stamp::OUTSIDE;
    if has_node_flag(t, node_flag::CONFIRM)
        && let Some(work) = t.work()
    {
        // SAFETY: the working memory is this decision's own.
        let shape = unsafe { shape_of(packet, frame, work) };
        let confirmed = match shape {
            Shape::IP => exit::knows(t, packet.size).unwrap_or_else(|| t.exit_confirms(packet.size)),
            Shape::RELATED => t.related_confirms(packet.size),
            _ => false,
        };
        if confirmed {
            packet.stamp = packet.stamp.with_reply();
        }
    }
    Ok(())
}

#[inline(always)]
unsafe fn shape_of<F: Readable>(packet: &Packet, frame: &F, work: *mut Work) -> Shape {
    // SAFETY: the caller's.
    let shape = unsafe { frame.read_headers(work, packet.link) };
    if packet.vlan { Shape::TAGGED } else { shape }
}

#[inline(always)]
const fn accept(condition: bool, otherwise: Drop) -> Outcome {
    if condition { Ok(()) } else { Err(otherwise) }
}

/// Whether a packet from outside passes if its source is an address of this node. In IPv4 no such packet comes by itself:
/// the kernel drops what enters with an address of its own as source (fib_validate_source, whatever rp_filter says, unless
/// accept_local is set). IPv6 has no such check: whoever can reach the node could send with its address, so there the
/// setting does not hold.
#[inline(always)]
fn passes_masqueraded<T: Tables>(t: T, headers: &Headers, stamp: Stamp) -> bool {
    headers.v4 && stamp.is_outside() && has_node_flag(t, node_flag::MASQUERADED)
}

#[inline(always)]
pub(crate) fn has_node_flag<T: Tables>(t: T, flag: u64) -> bool {
    // SAFETY: the pointer is a table's.
    t.node().is_some_and(|node| unsafe { read(&raw const (*node).flags) } & flag != 0)
}

/// The slot of the endpoint of this node that sent a packet, or [`NOBODY`]: by the stamp, or, where the packet has none,
/// by the last receiving device if that is a pod's.
#[inline(always)]
pub(crate) fn sender<T: Tables>(t: T, ingress_ifindex: u32, stamp: Stamp) -> Result<u32, Drop> {
    if stamp.is_local() {
        let slot = stamp.slot();
        // It may have waited while its slot was handed on: then nobody can say any more whose it is.
        let current = EndpointView::of(t, slot).is_some_and(|sender| sender.generation == stamp.generation());
        return if current { Ok(slot) } else { Err(Drop::STAMP) };
    }
    if !stamp.is_none() || ingress_ifindex == 0 {
        return Ok(NOBODY);
    }
    let word = interface(t, ingress_ifindex);
    match interface_kind_of(word) {
        interface_kind::ENDPOINT if has_node_flag(t, node_flag::STARTING) => Ok(NOBODY),
        interface_kind::ENDPOINT => {
            t.note(Event::Unstamped);
            Ok(interface_slot_of(word))
        }
        interface_kind::BRIDGE if has_node_flag(t, node_flag::ARMED) => Err(Drop::UNATTRIBUTED),
        _ => Ok(NOBODY),
    }
}
