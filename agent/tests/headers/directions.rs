//! Datagrams of both directions share a tuple: what policy denies of one direction does not bind the other.

use portcullis_common::Address;
use portcullis_common::layout::{VALID, VerdictWord, narrow, narrow_key, node_flag, peer, reach, rule, wide, wide_key};
use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::{frame, packet, tcp, too_big, udp};
use crate::world::{A, ALLOW, B, DENY, Hook, NODE, OUTSIDE, SERVICE, World, address, between};

fn both(check: impl Fn(bool)) {
    check(true);
    check(false);
}

fn packets(world: &mut World, rule: u32) -> u64 {
    world.tables.counter(rule).packets
}

/// Set 1 knows rules, and denies all else; set 3 denies everything.
const NOTHING: u32 = 3;

/// A world where a pod's sets can be changed to one that denies everything.
fn world() -> World {
    let mut world = World::new();
    let image = &mut world.tables.image;
    image.put_narrow(narrow_key(narrow::SET_DEFAULT, NOTHING, 0), VALID | 2).unwrap();
    let deny = VerdictWord::new(false, DENY).0;
    image.put_narrow(narrow_key(narrow::PROFILE_DEFAULT, 2, 0), deny).unwrap();
    world
}

#[test]
fn a_denied_direction_does_not_bind_the_other() {
    // UDP with a port that policy allows both ways, and a protocol without ports that only a free direction lets through.
    let sctp_init = [0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 20];
    for (what, protocol, body, bound) in [
        ("UDP", 17, udp(80, 80), false),
        ("a protocol without ports", 132 + 5, vec![0; 16], false),
        ("TCP", 6, tcp(80, 80, 16), true),
        ("SCTP", 132, sctp_init[..12].iter().copied().chain([0, 0, 0, 16]).collect(), true),
    ] {
        // What the other direction's own packet counts for.
        let rule = if bound { DENY } else { rule::NO_POLICY };
        both(|v4| {
            let outgoing = frame(between(A, OUTSIDE, v4), protocol, &body);
            let incoming = frame(between(OUTSIDE, A, v4), protocol, &body);
            // The peer's is allowed, then ingress policy denies it; the pod's own never was denied.
            let mut world = world();
            world.change(A, |row| (row.ingress, row.egress) = (0, NOTHING));
            let hook = Hook::ToPod(A);
            assert!(world.at(hook, Stamp::OUTSIDE, &incoming).is_ok(), "{what}: the peer's");
            assert!(world.at(Hook::FromPod(A), Stamp::NONE, &outgoing).is_ok(), "{what}: its answer");
            world.change(A, |row| (row.ingress, row.egress) = (NOTHING, 0));
            assert_eq!(world.at(hook, Stamp::OUTSIDE, &incoming), Err(Drop::POLICY), "{what}: the peer's, denied");
            world.counted();
            let before = packets(&mut world, rule);
            let own = world.at(Hook::FromPod(A), Stamp::NONE, &outgoing);
            let expected = if bound { Err(Drop::POLICY) } else { Ok(Stamp::judged(A, 0)) };
            assert_eq!(own, expected, "{what}: the pod's own");
            assert_eq!(packets(&mut world, rule) - before, 1, "{what}: counted once");
            assert_eq!(world.counted(), [rule], "{what}: under no other rule");
            let answer = world.at(hook, Stamp::OUTSIDE, &incoming);
            assert_eq!(answer.is_ok(), !bound, "{what}: which is answered");
            // And neither passes where both are denied, by the rule of its own direction.
            world.change(A, |row| (row.ingress, row.egress) = (NOTHING, NOTHING));
            let before = packets(&mut world, DENY);
            assert_eq!(world.at(hook, Stamp::OUTSIDE, &incoming), Err(Drop::POLICY), "{what}: nothing in");
            assert_eq!(world.at(Hook::FromPod(A), Stamp::NONE, &outgoing), Err(Drop::POLICY), "{what}: nothing out");
            assert_eq!(packets(&mut world, DENY) - before, 2, "{what}: each counted once");

            // The mirror: the pod's own is denied, the peer's is not.
            let mut world = self::world();
            world.change(A, |row| (row.ingress, row.egress) = (NOTHING, 0));
            assert!(world.at(Hook::FromPod(A), Stamp::NONE, &outgoing).is_ok(), "{what}: the pod's");
            assert!(world.at(hook, Stamp::OUTSIDE, &incoming).is_ok(), "{what}: the peer's answer");
            world.change(A, |row| (row.ingress, row.egress) = (0, NOTHING));
            assert_eq!(world.at(Hook::FromPod(A), Stamp::NONE, &outgoing), Err(Drop::POLICY), "{what}: denied");
            world.counted();
            let before = packets(&mut world, rule);
            let peers = world.at(hook, Stamp::OUTSIDE, &incoming);
            assert_eq!(peers, if bound { Err(Drop::POLICY) } else { Ok(Stamp::NONE) }, "{what}: the peer's own");
            assert_eq!(packets(&mut world, rule) - before, 1, "{what}: counted once");
            assert_eq!(world.counted(), [rule], "{what}: under no other rule");
            let answer = world.at(Hook::FromPod(A), Stamp::NONE, &outgoing);
            assert_eq!(answer.is_ok(), !bound, "{what}: which the pod answers");
        });
    }
}

