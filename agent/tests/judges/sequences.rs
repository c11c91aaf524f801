//! What follows a flow's first packet: replies, data, errors about it, fragments. Judged by a small model of the promises:
//! a flow that was let through goes on in both directions; a flow that is denied as it leaves opens nothing.

use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;
use portcullis_packets::{Body, Icmp, Ip, Parties, Quote, Recipe, fragments};

use super::hooks::{Arrival, FIRST_DEVICE, Hook, Judge, Node, UPLINK};
use super::journey::{Journey, Source, Target};
use super::packets::{self, CLIENT_PORT, Load};
use portcullis::state::LocalId;

/// One end of a packet's way.
#[derive(Clone, Copy, Debug)]
enum End<'a> {
    Pod(&'a LocalId),
    Away,
    Node,
}

/// The fates at the hooks on the way, up to the first drop.
pub(crate) type Fates = Vec<Result<Stamp, Drop>>;

/// A packet of a sequence: its frames as it enters and as it leaves, and what must become of it.
struct Step {
    what: &'static str,
    forward: bool,
    entering: Vec<u8>,
    leaving: Vec<u8>,
    must: Must,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    Arrive,
    NotArrive,
    /// The design leaves it open.
    Whatever,
}

fn ends(journey: &Journey) -> (End<'_>, End<'_>) {
    let from = match &journey.source {
        Source::Local(id) => End::Pod(id),
        Source::Outside => End::Away,
        Source::Node => End::Node,
    };
    let to = match &journey.target {
        Target::Local(id) => End::Pod(id),
        Target::Away => End::Away,
        Target::Nowhere => End::Node,
    };
    (from, to)
}

fn send<J: Judge>(node: &mut Node<J>, from: End<'_>, to: End<'_>, step: &Step) -> Fates {
    let device = |node: &Node<J>, id: &LocalId| node.planner.seats().get(id).map_or(0, |seat| FIRST_DEVICE + seat.slot);
    let mut fates = Vec::new();
    let mut meet = |node: &mut Node<J>, hook, device, last_device, stamp, frame: &[u8]| {
        let fate = node.judge(&Arrival { hook, device, last_device, stamp, frame: frame.to_vec() }).fate;
        fates.push(fate);
        fate.ok()
    };
    let (stamp, last) = match from {
        End::Pod(id) => {
            let own = device(node, id);
            (meet(node, Hook::FromPod, own, own, Stamp::NONE, &step.entering), own)
        }
        End::Away => (meet(node, Hook::FromUplink, UPLINK, UPLINK, Stamp::NONE, &step.entering), UPLINK),
        End::Node => (Some(Stamp::NONE), 0),
    };
    if let Some(stamp) = stamp {
        match to {
            End::Pod(id) => {
                let to = device(node, id);
                meet(node, Hook::ToPod, to, last, stamp, &step.leaving);
            }
            End::Away => {
                meet(node, Hook::ToUplink, UPLINK, last, stamp, &step.leaving);
            }
            End::Node => {}
        }
    }
    fates
}

/// What answers a load that was sent to `port`, as a load to the client's port; `None` where nothing does.
fn answer(load: Load) -> Option<(Load, u16)> {
    Some(match load {
        Load::Syn(port) => (Load::SynAck(CLIENT_PORT), port),
        Load::Data(port) => (Load::Data(CLIENT_PORT), port),
        Load::Udp(port) => (Load::Udp(CLIENT_PORT), port),
        Load::Init(port) | Load::Chunk(port) => (Load::Chunk(CLIENT_PORT), port),
        Load::Echo => (Load::EchoReply, CLIENT_PORT),
        _ => return None,
    })
}

fn middle(load: Load) -> Load {
    match load {
        Load::Syn(port) => Load::Data(port),
        Load::Init(port) => Load::Chunk(port),
        other => other,
    }
}

fn body(load: Load) -> Option<Body> {
    Some(match load {
        Load::Syn(_) | Load::Data(_) => Body::Tcp(0x10, None),
        Load::Udp(_) => Body::Udp(None),
        _ => return None,
    })
}

