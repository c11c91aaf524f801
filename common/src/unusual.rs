//! What each hook does with packets that are not simply IP: out of the way of those that are.

use crate::address::Address;
use crate::classify::EndpointView;
use crate::decide::{NOBODY, sender};
use crate::flow::state;
use crate::fragment::hook;
use crate::layout::{Size, endpoint_flag, peer, rule};
use crate::packet::{Drop, Headers, Shape, is_tunnel};
use crate::related;
use crate::stamp::Stamp;
use crate::tables::Tables;

/// What is to be done with a packet: one of the constants, or the reason for dropping it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course(pub u32);

impl Course {
    /// It is to be judged like any other now: the headers in the working memory have been made whole.
    pub const JUDGE: Self = Self(0);
    /// It goes on.
    pub const PASS: Self = Self(100);
    /// It goes on, and is to be judged where it leaves.
    pub const DEFER: Self = Self(101);

    #[inline(always)]
    const fn drop(why: Drop) -> Self {
        Self(why.0)
    }

    #[inline(always)]
    const fn pass_if(condition: bool, otherwise: Drop) -> Self {
        if condition { Self::PASS } else { Self::drop(otherwise) }
    }

    /// Passes, or says why not.
    #[inline(always)]
    pub(crate) const fn outcome(self) -> Result<(), Drop> {
        if self.0 >= Self::PASS.0 { Ok(()) } else { Err(Drop(self.0)) }
    }
}

/// A packet of a pod: honest discovery passes, errors about tracked flows, fragments like the first of their datagram; what
/// cannot be read only from a pod that nothing restricts.
#[inline(always)]
pub fn from_pod<T: Tables>(t: T, slot: u32, shape: Shape, size: Size) -> Course {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, slot), t.work()) else {
        return Course::drop(Drop::UNKNOWN_ENDPOINT);
    };
    // SAFETY: the working memory is this decision's own.
    let headers = unsafe { &(*work).headers };
    let own = endpoint.address(t, headers.v4);
    let checks = endpoint.checks_addresses();
    let source = headers.source;
    match shape {
        Shape::ARP => {
            // A probe has no sender yet (RFC 5227 section 2.1.1); an answer always has.
            let honest = source.same(own) || source.same(Address::v4(0)) && headers.opens;
            if !endpoint.may_speak_for(t, headers.target.words[1]) {
                return Course::drop(Drop::SOURCE_MAC);
            }
            return Course::pass_if(!checks || honest, Drop::DISCOVERY);
        }
        Shape::DISCOVERY => return discovery(t, &endpoint, headers, own),
        Shape::ROUTER | Shape::REDIRECT => return Course::drop(Drop::ROUTER),
        // The kernel takes a tag without a VLAN for none at all (__netif_receive_skb_core), so that the tag would hide
        // what the packet says of its source.
        Shape::TAGGED => return Course::pass_if(!checks && !endpoint.is_enforced(), Drop::ETHERTYPE),
        Shape(code) if code == Drop::ETHERTYPE.0 => return Course::pass_if(!endpoint.is_enforced(), Drop::ETHERTYPE),
        Shape(code) if code == Drop::DISCOVERY.0 => return Course::pass_if(!checks, Drop::DISCOVERY),
        _ => {}
    }
    // A pod without an address of this family sends none of it.
    if checks && (!source.same(own) || own.is_unspecified()) {
        let unread = source.same(Address::UNSPECIFIED);
        return Course::drop(if unread { shape.why() } else { Drop::SOURCE });
    }
    let restricted = is_restricted(&endpoint, endpoint.egress);
    match shape {
        Shape::LATER => {
            if is_tunnel(headers.protocol) && endpoint.flags & endpoint_flag::TUNNELS == 0 {
                return Course::drop(Drop::TUNNEL);
            }
            if !restricted {
                return unrestricted(t, size);
            }
            match t.recall_fragment(slot, hook::FROM_POD) {
                Drop(0) => Course::JUDGE,
                Drop::FRAGMENT => Course::DEFER,
                why => Course::drop(why),
            }
        }
        Shape::RELATED => {
            if !restricted {
                return unrestricted(t, size);
            }
            match related::judge(t, slot, true, size) {
                Ok(known) if known & state::DEFERRED != 0 => Course::DEFER,
                Ok(_) => Course::PASS,
                Err(why) => Course::drop(why),
            }
        }
        _ => Course::pass_if(!endpoint.is_enforced(), shape.why()),
    }
}