#[test]
fn an_answer_of_icmp_opens_nothing() {
    both(|v4| {
        let mut world = world();
        let (protocol, question, answer) = if v4 { (1, 8, 0) } else { (58, 128, 129) };
        let echo = |kind: u8| [kind, 0, 0, 0, 0, 7, 0, 1];
        world.change(A, |row| (row.ingress, row.egress) = (0, NOTHING));
        let asked = frame(between(OUTSIDE, A, v4), protocol, &echo(question));
        let answered = frame(between(A, OUTSIDE, v4), protocol, &echo(answer));
        assert!(world.at(Hook::ToPod(A), Stamp::OUTSIDE, &asked).is_ok(), "a question");
        assert!(world.at(Hook::FromPod(A), Stamp::NONE, &answered).is_ok(), "its answer");
        world.change(A, |row| (row.ingress, row.egress) = (NOTHING, 0));
        let answer = world.at(Hook::FromPod(A), Stamp::NONE, &answered);
        assert_eq!(answer, Err(Drop::POLICY), "once questions are denied");
    });
}

#[test]
fn only_ipv4_knows_masqueraded_clients_by_the_nodes_address() {
    both(|v4| {
        let mut world = World::new();
        let from_node = frame(between(NODE, B, v4), 6, &tcp(40_000, 81, 2));
        let mut arrives = |flags: u64| {
            world.tables.image.set_flags(flags);
            world.at(Hook::ToPod(B), Stamp::OUTSIDE, &from_node).is_ok()
        };
        assert!(!arrives(node_flag::CONFIRM), "IPv4 {v4}: without the setting");
        assert_eq!(arrives(node_flag::CONFIRM | node_flag::MASQUERADED), v4, "IPv4 {v4}: with it");
    });
}

#[test]
fn an_error_about_a_flow_that_ended_here_leaves_its_packets_counted_once() {
    both(|v4| {
        let mut world = World::new();
        let [first, second] = Address::from(address(SERVICE, v4)).words;
        let image = &mut world.tables.image;
        image.put_wide(&[first, second, wide_key(wide::SERVICE, 0, 17, 80)], peer::VALID | 1).unwrap();
        image.put_narrow(narrow_key(narrow::REACH_DEFAULT, 2, 0), reach::all(ALLOW)).unwrap();
        world.change(A, |row| row.ingress = 1);
        let (to, hook) = (between(A, SERVICE, v4), Hook::FromPod(A));
        let (sent, answer) = (frame(to, 17, &udp(40_000, 80)), frame(to.back(), 17, &udp(80, 40_000)));
        world.at(hook, Stamp::NONE, &sent).unwrap();
        assert_eq!(world.at(Hook::ToPod(A), Stamp::NONE, &answer), Ok(Stamp::NONE), "a process of the node answers");
        world.at(hook, Stamp::NONE, &sent).unwrap();
        assert_eq!(packets(&mut world, ALLOW), 2, "the answer and what came after it are counted here");
        // Judged again, for an error; from now on a backend elsewhere answers.
        world.change(A, |row| row.ingress = 1);
        let error = too_big(between(NODE, A, v4), &packet(to, 17, &udp(40_000, 80)));
        assert_eq!(world.at(Hook::ToPod(A), Stamp::NONE, &error), Ok(Stamp::NONE), "an error about it");
        let before = packets(&mut world, ALLOW);
        let stamp = world.at(hook, Stamp::NONE, &sent).unwrap();
        let left = frame(between(A, OUTSIDE, v4), 17, &udp(40_000, 80));
        assert!(world.at(Hook::ToUplink, stamp, &left).is_ok(), "it leaves");
        assert_eq!(packets(&mut world, ALLOW) - before, 1, "IPv4 {v4}: counted where it leaves, and nowhere else");
    });
}