/// The packets after a flow's first, which has arrived (`open`), or been denied as it left.
fn steps(journey: &Journey, open: bool) -> Vec<Step> {
    let Some((sent_answer, sent_port)) = answer(journey.sent) else { return Vec::new() };
    let Some((answer, port)) = answer(journey.arrives) else { return Vec::new() };
    let step = |what, forward, entering, leaving, must| Step { what, forward, entering, leaving, must };
    let reply = |what, must| {
        let entering = packets::frame(journey.arrives_at, journey.seen_from, port, answer);
        let leaving = packets::frame(journey.sent_to, journey.source_address, sent_port, sent_answer);
        step(what, false, entering, leaving, must)
    };
    if !open {
        return vec![reply("a reply to what was denied as it left", Must::NotArrive)];
    }
    let data = |what| {
        let entering = packets::frame(journey.source_address, journey.sent_to, CLIENT_PORT, middle(journey.sent));
        let leaving = packets::frame(journey.seen_from, journey.arrives_at, CLIENT_PORT, middle(journey.arrives));
        step(what, true, entering, leaving, Must::Arrive)
    };
    let mut steps = vec![reply("the reply", Must::Arrive), data("data"), reply("a second reply", Must::Arrive)];
    let outer = Parties { from: journey.source_address, to: journey.sent_to, client: CLIENT_PORT, server: sent_port };
    let inner = Parties { from: journey.seen_from, to: journey.arrives_at, client: CLIENT_PORT, server: port };
    let Some(body) = body(journey.sent) else { return steps };
    let (kind, code) = if outer.from.is_ipv4() { (3, 4) } else { (2, 0) };
    let error = |of: Parties, bytes| {
        let quote = Quote { packet: Ip::of(body.clone()), returned: true, bytes };
        Recipe::ip(Ip::of(Body::Icmp(Icmp::Error(kind, code, Box::new(quote))))).frame(&of.reversed())
    };
    steps.push(step("an error about it", false, error(inner, 1200), error(outer, 1200), Must::Arrive));
    let parts = |of: &Parties| fragments(&Ip::of(body.clone()), of, 77, &[3]);
    let (outer, inner) = (parts(&outer), parts(&inner));
    let part = |what, number: usize, must| step(what, true, outer[number].clone(), inner[number].clone(), must);
    // Which way a later fragment goes that comes before its first is for the kernel: see common's `fragment`.
    steps.push(part("a fragment before its first", 1, Must::Whatever));
    steps.push(part("the first fragment", 0, Must::Arrive));
    steps.push(part("the fragment behind it", 1, Must::Arrive));
    steps
}

/// Sends what follows a flow's first packet through the tables, and through those of another judge.
pub(crate) fn follow<J: Judge, K: Judge>(
    node: &mut Node<J>,
    mut other: Option<&mut Node<K>>,
    journey: &Journey,
    open: bool,
) -> Result<usize, String> {
    let (from, to) = ends(journey);
    let mut judged = 0;
    for step in steps(journey, open) {
        let (from, to) = if step.forward { (from, to) } else { (to, from) };
        let fates = send(node, from, to, &step);
        judged += 1;
        let arrived = fates.iter().all(Result::is_ok);
        let right = match step.must {
            Must::Arrive => arrived,
            Must::NotArrive => !arrived,
            Must::Whatever => true,
        };
        if !right {
            return Err(format!("{}: {journey:?}\nit must {:?}, but: {fates:?}", step.what, step.must));
        }
        if let Some(other) = &mut other {
            let theirs = send(*other, from, to, &step);
            if theirs != fates {
                return Err(format!("{}: {journey:?}\nin memory {fates:?}\nthe programs {theirs:?}", step.what));
            }
        }
    }
    Ok(judged)
}

/// Sends a frame of any kind to the hooks where a journey begins and ends, twice: tables and programs make the same of it.
pub(crate) fn send_odd<J: Judge, K: Judge>(
    node: &mut Node<J>,
    other: Option<&mut Node<K>>,
    journey: &Journey,
    seed: &[u8],
) -> Result<usize, String> {
    let parties = |from, to| Parties { from, to, client: CLIENT_PORT, server: journey.sent.traffic(true).port };
    let recipe = Recipe::random(seed);
    let entering = recipe.frame(&parties(journey.source_address, journey.sent_to));
    let leaving = recipe.frame(&parties(journey.seen_from, journey.arrives_at));
    // BPF_PROG_TEST_RUN takes no shorter ones.
    if entering.len() < 14 || leaving.len() < 14 {
        return Ok(0);
    }
    let step = Step { what: "an odd frame", forward: true, entering, leaving, must: Must::Whatever };
    let (from, to) = ends(journey);
    let fates = [send(node, from, to, &step), send(node, from, to, &step)];
    if fates[0] != fates[1] {
        return Err(format!("{recipe:?} of {journey:?} becomes {:?}, and the second time {:?}", fates[0], fates[1]));
    }
    if let Some(other) = other {
        let theirs = [send(other, from, to, &step), send(other, from, to, &step)];
        if theirs != fates {
            return Err(format!("{recipe:?} of {journey:?}\nin memory {fates:?}\nthe programs {theirs:?}"));
        }
    }
    Ok(2)
}
