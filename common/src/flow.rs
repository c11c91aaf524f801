//! Connection tracking: one share of buckets for each endpoint, with expiry in line.
//!
//! A bucket is 512 bytes: a lock, a sequence number, a tag for each of seven ways, and seven entries of one cache line.
//! Writers take the lock; readers do not (a locked read costs as much as the rest of an established packet's path): they
//! read the sequence number, copy what they need and read it again, and take the lock only if it moved. That is sound
//! where loads are not reordered (x86); elsewhere readers always lock. Only the time stamp is written without the lock.
//!
//! A set-associative array rather than an LRU hash: an insert costs a tenth, an entry 73 bytes instead of 136, shares
//! cannot mix since the slot is part of the index, and expiry needs nobody. A full bucket gives up its expired entry,
//! else its oldest that both sides have not yet shown to want, else its oldest: a flood of SYN, answered or not, costs no
//! established flow its place.

use crate::address::Address;
use crate::layout::NodeConfig;
use crate::packet::{Headers, protocol};
use crate::tables::{Event, Tables, hash_of_three, read};

/// The lock of a bucket; the verifier knows it by this name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct bpf_spin_lock {
    /// Held by the kernel.
    pub val: u32,
}

/// Entries of a bucket.
pub const FLOW_WAYS: usize = 7;

/// Seven flows whose hashes agree.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct FlowBucket {
    /// Taken by writers.
    pub lock: bpf_spin_lock,
    /// Odd while a writer is at work; rises with every write.
    pub sequence: u32,
    /// A part of each entry's hash; 0 where the way is free.
    pub tags: [u16; 8],
    /// Fills the cache line.
    pub reserved: [u64; 5],
    /// The flows.
    pub entries: [FlowEntry; FLOW_WAYS],
}

/// One flow of one endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// The other side and this side.
    pub key: FlowKey,
    /// The endpoint's incarnation: entries of another that had the slot before do not match.
    pub incarnation: u32,
    /// Jiffies of the last packet.
    pub last_seen: u32,
    /// The endpoint's revision when it was judged.
    pub revision: u32,
    /// The rule that decided.
    pub rule: u32,
    /// The incarnation of the local peer that opened it, 0 otherwise.
    pub peer_incarnation: u32,
    /// [`crate::Stamp::provenance`] of the packet that opened it.
    pub provenance: u16,
    /// [`state`] bits.
    pub state: u16,
}

/// What tells flows of one share apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// The other side's address, as packets at this endpoint's veth carry it.
    pub peer: Address,
    /// This side's address.
    pub local: Address,
    /// Local port, peer port (host byte order) and protocol: see [`FlowKey::new`].
    pub ports: u64,
}

/// Bits of [`FlowEntry::state`].
pub mod state {
    /// The peer opened it.
    pub const INGRESS: u16 = 1;
    /// Opened to a translatable address and judged where it leaves; only replies ride on it.
    pub const DEFERRED: u16 = 2;
    /// Replies need the stamp's REPLY.
    pub const CONFIRM: u16 = 4;
    /// The other direction has answered.
    pub const ANSWERED: u16 = 1 << 3;
    /// The opener has sent a FIN.
    pub const OPENER_FIN: u16 = 1 << 4;
    /// The other side has.
    pub const ANSWER_FIN: u16 = 1 << 5;
    /// The opener's last packet was a RST.
    pub const OPENER_RST: u16 = 1 << 6;
    /// The other side's was.
    pub const ANSWER_RST: u16 = 1 << 7;
    /// Where the [`super::Lifetime`] stands: four bits, set when the entry is written.
    pub const LIFETIME: u32 = 8;
    /// The opener has sent again after an answer, so both sides want the flow.
    pub const ASSURED: u16 = 1 << 12;
    /// Nothing is known of how the flow began: that the sender of its first packet here has opened it is assumed. What the
    /// kernel's connection table says replaces such an entry.
    pub const TAKEN_UP: u16 = 1 << 13;
    /// A process of this node has answered: what the opener sends passes no exit, and is counted as it leaves the pod.
    pub const ENDS_HERE: u16 = 1 << 14;
    /// All bits but the lifetime's.
    pub const FLAGS: u16 = 0xf0ff;
    /// What packets have added.
    pub const PROGRESS: u16 = ANSWERED | FINS | RSTS | ASSURED;
    /// Both sides' FIN.
    pub const FINS: u16 = OPENER_FIN | ANSWER_FIN;
    /// Either side's RST.
    pub const RSTS: u16 = OPENER_RST | ANSWER_RST;
}

