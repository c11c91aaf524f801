//! The demo itself: three tests, and what is to be learnt from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portcullis_testbed::Pod;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::cluster::Cluster;
use super::counters::Counter;
use super::manifests::{self, CLIENT_LABELS};
use super::prepare::{Database, Programs};
use super::pydgraph::Action;
use super::report::{Report, Row};
use super::traffic::{self, Expected, PATIENCE};
use super::{dgraph, tidy};

/// What a film is called that Dgraph's own pods add while the client is locked out.
const ADDED: &str = "Andor";

/// Runs the demo; fails when anything was not as expected.
pub(super) fn run(programs: &Programs) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Whatever is running ends, or comes to its end in seconds; what is left behind matters more than haste.
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("cannot watch for signals")?;
    }
    let mut demo = Demo { report: Report::default(), interrupted };
    let outcome = demo.run(programs);
    // What failed after an interrupt failed because of it.
    demo.stop_if_interrupted()?;
    outcome
}

struct Demo {
    report: Report,
    interrupted: Arc<AtomicBool>,
}

impl Demo {
    fn run(&mut self, programs: &Programs) -> Result<()> {
        let started = Instant::now();
        self.introduce(programs)?;
        let cluster = Cluster::start(programs)?;
        self.show(&cluster)?;
        if self.report.has_failures() {
            for agent in cluster.agents() {
                self.report.heading(&format!("The end of the log of the agent on {}", agent.node().name()));
                self.report.quote(&agent.last_words());
            }
        }
        self.report.heading("Clean-up");
        let left = cluster.remove();
        self.report.check(left.is_empty(), "no namespace, process, pin or temporary file is left behind");
        self.report.quote(&left.join("\n"));
        if !self.report.conclude(started.elapsed().as_secs_f64()) {
            bail!("not everything went as expected: see the lines marked FAILED");
        }
        Ok(())
    }

    fn introduce(&self, programs: &Programs) -> Result<()> {
        self.report.heading("Portcullis: network policy at work");
        for path in tidy::remove_remains_of_others()? {
            self.report.aside(&format!("removed {}, left by a demo that was killed", path.display()));
        }
        self.report
            .say("node0: pods dgraph/alpha and pydgraph-client/client; node1: pod dgraph/zero; an agent on each");
        match &programs.database {
            Database::Real { .. } => {
                self.report.say("Dgraph is the real one, and so is its client pydgraph (HTTP 8080, gRPC 9080)");
            }
            Database::Listeners(why) => {
                self.report.say("plain listeners stand for Dgraph (8080, 9080), and the client just connects:");
                self.report.quote(why);
            }
        }
        Ok(())
    }

    fn show(&mut self, cluster: &Cluster) -> Result<()> {
        self.test_0(cluster)?;
        let explanation = self.test_1(cluster)?;
        self.test_2(cluster)?;
        self.counters(cluster);
        self.report.heading("Why the client was denied in test 1 (portcullis explain)");
        match explanation {
            Ok(text) => self.report.quote(&text),
            Err(error) => self.report.check(false, &format!("it could not be explained: {error:#}")),
        }
        Ok(())
    }

    fn test_0(&mut self, cluster: &Cluster) -> Result<()> {
        self.report.heading("Test 0: no policy, everybody may talk");
        self.ask(cluster, Expected::Answer, [Action::Load, Action::Count])
    }

    /// Returns why the client is denied, while it is.
    fn test_1(&mut self, cluster: &Cluster) -> Result<Result<String>> {
        self.report.heading("Test 1: a NetworkPolicy admits to Dgraph its own namespace and labelled ones");
        let changed = Instant::now();
        cluster.manifests.write_policy()?;
        self.settle(cluster, Expected::Timeout, changed, "the policy")?;
        self.ask(cluster, Expected::Timeout, [Action::Count, Action::Add(ADDED)])?;
        Ok(cluster.explain_client())
    }

    fn test_2(&mut self, cluster: &Cluster) -> Result<()> {
        let labels = CLIENT_LABELS.map(|(key, value)| format!("{key}={value}")).join(" and ");
        self.report.heading(&format!("Test 2: the client's namespace gets the labels {labels}"));
        let changed = Instant::now();
        cluster.manifests.write_namespace(manifests::CLIENT, &CLIENT_LABELS)?;
        self.settle(cluster, Expected::Answer, changed, "the labels")?;
        self.ask(cluster, Expected::Answer, [Action::Count, Action::Count])
    }

    /// Waits until a change is in force, and says how long that took at most.
    fn settle(&self, cluster: &Cluster, expected: Expected, changed: Instant, what: &str) -> Result<()> {
        let settled = traffic::settle(&cluster.client, cluster.alpha_address()?, dgraph::GRPC, expected, changed);
        match settled {
            Some(time) => self.report.aside(&format!("{what}: in force within {}", milliseconds(time))),
            None => {
                self.report.aside(&format!("{what}: still without effect after {}", milliseconds(changed.elapsed())))
            }
        }
        Ok(())
    }

    /// The questions of one test: the client's, of which `expected` is expected, and those between Dgraph's own pods,
    /// which must always be answered.
    fn ask(&mut self, cluster: &Cluster, expected: Expected, [client, own]: [Action; 2]) -> Result<()> {
        let ask_from = |pod: &Pod, expected, action| -> Result<Vec<Row>> {
            let answers = cluster.ask_database(pod, action)?;
            let ports = [("HTTP", dgraph::HTTP), ("gRPC", dgraph::GRPC)];
            Ok(ports
                .into_iter()
                .zip(answers)
                .map(|((name, port), answer)| Row { what: what(pod, &cluster.alpha, port, name), expected, answer })
                .collect())
        };
        let mut rows = ask_from(&cluster.client, expected, client)?;
        rows.extend(ask_from(&cluster.zero, Expected::Answer, own)?);
        let answer = traffic::connect(&cluster.alpha, cluster.zero.v4()?.into(), dgraph::ZERO, PATIENCE);
        let internal = what(&cluster.alpha, &cluster.zero, dgraph::ZERO, "gRPC");
        rows.push(Row { what: internal, expected: Expected::Answer, answer });
        // A client that was interrupted as well has not failed.
        self.stop_if_interrupted()?;
        self.report.rows(&rows);
        Ok(())
    }

    fn counters(&mut self, cluster: &Cluster) {
        self.report.heading("What each rule has decided (/metrics of the agents)");
        let mut counters: Vec<(String, Counter)> = Vec::new();
        for agent in cluster.agents() {
            let node = agent.node().name();
            match agent.counters() {
                Ok(found) => counters.extend(found.into_iter().map(|counter| (node.to_owned(), counter))),
                Err(error) => self.report.check(false, &format!("/metrics on {node} can be read: {error:#}")),
            }
        }
        self.report.counters(&counters);
        let has = |verdict: &str, rule: &str| {
            counters.iter().any(|(node, counter)| {
                let policy = format!("{}/{}", manifests::DATABASE, manifests::POLICY);
                (node.as_str(), counter.verdict.as_str(), counter.rule.as_str()) == ("node0", verdict, rule)
                    && counter.policy == policy
                    && counter.packets > 0
            })
        };
        let (own, clients, denied) = (has("allow", "0"), has("allow", "1"), has("deny", "isolation"));
        self.report
            .check(own && clients && denied, "on alpha's node each rule let packets in, and isolation denied some");
    }

    fn stop_if_interrupted(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// `ns/a -> ns/b:port (name)`
fn what(from: &Pod, to: &Pod, port: u16, name: &str) -> String {
    format!("{} -> {}:{port} ({name})", from.name(), to.name())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
