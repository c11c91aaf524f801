//! Connections that outlive changes of policy, where that is set.

use super::*;

#[test]
fn established_flows_are_kept_where_that_is_set() {
    let (peer, service) = ((PEER, 80), (SERVICE, 80));
    for keep in [false, true] {
        let flags = node_flag::CONFIRM | if keep { node_flag::KEEP } else { 0 };
        let expected = if keep { Ok(()) } else { Err(Drop::POLICY) };
        let denied: Result<(), Drop> = Err(Drop::POLICY);
        let mut world = World::new(Set::Allow, Set::Allow);
        world.tables.image.set_flags(flags);
        let establish = |world: &World| {
            world.leave(peer, SYN).unwrap();
            world.arrive(peer, SYN_ACK).unwrap();
            world.leave(peer, ACK).unwrap();
        };
        establish(&world);
        let _ = world.tables.take_counted();
        // The number of the rule that allowed may be another rule's by now: nobody's counter may rise for it.
        world.policy(Set::Deny, Set::Deny);
        assert_eq!(world.leave(peer, ACK).map(drop), expected, "keep {keep}: the opener");
        assert_eq!(world.arrive(peer, ACK).map(drop), expected, "keep {keep}: the other side");
        let counted = world.tables.take_counted();
        assert_eq!(counted, [if keep { rule::KEPT } else { DENIES }], "keep {keep}");
        assert_eq!(world.leave(peer, SYN).map(drop), denied, "keep {keep}: a new flow of the same tuple");

        // One that the other side has opened, after two changes.
        let mut world = World::new(Set::Allow, Set::Deny);
        world.tables.image.set_flags(flags);
        world.arrive(peer, SYN).unwrap();
        world.leave(peer, SYN_ACK).unwrap();
        world.policy(Set::Deny, Set::Deny);
        assert_eq!(world.leave(peer, ACK).map(drop), expected, "keep {keep}: opened by the peer, an answer");
        world.policy(Set::Deny, Set::Deny);
        assert_eq!(world.arrive(peer, ACK).map(drop), expected, "keep {keep}: opened by the peer");

        // To a Service, of which a part is allowed: the exit keeps what it has let out.
        let mut world = World::new(Set::Deny, Set::Allow);
        world.tables.image.set_flags(flags);
        let exit = |world: &World, stamp, flags| {
            world.judge(Hook::ToUplink, UPLINK, (POD, 4000), (PEER, 80), flags, stamp).map(drop)
        };
        let stamp = world.leave(service, SYN).unwrap();
        assert_eq!(exit(&world, stamp, SYN), Ok(()), "keep {keep}: out");
        world.policy(Set::Deny, Set::Deny);
        let answer = world.judge(Hook::FromUplink, UPLINK, (PEER, 80), (POD, 4000), SYN_ACK, Stamp::NONE).unwrap();
        assert_eq!(answer.is_reply(), keep, "keep {keep}: the exit's word");
        let stamp = world.leave(service, ACK);
        assert!(stamp.is_ok(), "keep {keep}: it is for the exit to say");
        assert_eq!(exit(&world, stamp.unwrap(), ACK), expected, "keep {keep}: at the exit");

        // Nothing restricts it any more, and no exit's word is asked for: what its own word waits for never comes.
        let mut world = World::new(Set::Free, Set::Allow);
        world.tables.image.set_flags(flags);
        let stamp = world.leave(service, SYN).unwrap();
        assert_eq!(exit(&world, stamp, SYN), Ok(()), "keep {keep}: out");
        world.policy(Set::Free, Set::Free);
        world.tables.image.set_flags(flags & !node_flag::CONFIRM);
        assert_eq!(world.leave(service, ACK).map(drop), Ok(()), "keep {keep}: free now");
        let answer = world.judge(Hook::ToPod, DEVICE, (SERVICE, 80), (POD, 4000), ACK, Stamp::OUTSIDE);
        assert_eq!(answer.map(drop), Ok(()), "keep {keep}: the answer of what is free now");

        // What the kernel's connection table has told has not been judged yet.
        let world = World::new(Set::Deny, Set::Deny);
        world.tables.image.set_flags(flags);
        assert!(world.seed(&[direct((POD, 4000), peer)]) > 0);
        assert_eq!(world.leave(peer, ACK).map(drop), denied, "keep {keep}: a flow from before");
    }
}