/// Indices into [`NodeConfig::lifetimes`]. The states are those of Linux' conntrack as far as they can be told without
/// following sequence numbers; where two of its states cannot be told apart, the shorter time counts,
/// but for [`Lifetime::UdpStream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Lifetime {
    /// TCP, not answered: SYN_SENT.
    TcpSynSent = 0,
    /// TCP, answered, and acknowledged by the opener: ESTABLISHED.
    TcpEstablished = 1,
    /// TCP after one side's FIN: FIN_WAIT, CLOSE_WAIT.
    TcpHalfClosed = 2,
    /// TCP after a RST that its sender has not belied since: CLOSE.
    TcpReset = 3,
    /// UDP, until the opener sends again after an answer.
    Udp = 4,
    /// UDP in both directions, once the opener has sent again after an answer. The kernel says so only of a flow that is
    /// older than two seconds (`nf_conntrack_udp_packet`), and an entry has no room for when it began: what is over before
    /// that is remembered here for this time, by the kernel for [`Lifetime::Udp`]'s.
    UdpStream = 5,
    /// SCTP, until the opener sends again after an answer: COOKIE_WAIT.
    SctpNew = 6,
    /// SCTP: ESTABLISHED.
    SctpEstablished = 7,
    /// ICMP and ICMPv6.
    Icmp = 8,
    /// Every other protocol.
    Other = 9,
    /// TCP, answered and not acknowledged: SYN_RECV.
    TcpSynReceived = 10,
    /// TCP after both sides' FIN: LAST_ACK, TIME_WAIT.
    TcpClosed = 11,
    /// What a datagram's first fragment says: as long as the kernel waits for its rest (`ipfrag_time`).
    Fragment = 12,
}

impl Lifetime {
    /// Every one, with its name in settings and Linux' default in seconds (net/netfilter/nf_conntrack_proto_*.c).
    pub const ALL: [(Self, &'static str, u32); 13] = [
        (Self::TcpSynSent, "tcp-syn-sent", 120),
        (Self::TcpEstablished, "tcp-established", 432_000),
        (Self::TcpHalfClosed, "tcp-half-closed", 60),
        (Self::TcpReset, "tcp-reset", 10),
        (Self::Udp, "udp", 30),
        (Self::UdpStream, "udp-stream", 120),
        (Self::SctpNew, "sctp-new", 3),
        (Self::SctpEstablished, "sctp-established", 210),
        (Self::Icmp, "icmp", 30),
        (Self::Other, "other", 600),
        (Self::TcpSynReceived, "tcp-syn-received", 60),
        (Self::TcpClosed, "tcp-closed", 30),
        (Self::Fragment, "fragment", 30),
    ];
}

impl FlowKey {
    /// Where [`FlowKey::ports`] tells an entry of [`crate::fragment`] from a flow: not 0 from this bit on.
    pub const FRAGMENT_SHIFT: u32 = 40;

    /// Whether the entry is a fragment's, and no flow.
    #[inline(always)]
    #[must_use]
    pub const fn is_fragment(&self) -> bool {
        self.ports >> Self::FRAGMENT_SHIFT != 0
    }

    /// The key of a packet at its endpoint: `outgoing` if the endpoint sends it.
    #[inline(always)]
    #[must_use]
    pub const fn new(headers: &Headers, outgoing: bool) -> Self {
        let protocol = (headers.protocol as u64) << 32;
        if outgoing {
            let ports = headers.source_port as u64 | (headers.destination_port as u64) << 16 | protocol;
            Self { peer: headers.destination, local: headers.source, ports }
        } else {
            let ports = headers.destination_port as u64 | (headers.source_port as u64) << 16 | protocol;
            Self { peer: headers.source, local: headers.destination, ports }
        }
    }

