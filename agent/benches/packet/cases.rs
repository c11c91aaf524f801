//! What is measured.

use std::net::Ipv4Addr;

use portcullis_common::Stamp;
use portcullis_common::layout::node_flag;

use crate::frame::{ACK, SYN, context, tcp};
use crate::world::{DEVICES, FREE, ISOLATED, SERVICE, STRANGER, UNKNOWN, outside, peer, port};

/// A packet goes on.
pub(crate) const PASS: i32 = -1;
/// A packet is dropped.
pub(crate) const DROP: i32 = 2;
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
            Self::Other => None,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::New => "new flow",
            Self::Denied => "denied",
            Self::Exit => "deferred at its exit",
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

type Side = (Ipv4Addr, u16);

/// Slot 0 or 1 sends.
fn out(slot: usize, to: Side, from: u16, flags: u8, answer: i32) -> Shot {
    let source = if slot == 0 { ISOLATED } else { FREE };
    Shot { program: "from_pod", frame: tcp((source, from), to, flags), context: context(DEVICES[slot], 0, 0), answer }
}

/// Slot 0 or 1 receives what came with a stamp.
fn into(slot: usize, from: Side, to: u16, flags: u8, stamp: u16, answer: i32) -> Shot {
    let destination = if slot == 0 { ISOLATED } else { FREE };
    Shot {
        program: "to_pod",
        frame: tcp(from, (destination, to), flags),
        context: context(DEVICES[slot], 9, stamp),
        answer,
    }
}

/// Slot 0's packet at an exit.
fn exit(program: &'static str, to: Side, flags: u8) -> Shot {
    let device = if program == "to_pod" { DEVICES[1] } else { 9 };
    Shot {
        program,
        frame: tcp((ISOLATED, CLIENT_PORT), to, flags),
        context: context(device, DEVICES[0], Stamp::deferred(0, 1).0),
        answer: PASS,
    }
}

/// The cases for one number of rules.
pub(crate) fn all(rules: u32) -> Vec<Case> {
    let last = rules - 1;
    let near = (peer(last), port(last));
    let far = (outside(last), port(last));
    let mut cases = Vec::new();
    let mut add = |group, name, before: Vec<Shot>, shot: Shot| {
        cases.push(Case { group, name, rules, before, shot, rotates: false, flags: 0 });
    };

    let opened = out(0, near, CLIENT_PORT, SYN, PASS);
    let answered = into(0, near, CLIENT_PORT, ACK, OUTSIDE, PASS);
    let before = vec![opened, answered];
    add(Group::Established, "from_pod, the pod opened", before.clone(), out(0, near, CLIENT_PORT, ACK, PASS));
    add(Group::Established, "to_pod, the pod opened", before, into(0, near, CLIENT_PORT, ACK, OUTSIDE, PASS));

    let client = (peer(last), CLIENT_PORT + 1);
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
    let name = "from_pod, SYN again, peer by ipBlock";
    add(Group::New, name, vec![], out(0, far, CLIENT_PORT + 2, SYN, PASS));
    let from = (peer(last), CLIENT_PORT + 2);
    let name = "to_pod, SYN again, peer by selector";
    add(Group::New, name, vec![], into(0, from, port(last), SYN, OUTSIDE, PASS));
    let from = (outside(last), CLIENT_PORT + 2);
    let name = "to_pod, SYN again, peer by ipBlock";
    add(Group::New, name, vec![], into(0, from, port(last), SYN, OUTSIDE, PASS));
    if rules == 1 {
        add(Group::New, "from_pod, SYN again, no policy", vec![], out(1, near, CLIENT_PORT + 2, SYN, PASS));
    }

    let wrong = (peer(last), 999);
    add(Group::Denied, "from_pod, a pod's wrong port", vec![], out(0, wrong, CLIENT_PORT, SYN, DROP));
    add(Group::Denied, "from_pod, a pod no rule names", vec![], out(0, (STRANGER, 80), CLIENT_PORT, SYN, DROP));
    add(Group::Denied, "from_pod, unknown address", vec![], out(0, (UNKNOWN, 80), CLIENT_PORT, SYN, DROP));
    let from = (peer(last), CLIENT_PORT);
    add(Group::Denied, "to_pod, a pod's wrong port", vec![], into(0, from, 999, SYN, OUTSIDE, DROP));
    let from = (STRANGER, CLIENT_PORT);
    add(Group::Denied, "to_pod, a pod no rule names", vec![], into(0, from, 80, SYN, OUTSIDE, DROP));
    let from = (UNKNOWN, CLIENT_PORT);
    add(Group::Denied, "to_pod, unknown address", vec![], into(0, from, 80, SYN, OUTSIDE, DROP));

    let before = vec![exit("to_uplink", near, SYN)];
    add(Group::Exit, "to_uplink, established", before, exit("to_uplink", near, ACK));
    add(Group::New, "to_uplink, deferred, SYN again", vec![], exit("to_uplink", near, SYN));
    if rules == 1 {
        deferred(&mut add);
    }

    let name = "from_pod, every packet another flow";
    let distinct = [
        (name, out(0, near, 1, SYN, PASS)),
        ("to_pod, every packet another flow", into(0, (peer(last), 1), port(last), SYN, OUTSIDE, PASS)),
    ];
    for (name, shot) in distinct {
        cases.push(Case { group: Group::New, name, rules, before: vec![], shot, rotates: true, flags: 0 });
    }
    if rules == 1 {
        uplinks(&mut cases, near);
    }
    cases
}

/// Packets to a Service's address, and judged for two.
fn deferred(add: &mut impl FnMut(Group, &'static str, Vec<Shot>, Shot)) {
    let service = (SERVICE, 80);
    let opened = out(0, service, CLIENT_PORT, SYN, PASS);
    add(Group::New, "from_pod, to a Service, SYN again", vec![], opened.clone());
    let again = out(0, service, CLIENT_PORT, ACK, PASS);
    add(Group::Established, "from_pod, to a Service", vec![opened], again);
}

/// What enters from outside, with and without the look-up of what exits have allowed.
fn uplinks(cases: &mut Vec<Case>, near: Side) {
    let shot = |from: Side| Shot {
        program: "from_uplink",
        frame: tcp(from, (ISOLATED, CLIENT_PORT), ACK),
        context: context(9, 0, 0),
        answer: PASS,
    };
    let known = vec![exit("to_uplink", near, SYN)];
    let rows = [
        ("from_uplink, CONFIRM off", vec![], shot(near), 0),
        ("from_uplink, CONFIRM on, a miss", vec![], shot((UNKNOWN, 80)), node_flag::CONFIRM),
        ("from_uplink, CONFIRM on, a hit", known, shot(near), node_flag::CONFIRM),
    ];
    for (name, before, shot, flags) in rows {
        cases.push(Case { group: Group::Other, name, rules: 1, before, shot, rotates: false, flags });
    }
}
