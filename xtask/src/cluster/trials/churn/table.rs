//! The table: who reaches whom, and what was seen.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::super::inside_pods::probe::{Outcome, Try, now};
use super::super::askers::{Askers, has_passed, of};
use super::super::space::{PodPlan, Space, Target, policy};

/// How many pods come and go.
pub(super) const GUESTS: usize = 4;
const GUEST: &str = "guest";
const SERVERS: [(&str, &str); 2] = [("server1", "node1"), ("server2", "node2")];
/// Who asks, from where, with which labels. `narrow` may send to the first server only, and both may hear from it.
const CLIENTS: [(&str, &str, Client); 6] = [
    ("friend1", "node1", Client::Friend),
    ("friend2", "node2", Client::Friend),
    ("stranger1", "node1", Client::Stranger),
    ("stranger2", "node2", Client::Stranger),
    ("narrow1", "node1", Client::Narrow),
    ("narrow2", "node2", Client::Narrow),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Friend,
    Stranger,
    Narrow,
}

impl Client {
    const fn labels(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Friend => &[("role", "friend")],
            Self::Stranger => &[],
            Self::Narrow => &[("role", "friend"), ("egress", "narrow")],
        }
    }

    fn reaches(self, server: &str) -> bool {
        match self {
            Self::Friend => true,
            Self::Stranger => false,
            Self::Narrow => server == SERVERS[0].0,
        }
    }
}

/// One client and one server.
struct Line {
    client: &'static str,
    server: &'static str,
    is_allowed: bool,
    /// Where a denial is decided.
    judge: &'static str,
}

fn lines() -> impl Iterator<Item = Line> {
    CLIENTS.iter().flat_map(|(client, home, kind)| {
        SERVERS.iter().map(move |(server, node)| Line {
            client,
            server,
            is_allowed: kind.reaches(server),
            judge: if *kind == Client::Narrow { home } else { node },
        })
    })
}

/// Where a server is reached.
struct Server {
    by_pod: Vec<Target>,
    by_service: Vec<Target>,
}

pub(super) struct Table<'a> {
    space: &'a Space<'a>,
    askers: Askers<'a>,
    servers: [Server; 2],
}

