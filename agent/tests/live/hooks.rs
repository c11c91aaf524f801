//! Others' programs on the same hooks, and what others do to ours: ours are there and first, theirs keep their verdicts.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis::dataplane::LAYOUT;
use portcullis_testbed::{Host, Node, Outcome, Pod, Probe, Protocol, Shape, probe_all};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan, service_port};
use crate::foreign::{self, DROP, NEXT, PASS};
use crate::manifests::policy;

pub(crate) const REPAIRS: &str = "portcullis_hook_repairs_total";
const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];

/// x/b takes connections from x/c only, and x/a makes them to y/b only.
pub(crate) fn policies() -> Vec<Value> {
    let peer = |namespace: &str, pod: &str| {
        json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "podSelector": {"matchLabels": {"pod": pod}},
        })
    };
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [peer("x", "c")]}],
    });
    let client = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [peer("y", "b")]}],
    });
    vec![policy("x", "server", &server), policy("x", "client", &client)]
}

pub(crate) fn cluster(shape: Shape, arguments: &[&str]) -> LiveCluster {
    let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(shape, &PODS) });
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    cluster.start_agents(&arguments, &policies());
    cluster
}

/// What must hold whatever has been done to hooks.
pub(crate) fn verdicts(cluster: &LiveCluster, context: &str) {
    let pod = |name: &str| cluster.pod(name);
    let (server, far) = (pod("x/b"), pod("y/b"));
    let mut rows = Vec::new();
    for v4 in [true, false] {
        let of = |pod: &Pod| pod.addresses().into_iter().find(|address| address.is_ipv4() == v4).unwrap();
        let vip = |name: &str| (cluster.vip(name, v4), service_port(80));
        for (what, from, (to, port), allowed) in [
            ("the admitted client", "x/c", (of(server), 80), true),
            ("by a Service", "x/c", vip("x/b"), true),
            ("its other way, by a Service", "x/a", vip("y/b"), true),
            ("its other way", "x/a", (of(far), 80), true),
            ("another client", "x/a", (of(server), 80), false),
            ("another client, by a Service", "x/a", vip("x/b"), false),
            ("an unwanted destination", "x/a", (of(pod("x/c")), 80), false),
        ] {
            let patience = Duration::from_millis(if allowed { 3000 } else { 300 });
            let probe = Probe::new(pod(from), to, Protocol::Tcp, port).timeout(patience);
            rows.push((format!("{what}, from {from} to {to} port {port}"), allowed, probe));
        }
    }
    let outcomes = probe_all(&rows.iter().map(|(.., probe)| probe.clone()).collect::<Vec<_>>());
    for ((what, allowed, _), outcome) in rows.iter().zip(outcomes) {
        let right = if *allowed { matches!(outcome, Outcome::Answered(_)) } else { outcome == Outcome::Timeout };
        assert!(right, "{context}: {what}: {outcome:?}\n{}", cluster.agents[0].log());
    }
}

/// Datagrams that policy denies, all the time; none may arrive.
struct Knocking {
    stop: Arc<AtomicBool>,
    join: Option<Box<dyn FnOnce() -> u64>>,
    heard: UdpSocket,
}

impl Knocking {
    fn at(cluster: &LiveCluster) -> Self {
        let (from, to) = (cluster.pod("x/a"), cluster.pod("x/b"));
        let heard = to.namespace().run(|| Ok(UdpSocket::bind("0.0.0.0:9000")?)).unwrap();
        heard.set_nonblocking(true).unwrap();
        let address = SocketAddr::new(to.v4().unwrap().into(), 9000);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let knock = move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                socket.send_to(b"knock", address)?;
                sent += 1;
                std::thread::sleep(Duration::from_micros(300));
            }
            Ok(sent)
        };
        let thread = from.namespace().thread("knocking", knock).unwrap();
        Self { stop, join: Some(Box::new(|| thread.join().unwrap().unwrap())), heard }
    }

    fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.join.take().unwrap()();
        let arrived = std::iter::from_fn(|| self.heard.recv(&mut [0; 16]).ok()).count();
        (sent, arrived as u64)
    }
}

impl Drop for Knocking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Does something to hooks, and waits until the agent has put it right and said so.
fn disturb(agent: &Agent, what: &str, repair: &str, mut deed: impl FnMut()) {
    let labels = [("what", repair)];
    let before = agent.metric(REPAIRS, &labels);
    deed();
    agent.await_above(what, REPAIRS, &labels, before);
}

