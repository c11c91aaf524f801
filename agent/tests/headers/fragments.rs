//! Later fragments have the verdict of their first.

use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::{Ip, fragment, frame, udp};
use crate::world::{A, ALLOW, B, C, Hook, OUTSIDE, SERVICE, World, between};

const JUDGED: Stamp = Stamp::judged(A, 0);
const DEFERRED: Stamp = Stamp::deferred(A, 0);

/// The first 32 bytes of a datagram.
fn first(ip: Ip, datagram: u16, port: u16) -> Vec<u8> {
    fragment(ip, datagram, 0, true, 17, &udp(40_000, port))
}

/// Eight bytes from the 32nd on.
fn next(ip: Ip, datagram: u16, begin: u16, more: bool) -> Vec<u8> {
    fragment(ip, datagram, begin, more, 17, &[9; 8])
}

fn both(check: impl Fn(bool)) {
    check(true);
    check(false);
}

#[test]
fn a_pods_later_fragments_follow_their_first() {
    both(|v4| {
        let mut world = World::new();
        let to = between(A, OUTSIDE, v4);
        let hook = Hook::FromPod(A);
        assert_eq!(world.at(hook, Stamp::NONE, &first(to, 1, 80)), Ok(JUDGED), "an allowed first fragment");
        assert_eq!(world.counted(), [ALLOW], "is counted");
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 1, 32, true)), Ok(JUDGED), "a later one");
        assert_eq!(world.counted(), [ALLOW], "is counted under the same rule");
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 1, 40, false)), Ok(JUDGED), "the last");
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 2, 32, false)), Ok(DEFERRED), "of an unknown datagram");
        assert_eq!(world.at(Hook::ToUplink, DEFERRED, &next(to, 2, 32, false)), Err(Drop::FRAGMENT), "goes nowhere");
        assert_eq!(world.at(Hook::ToUplink, JUDGED, &next(to, 1, 32, true)), Ok(JUDGED), "a judged one leaves");
        assert_eq!(world.at(hook, Stamp::NONE, &first(to, 3, 81)), Err(Drop::POLICY), "a denied first fragment");
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 3, 32, false)), Ok(DEFERRED), "leaves nothing behind");

        world.allow(false);
        world.change(A, |_| {});
        assert_eq!(world.at(hook, Stamp::NONE, &first(to, 5, 80)), Err(Drop::POLICY), "after a change of policy");
        assert_eq!(
            world.at(hook, Stamp::NONE, &next(to, 1, 48, true)),
            Err(Drop::POLICY),
            "that reaches later ones too"
        );
    });
}

#[test]
fn a_fragment_cannot_change_what_the_first_has_said() {
    both(|v4| {
        let mut world = World::new();
        let to = between(A, OUTSIDE, v4);
        let hook = Hook::FromPod(A);
        let mut send = |frame: &[u8]| world.at(hook, Stamp::NONE, frame);
        assert_eq!(send(&first(to, 1, 80)), Ok(JUDGED));
        for begin in [8, 16, 24] {
            assert_eq!(send(&next(to, 1, begin, true)), Err(Drop::OVERLAP), "from byte {begin} of the first's 32 on");
        }
        assert_eq!(send(&first(to, 1, 80)), Ok(JUDGED), "the same first once more");
        let other = fragment(to, 1, 0, true, 17, &udp(41_000, 80));
        assert_eq!(send(&other), Err(Drop::OVERLAP), "a first one of another flow");
        let shorter = fragment(to, 1, 0, true, 17, &udp(40_000, 80)[..16]);
        assert_eq!(send(&shorter), Err(Drop::OVERLAP), "a first one of another length");
        assert_eq!(send(&next(to, 1, 32, false)), Ok(JUDGED), "the last");
        assert_eq!(send(&other), Ok(JUDGED), "the number is used again once the datagram is complete");
        // The rest of a datagram was lost, and its number comes round: once it costs a datagram, not for ever.
        assert_eq!(send(&first(to, 2, 80)), Ok(JUDGED));
        let another = fragment(to, 2, 0, true, 17, &udp(41_000, 80));
        assert_eq!(send(&another), Err(Drop::OVERLAP), "one that seems to overlap");
        assert_eq!(send(&another), Ok(JUDGED), "once");
        assert_eq!(send(&next(to, 2, 32, false)), Ok(JUDGED), "its last");
        assert_eq!(send(&fragment(to, 9, 0, true, 17, &udp(40_000, 80)[..4])), Err(Drop::TINY), "no whole header");
    });
}

#[test]
fn what_a_first_fragment_says_is_forgotten_in_time() {
    both(|v4| {
        let mut world = World::new();
        let to = between(A, OUTSIDE, v4);
        let hook = Hook::FromPod(A);
        assert_eq!(world.at(hook, Stamp::NONE, &first(to, 1, 80)), Ok(JUDGED));
        world.tables.now += 100;
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 1, 32, true)), Ok(JUDGED), "in time");
        world.tables.now += 101;
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 1, 40, true)), Ok(DEFERRED), "too late");
        world.change(A, |row| row.incarnation = 77);
        assert_eq!(world.at(hook, Stamp::NONE, &first(to, 2, 80)), Ok(JUDGED));
        world.change(A, |row| row.incarnation = 78);
        assert_eq!(world.at(hook, Stamp::NONE, &next(to, 2, 32, true)), Ok(DEFERRED), "another pod's");
    });
}