    /// The protocol.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        (self.ports >> 32) as u8
    }

    /// The hash: the low half names the bucket, the upper 16 bits are the tag.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self, seed: u64) -> u64 {
        let first = self.peer.words[0] ^ self.local.words[0].rotate_left(17);
        let second = self.peer.words[1] ^ self.local.words[1].rotate_left(17);
        hash_of_three(seed, [first, second, self.ports])
    }
}

#[inline(always)]
pub(crate) const fn tag_of(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

/// The index of a flow's lifetime, by its protocol and the flags of its state.
#[inline(always)]
#[must_use]
pub const fn lifetime_index(protocol: u8, state: u16) -> usize {
    let assured = state & state::ASSURED != 0;
    let lifetime = match protocol {
        protocol::TCP if state & state::RSTS != 0 => Lifetime::TcpReset,
        protocol::TCP if state & state::FINS == state::FINS => Lifetime::TcpClosed,
        protocol::TCP if state & state::FINS != 0 => Lifetime::TcpHalfClosed,
        protocol::TCP if assured => Lifetime::TcpEstablished,
        protocol::TCP if state & state::ANSWERED != 0 => Lifetime::TcpSynReceived,
        protocol::TCP => Lifetime::TcpSynSent,
        protocol::UDP if assured => Lifetime::UdpStream,
        protocol::UDP => Lifetime::Udp,
        protocol::SCTP if assured => Lifetime::SctpEstablished,
        protocol::SCTP => Lifetime::SctpNew,
        protocol::ICMP | protocol::ICMPV6 => Lifetime::Icmp,
        _ => Lifetime::Other,
    };
    lifetime as usize
}

/// The state bits of an entry with these flags, its lifetime among them.
#[inline(always)]
pub(crate) const fn with_lifetime(protocol: u8, state: u16) -> u16 {
    let flags = state & state::FLAGS;
    flags | (lifetime_index(protocol, flags) as u16) << state::LIFETIME
}

/// Whether an entry's time is over. Which lifetime counts was decided when it was written: choosing here, for each way of
/// a bucket, would multiply the paths that the verifier follows.
#[inline(always)]
unsafe fn expired(node: *const NodeConfig, state: u16, last_seen: u32, now: u32) -> bool {
    let index = (state >> state::LIFETIME & 0xf) as usize;
    // SAFETY: the caller's pointer is a table's; the index is below the length.
    let lifetime = unsafe { read(&raw const (*node).lifetimes[index]) };
    // Jiffies wrap: what seems to be a moment ahead of now was touched by another CPU meanwhile.
    let idle = now.wrapping_sub(last_seen);
    idle > lifetime && idle.wrapping_add(AHEAD) >= AHEAD
}

#[inline(always)]
pub(crate) unsafe fn is_same(known: *const FlowEntry, flow: *const FlowEntry) -> bool {
    // SAFETY: the caller's pointers are a table's and the working memory's.
    unsafe {
        read(&raw const (*known).key.ports) == (*flow).key.ports
            && read(&raw const (*known).key.peer.words[1]) == (*flow).key.peer.words[1]
            && read(&raw const (*known).key.local.words[1]) == (*flow).key.local.words[1]
            && read(&raw const (*known).key.peer.words[0]) == (*flow).key.peer.words[0]
            && read(&raw const (*known).key.local.words[0]) == (*flow).key.local.words[0]
            && read(&raw const (*known).incarnation) == (*flow).incarnation
    }
}

/// Whose table of flows: an endpoint's slot, or the node-wide table of what exits have allowed.
pub const CONFIRMED: u32 = u32::MAX;

#[inline(always)]
pub(crate) fn bucket_of<T: Tables>(t: T, owner: u32, hash: u64) -> Option<*mut FlowBucket> {
    if owner == CONFIRMED { t.confirmed(hash as u32) } else { t.flows(owner, hash as u32) }
}

#[inline(always)]
pub(crate) fn hash_of<T: Tables>(t: T, flow: *const FlowEntry) -> u64 {
    // SAFETY: the working memory's flow.
    unsafe { (*flow).key.hash(crate::classify::seed(t)) }
}

/// Finds the live flow that has the key and incarnation of the working memory's flow `which`, notes that it was seen now,
/// and fills in the rest. Returns whether there is one; if not, the rest is zero.
#[inline(always)]
pub fn find<T: Tables>(t: T, which: u32, owner: u32) -> bool {
    let (Some(node), Some(work)) = (t.node(), t.work()) else { return false };
    // SAFETY: every pointer is a table's or the working memory's, every index below its length.
    unsafe {
        let flow = &raw mut (*work).flows[which as usize & 1];
        clear(flow);
        let hash = hash_of(t, flow);
        let Some(bucket) = bucket_of(t, owner, hash) else { return false };
        let tag = tag_of(hash);
        let now = t.now();
        if !t.locked_reads() {
            let before = read(&raw const (*bucket).sequence);
            let outcome = glance(node, bucket, tag, flow, now);
            // A hit or a miss while a writer was at work may be neither.
            if before & 1 == 0 && read(&raw const (*bucket).sequence) == before {
                return outcome;
            }
        }
    }
    t.find_flow_locked(which, owner)
}

/// [`find`] under the bucket's lock: what it falls back on.
#[inline(always)]
pub fn find_locked<T: Tables>(t: T, which: u32, owner: u32) -> bool {
    let (Some(node), Some(work)) = (t.node(), t.work()) else { return false };
    // SAFETY: the working memory's.
    let flow = unsafe { &raw mut (*work).flows[which as usize & 1] };
    let hash = hash_of(t, flow);
    let Some(bucket) = bucket_of(t, owner, hash) else { return false };
    // SAFETY: every pointer is a table's or the working memory's.
    unsafe { look_locked(t, bucket, tag_of(hash), flow, node, t.now()) }
}

/// Looks without the lock; what is found counts only if no writer was at work meanwhile.
#[inline(always)]
unsafe fn glance(node: *const NodeConfig, bucket: *mut FlowBucket, tag: u16, flow: *mut FlowEntry, now: u32) -> bool {
    let mut way = 0;
    while way < FLOW_WAYS {
        // SAFETY: every pointer is a table's or the working memory's, every index below its length.
        unsafe {
            let known = &raw mut (*bucket).entries[way];
            if read(&raw const (*bucket).tags[way]) == tag && is_same(known, flow) {
                let last_seen = copy(known, flow);
                if expired(node, (*flow).state, last_seen, now) {
                    clear(flow);
                    return false;
                }
                if last_seen != now {
                    (&raw mut (*known).last_seen).write_volatile(now);
                }
                return true;
            }
        }
        way += 1;
    }
    false
}

#[inline(always)]
unsafe fn copy(known: *const FlowEntry, flow: *mut FlowEntry) -> u32 {
    // SAFETY: the caller's pointers are a table's and the working memory's.
    unsafe {
        (*flow).revision = read(&raw const (*known).revision);
        (*flow).rule = read(&raw const (*known).rule);
        (*flow).peer_incarnation = read(&raw const (*known).peer_incarnation);
        (*flow).provenance = read(&raw const (*known).provenance);
        (*flow).state = read(&raw const (*known).state);
        read(&raw const (*known).last_seen)
    }
}

#[inline(always)]
unsafe fn clear(flow: *mut FlowEntry) {
    // SAFETY: the working memory's flow.
    unsafe {
        (*flow).revision = 0;
        (*flow).rule = 0;
        (*flow).peer_incarnation = 0;
        (*flow).provenance = 0;
        (*flow).state = 0;
    }
}

#[inline(always)]
unsafe fn look_locked<T: Tables>(
    t: T,
    bucket: *mut FlowBucket,
    tag: u16,
    flow: *mut FlowEntry,
    node: *const NodeConfig,
    now: u32,
) -> bool {
    let mut hit = false;
    t.lock(bucket);
    let mut way = 0;
    while way < FLOW_WAYS {
        // SAFETY: every pointer is a table's or the working memory's, every index below its length.
        unsafe {
            let known = &raw mut (*bucket).entries[way];
            if read(&raw const (*bucket).tags[way]) == tag && is_same(known, flow) {
                let last_seen = copy(known, flow);
                if !expired(node, (*flow).state, last_seen, now) {
                    (&raw mut (*known).last_seen).write_volatile(now);
                    hit = true;
                }
                break;
            }
        }
        way += 1;
    }
    t.unlock(bucket);
    if !hit {
        // SAFETY: the working memory's.
        unsafe { clear(flow) };
    }
    hit
}

/// Writes the working memory's flow `which`: in place of itself, of a free or expired way, of the oldest that was never
/// answered, or of the oldest.
#[inline(always)]
pub fn store<T: Tables>(t: T, which: u32, owner: u32) {
    let (Some(node), Some(work)) = (t.node(), t.work()) else { return };
    // SAFETY: the working memory's.
    let flow = unsafe { &raw mut (*work).flows[which as usize & 1] };
    let hash = hash_of(t, flow);
    let Some(bucket) = bucket_of(t, owner, hash) else { return };
    let tag = tag_of(hash);
    let now = t.now();
    // SAFETY: the working memory's.
    unsafe {
        let key = (*flow).key;
        (*flow).state = if key.is_fragment() {
            (*flow).state & state::FLAGS | (Lifetime::Fragment as u16) << state::LIFETIME
        } else {
            with_lifetime(key.protocol(), (*flow).state)
        };
    }
    // Who has the highest score goes; the low bits are the way. Computed without branches, since each would double the
    // paths that the verifier follows through the ways that come after.
    let mut best = 0_u64;
    t.lock(bucket);
    let mut way = 0;
    while way < FLOW_WAYS {
        // SAFETY: every pointer is a table's, every index below its length.
        unsafe {
            let known = &raw mut (*bucket).entries[way];
            let known_tag = read(&raw const (*bucket).tags[way]);
            if known_tag == tag && is_same(known, flow) {
                best = SAME | way as u64;
                break;
            }
            let score = score(node, known, known_tag, now) | way as u64;
            if score > best {
                best = score;
            }
        }
        way += 1;
    }
    // Volatile, so that the compiler forgets that there are eight values and compares for more than six, not for seven:
    // verifiers before 6.8 learn a bound from the one and nothing from the other.
    let way = best & 7;
    // SAFETY: a local value.
    let victim = unsafe { read(&raw const way) } as usize;
    if victim < FLOW_WAYS {
        // SAFETY: likewise.
        unsafe { put(bucket, victim, tag, flow, now) };
    }
    t.unlock(bucket);
    if best < EXPIRED {
        t.note(Event::FlowEvicted);
        if best < 1 << UNASSURED {
            t.note(Event::EstablishedEvicted);
        }
    }
}

/// Jiffies that an entry may seem to be ahead of the time that a program has read.
const AHEAD: u32 = 1 << 16;
/// Scores, above 32 bits of idle time and 3 of the way: the entry itself, a free way, an expired one, one that was never
/// assured.
const SAME: u64 = 1 << 38;
const FREE: u64 = 1 << 37;
pub(crate) const EXPIRED: u64 = 1 << 36;
pub(crate) const UNASSURED: u32 = 35;

#[inline(always)]
pub(crate) unsafe fn score(node: *const NodeConfig, known: *const FlowEntry, tag: u16, now: u32) -> u64 {
    // SAFETY: the caller's pointers are a table's; the index is below the length.
    unsafe {
        let known_state = read(&raw const (*known).state);
        let index = (known_state >> state::LIFETIME & 0xf) as usize;
        let lifetime = read(&raw const (*node).lifetimes[index]);
        let idle = now.wrapping_sub(read(&raw const (*known).last_seen));
        // Seen after `now` was read, by another CPU: not idle at all.
        let ahead = ((u64::from(idle) + u64::from(AHEAD)) >> 32) as u32;
        let idle = idle & ahead.wrapping_sub(1);
        let free = u64::from(u32::from(tag).wrapping_sub(1) >> 31);
        let expired = u64::from(lifetime).wrapping_sub(u64::from(idle)) >> 63;
        let unassured = u64::from(!known_state >> 12 & 1);
        (free * FREE) | (expired * EXPIRED) | (unassured << UNASSURED) | (u64::from(idle) << 3)
    }
}

/// Puts an entry in a way of a bucket whose lock the caller holds.
#[inline(always)]
pub(crate) unsafe fn put(bucket: *mut FlowBucket, way: usize, tag: u16, flow: *const FlowEntry, last_seen: u32) {
    // SAFETY: the caller's pointers, and its index below the length.
    unsafe {
        let sequence = read(&raw const (*bucket).sequence);
        (&raw mut (*bucket).sequence).write_volatile(sequence.wrapping_add(1));
        (&raw mut (*bucket).tags[way]).write_volatile(tag);
        write(&raw mut (*bucket).entries[way], flow, last_seen);
        (&raw mut (*bucket).sequence).write_volatile(sequence.wrapping_add(2));
    }
}

#[inline(always)]
unsafe fn write(place: *mut FlowEntry, flow: *const FlowEntry, now: u32) {
    // SAFETY: the caller holds the lock of the bucket that the place is in. Written field by field: a copy of the whole
    // may become a call, which the verifier forbids under a lock.
    unsafe {
        (&raw mut (*place).key.peer.words[0]).write_volatile((*flow).key.peer.words[0]);
        (&raw mut (*place).key.peer.words[1]).write_volatile((*flow).key.peer.words[1]);
        (&raw mut (*place).key.local.words[0]).write_volatile((*flow).key.local.words[0]);
        (&raw mut (*place).key.local.words[1]).write_volatile((*flow).key.local.words[1]);
        (&raw mut (*place).key.ports).write_volatile((*flow).key.ports);
        (&raw mut (*place).incarnation).write_volatile((*flow).incarnation);
        (&raw mut (*place).last_seen).write_volatile(now);
        (&raw mut (*place).revision).write_volatile((*flow).revision);
        (&raw mut (*place).rule).write_volatile((*flow).rule);
        (&raw mut (*place).peer_incarnation).write_volatile((*flow).peer_incarnation);
        (&raw mut (*place).provenance).write_volatile((*flow).provenance);
        (&raw mut (*place).state).write_volatile((*flow).state);
    }
}

/// What a packet in one direction adds to its flow's state.
///
/// Nothing here follows sequence numbers, so whoever can send with a flow's addresses and ports can forge its flags. What
/// that costs is bounded: a RST counts only until its sender sends anything else, a SYN of a flow that lives changes
/// nothing until the other side accepts it, and a FIN ends an idle flow early, of which the kernel's connection table, that
/// does follow them, still knows: see [`state::TAKEN_UP`].
///
/// Without branches, since each would double the paths that the verifier follows. No other protocol has TCP's flags.
#[inline(always)]
#[must_use]
pub const fn advance(known: u16, headers: &Headers, answers: bool) -> u16 {
    let flags = headers.tcp_flags as u16;
    let side = answers as u32;
    let (fin, syn, rst) = (flags & 1, flags >> 1 & 1, flags >> 2 & 1);
    let kept = known & !(state::OPENER_RST << side);
    let seen = fin << (4 + side) | rst << (6 + side);
    if answers {
        // An answer to a SYN: what was before is over.
        kept & !(0_u16.wrapping_sub(syn) & state::PROGRESS) | seen | state::ANSWERED
    } else {
        kept | seen | (kept >> 3 & 1) << 12
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_cache_line_and_a_bucket_eight() {
        assert_eq!(size_of::<FlowEntry>(), 64);
        assert_eq!(size_of::<FlowBucket>(), 512);
        assert_eq!(core::mem::offset_of!(FlowBucket, entries), 64);
    }
}
