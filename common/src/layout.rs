//! The tables' layouts. Structs have no implicit padding; every word that changes while programs run is an aligned word
//! of at most eight bytes, since nothing larger is read or written whole.

use crate::address::Address;

/// Ways of a bucket of [`NarrowBucket`] and [`WideBucket`].
pub const WAYS: usize = 8;

/// Rows with an eight-byte key: profiles, verdicts, reaches. A key of 0 is a free cell.
///
/// A cell is written value first, key last, and used for another key only after a grace period; its value is replaced
/// by one aligned write.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NarrowBucket {
    /// See [`narrow_key`].
    pub keys: [u64; WAYS],
    /// See [`VerdictWord`] and the row's kind.
    pub values: [u64; WAYS],
}

/// Rows keyed by an address: peers and Service ports. A value of 0 is a free cell.
///
/// A cell is written key first, value last, and used for another key only after a grace period.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WideBucket {
    /// A tag of the key's hash in the upper 16 bits, never 0; below it the row's own value (see [`peer`]).
    pub values: [u64; WAYS],
    /// The address's two words and [`wide_key`].
    pub keys: [[u64; 3]; WAYS],
}

/// Devices by the low bits of their index: each word is index, kind and slot in one (see [`interface_word`]), 0 if free.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct InterfaceBucket {
    /// One word for each device.
    pub words: [u64; WAYS],
}

/// Buckets of the interface table: the index's low bits choose one.
pub const INTERFACE_BUCKETS: u32 = 4096;

/// What a device in the interface table is.
pub mod interface_kind {
    /// A pod's host veth.
    pub const ENDPOINT: u32 = 1;
    /// A bridge whose ports are pods' veths: a packet that came up through it without a stamp cannot be attributed.
    pub const BRIDGE: u32 = 2;
}

/// Index in the low half; above it the slot (16 bits) and the kind (8 bits).
#[inline(always)]
#[must_use]
pub const fn interface_word(ifindex: u32, kind: u32, slot: u32) -> u64 {
    ifindex as u64 | (slot as u64 & 0xffff) << 32 | (kind as u64 & 0xff) << 48
}

/// The kind in an interface word.
#[inline(always)]
#[must_use]
pub const fn interface_kind_of(word: u64) -> u32 {
    (word >> 48) as u32 & 0xff
}

/// The slot in an interface word.
#[inline(always)]
#[must_use]
pub const fn interface_slot_of(word: u64) -> u32 {
    (word >> 32) as u32 & 0xffff
}

/// An endpoint's configuration but for its revision. Immutable while an endpoint word points to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointRow {
    /// The pod's IPv4 address (mapped), or zero.
    pub v4: Address,
    /// The pod's IPv6 address, or zero.
    pub v6: Address,
    /// The policy set for ingress, 0 where no policy applies.
    pub ingress: u32,
    /// The policy set for egress, 0 where no policy applies.
    pub egress: u32,
    /// [`endpoint_flag`]s.
    pub flags: u32,
    /// Never repeats: entries and stamps of another pod that had this slot do not match.
    pub incarnation: u32,
    /// Which bank of address, range and port tables the sets belong to.
    pub bank: u32,
    /// The slot's generation, as stamps carry it.
    pub generation: u32,
    /// The Ethernet address that its frames must come from, as [`mac_word`] writes it; 0 while none is known.
    pub mac: u64,
}

/// An Ethernet address as [`EndpointRow::mac`] holds it: what a program reads from a frame in three steps of two bytes.
#[inline(always)]
#[must_use]
pub const fn mac_word(parts: [u16; 3]) -> u64 {
    parts[0] as u64 | (parts[1] as u64) << 16 | (parts[2] as u64) << 32
}

/// Flags of an [`EndpointRow`].
pub mod endpoint_flag {
    /// No decision exists for this pod yet: only traffic with the own node passes.
    pub const CLOSED: u32 = 1;
    /// Addresses are not checked: neither the source at `from_pod` nor the destination at `to_pod`.
    pub const ANY_ADDRESS: u32 = 2;
    /// Encapsulated packets (IPIP, 6in4, GRE, and UDP to the ports of the node's tunnel devices) may leave the pod.
    pub const TUNNELS: u32 = 4;
    /// Frames must come from [`super::EndpointRow::mac`], and ARP must speak for it.
    pub const PINNED: u32 = 8;
}

/// An endpoint's revision in the upper half and the index of its [`EndpointRow`] in the lower; 0 where there is none.
/// One aligned word, so that a packet sees the old policy or the new one.
#[inline(always)]
#[must_use]
pub const fn endpoint_word(revision: u32, row: u32) -> u64 {
    (revision as u64) << 32 | row as u64
}

