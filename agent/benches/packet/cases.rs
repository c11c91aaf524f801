//! What is measured.

use std::net::{IpAddr, Ipv4Addr};

use portcullis_common::Stamp;
use portcullis_common::layout::node_flag;

use crate::frame::{ACK, SYN, Side, context, fragment, tcp, too_big, udp};
use crate::world::{
    ALSO, DEVICES, FREE, ISOLATED, MUTUAL, SERVICE, STRANGER, UNKNOWN, in_range, outside, peer, port, sixth,
};

/// A packet goes on.
pub(crate) const PASS: i32 = -1;
/// A packet is dropped.
pub(crate) const DROP: i32 = 2;
/// What becomes of a rare packet is for the tests to say; here it is its cost that counts.
pub(crate) const ANY: i32 = i32::MIN;
const CLIENT_PORT: u16 = 40_000;
const OUTSIDE: u16 = Stamp::OUTSIDE.0;

/// One run of a program on one packet.
#[derive(Clone)]
pub(crate) struct Shot {
    pub(crate) program: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) context: [u8; 192],
    pub(crate) answer: i32,
}

/// A class of packets and what it may cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Established,
    New,
    Denied,
    Exit,
    Rare,
    Other,
}

impl Group {
    /// Nanoseconds per packet, net of the empty program.
    pub(crate) const fn goal(self) -> Option<i64> {
        match self {
            Self::Established => Some(50),
            Self::New => Some(400),
            Self::Denied => Some(130),
            Self::Exit => Some(90),
            Self::Rare | Self::Other => None,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::New => "new flow",
            Self::Denied => "denied",
            Self::Exit => "deferred at its exit",
            Self::Rare => "rare",
            Self::Other => "other",
        }
    }
}

/// One line of the table, for one number of rules.
pub(crate) struct Case {
    pub(crate) group: Group,
    pub(crate) name: &'static str,
    pub(crate) rules: u32,
    /// Run once before each sample.
    pub(crate) before: Vec<Shot>,
    pub(crate) shot: Shot,
    /// Each run has another source port.
    pub(crate) rotates: bool,
    /// [`node_flag`]s.
    pub(crate) flags: u64,
}

/// A side that talks IPv4.
fn v4(side: (Ipv4Addr, u16)) -> Side {
    (side.0.into(), side.1)
}

/// A side that talks IPv6.
fn v6(side: (Ipv4Addr, u16)) -> Side {
    (sixth(side.0).into(), side.1)
}

/// The own address of slot 0 or 1, of the family of another.
fn own(slot: usize, other: IpAddr) -> IpAddr {
    let address = if slot == 0 { ISOLATED } else { FREE };
    if other.is_ipv4() { address.into() } else { sixth(address).into() }
}

/// Slot 0 or 1 sends.
fn out(slot: usize, to: Side, from: u16, flags: u8, answer: i32) -> Shot {
    sent(slot, tcp((own(slot, to.0), from), to, flags), answer)
}

fn sent(slot: usize, frame: Vec<u8>, answer: i32) -> Shot {
    Shot { program: "from_pod", frame, context: context(DEVICES[slot], 0, 0), answer }
}

/// Slot 0 or 1 receives what came with a stamp.
fn into(slot: usize, from: Side, to: u16, flags: u8, stamp: u16, answer: i32) -> Shot {
    received(slot, tcp(from, (own(slot, from.0), to), flags), stamp, answer)
}

fn received(slot: usize, frame: Vec<u8>, stamp: u16, answer: i32) -> Shot {
    Shot { program: "to_pod", frame, context: context(DEVICES[slot], 9, stamp), answer }
}

/// Slot 0's packet, deferred, at an exit.
fn exit(to: Side, flags: u8) -> Shot {
    Shot {
        program: "to_uplink",
        context: context(9, DEVICES[0], Stamp::deferred(0, 1).0),
        ..out(0, to, CLIENT_PORT, flags, PASS)
    }
}

/// Slot 0's packet, deferred, at slot 2's veth.
fn for_two(flags: u8) -> Shot {
    let shot = out(0, v4((ALSO, MUTUAL)), CLIENT_PORT, flags, PASS);
    Shot { program: "to_pod", context: context(DEVICES[2], DEVICES[0], Stamp::deferred(0, 1).0), ..shot }
}

