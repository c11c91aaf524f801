//! A sequence of packets, changes and pauses out of random bytes.

use arbitrary::{Arbitrary, Result, Unstructured};
use portcullis_common::stamp::Stamp;
use portcullis_packets::{Body, Icmp, Ip, Net, Parties, Quote, Recipe};

use crate::node::{Arrival, Breakage, FIRST_DEVICE, Hook, Node, UPLINK};
use crate::world::{AWAY, Host, NODE, PODS, SERVICES};

/// What happens, at most.
const MOVES: usize = 24;

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Pod(usize),
    Node,
    Away(usize),
}

impl Place {
    const fn host(self) -> &'static Host {
        match self {
            Self::Pod(pod) => &PODS[pod],
            Self::Node => &NODE,
            Self::Away(who) => &AWAY[who],
        }
    }
}

/// A packet's way, so that it can be answered.
#[derive(Clone, Debug)]
struct Trip {
    from: Place,
    to: Place,
    sent: Parties,
    /// After DNAT and masquerade.
    arrives: Parties,
    recipe: Recipe,
}

/// Plays what the bytes say.
///
/// # Errors
/// What does not hold.
pub(crate) fn play(node: &mut Node, data: &[u8], breakage: Breakage) -> std::result::Result<(), String> {
    node.begin(breakage)?;
    let mut u = Unstructured::new(data);
    let mut trips: Vec<Trip> = Vec::new();
    for _ in 0..MOVES {
        if u.is_empty() {
            break;
        }
        // Where the bytes end, so does the game.
        let Ok(outcome) = make_move(node, &mut u, &mut trips) else { break };
        outcome.map_err(|what| format!("{what}\nafter {trips:#?}"))?;
    }
    Ok(())
}

type Played = std::result::Result<(), String>;

fn make_move(node: &mut Node, u: &mut Unstructured<'_>, trips: &mut Vec<Trip>) -> Result<Played> {
    Ok(match u.int_in_range(0..=11_u8)? {
        0..=4 => {
            let trip = trip(u)?;
            let lost = u.ratio(1, 16)?;
            trips.push(trip.clone());
            travel(node, &trip, lost)
        }
        5 | 6 if !trips.is_empty() => {
            // An answer to an earlier packet: the host translates back.
            let Trip { from, to, sent, arrives, recipe } = u.choose(trips)?.clone();
            let recipe = answer(u, recipe)?;
            let back = Trip { from: to, to: from, sent: arrives.reversed(), arrives: sent.reversed(), recipe };
            let lost = u.ratio(1, 16)?;
            travel(node, &back, lost)
        }
        7 if !trips.is_empty() => {
            // An error about one, from where it went to.
            let Trip { from, to, sent, arrives, recipe } = u.choose(trips)?.clone();
            let Net::Ip(packet) = recipe.net else { return Ok(Ok(())) };
            let (kind, code) = *u.choose(&[(3, 4), (1, 4), (2, 0), (11, 0)])?;
            let quote = Quote { packet, returned: true, bytes: u.int_in_range(20..=1200)? };
            let recipe = Recipe::ip(Ip::of(Body::Icmp(Icmp::Error(kind, code, Box::new(quote)))));
            let back = Trip { from: to, to: from, sent: arrives.reversed(), arrives: sent.reversed(), recipe };
            travel(node, &back, false)
        }
        8 if !trips.is_empty() => {
            // Once more.
            let trip = u.choose(trips)?.clone();
            travel(node, &trip, false)
        }
        9 => node.turn_to(1 - node.policy()),
        10 => {
            node.wait(u.arbitrary::<u32>()? >> u.int_in_range(0..=31)?);
            Ok(())
        }
        _ => {
            let arrival = arrival(u)?;
            node.meet(&arrival).map(drop)
        }
    })
}

/// Whatever, wherever.
fn arrival(u: &mut Unstructured<'_>) -> Result<Arrival> {
    let pod = u.int_in_range(0..=PODS.len() - 1)?;
    let hook = *u.choose(&[Hook::FromPod(pod), Hook::ToPod(pod), Hook::ToUplink, Hook::FromUplink])?;
    let slot = u.int_in_range(0..=4)?;
    let stamp = match u.int_in_range(0..=4_u8)? {
        0 => Stamp::NONE,
        1 => Stamp::OUTSIDE,
        2 => Stamp::judged(slot, 0),
        3 => Stamp::deferred(slot, 0),
        _ => Stamp(u.arbitrary()?),
    };
    let last_device = *u.choose(&[0, UPLINK, FIRST_DEVICE, FIRST_DEVICE + 1, FIRST_DEVICE + 9])?;
    let vlan = u.ratio(1, 16)?;
    let (from, to) = (place(u)?, place(u)?);
    let parties = parties(u, from, to)?;
    let frame = Recipe::arbitrary(u)?.frame(&parties);
    Ok(Arrival { hook, last_device, stamp, vlan, frame })
}