impl<'a> Table<'a> {
    pub(super) fn new(space: &'a Space<'a>) -> Result<Self> {
        let askers = Askers::new(space)?;
        for (server, node) in SERVERS {
            space.add_pod(&PodPlan::new(server, node).labels(&[("kind", "server"), ("app", server)]))?;
        }
        let friends = json!({"podSelector": {"matchLabels": {"role": "friend"}}});
        let rest = json!({"policyTypes": ["Ingress"], "ingress": [{"from": [friends]}]});
        space.apply(policy("friends-only", &[("kind", "server")], rest))?;
        let first = json!({"podSelector": {"matchLabels": {"app": SERVERS[0].0}}});
        let rest = json!({"policyTypes": ["Egress"], "egress": [{"to": [first]}]});
        space.apply(policy("narrow", &[("egress", "narrow")], rest))?;
        space.await_pods()?;
        let servers = SERVERS.map(|(server, _)| -> Result<Server> {
            let by_service = space.add_service(server, &[("app", server)])?;
            Ok(Server { by_pod: space.targets_of(server)?, by_service })
        });
        let [first, second] = servers;
        let table = Self { space, askers, servers: [first?, second?] };
        table.aim()?;
        for (client, node, kind) in CLIENTS {
            table.askers.add(client, node, kind.labels(), "all")?;
        }
        // Strangers that come and go: none of their first packets may pass either.
        let mut spec = table.askers.spec(None, "all", &["--pause=100", "--timeout=1000"]);
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"kind": GUEST}},
        }]);
        space.apply(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": GUEST},
            "spec": {
                "replicas": GUESTS,
                "selector": {"matchLabels": {"kind": GUEST}},
                "template": {"metadata": {"labels": {"kind": GUEST}}, "spec": spec},
            },
        }))?;
        space.output(&["rollout", "status", &format!("deployment/{GUEST}"), "--timeout=120s"])?;
        space.await_pods()?;
        Ok(table)
    }

    fn aim(&self) -> Result<()> {
        self.askers.aim("all", self.servers.iter().flat_map(|server| server.by_pod.iter().chain(&server.by_service)))
    }

    /// Asks where the servers are now, and has everybody try that.
    pub(super) fn aim_anew(&mut self) -> Result<()> {
        self.space.await_pods()?;
        for ((server, _), place) in SERVERS.iter().zip(&mut self.servers) {
            place.by_pod = self.space.targets_of(server)?;
        }
        self.aim()
    }

    fn server(&self, name: &str) -> &Server {
        &self.servers[usize::from(name != SERVERS[0].0)]
    }

    /// Waits until every line of the table holds with a try that has begun since.
    pub(super) fn await_all(&self, since: u64) -> Result<()> {
        for line in lines() {
            let server = self.server(line.server);
            for targets in [&server.by_pod, &server.by_service] {
                self.askers.expect(line.client, targets, line.is_allowed, since)?;
            }
        }
        Ok(())
    }

    /// No denied try has passed, and none that is allowed was lost between pods. A Service is the API server's and
    /// kube-proxy's work as well: by its address, tries may be lost while these are away, if later ones are not.
    pub(super) fn check(&self, since: u64) -> Result<()> {
        for line in lines() {
            let (server, tries) = (self.server(line.server), self.askers.tries(line.client)?);
            let targets = server.by_pod.iter().map(|target| (target, true));
            for (target, is_pod) in targets.chain(server.by_service.iter().map(|target| (target, false))) {
                let wrong = |one: &&Try| match line.is_allowed {
                    true => is_pod && one.outcome != Outcome::Answered,
                    false => has_passed(one),
                };
                let seen: Vec<&Try> = of(&tries, target.socket(), since).filter(wrong).collect();
                tell(&line, target.address(), since, &seen)?;
            }
        }
        let all: Vec<&Target> =
            self.servers.iter().flat_map(|server| server.by_pod.iter().chain(&server.by_service)).collect();
        self.check_guests(&all, since)
    }

    /// Strangers all of them, from their first packet on.
    fn check_guests(&self, targets: &[&Target], since: u64) -> Result<()> {
        for name in self.askers.names()?.iter().filter(|name| name.starts_with(GUEST)) {
            let tries = self.askers.tries(name)?;
            for target in targets {
                if of(&tries, target.socket(), since).any(has_passed) {
                    bail!("{name}, which came and went, reached {target}, which policy denies");
                }
            }
        }
        Ok(())
    }

    /// What was judged on the node that stayed, and what on the one that came back.
    pub(super) fn check_reboot(&self, node: &str, begun: u64, ready: u64) -> Result<()> {
        let mut open: Vec<Try> = Vec::new();
        for line in lines().filter(|line| !line.is_allowed) {
            let tries = self.askers.tries(line.client)?;
            // Whatever address its server has or had.
            let addresses = self.server(line.server);
            let other = self.server(SERVERS[usize::from(line.server == SERVERS[0].0)].0);
            let is_other =
                |one: &Try| other.by_pod.iter().chain(&other.by_service).any(|target| target.socket() == one.target);
            let passed: Vec<&Try> =
                tries.iter().filter(|one| one.begun >= begun && has_passed(one) && !is_other(one)).collect();
            let from = if line.judge == node { ready } else { begun };
            let wrong: Vec<&Try> = passed.iter().copied().filter(|one| one.begun >= from).collect();
            let first = addresses.by_pod.first().context("a server without address")?;
            tell(&line, first.address(), begun, &wrong)?;
            open.extend(passed.into_iter().cloned());
        }
        for line in lines().filter(|line| line.is_allowed && line.judge != node && !line.client.ends_with('2')) {
            let tries = self.askers.tries(line.client)?;
            for target in &self.server(line.server).by_pod {
                let lost: Vec<&Try> =
                    of(&tries, target.socket(), begun).filter(|one| one.outcome != Outcome::Answered).collect();
                tell(&line, target.address(), begun, &lost)?;
            }
        }
        let stayed = self.servers.iter().zip(SERVERS).filter(|(_, (_, home))| *home != node);
        let targets: Vec<&Target> =
            stayed.flat_map(|(server, _)| server.by_pod.iter().chain(&server.by_service)).collect();
        self.check_guests(&targets, begun)?;
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        let window = open
            .iter()
            .map(|one| one.ended)
            .max()
            .map_or(0.0, |last| seconds(open.iter().map(|one| one.begun).min().unwrap_or(last), last));
        eprintln!(
            "  churn: {node} was back after {:.1} s; until its agent was, {} denied tries passed there, within {window:.1} s",
            seconds(begun, ready),
            open.len(),
        );
        Ok(())
    }

    /// A policy's change still comes through.
    pub(super) fn befriend(&self) -> Result<()> {
        let (stranger, server) = (CLIENTS[2].0, self.server(SERVERS[0].0));
        self.space.output(&["label", "pod", stranger, "role=friend"])?;
        self.askers.expect(stranger, &server.by_pod, true, now())
    }

    /// How much was tried.
    pub(super) fn summary(&self, since: u64) -> Result<String> {
        let (mut allowed, mut denied, mut lost) = (0, 0, 0);
        for line in lines() {
            let (server, tries) = (self.server(line.server), self.askers.tries(line.client)?);
            for target in server.by_pod.iter().chain(&server.by_service) {
                let all = of(&tries, target.socket(), since).count();
                let answered =
                    of(&tries, target.socket(), since).filter(|one| one.outcome == Outcome::Answered).count();
                if line.is_allowed {
                    allowed += answered;
                    lost += all - answered;
                } else {
                    denied += all;
                }
            }
        }
        let guests = self.askers.names()?.iter().filter(|name| name.starts_with(GUEST)).count();
        Ok(format!(
            "{allowed} allowed tries passed, {lost} of Services were lost, {denied} denied ones did not pass, \
             nor any of {guests} guests'"
        ))
    }
}

/// Fails if something was seen.
fn tell(line: &Line, address: IpAddr, since: u64, seen: &[&Try]) -> Result<()> {
    let Some(first) = seen.first() else { return Ok(()) };
    let after = first.begun.saturating_sub(since) as f64 / 1e9;
    let verdict = if line.is_allowed { "allowed" } else { "denied" };
    bail!(
        "{} to {} ({address}) is {verdict}: {} tries came out otherwise, the first {:?} after {after:.1} s",
        line.client,
        line.server,
        seen.len(),
        first.outcome,
    )
}

/// Deletes one of the pods that come and go; the controllers make another.
pub(super) fn replace_a_guest(space: &Space<'_>, number: usize) -> Result<()> {
    let selector = format!("kind={GUEST}");
    let listed = space.output(&["get", "pods", "--selector", &selector, "--output=name", "--request-timeout=3s"])?;
    let names: Vec<&str> = listed.lines().collect();
    let name = names.get(number % names.len().max(1)).context("no guest is there")?;
    space.output(&["delete", name, "--wait=false", "--request-timeout=3s"]).map(drop)
}
