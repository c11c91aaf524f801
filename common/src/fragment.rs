//! Fragments: a datagram's later ones have the verdict of its first.
//!
//! What a first fragment says is kept in its endpoint's own share of flows, so that a flood of fragments costs only its
//! owner: an entry that no packet's flow can have, of a lifetime of its own, the first to give way where a bucket is full.
//! A later fragment is then judged as any packet of its flow, with the ports that the first told; so it has the flow's
//! verdict, its counter, and its revision.
//!
//! Where nothing was kept, the later fragment came first, or the first was denied. Where a pod sends it, it goes on as
//! DEFERRED: connection tracking puts datagrams together before anything leaves, and what it puts together carries the
//! first fragment's stamp (skb_morph in inet_frag_reasm_prepare, kernel commit c23f35d19db3), whose verdict was its own;
//! datagrams with overlapping fragments it discards (7969e5c40dfd for IPv4; RFC 5722 for IPv6). Where nothing puts them
//! together, the exit meets a later fragment that nobody vouches for, and drops it.

use crate::classify::EndpointView;
use crate::flow::{self, FlowEntry, FlowKey, state};
use crate::packet::{Drop, Headers};
use crate::tables::Tables;

/// The hooks that keep fragments: an endpoint may have one datagram at several.
pub mod hook {
    /// The endpoint sends it.
    pub const FROM_POD: u32 = 1;
    /// The endpoint receives it.
    pub const TO_POD: u32 = 2;
    /// It leaves, and is judged for the endpoint, which sent it.
    pub const EXIT: u32 = 3;
}

/// The flow of the working memory that these functions use.
const OTHER: u32 = 1;
/// In [`FlowEntry::state`]: the datagram's last fragment has been seen. No bit that a flow's eviction asks about.
const COMPLETE: u16 = state::OPENER_FIN;

/// What tells datagrams apart, in [`FlowKey::ports`]: the sender's number, the protocol, and the hook, which is 0 of flows.
/// IPv6 has no protocol there: later fragments may name another (RFC 8200 section 4.5).
#[inline(always)]
unsafe fn name(flow: *mut FlowEntry, headers: &Headers, hook: u32, incarnation: u32) {
    let protocol = if headers.v4 { (headers.protocol as u64) << 32 } else { 0 };
    let ports = headers.datagram as u64 | protocol | (hook as u64) << FlowKey::FRAGMENT_SHIFT;
    // SAFETY: the working memory's flow.
    unsafe {
        (*flow).key = FlowKey { peer: headers.destination, local: headers.source, ports };
        (*flow).incarnation = incarnation;
    }
}

/// Keeps what the first fragment in the working memory says, which has been let through. 0, or why it is dropped all the
/// same: the datagram has another first fragment already, and is not complete. Or else its rest was lost, and the number
/// has come round: so this one takes the place all the same, and the next like it passes. Both were allowed, so it
/// matters to nobody's policy which of them the rest follows.
#[inline(always)]
pub fn remember<T: Tables>(t: T, slot: u32, hook: u32) -> Drop {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, slot), t.work()) else { return Drop::STAMP };
    let set = if hook == hook::TO_POD { endpoint.ingress } else { endpoint.egress };
    if set == 0 && !endpoint.is_closed() {
        // Nothing restricts the later fragments, so nobody asks.
        return Drop(0);
    }
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let headers = &(*work).headers;
        let flow = &raw mut (*work).flows[OTHER as usize];
        name(flow, headers, hook, endpoint.incarnation);
        let ports = headers.source_port as u32 | (headers.destination_port as u32) << 16;
        let end = headers.end & 0xffff | (headers.policy_port as u32) << 16;
        let protocol = headers.protocol as u32;
        let waits = flow::find(t, OTHER, slot) && (*flow).state & COMPLETE == 0;
        if waits && (*flow).revision == ports && (*flow).rule == end && (*flow).peer_incarnation == protocol {
            return Drop(0);
        }
        (*flow).revision = ports;
        (*flow).rule = end;
        (*flow).peer_incarnation = protocol;
        (*flow).state = 0;
        t.store_flow(OTHER, slot);
        if waits { Drop::OVERLAP } else { Drop(0) }
    }
}

/// Gives the later fragment in the working memory the ports of its first. 0, or why that cannot be.
#[inline(always)]
pub fn recall<T: Tables>(t: T, slot: u32, hook: u32) -> Drop {
    let (Some(endpoint), Some(work)) = (EndpointView::of(t, slot), t.work()) else { return Drop::STAMP };
    // SAFETY: the working memory is this decision's own.
    unsafe {
        let headers = &mut (*work).headers;
        let flow = &raw mut (*work).flows[OTHER as usize];
        name(flow, headers, hook, endpoint.incarnation);
        if !flow::find(t, OTHER, slot) {
            return Drop::FRAGMENT;
        }
        if headers.begin < (*flow).rule & 0xffff {
            return Drop::OVERLAP;
        }
        headers.source_port = (*flow).revision as u16;
        headers.destination_port = ((*flow).revision >> 16) as u16;
        headers.policy_port = ((*flow).rule >> 16) as u16;
        headers.protocol = (*flow).peer_incarnation as u8;
        headers.tcp_flags = 0;
        headers.opens = false;
        if headers.last && (*flow).state & COMPLETE == 0 {
            (*flow).state |= COMPLETE;
            t.store_flow(OTHER, slot);
        }
    }
    Drop(0)
}