/// The cases for one number of rules.
pub(crate) fn all(rules: u32) -> Vec<Case> {
    let last = rules - 1;
    let near = v4((peer(last), port(last)));
    let far = v4((outside(last), port(last)));
    let broad = v4((in_range(last), port(last)));
    let mut cases = Vec::new();
    let mut add = |group, name, before: Vec<Shot>, shot: Shot| {
        cases.push(Case { group, name, rules, before, shot, rotates: false, flags: 0 });
    };

    let opened = out(0, near, CLIENT_PORT, SYN, PASS);
    let answered = into(0, near, CLIENT_PORT, ACK, OUTSIDE, PASS);
    let before = vec![opened, answered];
    add(Group::Established, "from_pod, the pod opened", before.clone(), out(0, near, CLIENT_PORT, ACK, PASS));
    add(Group::Established, "to_pod, the pod opened", before, into(0, near, CLIENT_PORT, ACK, OUTSIDE, PASS));

    let client = v4((peer(last), CLIENT_PORT + 1));
    let opened = into(0, client, port(last), SYN, OUTSIDE, PASS);
    let answered = out(0, client, port(last), ACK, PASS);
    let before = vec![opened, answered.clone()];
    add(Group::Established, "from_pod, the peer opened", before.clone(), answered);
    add(Group::Established, "to_pod, the peer opened", before, into(0, client, port(last), ACK, OUTSIDE, PASS));

    if rules == 1 {
        let opened = out(1, near, CLIENT_PORT, SYN, PASS);
        let answered = into(1, near, CLIENT_PORT, ACK, OUTSIDE, PASS);
        let before = vec![opened, answered];
        add(Group::Established, "from_pod, no policy", before.clone(), out(1, near, CLIENT_PORT, ACK, PASS));
        add(Group::Established, "to_pod, no policy", before, into(1, near, CLIENT_PORT, ACK, OUTSIDE, PASS));
    }

    let name = "from_pod, SYN again, peer by selector";
    add(Group::New, name, vec![], out(0, near, CLIENT_PORT + 2, SYN, PASS));
    let name = "from_pod, SYN again, peer by ipBlock /32";
    add(Group::New, name, vec![], out(0, far, CLIENT_PORT + 2, SYN, PASS));
    let name = "from_pod, SYN again, peer by ipBlock /24";
    add(Group::New, name, vec![], out(0, broad, CLIENT_PORT + 2, SYN, PASS));
    let from = v4((peer(last), CLIENT_PORT + 2));
    let name = "to_pod, SYN again, peer by selector";
    add(Group::New, name, vec![], into(0, from, port(last), SYN, OUTSIDE, PASS));
    let from = v4((outside(last), CLIENT_PORT + 2));
    let name = "to_pod, SYN again, peer by ipBlock /32";
    add(Group::New, name, vec![], into(0, from, port(last), SYN, OUTSIDE, PASS));
    let from = v4((in_range(last), CLIENT_PORT + 2));
    let name = "to_pod, SYN again, peer by ipBlock /24";
    add(Group::New, name, vec![], into(0, from, port(last), SYN, OUTSIDE, PASS));
    if rules == 1 {
        add(Group::New, "from_pod, SYN again, no policy", vec![], out(1, near, CLIENT_PORT + 2, SYN, PASS));
    }

    let wrong = v4((peer(last), 999));
    add(Group::Denied, "from_pod, a pod's wrong port", vec![], out(0, wrong, CLIENT_PORT, SYN, DROP));
    add(Group::Denied, "from_pod, a pod no rule names", vec![], out(0, v4((STRANGER, 80)), CLIENT_PORT, SYN, DROP));
    add(Group::Denied, "from_pod, unknown address", vec![], out(0, v4((UNKNOWN, 80)), CLIENT_PORT, SYN, DROP));
    let from = v4((peer(last), CLIENT_PORT));
    add(Group::Denied, "to_pod, a pod's wrong port", vec![], into(0, from, 999, SYN, OUTSIDE, DROP));
    let from = v4((STRANGER, CLIENT_PORT));
    add(Group::Denied, "to_pod, a pod no rule names", vec![], into(0, from, 80, SYN, OUTSIDE, DROP));
    let from = v4((UNKNOWN, CLIENT_PORT));
    add(Group::Denied, "to_pod, unknown address", vec![], into(0, from, 80, SYN, OUTSIDE, DROP));

    let before = vec![exit(near, SYN)];
    add(Group::Exit, "to_uplink, established", before, exit(near, ACK));
    add(Group::New, "to_uplink, deferred, SYN again", vec![], exit(near, SYN));
    add(Group::Exit, "to_pod, judged for two, established", vec![for_two(SYN)], for_two(ACK));
    add(Group::New, "to_pod, judged for two, SYN again", vec![], for_two(SYN));
    if rules == 1 {
        deferred(&mut add);
        rare(&mut add, near);
    }
    others(&mut add, (peer(last), port(last)));

    let name = "from_pod, every packet another flow";
    let distinct = [
        (name, out(0, near, 1, SYN, PASS)),
        ("to_pod, every packet another flow", into(0, v4((peer(last), 1)), port(last), SYN, OUTSIDE, PASS)),
        ("from_pod, UDP, every packet another flow", sent(0, udp(v4((ISOLATED, 1)), near), PASS)),
    ];
    for (name, shot) in distinct {
        cases.push(Case { group: Group::New, name, rules, before: vec![], shot, rotates: true, flags: 0 });
    }
    if rules == 1 {
        uplinks(&mut cases, near);
    }
    cases
}

