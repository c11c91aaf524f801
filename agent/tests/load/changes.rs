//! A thousand changes of policy, one after another, while everybody asks everybody.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portcullis_testbed::{Outcome, Pod, Probe, Protocol, Shape, Stream};
use serde_json::{Value, json};

use crate::agent::PATIENCE;
use crate::cluster::{LiveCluster, Plan};
use crate::factor;
use crate::footprint::Footprint;
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("x/d", 0)];

/// The policies after change `i`. Whatever `i` is, b may be asked by c and never by d; by a when `i` is even.
fn policies(i: u64) -> Vec<Value> {
    let from = |pods: &[&str]| json!([{"podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": pods}]}}]);
    let peers: &[&str] = if i.is_multiple_of(2) { &["c", "a"] } else { &["c"] };
    // Another port each time, so that port classes, profiles and sets change as well; another range, and another name, so
    // that rules come and go.
    let port = 1000 + i % 5000;
    let range = format!("198.51.{}.0/24", i % 200);
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [
            {"from": from(peers)},
            {"from": [{"ipBlock": {"cidr": range}}], "ports": [{"protocol": "UDP", "port": port}]},
        ],
    });
    let other = json!({
        "podSelector": {"matchLabels": {"pod": "c"}}, "policyTypes": ["Egress"],
        "egress": [{"to": from(&["b"])}, {"to": [{"ipBlock": {"cidr": range}}]}],
    });
    vec![policy("x", "server", &server), policy("x", &format!("other-{}", i % 7), &other)]
}

/// What has been asked and what was wrong.
#[derive(Default)]
struct Asked {
    stop: AtomicBool,
    allowed: AtomicU64,
    denied: AtomicU64,
    wrong: std::sync::Mutex<Vec<String>>,
}

impl Asked {
    /// Asks without an end what always has the same answer.
    fn ask(&self, from: &Pod, to: Ipv4Addr, is_allowed: bool) {
        // A datagram is not sent again: what is lost is lost by a wrong verdict.
        let timeout = if is_allowed { PATIENCE } else { Duration::from_millis(20) };
        while !self.stop.load(Ordering::Relaxed) {
            let outcome = Probe::new(from, to, Protocol::Udp, 80).timeout(timeout).run();
            let (count, right) = if is_allowed {
                (&self.allowed, outcome.is_answer_of("x/b"))
            } else {
                (&self.denied, outcome == Outcome::Timeout)
            };
            count.fetch_add(1, Ordering::Relaxed);
            if !right {
                self.wrong.lock().unwrap().push(format!("{} asked x/b: {outcome:?}", from.name()));
            }
        }
    }
}

#[test]
fn a_thousand_changes_one_after_another_never_show_a_wrong_verdict() {
    let mut plan = Plan::new(Shape::Routed, &PODS);
    plan.bed.nodes = 1;
    let cluster = LiveCluster::new(&plan);
    let agent = &cluster.agents[0];
    // Once around, so that everything that is allocated at first use is.
    for i in 0..20 {
        cluster.enforce(&policies(i));
    }
    let footprint = Footprint::of(agent);
    let fill = |name: &str| agent.metric("portcullis_table_entries", &[("table", name)]);
    let tables = ["rows", "addresses", "ranges", "rules", "endpoints"];
    let filled = tables.map(fill);
    let stream = Stream::open(cluster.pod("x/c"), cluster.pod("x/b").v4().unwrap(), 80, PATIENCE).unwrap();
    let stream = stream.run(Duration::from_millis(2), PATIENCE).unwrap();
    let asked = Asked::default();
    let (c, d, to) = (cluster.pod("x/c"), cluster.pod("x/d"), cluster.pod("x/b").v4().unwrap());
    let changes = 1000 * factor();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| asked.ask(c, to, true));
        scope.spawn(|| asked.ask(d, to, false));
        for i in 0..changes {
            let fence = cluster.write_policies(&policies(i));
            cluster.await_fence(&fence);
            // What the change is about, once it is in force; what is denied costs a timeout, and is asked less often.
            let is_allowed = i.is_multiple_of(2);
            if is_allowed || i % 16 == 1 {
                let timeout = if is_allowed { PATIENCE } else { Duration::from_millis(50) };
                let outcome = Probe::new(cluster.pod("x/a"), to, Protocol::Udp, 80).timeout(timeout).run();
                let right = if is_allowed { outcome.is_answer_of("x/b") } else { outcome == Outcome::Timeout };
                if !right {
                    asked.wrong.lock().unwrap().push(format!("x/a asked x/b after change {i}: {outcome:?}"));
                }
            }
        }
        asked.stop.store(true, Ordering::Relaxed);
    });
    let report = stream.stop();
    eprintln!(
        "{changes} changes in {:.1} s; {} allowed and {} denied questions; {} exchanges, {} resent",
        begun.elapsed().as_secs_f64(),
        asked.allowed.load(Ordering::Relaxed),
        asked.denied.load(Ordering::Relaxed),
        report.exchanges,
        report.retransmits
    );
    let wrong = asked.wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    assert!(report.broken.is_none() && report.timeouts == 0, "the connection that is always allowed: {report:?}");
    assert_eq!(agent.metric("portcullis_updates_total", &[("result", "failed")]), 0.0);
    assert_eq!(agent.metric("portcullis_updates_total", &[("result", "table-full")]), 0.0);

    cluster.enforce(&policies(19));
    let same = |samples: &[crate::agent::Sample]| {
        tables.iter().zip(filled).all(|(name, before)| {
            samples.iter().any(|sample| {
                sample.name == "portcullis_table_entries" && sample.has(&[("table", name)]) && sample.value <= before
            })
        })
    };
    agent.await_metrics(&format!("tables no fuller than before ({tables:?}: {filled:?})"), same);
    footprint.await_no_more(agent, 8 << 10, "after a thousand changes");
}
