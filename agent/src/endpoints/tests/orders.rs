//! Any order of the same events ends the same, and no stream of events breaks a match.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One thing that happens, to pod or veth number `0` to `5`.
#[derive(Debug, Clone)]
enum Event {
    Link(u32),
    Unlink(u32),
    Inner(u32, Vec<u8>),
    Route(u32, u8),
    PodApplied(u8, Vec<u8>),
    PodDeleted(u8),
    Rename(u32, u8),
}

fn address(number: u8) -> String {
    format!("10.1.0.{}", number + 1)
}

fn local_pod(number: u8, addresses: &[u8]) -> LocalPod {
    let addresses: Vec<String> = addresses.iter().map(|n| address(*n)).collect();
    pod(&format!("p{number}"), &addresses.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Applies an event if the kernel could report it now.
fn apply(host: &mut Host, matcher: &mut Matcher, event: &Event) {
    let exists = |host: &Host, ifindex: &u32| host.snapshot.links.contains_key(ifindex);
    match event {
        Event::Link(ifindex) if !exists(host, ifindex) => {
            host.veth(*ifindex, &format!("veth{ifindex}"), &[]);
        }
        Event::Unlink(ifindex) => {
            host.remove(*ifindex);
        }
        Event::Inner(ifindex, numbers) if exists(host, ifindex) => {
            let inner: Vec<String> = numbers.iter().map(|n| address(*n)).collect();
            host.inner(*ifindex, &inner.iter().map(String::as_str).collect::<Vec<_>>());
        }
        Event::Route(ifindex, number) if exists(host, ifindex) => {
            host.route(*ifindex, &[&address(*number)]);
        }
        Event::Rename(ifindex, number) if exists(host, ifindex) => {
            let name = azure_veth_name("default", &format!("p{number}"));
            host.snapshot.links.get_mut(ifindex).unwrap().name = name;
        }
        Event::PodApplied(number, addresses) => {
            return matcher.apply_pod(local_pod(*number, addresses));
        }
        Event::PodDeleted(number) => return matcher.delete_pod(&id(&format!("p{number}"))),
        _ => return,
    }
    matcher.links(host.now());
}

fn event() -> impl Strategy<Value = Event> {
    let some = || prop::collection::vec(0u8..5, 0..3);
    prop_oneof![
        3 => (0u32..5).prop_map(Event::Link),
        1 => (0u32..5).prop_map(Event::Unlink),
        4 => ((0u32..5), some()).prop_map(|(ifindex, inner)| Event::Inner(ifindex, inner)),
        1 => ((0u32..5), 0u8..5).prop_map(|(ifindex, number)| Event::Route(ifindex, number)),
        3 => ((0u8..5), some()).prop_map(|(number, addresses)| Event::PodApplied(number, addresses)),
        1 => (0u8..5).prop_map(Event::PodDeleted),
        1 => ((0u32..5), 0u8..5).prop_map(|(ifindex, number)| Event::Rename(ifindex, number)),
    ]
}

/// How the pods of an honest node are found: by name, route or address, or (the object is missing) not at all.
fn honest_node() -> impl Strategy<Value = (Vec<(u8, bool)>, Vec<usize>)> {
    prop::collection::vec((0u8..3, any::<bool>()), 1..6).prop_flat_map(|pods| {
        let order = Just((0..pods.len() * 4).collect::<Vec<usize>>()).prop_shuffle();
        (Just(pods), order)
    })
}

/// Whatever order the link, the evidence on it, the pod object and the pod's address arrive in. Where a link has to
/// exist for its evidence, an event out of turn waits for it, as the kernel would have it.
fn play(pods: &[(u8, bool)], order: &[usize]) -> BTreeMap<u32, Role> {
    let mut host = Host::default();
    let mut matcher = matcher();
    let mut waiting: Vec<(u32, Event)> = Vec::new();
    for step in order {
        let number = u8::try_from(step / 4).unwrap();
        let ifindex = u32::from(number);
        let (evidence, has_object) = pods[usize::from(number)];
        let observed = match evidence {
            0 => Event::Rename(ifindex, number),
            1 => Event::Route(ifindex, number),
            _ => Event::Inner(ifindex, vec![number]),
        };
        let next = match step % 4 {
            0 => Some(Event::Link(ifindex)),
            1 => Some(observed),
            2 if has_object => Some(Event::PodApplied(number, vec![number])),
            // A repeated event changes nothing.
            _ if host.snapshot.links.contains_key(&ifindex) => Some(Event::Link(ifindex)),
            _ => None,
        };
        let Some(next) = next else { continue };
        if matches!(next, Event::Inner(..) | Event::Route(..) | Event::Rename(..))
            && !host.snapshot.links.contains_key(&ifindex)
        {
            waiting.push((ifindex, next));
            continue;
        }
        apply(&mut host, &mut matcher, &next);
        if host.snapshot.links.contains_key(&ifindex) {
            for (_, late) in waiting.extract_if(.., |(of, _)| *of == ifindex) {
                apply(&mut host, &mut matcher, &late);
            }
        }
    }
    matcher.roles().clone()
}

proptest! {
    #[test]
    fn any_order_of_an_honest_nodes_events_ends_with_the_same_roles((pods, order) in honest_node()) {
        let in_order: Vec<usize> = (0..order.len()).collect();
        let expected: BTreeMap<u32, Role> = pods
            .iter()
            .enumerate()
            .map(|(number, (_, has_object))| {
                let role = if *has_object { endpoint(&format!("p{number}")) } else { Role::Pending };
                (u32::try_from(number).unwrap(), role)
            })
            .collect();
        prop_assert_eq!(&play(&pods, &in_order), &expected, "in order");
        prop_assert_eq!(&play(&pods, &order), &expected, "shuffled");
    }

    #[test]
    fn no_stream_of_events_moves_a_match_while_its_link_lives(events in prop::collection::vec(event(), 1..60)) {
        let mut host = Host::default();
        let mut matcher = matcher();
        matcher.pods([]);
        let mut before = matcher.endpoints().clone();
        for event in &events {
            apply(&mut host, &mut matcher, event);
            for (ifindex, matched) in &before {
                let lives = host.snapshot.links.get(ifindex).is_some_and(|l| l.incarnation == matched.incarnation);
                let now = matcher.endpoints().get(ifindex).map(|now| (&now.pod, now.second));
                // A pod's second veth may turn out to be another's, once, and never one that had a veth itself.
                let corrected = matched.second
                    && now.is_some_and(|(pod, second)| !second && before.values().all(|known| known.pod != *pod));
                if lives && !corrected {
                    let now = now.map(|(pod, _)| pod);
                    prop_assert_eq!(now, Some(&matched.pod), "veth {} after {:?}", ifindex, event);
                }
            }
            let mut pods: Vec<&PodId> = matcher.endpoints().values().map(|matched| &matched.pod).collect();
            pods.sort();
            pods.dedup();
            prop_assert_eq!(pods.len(), matcher.endpoints().len(), "a pod has one veth");
            for (ifindex, role) in matcher.roles() {
                let matched = matcher.endpoints().get(ifindex).map(|matched| Role::Endpoint(matched.pod.clone()));
                prop_assert_eq!(matched.is_some(), matches!(role, Role::Endpoint(_)));
                prop_assert!(matched.is_none_or(|matched| matched == *role));
            }
            prop_assert!(host.snapshot.links.keys().eq(matcher.roles().keys()), "every device has a role");
            before = matcher.endpoints().clone();
        }
    }
}