/// UDP and IPv6, to and from a pod that a rule names.
fn others(add: &mut impl FnMut(Group, &'static str, Vec<Shot>, Shot), peer: (Ipv4Addr, u16)) {
    let (own, near) = (v4((ISOLATED, CLIENT_PORT + 3)), v4(peer));
    let (there, back) = (sent(0, udp(own, near), PASS), received(0, udp(near, own), OUTSIDE, PASS));
    let before = vec![there.clone(), back.clone()];
    add(Group::Established, "from_pod, UDP", before.clone(), there);
    add(Group::Established, "to_pod, UDP", before, back);

    let near = v6(peer);
    let opened = out(0, near, CLIENT_PORT, SYN, PASS);
    let answered = into(0, near, CLIENT_PORT, ACK, OUTSIDE, PASS);
    let before = vec![opened, answered.clone()];
    add(Group::Established, "from_pod, IPv6", before.clone(), out(0, near, CLIENT_PORT, ACK, PASS));
    add(Group::Established, "to_pod, IPv6", before, answered);
    add(Group::New, "from_pod, IPv6, SYN again", vec![], out(0, near, CLIENT_PORT + 2, SYN, PASS));
    let from = v6((peer.0, CLIENT_PORT + 2));
    add(Group::New, "to_pod, IPv6, SYN again", vec![], into(0, from, peer.1, SYN, OUTSIDE, PASS));
    add(Group::Denied, "to_pod, IPv6, wrong port", vec![], into(0, from, 999, SYN, OUTSIDE, DROP));
}

/// Packets that may leave the fast path.
fn rare(add: &mut impl FnMut(Group, &'static str, Vec<Shot>, Shot), near: Side) {
    let later = sent(0, fragment(ISOLATED.into(), near.0), ANY);
    add(Group::Rare, "from_pod, a later fragment", vec![], later);
    let later = received(0, fragment(near.0, ISOLATED.into()), OUTSIDE, ANY);
    add(Group::Rare, "to_pod, a later fragment", vec![], later);
    let before = vec![out(0, near, CLIENT_PORT, SYN, PASS), into(0, near, CLIENT_PORT, ACK, OUTSIDE, PASS)];
    let error = received(0, too_big(UNKNOWN, v4((ISOLATED, CLIENT_PORT)), near), OUTSIDE, ANY);
    add(Group::Rare, "to_pod, an ICMP error about a known flow", before, error);
    let error = received(0, too_big(UNKNOWN, v4((ISOLATED, 1)), near), OUTSIDE, ANY);
    add(Group::Rare, "to_pod, an ICMP error about no flow", vec![], error);
}

/// Packets to a Service's address.
fn deferred(add: &mut impl FnMut(Group, &'static str, Vec<Shot>, Shot)) {
    let service = v4((SERVICE, 80));
    let opened = out(0, service, CLIENT_PORT, SYN, PASS);
    add(Group::New, "from_pod, to a Service, SYN again", vec![], opened.clone());
    let again = out(0, service, CLIENT_PORT, ACK, PASS);
    add(Group::Established, "from_pod, to a Service", vec![opened], again);
}

/// What enters from outside, with and without the look-up of what exits have allowed.
fn uplinks(cases: &mut Vec<Case>, near: Side) {
    let shot = |from: Side| Shot {
        program: "from_uplink",
        frame: tcp(from, v4((ISOLATED, CLIENT_PORT)), ACK),
        context: context(9, 0, 0),
        answer: PASS,
    };
    let known = vec![exit(near, SYN)];
    let rows = [
        ("from_uplink, CONFIRM off", vec![], shot(near), 0),
        ("from_uplink, CONFIRM on, a miss", vec![], shot(v4((UNKNOWN, 80))), node_flag::CONFIRM),
        ("from_uplink, CONFIRM on, a hit", known, shot(near), node_flag::CONFIRM),
    ];
    for (name, before, shot, flags) in rows {
        cases.push(Case { group: Group::Other, name, rules: 1, before, shot, rotates: false, flags });
    }
}