/// Kinds of rows in the narrow table.
pub mod narrow {
    /// (set, class) to profile.
    pub const PROFILE: u64 = 1;
    /// (set, class) to profile, where the peer is the endpoint itself.
    pub const PROFILE_ITSELF: u64 = 2;
    /// set to the profile of all other classes.
    pub const SET_DEFAULT: u64 = 3;
    /// (profile, port class) to verdict.
    pub const VERDICT: u64 = 4;
    /// profile to the verdict of all other port classes.
    pub const PROFILE_DEFAULT: u64 = 5;
    /// (set, Service number) to reach.
    pub const REACH: u64 = 6;
    /// set to the reach of all other known Service ports.
    pub const REACH_DEFAULT: u64 = 7;
}

/// The key of a narrow row: kind in the upper 4 bits, `a` (a set or profile, below 2^28), `b` (a class, port class or
/// Service number). Never 0.
#[inline(always)]
#[must_use]
pub const fn narrow_key(kind: u64, a: u32, b: u32) -> u64 {
    kind << 60 | (a as u64 & 0x0fff_ffff) << 32 | b as u64
}

/// Set in every value of a narrow row, so that none is 0.
pub const VALID: u64 = 1 << 63;

/// A verdict as the tables hold it: the rule's number in the lower half, flags above. The decision also uses it to say
/// that egress is to be judged where the packet leaves; the tables never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictWord(pub u64);

impl VerdictWord {
    const ALLOW: u64 = 1 << 32;
    const DEFER: u64 = 1 << 33;
    const CONFIRM: u64 = 1 << 34;
    const OWN_NODE: u64 = 1 << 35;

    /// Egress is to be judged where the packet leaves, and this rule is certain to allow it there; without a rule replies
    /// need an exit's word.
    #[inline(always)]
    #[must_use]
    pub const fn deferred(rule: Option<u32>) -> Self {
        let word = VALID | Self::ALLOW | Self::DEFER;
        match rule {
            Some(rule) => Self(word | rule as u64),
            None => Self(word | Self::CONFIRM),
        }
    }

    /// The rule allows the packet to end in this node. If the host translates it onwards, egress is judged where it leaves,
    /// and replies need that exit's word.
    #[inline(always)]
    #[must_use]
    pub const fn ends_here(rule: u32) -> Self {
        Self(VALID | Self::ALLOW | Self::DEFER | Self::CONFIRM | rule as u64)
    }

    /// Whether egress is to be judged where the packet leaves.
    #[inline(always)]
    #[must_use]
    pub const fn defers(self) -> bool {
        self.0 & Self::DEFER != 0
    }

    /// Whether replies of a deferred flow need an exit's word.
    #[inline(always)]
    #[must_use]
    pub const fn needs_confirmation(self) -> bool {
        self.0 & Self::CONFIRM != 0
    }

    /// From its parts.
    #[inline(always)]
    #[must_use]
    pub const fn new(allow: bool, rule: u32) -> Self {
        Self(VALID | if allow { Self::ALLOW } else { 0 } | rule as u64)
    }

    /// The same, of a source that is an address of this node.
    #[inline(always)]
    #[must_use]
    pub const fn of_own_node(self) -> Self {
        Self(self.0 | Self::OWN_NODE)
    }

    /// Whether the source is an address of this node.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_own_node(self) -> bool {
        self.0 & Self::OWN_NODE != 0
    }

    /// Whether the packet goes on.
    #[inline(always)]
    #[must_use]
    pub const fn allows(self) -> bool {
        self.0 & Self::ALLOW != 0
    }

    /// What decided.
    #[inline(always)]
    #[must_use]
    pub const fn rule(self) -> u32 {
        self.0 as u32
    }
}

/// Rule numbers that name no policy's rule.
pub mod rule {
    /// No policy applies to the endpoint in this direction: allowed.
    pub const NO_POLICY: u32 = 0;
    /// From a process of the own node: allowed before all tiers.
    pub const NODE_PROCESS: u32 = 1;
    /// No decision exists for the endpoint yet: denied.
    pub const CLOSED: u32 = 2;
    /// The tables contradict themselves: denied. Never in a healthy agent.
    pub const MISSING: u32 = 3;
    /// Wrapped for a tunnel device of this node: denied.
    pub const TUNNEL: u32 = 4;
    /// A rule of policy as it was when the flow began: its number may be another's by now.
    pub const KEPT: u32 = 5;
    /// The first number of a policy's rule.
    pub const FIRST: u32 = 16;
}

/// A reach: its code in bits 32 and 33, the number of the rule that decides for all backends below.
pub mod reach {
    use super::VALID;
    const ALL: u64 = VALID | 1 << 32;
    /// Some backends are allowed, or all of them by several rules, or what is behind the port is not known.
    pub const PART: u64 = VALID | 2 << 32;
    const NONE: u64 = VALID | 3 << 32;