#[test]
fn links_come_back_to_the_first_place() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = cluster(shape, &[]);
        let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
        verdicts(&cluster, &format!("{shape:?}: at first"));
        for pod in ["x/a", "x/b"] {
            let veth = cluster.pod(pod).veth();
            let ifindex = node.ifindex(veth).unwrap();
            for ingress in [true, false] {
                let ours = if ingress { "from_pod" } else { "to_pod" };
                let context = format!("{shape:?}, {ours} of {pod}");
                let alone = || assert_eq!(foreign::names(node, veth, ingress), [ours], "{context}");
                disturb(agent, &format!("{context}: repair of a detached link"), "missing", || {
                    foreign::detach_ours(agent.pin_dir(), ifindex, ingress);
                });
                alone();
                let other = foreign::answers(PASS);
                disturb(agent, &format!("{context}: repair of a replaced program"), "missing", || {
                    foreign::replace_ours(agent.pin_dir(), ifindex, ingress, &other);
                });
                alone();
                // The answer that hides ours, and the one that does not.
                for verdict in [PASS, NEXT] {
                    let program = foreign::answers(verdict);
                    let mut link = None;
                    disturb(agent, &format!("{context}: the first place"), "displaced", || {
                        link = Some(foreign::attach(node, ifindex, ingress, &program, true));
                    });
                    assert_eq!(foreign::names(node, veth, ingress), [ours, ""], "{context}: theirs runs after ours");
                }
                alone();
            }
            verdicts(&cluster, &format!("{shape:?}: after {pod}"));
        }
        let eth0 = node.ifindex("eth0").unwrap();
        disturb(agent, &format!("{shape:?}: the uplink"), "missing", || {
            foreign::detach_ours(agent.pin_dir(), eth0, false);
        });
        verdicts(&cluster, &format!("{shape:?}: after the uplink"));
    }
}

#[test]
fn nothing_passes_while_links_are_moved_or_pins_are_gone() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let mut cluster = cluster(shape, &[]);
        let node = cluster.bed.node(0).clone();
        let knocking = Knocking::at(&cluster);
        {
            let agent = &cluster.agents[0];
            let program = foreign::answers(NEXT);
            let mut links = Vec::new();
            for pod in ["x/a", "x/b"] {
                let ifindex = node.ifindex(cluster.pod(pod).veth()).unwrap();
                for ingress in [true, false] {
                    disturb(agent, &format!("{shape:?}: the first place on {pod}"), "displaced", || {
                        links.push(foreign::attach(&node, ifindex, ingress, &program, true));
                    });
                }
            }
            let layout = agent.pin_dir().join(LAYOUT);
            let count = |folder: &str| std::fs::read_dir(layout.join(folder)).unwrap().count();
            let (links, maps) = (count("links"), count("maps"));
            assert!(links >= 2 * 5 && maps >= 14, "{links} links, {maps} maps");
            disturb(agent, &format!("{shape:?}: pins"), "pin", || {
                for folder in ["links", "maps"] {
                    for pin in std::fs::read_dir(layout.join(folder)).unwrap().flatten() {
                        std::fs::remove_file(pin.path()).unwrap();
                    }
                }
            });
            assert_eq!((count("links"), count("maps")), (links, maps), "{shape:?}: pins that are back");
            verdicts(&cluster, &format!("{shape:?}: after the pins came back"));
        }
        // They are good for what pins are for.
        cluster.agents[0].kill();
        verdicts(&cluster, &format!("{shape:?}: without an agent"));
        cluster.agents[0].start();
        verdicts(&cluster, &format!("{shape:?}: with another agent"));
        let (sent, arrived) = knocking.end();
        assert!(sent > 500, "{shape:?}: {sent} sent");
        assert_eq!(arrived, 0, "{shape:?}: of {sent} denied datagrams");
    }
}

#[test]
fn pins_come_back_to_another_bpf_file_system() {
    let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(Shape::Routed, &PODS) });
    let mount = Bpffs::new(cluster.scratch.path().join("bpffs"));
    cluster.write_policies(&policies());
    let mut agent = Agent::new(cluster.bed.node(0), cluster.manifests.path(), cluster.scratch.path(), &[]);
    agent.pin_at(mount.0.join("pins"));
    agent.start();
    cluster.agents.push(agent);
    let mut other = Agent::new(cluster.bed.node(1), cluster.manifests.path(), cluster.scratch.path(), &[]);
    other.start();
    cluster.agents.push(other);
    verdicts(&cluster, "at first");
    let knocking = Knocking::at(&cluster);
    let pins = mount.0.join("pins").join(LAYOUT).join("maps/NODE");
    assert!(pins.exists());

    // Gone without another: enforcement lasts as long as the agent, and it says that it does no longer.
    mount.unmount();
    let problem = || cluster.agents[0].status()["problems"].to_string();
    await_that("a report of the missing file system", || problem().contains("pins cannot be put back"));
    verdicts(&cluster, "without a BPF file system");
    disturb(&cluster.agents[0], "pins in the other file system", "pin", || mount.mount());
    assert!(pins.exists());
    await_that("the end of the report", || !problem().contains("pins cannot be put back"));
    cluster.agents[0].kill();
    verdicts(&cluster, "without an agent");
    let (sent, arrived) = knocking.end();
    assert_eq!(arrived, 0, "of {sent} denied datagrams");
    cluster.agents[0].start();
    cluster.agents[0].terminate();
    cluster.agents[0].uninstall();
}

