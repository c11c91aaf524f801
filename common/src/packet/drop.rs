//! Why a packet is dropped.

/// Why a packet is dropped. Numbers are the keys of the drop counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop(pub u32);

impl Drop {
    /// A rule says so, or isolation.
    pub const POLICY: Self = Self(1);
    /// The device is no endpoint, though the program runs on it.
    pub const UNKNOWN_ENDPOINT: Self = Self(2);
    /// Headers that are cut off or contradict themselves.
    pub const MALFORMED: Self = Self(3);
    /// VLAN-tagged, or neither IP nor ARP.
    pub const ETHERTYPE: Self = Self(4);
    /// A source address that is not the pod's.
    pub const SOURCE: Self = Self(5);
    /// A unicast destination that is not the pod's.
    pub const DESTINATION: Self = Self(6);
    /// A later fragment whose first has not been let through, or a fragment of what may not come in fragments (ICMP
    /// errors; RFC 6980: neighbour discovery).
    pub const FRAGMENT: Self = Self(7);
    /// IPv6 extension headers out of order, or more than are followed.
    pub const EXTENSION: Self = Self(8);
    /// An encapsulation that would be unwrapped behind the hooks.
    pub const TUNNEL: Self = Self(9);
    /// ARP or neighbour discovery in another's name.
    pub const DISCOVERY: Self = Self(10);
    /// A router advertisement or redirect from a pod.
    pub const ROUTER: Self = Self(11);
    /// A stamp that names an endpoint which is gone.
    pub const STAMP: Self = Self(12);
    /// A packet that came up a bridge above pods without a stamp.
    pub const UNATTRIBUTED: Self = Self(13);
    /// A reply of a flow that no exit has allowed.
    pub const UNCONFIRMED: Self = Self(14);
    /// A fragment that reaches into what its datagram's first has said (RFC 5722), or a second first one that says
    /// something else.
    pub const OVERLAP: Self = Self(15);
    /// A first fragment without all headers up to the transport's (RFC 1858, RFC 7112).
    pub const TINY: Self = Self(16);
    /// A route that the sender has chosen: the address is not the final destination's (RFC 7126, RFC 5095).
    pub const SOURCE_ROUTE: Self = Self(17);
    /// An ICMP error or redirect about no tracked flow.
    pub const UNRELATED: Self = Self(18);

    /// A frame from another Ethernet address than the pod's, or ARP that speaks for another.
    pub const SOURCE_MAC: Self = Self(19);

    /// As [`Drop::POLICY`], of a packet from outside whose source is an address of this node: a client that the host has
    /// masqueraded.
    pub const MASQUERADED: Self = Self(20);

    /// Every reason, with its name in metrics.
    pub const ALL: [(Self, &'static str); 20] = [
        (Self::POLICY, "policy"),
        (Self::UNKNOWN_ENDPOINT, "unknown_endpoint"),
        (Self::MALFORMED, "malformed"),
        (Self::ETHERTYPE, "ethertype"),
        (Self::SOURCE, "source_address"),
        (Self::DESTINATION, "destination_address"),
        (Self::FRAGMENT, "fragment"),
        (Self::EXTENSION, "extension_header"),
        (Self::TUNNEL, "tunnel"),
        (Self::DISCOVERY, "discovery"),
        (Self::ROUTER, "router_message"),
        (Self::STAMP, "stale_stamp"),
        (Self::UNATTRIBUTED, "unattributed"),
        (Self::UNCONFIRMED, "unconfirmed_reply"),
        (Self::OVERLAP, "overlapping_fragment"),
        (Self::TINY, "tiny_fragment"),
        (Self::SOURCE_ROUTE, "source_route"),
        (Self::UNRELATED, "unrelated_error"),
        (Self::SOURCE_MAC, "source_mac"),
        (Self::MASQUERADED, "masqueraded_client"),
    ];
}

/// How many drop reasons there are room for; events of [`crate::tables::Event`] follow.
pub const REASONS: u32 = 64;