    /// Every backend is allowed by this rule.
    #[inline(always)]
    #[must_use]
    pub const fn all(rule: u32) -> u64 {
        ALL | rule as u64
    }

    /// No backend is allowed; this rule denies.
    #[inline(always)]
    #[must_use]
    pub const fn none(rule: u32) -> u64 {
        NONE | rule as u64
    }

    /// Whether no backend is allowed.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(word: u64) -> bool {
        word & (3 << 32) == 3 << 32
    }

    /// Whether every backend is allowed.
    #[inline(always)]
    #[must_use]
    pub const fn is_all(word: u64) -> bool {
        word & (3 << 32) == 1 << 32
    }
}

/// Values of wide rows and ranges.
pub mod peer {
    /// A row is present.
    pub const VALID: u64 = 1 << 32;
    /// The host may translate packets to this address onwards.
    pub const TRANSLATABLE: u64 = 1 << 33;
    /// An address of this node (and no Service's).
    pub const OWN_NODE: u64 = 1 << 34;

    /// The peer class of a peer value; of a Service row, its number.
    #[inline(always)]
    #[must_use]
    pub const fn number(value: u64) -> u32 {
        value as u32
    }
}

/// Kinds of rows in the wide table.
pub mod wide {
    /// Address to peer value.
    pub const PEER: u64 = 1;
    /// (address, protocol, port) to Service number.
    pub const SERVICE: u64 = 2;
}

/// The third word of a wide row's key: kind, bank, protocol and port (0 for peers).
#[inline(always)]
#[must_use]
pub const fn wide_key(kind: u64, bank: u32, protocol: u8, port: u16) -> u64 {
    kind << 56 | (bank as u64 & 0xff) << 48 | (protocol as u64) << 16 | port as u64
}

/// The bank in the third word of a wide row's key.
#[must_use]
pub const fn wide_bank(third: u64) -> u32 {
    (third >> 48) as u32 & 0xff
}

/// Banks: a new agent builds another set of address, range and port tables beside the one in force; there are more than
/// two, since an agent may be stopped while endpoints are in two of them.
pub const BANKS: u32 = 4;
/// Ports in one element of the port table.
pub const CHUNK: usize = 256;
/// Elements of the port table for one bank: 256 for each of TCP, UDP, SCTP, ICMP and ICMPv6, and one for the numbers of
/// all other protocols.
pub const CHUNKS: u32 = 5 * 256 + 1;

/// One element of the port table: port classes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PortChunk {
    /// The class of each port; 0 where no rule asks.
    pub classes: [u16; CHUNK],
}

/// Where a protocol and port stand in the port table of a bank: element, and place in it.
#[inline(always)]
#[must_use]
pub const fn port_place(bank: u32, protocol: u8, port: u16) -> (u32, usize) {
    let table = match protocol {
        6 => 0,
        17 => 1,
        132 => 2,
        1 => 3,
        58 => 4,
        _ => return (bank * CHUNKS + CHUNKS - 1, protocol as usize),
    };
    (bank * CHUNKS + table * 256 + (port >> 8) as u32, (port & 0xff) as usize)
}

/// A key of the range table, whose look-up is longest prefix first: 32 bits of bank and family, then the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeKey {
    /// Bank and family; always matched whole. The family is part of it since `::/0` must not cover the mapped addresses.
    space: u32,
    /// The address, 16 bytes.
    address: [u32; 4],
}

impl RangeKey {
    /// The key of an address in a bank.
    #[inline(always)]
    #[must_use]
    pub const fn new(bank: u32, address: &Address) -> Self {
        let [first, second] = address.words;
        Self {
            space: bank << 1 | address.is_v4() as u32,
            address: [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32],
        }
    }

    /// The bank.
    #[must_use]
    pub const fn bank(&self) -> u32 {
        self.space >> 1
    }

    /// The key's words.
    #[must_use]
    pub const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.address;
        [self.space, a, b, c, d]
    }
}

/// What holds for the whole node, in one array element.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeConfig {
    /// Mixed into every hash, so that nobody outside can choose what collides. Constant while the maps live.
    pub seed: u64,
    /// [`node_flag`]s.
    pub flags: u64,
    /// Idle lifetimes of flows in jiffies, by [`crate::flow::Lifetime`].
    pub lifetimes: [u32; 16],
    /// The UDP ports of this node's tunnel devices, four of 16 bits; 0 where there is none.
    pub tunnels: u64,
}

