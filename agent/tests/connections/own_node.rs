//! What pods send to their own node, where policy judges that.

use super::*;

#[test]
fn a_pods_node_is_judged_where_its_packets_leave_it_if_policy_is_to_judge_it() {
    // What, the setting, the egress set, and whether a SYN to the node is deferred.
    let node = (NODE, 9000);
    let rows = [
        ("left to policy, allowed", true, Set::Allow, Ok(true)),
        ("left to policy, denied", true, Set::Deny, POLICY),
        ("left to policy, none", true, Set::Free, Ok(false)),
        ("not left to policy", false, Set::Deny, Ok(true)),
    ];
    for (what, policy, egress, leaves) in rows {
        let mut world = World::new(Set::Deny, egress);
        let flag = if policy { node_flag::OWN_NODE } else { 0 };
        world.tables.image.set_flags(node_flag::CONFIRM | flag);
        assert_eq!(world.leave(node, SYN).map(Stamp::is_deferred), leaves, "{what}");
        let answer =
            |world: &World| world.judge(Hook::ToPod, DEVICE, node, (POD, 4000), SYN_ACK, Stamp::NONE).map(drop);
        if egress == Set::Free || leaves.is_err() {
            continue;
        }
        assert_eq!(answer(&world), Ok(()), "{what}: the node answers");
        // Somebody else behind a translation that nobody has told of: only with the word of the exit.
        let outside = world.judge(Hook::ToPod, DEVICE, node, (POD, 4000), SYN_ACK, Stamp::OUTSIDE).map(drop);
        assert!(outside.is_err(), "{what}: somebody outside answers");
        // An established connection follows policy.
        if policy {
            world.policy(Set::Deny, Set::Deny);
            assert_eq!(world.leave(node, ACK).map(drop), Err(Drop::POLICY), "{what}: denied since");
            assert_eq!(answer(&world), Err(Drop::POLICY), "{what}: denied since, the answer");
        }
    }
    // While nothing is known of a pod, it may not do more.
    let world = World::new(Set::Free, Set::Free);
    world.tables.image.set_flags(node_flag::OWN_NODE);
    let closed = EndpointRow { flags: endpoint_flag::CLOSED | endpoint_flag::ANY_ADDRESS, ..EndpointRow::default() };
    world.tables.image.put_row(50, &closed);
    world.tables.image.put_endpoint(0, endpoint_word(9, 50));
    assert_eq!(world.leave(node, SYN).map(drop), Err(Drop::POLICY), "a pod that is not known yet");
    world.tables.image.set_flags(0);
    assert_eq!(world.leave(node, SYN).map(drop), Ok(()), "a pod that is not known yet, its node not judged");
}

#[test]
fn the_node_behind_a_service_port_is_judged_by_what_the_service_reaches() {
    let mut world = World::new(Set::Deny, Set::Deny);
    world.tables.image.set_flags(node_flag::CONFIRM | node_flag::OWN_NODE);
    let [first, second] = words(NODE);
    world.tables.image.put_wide(&[first, second, wide_key(wide::SERVICE, 0, 6, 30_000)], peer::VALID | 2).unwrap();
    let rows = [
        ("all", reach::all(ALLOWS), Ok(())),
        ("a part, which the exit judges", reach::PART, Ok(())),
        ("none", reach::none(DENIES), Err(Drop::POLICY)),
    ];
    for (what, word, expected) in rows {
        world.reach(word);
        assert_eq!(world.leave((NODE, 30_000), SYN).map(drop), expected, "{what}");
    }
    assert_eq!(world.leave((NODE, 30_001), SYN).map(drop), Err(Drop::POLICY), "another port of the node");
}