#[test]
fn fragments_for_a_pod_follow_their_first() {
    both(|v4| {
        let mut world = World::new();
        let to = between(OUTSIDE, B, v4);
        let mut send = |frame: &[u8]| world.at(Hook::ToPod(B), Stamp::OUTSIDE, frame);
        assert_eq!(send(&next(to, 1, 32, true)), Err(Drop::FRAGMENT), "a later one first");
        assert_eq!(send(&first(to, 1, 80)), Ok(Stamp::NONE), "an allowed first one");
        assert_eq!(send(&next(to, 1, 32, true)), Ok(Stamp::NONE), "a later one");
        assert_eq!(send(&next(to, 1, 24, true)), Err(Drop::OVERLAP), "one that overlaps");
        assert_eq!(send(&first(to, 2, 81)), Err(Drop::POLICY), "a denied one");
        assert_eq!(send(&next(to, 2, 32, false)), Err(Drop::FRAGMENT), "and its rest");
        let elsewhere = between(OUTSIDE, C, v4);
        assert_eq!(send(&next(elsewhere, 1, 32, false)), Err(Drop::DESTINATION), "for another pod");
        let free = world.at(Hook::ToPod(C), Stamp::OUTSIDE, &next(elsewhere, 1, 32, false));
        assert_eq!(free, Ok(Stamp::NONE), "nothing restricts C");
    });
}

#[test]
fn deferred_fragments_follow_their_first_at_the_exit() {
    both(|v4| {
        let mut world = World::new();
        let to = between(A, SERVICE, v4);
        assert_eq!(world.at(Hook::FromPod(A), Stamp::NONE, &first(to, 1, 80)).unwrap().slot(), A);
        let stamp = world.at(Hook::FromPod(A), Stamp::NONE, &next(to, 1, 32, false)).unwrap();
        assert!(stamp.is_deferred(), "a later one is deferred as its first");
        // The backend is B on this node, or somebody outside.
        for (hook, backend) in [(Hook::ToPod(B), B), (Hook::ToUplink, OUTSIDE)] {
            let true_to = between(A, backend, v4);
            let mut send = |frame: &[u8]| world.at(hook, DEFERRED, frame);
            assert_eq!(send(&next(true_to, 4, 32, false)), Err(Drop::FRAGMENT), "{hook:?}: a later one first");
            assert!(send(&first(true_to, 4, 80)).is_ok(), "{hook:?}: an allowed first one");
            assert!(send(&next(true_to, 4, 32, true)).is_ok(), "{hook:?}: a later one");
            assert_eq!(send(&next(true_to, 4, 16, true)), Err(Drop::OVERLAP), "{hook:?}: one that overlaps");
            assert_eq!(send(&first(true_to, 5, 81)), Err(Drop::POLICY), "{hook:?}: a denied first one");
            assert_eq!(send(&next(true_to, 5, 32, true)), Err(Drop::FRAGMENT), "{hook:?}: its rest");
        }
    });
}

#[test]
fn a_pod_that_nothing_restricts_sends_any_fragment_in_its_own_name() {
    both(|v4| {
        let mut world = World::new();
        let judged = Stamp::judged(C, 0);
        let send = |world: &mut World, from: u32| {
            world.at(Hook::FromPod(C), Stamp::NONE, &next(between(from, OUTSIDE, v4), 1, 32, false))
        };
        assert_eq!(send(&mut world, C), Ok(judged), "its own");
        assert_eq!(send(&mut world, B), Err(Drop::SOURCE), "in another's name");
        let tunnel = fragment(between(C, OUTSIDE, v4), 1, 32, false, 4, &[0; 8]);
        assert_eq!(world.at(Hook::FromPod(C), Stamp::NONE, &tunnel), Err(Drop::TUNNEL), "of a tunnel");
        world.change(C, |row| row.flags = portcullis_common::layout::endpoint_flag::ANY_ADDRESS);
        assert_eq!(send(&mut world, B), Ok(judged), "without source validation");
    });
}

#[test]
fn a_flood_of_fragments_does_not_push_out_flows_that_go_both_ways() {
    both(|v4| {
        let mut world = World::new();
        let to = between(A, OUTSIDE, v4);
        for port in 0..8 {
            let question = frame(to, 17, &udp(10_000 + port, 80));
            world.at(Hook::FromPod(A), Stamp::NONE, &question).unwrap();
            world.at(Hook::ToPod(A), Stamp::OUTSIDE, &frame(to.back(), 17, &udp(80, 10_000 + port))).unwrap();
            world.at(Hook::FromPod(A), Stamp::NONE, &question).unwrap();
        }
        world.tables.now += 1;
        for datagram in 0..5_000 {
            world.at(Hook::FromPod(A), Stamp::NONE, &first(to, datagram, 80)).unwrap();
        }
        world.allow(false);
        let kept = (0..8).filter(|port| {
            // Known flows need no verdict.
            world.at(Hook::FromPod(A), Stamp::NONE, &frame(to, 17, &udp(10_000 + port, 80))).is_ok()
        });
        assert!(kept.count() >= 7, "IPv4 {v4}: no more than a full bucket's oldest may go");
    });
}