#[inline(always)]
fn discovery<T: Tables>(t: T, endpoint: &EndpointView, headers: &Headers, own: Address) -> Course {
    let (source, target, to) = (headers.source, headers.target, headers.destination);
    let is_own = |address: Address| {
        address.same(own) || address.is_link_local() && t.peer_value(endpoint.bank, &address) & peer::OWN_NODE == 0
    };
    // Duplicate address detection asks from `::` (RFC 4862 section 5.4.2); an advertisement has a source and a target
    // that are its sender's.
    let advertises = !target.same(Address::UNSPECIFIED);
    let honest =
        if advertises { is_own(source) && is_own(target) } else { is_own(source) || source.same(Address::UNSPECIFIED) };
    if endpoint.checks_addresses() && !honest {
        return Course::drop(Drop::DISCOVERY);
    }
    // It may be a neighbour on the same bridge. If it is routed, its hop limit falls and it is ordinary traffic: then the
    // exit judges it.
    if to.is_multicast(false) || to.is_link_local() { Course::PASS } else { Course::DEFER }
}

/// Whether policy restricts the direction of this set, or everything is closed.
#[inline(always)]
const fn is_restricted(endpoint: &EndpointView, set: u32) -> bool {
    set != 0 || endpoint.is_closed()
}

/// Passes where no policy restricts.
#[inline(always)]
fn unrestricted<T: Tables>(t: T, size: Size) -> Course {
    t.count(rule::NO_POLICY, size);
    Course::PASS
}

/// A packet for a pod, which came with this stamp.
#[inline(always)]
pub fn to_pod<T: Tables>(t: T, slot: u32, shape: Shape, size: Size, came: Came) -> Course {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, slot), t.work()) else {
        return Course::drop(Drop::UNKNOWN_ENDPOINT);
    };
    if shape.is_link_local() {
        return Course::PASS;
    }
    let stamp = came.stamp();
    if !matches!(shape, Shape::LATER | Shape::RELATED | Shape::REDIRECT) {
        return Course::pass_if(!endpoint.is_enforced() && !stamp.is_deferred(), shape.why());
    }
    // SAFETY: the working memory is this decision's own.
    let headers = unsafe { &(*work).headers };
    if endpoint.checks_addresses()
        && !headers.destination.same(endpoint.address(t, headers.v4))
        && !headers.destination.is_multicast(headers.v4)
    {
        return Course::drop(Drop::DESTINATION);
    }
    let mut course = Course::PASS;
    match sender(t, came.ingress_ifindex(), stamp) {
        Ok(NOBODY) => {}
        Ok(sender) if stamp.is_deferred() || stamp.is_none() => course = at_exit(t, sender, shape, size),
        Ok(_) => {}
        Err(why) => return Course::drop(why),
    }
    if course.outcome().is_err() && course != Course::JUDGE {
        return course;
    }
    if !is_restricted(&endpoint, endpoint.ingress) {
        return if course == Course::JUDGE { course } else { unrestricted(t, size) };
    }
    if shape == Shape::LATER {
        return Course(t.recall_fragment(slot, hook::TO_POD).0);
    }
    match related::judge(t, slot, false, size) {
        // The node's own errors pass no exit.
        Ok(known) if known & state::CONFIRM != 0 && !stamp.is_reply() && !came.is_from_node() => {
            Course::drop(Drop::UNCONFIRMED)
        }
        Ok(_) => Course::PASS,
        Err(why) => Course::drop(why),
    }
}

/// How a packet came to the hook: its stamp in the low half, the last device that received it above. One number, since
/// functions take five.
#[derive(Clone, Copy, Debug)]
pub struct Came(pub u64);

impl Came {
    /// From its parts.
    #[inline(always)]
    #[must_use]
    pub const fn new(stamp: Stamp, ingress_ifindex: u32) -> Self {
        Self(stamp.0 as u64 | (ingress_ifindex as u64) << 32)
    }

    #[inline(always)]
    const fn stamp(self) -> Stamp {
        Stamp(self.0 as u16)
    }

    #[inline(always)]
    const fn ingress_ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    const fn is_from_node(self) -> bool {
        self.stamp().is_none() && self.ingress_ifindex() == 0
    }
}

/// A packet whose sender's egress is judged where it leaves.
#[inline(always)]
pub fn at_exit<T: Tables>(t: T, sender: u32, shape: Shape, size: Size) -> Course {
    let Some(endpoint) = EndpointView::of(t, sender) else { return Course::drop(Drop::STAMP) };
    let restricted = is_restricted(&endpoint, endpoint.egress);
    match shape {
        _ if shape.is_link_local() => Course::PASS,
        Shape::LATER if restricted => Course(t.recall_fragment(sender, hook::EXIT).0),
        Shape::RELATED if restricted => match related::judge_at_exit(t, sender, size) {
            Drop(0) => Course::PASS,
            why => Course::drop(why),
        },
        Shape::LATER | Shape::RELATED => Course::PASS,
        _ => Course::pass_if(!endpoint.is_enforced(), shape.why()),
    }
}