/// Flags of [`NodeConfig`].
pub mod node_flag {
    /// `from_pod` is on every port of every bridge above pods: what comes up a bridge without a stamp is dropped.
    pub const ARMED: u64 = 1;
    /// Some egress-isolated endpoint may have deferred flows: look replies up among what exits have allowed.
    pub const CONFIRM: u64 = 2;
    /// Programs are being attached for the first time: a pod's packet without a stamp may have entered before its veth had
    /// one, and is nobody's. It could not be judged rightly either: of a reply only the translated address is left.
    pub const STARTING: u64 = 4;
    /// Clients from outside whose address has become this node's (externalTrafficPolicy Cluster) pass as the node's own
    /// processes do: their true address cannot be had here. IPv4 only, where nobody else can send with that address.
    pub const MASQUERADED: u64 = 8;
    /// Policy judges what pods send to addresses of this node. Such a packet may end in the node, where no exit sees it, so
    /// it is judged where it enters.
    pub const OWN_NODE: u64 = 16;
    /// Flows that were let through stay, whatever policy says since.
    pub const KEEP: u64 = 32;
}

/// What the agents of one node hand on to each other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Names the network namespace that the tables belong to.
    pub namespace: u64,
    /// The next revision: above every one ever used.
    pub next_revision: u64,
    /// The next incarnation: above every one ever used.
    pub next_incarnation: u64,
    /// Reserved, 0.
    pub reserved: [u64; 5],
}

/// Who is behind a slot: `namespace/name/uid` in UTF-8, filled up with zeroes. Names are at most 63 and 253 bytes long,
/// and a uid 36.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The text.
    pub text: [u8; 384],
}

/// What a rule number stands for: a hash of its name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleName {
    /// The first 16 bytes of SHA-1.
    pub hash: [u8; 16],
}

/// Packets and bytes, for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets on the wire: of a packet that the kernel carries whole and cuts into segments only at a device, the segments.
    pub packets: u64,
    /// Bytes on the wire, each segment with its link-layer, IP and transport headers.
    pub bytes: u64,
}

/// What a packet adds to a [`Counter`]: segments in the upper half, bytes in the lower. One number, since the functions
/// that it is handed to are verified for any argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// A packet that is one on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn one(bytes: u32) -> Self {
        Self(1 << 32 | bytes as u64)
    }

    /// A packet of `bytes` that becomes this many segments, each with `headers` bytes of headers.
    #[inline(always)]
    #[must_use]
    pub const fn segmented(bytes: u32, segments: u32, headers: u32) -> Self {
        Self((segments as u64) << 32 | (bytes as u64 + (segments as u64 - 1) * headers as u64) & 0xffff_ffff)
    }

    /// Segments.
    #[inline(always)]
    #[must_use]
    pub const fn packets(self) -> u64 {
        self.0 >> 32
    }

    /// Bytes.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 & 0xffff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_sizes_that_user_space_writes() {
        assert_eq!(size_of::<NarrowBucket>(), 128);
        assert_eq!(size_of::<WideBucket>(), 256);
        assert_eq!(size_of::<InterfaceBucket>(), 64);
        assert_eq!(size_of::<EndpointRow>(), 64);
        assert_eq!(size_of::<PortChunk>(), 512);
        assert_eq!(size_of::<RangeKey>(), 20);
        assert_eq!(size_of::<NodeConfig>(), 88);
    }

    #[test]
    fn keys_of_different_rows_differ() {
        let keys = [
            narrow_key(narrow::PROFILE, 1, 2),
            narrow_key(narrow::PROFILE_ITSELF, 1, 2),
            narrow_key(narrow::PROFILE, 2, 1),
            narrow_key(narrow::VERDICT, 1, 2),
            narrow_key(narrow::SET_DEFAULT, 1, 0),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert_ne!(*a, 0, "a key is never the free cell's");
            for b in &keys[i + 1..] {
                assert_ne!(a, b, "kind, set and class all count");
            }
        }
    }

    #[test]
    fn ranges_of_one_family_and_bank_cover_no_others_addresses() {
        let v4 = RangeKey::new(0, &Address::v4(u32::from_ne_bytes([10, 0, 0, 1])));
        let v6 = RangeKey::new(0, &Address::UNSPECIFIED);
        assert_ne!(v4.space, v6.space, "::/0 does not cover mapped addresses");
        assert_ne!(v6.space, RangeKey::new(1, &Address::UNSPECIFIED).space, "banks");
        assert_eq!((v4.bank(), RangeKey::new(1, &Address::v4(1)).bank()), (0, 1), "the bank is told again");
    }

    #[test]
    fn every_protocol_and_port_has_its_own_place() {
        let mut seen = [[false; CHUNK]; CHUNKS as usize];
        for protocol in 0..=255_u8 {
            let ports = if matches!(protocol, 1 | 6 | 17 | 58 | 132) { 0..=u16::MAX } else { 0..=0 };
            for port in ports {
                let (element, place) = port_place(0, protocol, port);
                assert!(!core::mem::replace(&mut seen[element as usize][place], true), "{protocol} {port} is shared");
            }
        }
        assert_eq!(port_place(1, 6, 80).0, CHUNKS, "the second bank follows the first");
    }
}