pub(crate) fn await_that(what: &str, holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + crate::agent::PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what} has not come");
        crate::agent::pause(Duration::from_millis(20));
    }
}

/// A BPF file system of its own.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let bpffs = Self(path);
        bpffs.mount();
        bpffs
    }

    fn mount(&self) {
        let none = None::<&str>;
        nix::mount::mount(Some("bpf"), &self.0, Some("bpf"), nix::mount::MsFlags::empty(), none).unwrap();
    }

    fn unmount(&self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn links_and_others_programs_keep_their_verdicts() {
    // Bridged, since a frame that is redirected keeps its destination, which is the server's address there.
    let cluster = cluster(Shape::Bridged, &[]);
    let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
    let index = |pod: &str| node.ifindex(cluster.pod(pod).veth()).unwrap();
    let ask = |from: &Host, to: &Pod, patience: u64| {
        Probe::new(from, to.v4().unwrap(), Protocol::Tcp, 80).timeout(Duration::from_millis(patience)).run()
    };
    let (a, b, c, far) = (cluster.pod("x/a"), cluster.pod("x/b"), cluster.pod("x/c"), cluster.pod("y/b"));
    for (ingress, device) in [(true, "x/c"), (false, "x/b")] {
        for before in [false, true] {
            let program = foreign::answers(DROP);
            let link = foreign::attach(node, index(device), ingress, &program, before);
            let outcome = ask(c, b, 400);
            assert_eq!(outcome, Outcome::Timeout, "their drop on {device}, ingress {ingress}, before {before}");
            if before {
                agent.await_above("the first place", REPAIRS, &[("what", "displaced")], 0.0);
                assert_eq!(ask(c, b, 400), Outcome::Timeout, "their drop on {device}, behind ours");
            }
            drop(link);
            assert!(ask(c, b, 3000).is_answer_of("x/b"), "without their drop on {device}");
        }
    }
    // What they redirect is judged where they send it.
    let program = foreign::redirects(index("x/b"));
    for before in [false, true] {
        let link = foreign::attach(node, index("x/c"), true, &program, before);
        await_that("their way", || ask(c, b, 400).is_answer_of("x/b"));
        assert_eq!(ask(c, far, 300), Outcome::Timeout, "it does not lead to another pod, before {before}");
        drop(link);
        let link = foreign::attach(node, index("x/a"), true, &program, before);
        assert_eq!(ask(a, b, 300), Outcome::Timeout, "it leads round no policy, before {before}");
        await_that("ours first", || {
            foreign::names(node, a.veth(), true).first().is_some_and(|name| name == "from_pod")
        });
        drop(link);
    }
    verdicts(&cluster, "after them");
}

/// Runs `tc` on a node.
pub(crate) fn tc(node: &Node, line: &str) {
    node.namespace().tool("tc", &line.split_whitespace().collect::<Vec<_>>()).unwrap();
}

/// A program for `tc`, pinned; the pin goes with it.
pub(crate) struct Pinned(PathBuf);

impl Pinned {
    pub(crate) fn new(cluster: &LiveCluster, verdict: i32) -> Self {
        let name = cluster.agents[0].pin_dir().file_name().unwrap().to_str().unwrap().to_owned();
        let path = PathBuf::from(format!("/sys/fs/bpf/{name}-foreign{verdict}/program"));
        foreign::pin(&foreign::answers(verdict), &path);
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

/// The handles of the filters of priority 1 on a hook, in order.
fn handles(node: &Node, device: &str, hook: &str) -> Vec<String> {
    let shown = node.namespace().tool("tc", &["filter", "show", "dev", device, hook]).unwrap();
    let filters = shown.lines().filter(|line| line.contains("pref 1 ") && line.contains(" handle "));
    filters.map(|line| line.split(" handle ").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn filters_come_back_to_the_first_place() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = cluster(shape, &["--attach", "clsact"]);
        let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
        verdicts(&cluster, &format!("{shape:?}: at first"));
        let (pass, next) = (Pinned::new(&cluster, PASS), Pinned::new(&cluster, NEXT));
        for pod in ["x/a", "x/b"] {
            let veth = cluster.pod(pod).veth();
            for hook in ["ingress", "egress"] {
                let context = format!("{shape:?}, {hook} of {pod}");
                let ours =
                    |at: usize| handles(node, veth, hook).get(at).is_some_and(|handle| handle.starts_with("0x504"));
                assert!(ours(0) && handles(node, veth, hook).len() == 1, "{context}: {:?}", handles(node, veth, hook));
                let handle = handles(node, veth, hook).remove(0);
                disturb(agent, &format!("{context}: repair of a removed filter"), "missing", || {
                    tc(node, &format!("filter del dev {veth} {hook} prio 1 handle {handle} bpf"));
                });
                assert!(ours(0), "{context}: {:?}", handles(node, veth, hook));
                disturb(agent, &format!("{context}: repair of a replaced filter"), "missing", || {
                    let handle = handles(node, veth, hook).remove(0);
                    let what = format!("prio 1 handle {handle} bpf da object-pinned {}", pass.path());
                    tc(node, &format!("filter replace dev {veth} {hook} protocol all {what}"));
                });
                for (number, program) in [("1", &pass), ("2", &next)] {
                    disturb(agent, &format!("{context}: the first place"), "displaced", || {
                        let what = format!("prio 1 handle {number} bpf da object-pinned {}", program.path());
                        tc(node, &format!("filter add dev {veth} {hook} protocol all {what}"));
                    });
                    assert!(ours(0), "{context}: {:?}", handles(node, veth, hook));
                    assert_eq!(handles(node, veth, hook).len(), 2, "{context}: theirs is there still");
                    tc(node, &format!("filter del dev {veth} {hook} prio 1 handle {number} bpf"));
                }
            }
            disturb(agent, &format!("{shape:?}: repair of the qdisc of {pod}"), "missing", || {
                tc(node, &format!("qdisc del dev {veth} clsact"));
            });
            await_that("both filters", || {
                ["ingress", "egress"].iter().all(|hook| handles(node, veth, hook).len() == 1)
            });
            verdicts(&cluster, &format!("{shape:?}: after {pod}"));
        }
    }
}

#[test]
fn nothing_passes_while_filters_are_moved() {
    let cluster = cluster(Shape::Routed, &["--attach", "clsact"]);
    let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
    let knocking = Knocking::at(&cluster);
    let next = Pinned::new(&cluster, NEXT);
    for pod in ["x/a", "x/b"] {
        let veth = cluster.pod(pod).veth();
        for (hook, number) in [("ingress", 1), ("egress", 2), ("ingress", 3), ("egress", 4)] {
            disturb(agent, &format!("the first place on {hook} of {pod}"), "displaced", || {
                let what = format!("prio 1 handle {number} bpf da object-pinned {}", next.path());
                tc(node, &format!("filter add dev {veth} {hook} protocol all {what}"));
            });
        }
    }
    let (sent, arrived) = knocking.end();
    assert!(sent > 50, "{sent} sent");
    assert_eq!(arrived, 0, "of {sent} denied datagrams");
    verdicts(&cluster, "afterwards");
}

#[test]
fn a_filter_that_overwrites_the_stamp_is_named_or_harmless() {
    for attach in ["auto", "clsact"] {
        for (arguments, in_mark) in
            [(&["--attach", attach][..], false), (&["--attach", attach, "--stamp", "mark:16"], true)]
        {
            let context = format!("{attach}, in mark {in_mark}");
            let cluster = cluster(Shape::Routed, arguments);
            let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
            let ok = Pinned::new(&cluster, PASS);
            let mut devices = vec!["eth0".to_owned()];
            devices.extend(["x/a", "x/b", "x/c"].map(|pod| cluster.pod(pod).veth().to_owned()));
            for device in &devices {
                if attach == "auto" {
                    tc(node, &format!("qdisc add dev {device} clsact"));
                }
                let what = format!("prio 9 handle 9 bpf da object-pinned {}", ok.path());
                tc(node, &format!("filter add dev {device} ingress protocol all {what}"));
            }
            let found = || agent.metric("portcullis_foreign_filters", &[]);
            if in_mark {
                verdicts(&cluster, &context);
                assert!(found() < 0.5, "{context}: nothing is wrong with it");
                continue;
            }
            await_that("a report", || found() > 3.5);
            let problems = agent.status()["problems"].to_string();
            for device in &devices {
                assert!(problems.contains(&format!("{device}: the bpf filter")), "{context}: {device} in {problems}");
            }
            // What is denied stays denied.
            for (from, to) in [("x/a", "x/b"), ("x/a", "x/c")] {
                let to = cluster.pod(to).v4().unwrap();
                let probe = Probe::new(cluster.pod(from), to, Protocol::Tcp, 80);
                assert_eq!(
                    probe.timeout(Duration::from_millis(300)).run(),
                    Outcome::Timeout,
                    "{context}: {from} to {to}"
                );
            }
            for device in &devices {
                tc(node, &format!("filter del dev {device} ingress prio 9"));
            }
            await_that("the end of the report", || found() < 0.5);
            verdicts(&cluster, &context);
        }
    }
}
