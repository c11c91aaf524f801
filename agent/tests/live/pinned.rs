//! Pods that send only from the Ethernet address that their interface had at first (`--source-mac pinned`).

use portcullis_testbed::{Probe, Protocol, Shape};

use crate::attacks::{arrives_in, next_hop, pair};
use crate::cluster::{LiveCluster, Plan};
use crate::frames::{self, Hop, Mac};

const PODS: [(&str, usize); 2] = [("x/a", 0), ("x/b", 0)];
const FORGED: Mac = [0x02, 0xab, 0, 0, 0, 9];

fn dropped(cluster: &LiveCluster) -> f64 {
    cluster.agents[0].metric("portcullis_drops_total", &[("reason", "source_mac")])
}

#[test]
fn frames_from_another_ethernet_address_are_dropped() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let mut plan = Plan::new(shape, &PODS);
        plan.arguments = ["--source-mac", "pinned"].map(str::to_owned).into();
        let mut cluster = LiveCluster::new(&plan);
        let (a, b) = (cluster.pod("x/a").clone(), cluster.pod("x/b").clone());
        let own = a.mac("eth0").unwrap();
        let to = next_hop(shape, &b);
        for v4 in [true, false] {
            for (from, passes) in [(own, true), (FORGED, false)] {
                let mark = format!("from {from:?}").into_bytes();
                let frame = frames::udp(Hop { from, to }, pair(&a, &b, v4), (4000, 80), &mark);
                let name = format!("{shape:?}, IPv4 {v4}, from {from:?}");
                assert_eq!(arrives_in(&cluster, &name, ("x/a", "x/b"), &[frame], &mark), passes, "{name}");
            }
        }
        if shape == Shape::Bridged {
            for (told, passes) in [([0x02, 0xcd, 0, 0, 0, 1], false), (own, true)] {
                let (sender, target) = ((told, a.v4().unwrap().into()), (to, b.v4().unwrap().into()));
                let frame = frames::arp(Hop { from: own, to }, 2, sender, target);
                // Behind the header: the sender's address of either kind, as nothing else on the link has them together.
                let mark = [&told[..], &a.v4().unwrap().octets()].concat();
                let name = format!("{shape:?}, ARP for {told:?}");
                assert_eq!(arrives_in(&cluster, &name, ("x/a", "x/b"), &[frame], &mark), passes, "{name}");
            }
        }
        assert!(dropped(&cluster) >= 2.0, "{shape:?}: {:?}", cluster.agents[0].drops());
        // What the pod makes of its interface is not believed, not even by an agent that starts later.
        let ask = || Probe::new(&a, b.v4().unwrap(), Protocol::Udp, 80).run();
        let change = |mac: Mac| {
            let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            a.namespace().ip([format!("link set eth0 address {}", text.join(":"))]).unwrap();
        };
        assert!(ask().is_answer_of("x/b"), "{shape:?}: as it was");
        change(FORGED);
        assert!(!ask().is_answer_of("x/b"), "{shape:?}: with another address");
        cluster.agents[0].terminate();
        cluster.agents[0].spawn();
        cluster.agents[0].await_ready();
        assert!(!ask().is_answer_of("x/b"), "{shape:?}: with another address, when the agent starts again");
        change(own);
        let again = Probe::new(&a, b.v4().unwrap(), Protocol::Udp, 80).timeout(crate::agent::PATIENCE).run();
        assert!(again.is_answer_of("x/b"), "{shape:?}: with its own address again: {again:?}");
    }
}
