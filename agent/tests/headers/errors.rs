//! ICMP errors pass when what they quote belongs to a tracked, allowed flow.

use portcullis_common::packet::Drop;
use portcullis_common::stamp::Stamp;

use crate::packets::{Ip, frame, packet, tcp, too_big, udp};
use crate::world::{A, ALLOW, B, C, Hook, NODE, OUTSIDE, SERVICE, World, address, between};

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Somebody on the way.
fn router(to: u32, v4: bool) -> Ip {
    let from = if v4 { [192, 0, 2, 1].into() } else { std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]) };
    Ip::new(from, address(to, v4))
}

fn both(check: impl Fn(bool)) {
    check(true);
    check(false);
}

/// A is closed in both directions but for what policy allows it to open.
fn isolate_a(world: &mut World) {
    world.change(A, |row| row.ingress = 1);
}

#[test]
fn errors_about_what_a_pod_has_sent_reach_it() {
    both(|v4| {
        let mut world = World::new();
        isolate_a(&mut world);
        let to = between(A, OUTSIDE, v4);
        let sent = |port: u16| packet(to, 6, &tcp(40_000, port, ACK));
        let hear =
            |world: &mut World, ip: Ip, quoted: &[u8]| world.at(Hook::ToPod(A), Stamp::OUTSIDE, &too_big(ip, quoted));
        assert_eq!(hear(&mut world, router(A, v4), &sent(80)), Err(Drop::UNRELATED), "before there is a flow");
        world.at(Hook::FromPod(A), Stamp::NONE, &frame(to, 6, &tcp(40_000, 80, SYN))).unwrap();
        world.counted();
        assert_eq!(hear(&mut world, router(A, v4), &sent(80)), Ok(Stamp::NONE), "about its flow");
        assert_eq!(world.counted(), [ALLOW], "counted under the flow's rule");
        assert_eq!(hear(&mut world, router(A, v4), &sent(81)), Err(Drop::UNRELATED), "about another port");
        assert_eq!(hear(&mut world, router(A, v4), &sent(80)[..20]), Err(Drop::UNRELATED), "that quotes too little");
        let of_c = packet(between(C, OUTSIDE, v4), 6, &tcp(40_000, 80, ACK));
        assert_eq!(hear(&mut world, router(A, v4), &of_c), Err(Drop::UNRELATED), "about what another pod has sent");
        world.change(A, |row| row.ingress = 1);
        assert_eq!(hear(&mut world, router(A, v4), &sent(80)), Ok(Stamp::NONE), "judged again");
        world.allow(false);
        isolate_a(&mut world);
        assert_eq!(
            hear(&mut world, router(A, v4), &sent(80)),
            Err(Drop::POLICY),
            "when policy has stopped allowing it"
        );
        world.change(A, |row| row.ingress = 0);
        let free = hear(&mut world, router(A, v4), &sent(81));
        assert_eq!(free, Ok(Stamp::NONE), "ingress that nothing restricts");
    });
}

#[test]
fn errors_about_answers_of_a_pod_reach_it() {
    both(|v4| {
        let mut world = World::new();
        let to = between(OUTSIDE, B, v4);
        let hear = |world: &mut World, port: u16| {
            let answer = packet(to.back(), 17, &udp(port, 40_000));
            world.at(Hook::ToPod(B), Stamp::OUTSIDE, &too_big(router(B, v4), &answer))
        };
        assert_eq!(hear(&mut world, 80), Err(Drop::UNRELATED), "before there is a flow");
        world.at(Hook::ToPod(B), Stamp::OUTSIDE, &frame(to, 17, &udp(40_000, 80))).unwrap();
        assert_eq!(hear(&mut world, 80), Ok(Stamp::NONE), "about an answer");
        assert_eq!(hear(&mut world, 81), Err(Drop::UNRELATED), "about another's");
        world.change(B, |_| {});
        assert_eq!(hear(&mut world, 80), Ok(Stamp::NONE), "judged again");
        world.allow(false);
        world.change(B, |_| {});
        assert_eq!(hear(&mut world, 80), Err(Drop::POLICY), "when policy has stopped allowing it");
    });
}

#[test]
fn a_rule_that_admits_echo_admits_no_errors() {
    both(|v4| {
        let mut world = World::new();
        let protocol = if v4 { 1 } else { 58 };
        let echo = [if v4 { 8 } else { 128 }, 0, 0, 0, 0, 7, 0, 1];
        let to = between(OUTSIDE, B, v4);
        assert!(world.at(Hook::ToPod(B), Stamp::OUTSIDE, &frame(to, protocol, &echo)).is_ok(), "echo is admitted");
        let nobodys = packet(between(B, OUTSIDE, v4), 17, &udp(1, 2));
        let error = world.at(Hook::ToPod(B), Stamp::OUTSIDE, &too_big(router(B, v4), &nobodys));
        assert_eq!(error, Err(Drop::UNRELATED), "errors are not");
        let answer = [if v4 { 0 } else { 129 }, 0, 0, 0, 0, 7, 0, 1];
        let answered = packet(to.back(), protocol, &answer);
        let error = world.at(Hook::ToPod(B), Stamp::OUTSIDE, &too_big(router(B, v4), &answered));
        assert!(error.is_ok(), "but for one about its own answer: {error:?}");
    });
}

