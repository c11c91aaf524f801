//! What an endpoint's policy says of a peer, in one direction.

use crate::address::Address;
use crate::classify::{EndpointView, Question, classify, peer_value, seed, service_reach};
use crate::decide::has_node_flag;
use crate::layout::{VerdictWord, endpoint_flag, node_flag, peer, reach, rule};
use crate::packet::{Headers, protocol};
use crate::tables::{Tables, read};

/// What is asked: what policy calls the port in the low 16 bits, the protocol in the next 8, and flags. One number,
/// since the functions that take it are verified for any argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(pub u64);

impl Asked {
    const V4: u64 = 1 << 24;
    const EXIT: u64 = 1 << 25;
    const ITSELF: u64 = 1 << 26;
    const MAY_BE_NODE: u64 = 1 << 27;

    /// About a packet of the flow's opener.
    #[inline(always)]
    #[must_use]
    pub const fn opener(headers: &Headers) -> Self {
        Self::of(headers, headers.policy_port)
    }

    /// About a packet that answers the flow.
    #[inline(always)]
    #[must_use]
    pub const fn answer(headers: &Headers) -> Self {
        Self::of(headers, headers.answered_port())
    }

    #[inline(always)]
    const fn of(headers: &Headers, port: u16) -> Self {
        Self(port as u64 | (headers.protocol as u64) << 16 | if headers.v4 { Self::V4 } else { 0 })
    }

    /// Where the packet leaves: its destination is final, and nothing is deferred any more.
    #[inline(always)]
    #[must_use]
    pub const fn at_exit(self) -> Self {
        Self(self.0 | Self::EXIT)
    }

    /// Whether the peer is the endpoint itself.
    #[inline(always)]
    #[must_use]
    pub const fn itself(self, itself: bool) -> Self {
        if itself { Self(self.0 | Self::ITSELF) } else { self }
    }

    /// Whether the peer may be a process of this node.
    #[inline(always)]
    #[must_use]
    pub const fn may_be_node(self, may: bool) -> Self {
        if may { Self(self.0 | Self::MAY_BE_NODE) } else { self }
    }

    #[inline(always)]
    const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    #[inline(always)]
    const fn port(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    const fn protocol(self) -> u8 {
        (self.0 >> 16) as u8
    }
}

/// The egress verdict of the endpoint in a slot for a destination.
#[inline(always)]
pub fn egress<T: Tables>(t: T, slot: u32, to: Address, asked: Asked) -> VerdictWord {
    let Some(endpoint) = EndpointView::of(t, slot) else { return VerdictWord::new(false, rule::MISSING) };
    if asked.protocol() == protocol::UDP
        && endpoint.flags & endpoint_flag::TUNNELS == 0
        && is_tunnel_port(t, asked.port())
    {
        return VerdictWord::new(false, rule::TUNNEL);
    }
    if endpoint.egress == 0 && !endpoint.is_closed() {
        return VerdictWord::new(true, rule::NO_POLICY);
    }
    let seed = seed(t);
    let peer = peer_value(t, seed, endpoint.bank, &to);
    if endpoint.is_closed() && (peer & peer::OWN_NODE == 0 || has_node_flag(t, node_flag::OWN_NODE)) {
        return VerdictWord::new(false, rule::CLOSED);
    }
    if peer & peer::TRANSLATABLE != 0 && !asked.has(Asked::EXIT) {
        let reached = service_reach(t, seed, &endpoint, &to, asked.protocol(), asked.port());
        if reach::is_none(reached) {
            return VerdictWord::new(false, reached as u32);
        }
        // What no Service's port is ends in the node, unless a rule that nobody has told us of leads it on (a pod's hostPort).
        if reached != 0 || peer & peer::OWN_NODE == 0 || !has_node_flag(t, node_flag::OWN_NODE) {
            return VerdictWord::deferred(if reach::is_all(reached) { Some(reached as u32) } else { None });
        }
    }
    if endpoint.is_closed() {
        return VerdictWord::new(true, rule::CLOSED);
    }
    let itself = to.same(endpoint.address(t, asked.has(Asked::V4)));
    let verdict = classify(t, seed, &question(&endpoint, endpoint.egress, peer, itself, asked));
    // Asked again rather than kept: this function's frame is full (before 6.8 those of a chain of calls count in steps of 32).
    let ends_here = peer & peer::TRANSLATABLE != 0 && !asked.has(Asked::EXIT) && verdict.allows();
    if ends_here { VerdictWord::ends_here(verdict.rule()) } else { verdict }
}

/// Whether a tunnel device of this node listens on a UDP port: what a pod wraps, the node would unwrap behind the hooks,
/// and so would another node, whose devices are the same.
#[inline(always)]
fn is_tunnel_port<T: Tables>(t: T, port: u16) -> bool {
    // SAFETY: the pointer is a table's.
    let ports = t.node().map_or(0, |node| unsafe { read(&raw const (*node).tunnels) });
    let mut rest = ports;
    while rest != 0 {
        if rest as u16 == port && port != 0 {
            return true;
        }
        rest >>= 16;
    }
    false
}

/// The ingress verdict of the endpoint in a slot for a source.
#[inline(always)]
pub fn ingress<T: Tables>(t: T, slot: u32, from: Address, asked: Asked) -> VerdictWord {
    let Some(endpoint) = EndpointView::of(t, slot) else { return VerdictWord::new(false, rule::MISSING) };
    let unrestricted = endpoint.ingress == 0 && !endpoint.is_closed();
    if unrestricted && !asked.has(Asked::MAY_BE_NODE) {
        return VerdictWord::new(true, rule::NO_POLICY);
    }
    let seed = seed(t);
    let peer = peer_value(t, seed, endpoint.bank, &from);
    if asked.has(Asked::MAY_BE_NODE) && peer & peer::OWN_NODE != 0 {
        return VerdictWord::new(true, rule::NODE_PROCESS);
    }
    if unrestricted {
        return VerdictWord::new(true, rule::NO_POLICY);
    }
    if endpoint.is_closed() {
        return VerdictWord::new(false, rule::CLOSED);
    }
    let verdict = classify(t, seed, &question(&endpoint, endpoint.ingress, peer, asked.has(Asked::ITSELF), asked));
    if peer & peer::OWN_NODE == 0 { verdict } else { verdict.of_own_node() }
}

#[inline(always)]
const fn question(endpoint: &EndpointView, set: u32, peer: u64, itself: bool, asked: Asked) -> Question {
    Question { set, bank: endpoint.bank, peer, itself, protocol: asked.protocol(), port: asked.port() }
}