fn place(u: &mut Unstructured<'_>) -> Result<Place> {
    Ok(match u.int_in_range(0..=9_u8)? {
        pod @ 0..=5 => Place::Pod([0, 0, 1, 1, 2, 3][usize::from(pod)]),
        6 => Place::Node,
        _ => Place::Away(u.int_in_range(0..=AWAY.len() - 1)?),
    })
}

fn parties(u: &mut Unstructured<'_>, from: Place, to: Place) -> Result<Parties> {
    let v4: bool = !u.arbitrary::<bool>()?;
    let server = *u.choose(&[80, 81, 90, 53, 91])?;
    let client = *u.choose(&[40123, 40124, 80])?;
    Ok(Parties { from: from.host().address(v4), to: to.host().address(v4), client, server })
}

fn trip(u: &mut Unstructured<'_>) -> Result<Trip> {
    let (from, mut to) = (place(u)?, place(u)?);
    let mut sent = parties(u, from, to)?;
    let v4 = sent.from.is_ipv4();
    let mut arrives = sent;
    match u.int_in_range(0..=7_u8)? {
        // Through a Service, to one of its backends.
        5 | 6 if matches!(from, Place::Pod(_)) => {
            let service = u.int_in_range(0..=SERVICES.len() - 1)?;
            to = *u.choose(&[[Place::Pod(1), Place::Pod(3)], [Place::Pod(1), Place::Away(0)]][service])?;
            sent.to = SERVICES[service].address(v4);
            arrives.to = to.host().address(v4);
        }
        // In another's name.
        7 => {
            let liar = place(u)?;
            sent.from = liar.host().address(v4);
            arrives.from = sent.from;
        }
        _ => {}
    }
    if matches!(from, Place::Pod(_)) && u.ratio(1, 8)? {
        arrives.from = NODE.address(v4);
        arrives.client = arrives.client.wrapping_add(1000);
    }
    let recipe = if u.ratio(1, 2)? {
        Recipe::ip(Ip::of(
            u.choose(&[Body::Tcp(2, None), Body::Tcp(16, None), Body::Udp(None), Body::Sctp(1)])?.clone(),
        ))
    } else {
        Recipe::arbitrary(u)?
    };
    Ok(Trip { from, to, sent, arrives, recipe })
}

/// What answers a packet, honestly or not.
fn answer(u: &mut Unstructured<'_>, recipe: Recipe) -> Result<Recipe> {
    let Net::Ip(mut ip) = recipe.net else { return Ok(recipe) };
    ip.body = match ip.body {
        Body::Tcp(..) => Body::Tcp(*u.choose(&[0x12, 0x10, 0x14, 0x11, 0x02])?, None),
        Body::Sctp(_) => Body::Sctp(*u.choose(&[2, 0, 1])?),
        Body::Icmp(Icmp::Echo) => Body::Icmp(Icmp::EchoReply),
        other => other,
    };
    Ok(Recipe { net: Net::Ip(ip), ..recipe })
}

/// Through the hooks on the way. `lost`: the stamp does not survive.
fn travel(node: &mut Node, trip: &Trip, lost: bool) -> Played {
    let frame = trip.recipe.frame(&trip.sent);
    let entering = |hook, last_device, frame| Arrival { hook, last_device, stamp: Stamp::NONE, vlan: false, frame };
    let (fate, last_device) = match trip.from {
        Place::Pod(pod) => {
            let device = node.devices[pod];
            (node.meet(&entering(Hook::FromPod(pod), device, frame))?, device)
        }
        Place::Node => (Ok(Stamp::NONE), 0),
        Place::Away(_) => (node.meet(&entering(Hook::FromUplink, UPLINK, frame))?, UPLINK),
    };
    let Ok(stamp) = fate else { return Ok(()) };
    let stamp = if lost { Stamp::NONE } else { stamp };
    let frame = trip.recipe.frame(&trip.arrives);
    let leaving = |hook| Arrival { hook, last_device, stamp, vlan: false, frame };
    let _ = match trip.to {
        Place::Pod(pod) => node.meet(&leaving(Hook::ToPod(pod)))?,
        Place::Away(_) => node.meet(&leaving(Hook::ToUplink))?,
        Place::Node => return Ok(()),
    };
    Ok(())
}