#[test]
fn a_pod_sends_errors_about_what_it_was_sent() {
    both(|v4| {
        let mut world = World::new();
        let to = between(A, OUTSIDE, v4);
        let judged = Stamp::judged(A, 0);
        let say = |world: &mut World, ip: Ip, port: u16| {
            let answer = packet(to.back(), 17, &udp(port, 40_000));
            world.at(Hook::FromPod(A), Stamp::NONE, &too_big(ip, &answer))
        };
        assert_eq!(say(&mut world, to, 80), Err(Drop::UNRELATED), "before there is a flow");
        world.at(Hook::FromPod(A), Stamp::NONE, &frame(to, 17, &udp(40_000, 80))).unwrap();
        assert_eq!(say(&mut world, to, 80), Ok(judged), "about an answer");
        assert_eq!(say(&mut world, to, 81), Err(Drop::UNRELATED), "about another's");
        assert_eq!(say(&mut world, between(A, C, v4), 80), Err(Drop::UNRELATED), "to somebody else");
        assert_eq!(say(&mut world, between(C, OUTSIDE, v4), 80), Err(Drop::SOURCE), "in another's name");
        world.allow(false);
        world.change(A, |_| {});
        assert_eq!(say(&mut world, to, 80), Err(Drop::POLICY), "when policy has stopped allowing it");
        let free = between(C, OUTSIDE, v4);
        let unknown = packet(free.back(), 17, &udp(1, 2));
        let outcome = world.at(Hook::FromPod(C), Stamp::NONE, &too_big(free, &unknown));
        assert_eq!(outcome, Ok(Stamp::judged(C, 0)), "egress that nothing restricts");

        // To a peer that opened the flow.
        let mut world = World::new();
        let from = between(OUTSIDE, A, v4);
        world.at(Hook::ToPod(A), Stamp::OUTSIDE, &frame(from, 17, &udp(40_000, 9))).unwrap();
        let asked = packet(from, 17, &udp(40_000, 9));
        let outcome = world.at(Hook::FromPod(A), Stamp::NONE, &too_big(from.back(), &asked));
        assert_eq!(outcome, Ok(judged), "its port is closed, and it says so");
    });
}

#[test]
fn errors_find_the_flow_behind_a_service() {
    both(|v4| {
        let mut world = World::new();
        isolate_a(&mut world);
        let to = between(A, SERVICE, v4);
        let deferred = world.at(Hook::FromPod(A), Stamp::NONE, &frame(to, 17, &udp(40_000, 80))).unwrap();
        assert!(deferred.is_deferred(), "a Service");
        // Translated, masqueraded, and met by a router that cannot carry it.
        let left = Ip::new(address(NODE, v4), address(OUTSIDE, v4));
        let leaving = packet(left, 17, &udp(50_000, 80));
        let before_exit = world.at(Hook::FromUplink, Stamp::NONE, &too_big(router(NODE, v4), &leaving));
        assert_eq!(before_exit, Ok(Stamp::OUTSIDE), "no exit has let it out yet");
        assert!(world.at(Hook::ToUplink, deferred, &frame(left, 17, &udp(50_000, 80))).is_ok());
        let arrived = world.at(Hook::FromUplink, Stamp::NONE, &too_big(router(NODE, v4), &leaving)).unwrap();
        assert!(arrived.is_reply(), "about a flow that an exit has let out");
        let sent = too_big(router(A, v4), &packet(to, 17, &udp(40_000, 80)));
        assert_eq!(world.at(Hook::ToPod(A), Stamp::OUTSIDE, &sent), Err(Drop::UNCONFIRMED), "without an exit's word");
        assert_eq!(world.at(Hook::ToPod(A), arrived, &sent), Ok(Stamp::NONE), "with it");
        assert_eq!(world.at_from(Hook::ToPod(A), Stamp::NONE, 0, &sent), Ok(Stamp::NONE), "of the node itself");

        // The pod's own error about an answer through the Service: judged where it leaves, by the true backend.
        let answer = packet(to.back(), 17, &udp(80, 40_000));
        let said = world.at(Hook::FromPod(A), Stamp::NONE, &too_big(to, &answer)).unwrap();
        assert!(said.is_deferred(), "to a Service");
        let translated = |port: u16| too_big(left, &packet(left.back(), 17, &udp(port, 50_000)));
        assert!(world.at(Hook::ToUplink, said, &translated(80)).is_ok(), "about the backend that was allowed");
        assert_eq!(world.at(Hook::ToUplink, said, &translated(81)), Err(Drop::UNRELATED), "about any other");
    });
}

#[test]
fn redirects_come_only_about_tracked_flows_and_never_from_pods() {
    let redirect = |ip: Ip, quoted: &[u8]| {
        if ip.from.is_ipv4() {
            return frame(ip, 1, &[&[5, 1, 0, 0, 10, 1, 0, 9][..], quoted].concat());
        }
        let option = [&[4, 8, 0, 0, 0, 0, 0, 0][..], quoted].concat();
        let ip = Ip { hop_limit: 255, ..ip };
        frame(ip, 58, &[&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0xfd; 32], &option].concat())
    };
    both(|v4| {
        let mut world = World::new();
        isolate_a(&mut world);
        let to = between(A, OUTSIDE, v4);
        let sent = packet(to, 17, &udp(40_000, 80));
        let send = |world: &mut World| world.at(Hook::ToPod(A), Stamp::OUTSIDE, &redirect(router(A, v4), &sent));
        assert_eq!(send(&mut world), Err(Drop::UNRELATED), "about no flow");
        world.at(Hook::FromPod(A), Stamp::NONE, &frame(to, 17, &udp(40_000, 80))).unwrap();
        assert_eq!(send(&mut world), Ok(Stamp::NONE), "about its flow");
        for pod in [A, C] {
            let own = redirect(between(pod, OUTSIDE, v4), &sent);
            assert_eq!(world.at(Hook::FromPod(pod), Stamp::NONE, &own), Err(Drop::ROUTER), "from pod {pod}");
        }
    });
}
