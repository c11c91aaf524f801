//! The netlink door and the matcher against the real kernel: a node and its pods as network namespaces.
//!
//! Needs root. Every namespace is named `pcn-<pid>-...` and removed at the end, also when a test fails; what a test
//! makes is inside them.

#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy.toml allows it only inside the tests themselves")]

use std::fs::File;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use portcullis::endpoints::{Config, LinkKind, LocalPod, Matcher, PodId, Role, Snapshot, azure_veth_name};
use portcullis::model::PodKey;
use portcullis::netlink::{Settings, watch};
use tokio::sync::watch::Receiver;

/// A node's namespace and those of its pods.
struct Node {
    prefix: String,
    namespaces: Vec<String>,
}

impl Drop for Node {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // A failing test has told its reason already; this must go on to the next namespace.
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

impl Node {
    fn new(test: &str) -> Self {
        let mut node = Self { prefix: format!("pcn-{}-{test}", std::process::id()), namespaces: Vec::new() };
        node.add("node");
        node.node("link set lo up");
        node
    }

    fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    fn add(&mut self, short: &str) {
        let name = self.name(short);
        ip(&["netns", "add", &name]);
        self.namespaces.push(name);
    }

    fn remove(&mut self, short: &str) {
        let name = self.name(short);
        ip(&["netns", "del", &name]);
        self.namespaces.retain(|namespace| *namespace != name);
    }

    /// Runs `ip` in the node's namespace; `@x` stands for the name of namespace `x`.
    fn node(&self, arguments: &str) {
        self.within("node", arguments);
    }

    fn within(&self, short: &str, arguments: &str) {
        let name = self.name(short);
        let arguments: Vec<String> = arguments
            .split_whitespace()
            .map(|word| word.strip_prefix('@').map_or_else(|| word.to_owned(), |short| self.name(short)))
            .collect();
        let mut all = vec!["-n", &name];
        all.extend(arguments.iter().map(String::as_str));
        ip(&all);
    }

    /// Adds a pod's namespace with a veth whose host end has this name.
    fn pod(&mut self, short: &str, veth: &str) {
        self.add(short);
        self.node(&format!("link add {veth} type veth peer name eth0 netns @{short}"));
        self.within(short, "link set eth0 up");
        self.node(&format!("link set {veth} up"));
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}

/// Runs a test on a thread that is inside the node's namespace, with a runtime that has no other thread.
fn on_node(name: &str, test: impl AsyncFnOnce(&mut Node) + Send + 'static) {
    let mut node = Node::new(name);
    let outcome = std::thread::spawn(move || {
        let namespace = File::open(format!("/run/netns/{}", node.name("node"))).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&mut node));
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The door and the matcher joined, as the agent joins them.
struct Agent {
    snapshots: Receiver<Arc<Snapshot>>,
    matcher: Matcher,
}

impl Agent {
    async fn start(settings: Settings) -> Self {
        let snapshots = watch(settings).await.unwrap();
        let pod_ranges = vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        Self { snapshots, matcher: Matcher::new(Config { pod_ranges, ..Config::default() }) }
    }

    /// Waits until a snapshot fulfils a condition, feeding every one to the matcher.
    async fn until(&mut self, what: &str, condition: impl Fn(&Snapshot) -> bool) {
        let fulfilled = async {
            loop {
                let now = self.snapshots.borrow_and_update().clone();
                self.matcher.links(now.clone());
                if condition(&now) {
                    return;
                }
                self.snapshots.changed().await.unwrap();
            }
        };
        let outcome = tokio::time::timeout(Duration::from_secs(20), fulfilled).await;
        assert!(outcome.is_ok(), "never seen: {what}; last: {:#?}", self.snapshots.borrow());
    }

    async fn until_inner(&mut self, veth: &str, addresses: &[&str]) {
        let mut expected: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        expected.sort();
        let what = format!("{veth} with {addresses:?} inside");
        self.until(&what, |snapshot| inner(snapshot, veth).is_some_and(|found| found == expected)).await;
    }

    fn role(&self, veth: &str) -> Option<Role> {
        let snapshot = self.snapshots.borrow();
        let ifindex = snapshot.links.values().find(|link| link.name == veth)?.ifindex;
        self.matcher.roles().get(&ifindex).cloned()
    }
}

/// The addresses inside a veth that a pod could be known by, in order.
fn inner(snapshot: &Snapshot, veth: &str) -> Option<Vec<IpAddr>> {
    let link = snapshot.links.values().find(|link| link.name == veth)?;
    let nets = link.peer_addresses.as_ref()?;
    let mut addresses: Vec<IpAddr> = nets
        .iter()
        .map(|net| net.addr())
        .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .collect();
    addresses.sort();
    Some(addresses)
}

fn pod(name: &str, addresses: &[&str]) -> LocalPod {
    LocalPod { id: id(name), addresses: addresses.iter().map(|address| address.parse().unwrap()).collect() }
}

fn id(name: &str) -> PodId {
    PodId { key: PodKey::new("default", name), uid: format!("uid-{name}").into() }
}

fn endpoint(name: &str) -> Option<Role> {
    Some(Role::Endpoint(id(name)))
}

async fn matches_hold(node: &mut Node, settings: Settings) {
    node.pod("a", "vetha");
    node.within("a", "addr add 10.1.0.1/24 dev eth0");
    let mut agent = Agent::start(settings).await;
    agent.matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2", "fd00:1::2"])]);
    agent.until_inner("vetha", &["10.1.0.1"]).await;
    assert_eq!(agent.role("vetha"), endpoint("a"), "there before the agent");

    node.pod("b", "vethb");
    agent.until_inner("vethb", &[]).await;
    assert_eq!(agent.role("vethb"), Some(Role::Exit), "no address yet");
    node.within("b", "addr add 10.1.0.9/24 dev eth0");
    agent.until_inner("vethb", &["10.1.0.9"]).await;
    assert_eq!(agent.role("vethb"), Some(Role::Pending), "an address of no pod");
    node.within("b", "addr add fd00:1::2/64 dev eth0 nodad");
    agent.until_inner("vethb", &["10.1.0.9", "fd00:1::2"]).await;
    assert_eq!(agent.role("vethb"), endpoint("b"), "its IPv6 address came while the agent ran");
    node.within("b", "addr del 10.1.0.9/24 dev eth0");
    node.within("b", "addr add 10.1.0.2/24 dev eth0");
    agent.until_inner("vethb", &["10.1.0.2", "fd00:1::2"]).await;

    // Inside the pods: add the neighbour's address, swap, flush.
    node.within("a", "addr add 10.1.0.2/32 dev eth0");
    agent.until_inner("vetha", &["10.1.0.1", "10.1.0.2"]).await;
    assert_eq!((agent.role("vetha"), agent.role("vethb")), (endpoint("a"), endpoint("b")), "added");
    assert_eq!(agent.matcher.reports().len(), 1, "reported: {:?}", agent.matcher.reports());
    node.within("a", "addr del 10.1.0.1/24 dev eth0");
    node.within("b", "addr del 10.1.0.2/24 dev eth0");
    node.within("b", "addr add 10.1.0.1/24 dev eth0");
    agent.until_inner("vetha", &["10.1.0.2"]).await;
    agent.until_inner("vethb", &["10.1.0.1", "fd00:1::2"]).await;
    assert_eq!((agent.role("vetha"), agent.role("vethb")), (endpoint("a"), endpoint("b")), "swapped");
    node.within("a", "addr flush dev eth0");
    agent.until_inner("vetha", &[]).await;
    assert_eq!(agent.role("vetha"), endpoint("a"), "flushed");

    // A new agent that is told what was pinned holds it too; one that is not told believes the addresses.
    let mut next = Agent::start(settings).await;
    next.matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
    for (ifindex, matched) in agent.matcher.endpoints() {
        next.matcher.adopt(*ifindex, matched.pod.clone());
    }
    next.until_inner("vethb", &["10.1.0.1", "fd00:1::2"]).await;
    assert_eq!((next.role("vetha"), next.role("vethb")), (endpoint("a"), endpoint("b")), "adopted");

    node.within("a", "link del eth0");
    agent.until("vetha gone", |snapshot| inner(snapshot, "vetha").is_none()).await;
    assert_eq!(agent.matcher.endpoints().len(), 1, "the match ends with the link");
}

#[test]
fn a_match_holds_whatever_a_pod_does_to_its_addresses() {
    on_node("hold", async |node: &mut Node| matches_hold(node, Settings::default()).await);
}

#[test]
fn polling_finds_the_same_without_notifications_of_other_namespaces() {
    let settings = Settings { hear_all_namespaces: false, ..Settings::default() };
    on_node("poll", async move |node: &mut Node| matches_hold(node, settings).await);
}

#[test]
fn a_label_that_is_no_text_hides_no_other_address() {
    on_node("label", async |node: &mut Node| {
        node.pod("a", "vetha");
        let mut agent = Agent::start(Settings::default()).await;
        // `ip` takes bytes that are no UTF-8 in a label; the kernel asks only that it begins with the device's name.
        let label = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"eth0:\xff");
        let status = Command::new("ip")
            .args(["-n", &node.name("a"), "addr", "add", "10.1.0.1/24", "dev", "eth0", "label"])
            .arg(label)
            .status();
        assert!(status.unwrap().success());
        node.within("a", "addr add 10.1.0.2/24 dev eth0");
        agent
            .until("the second address", |now| {
                inner(now, "vetha").is_some_and(|found| found.contains(&"10.1.0.2".parse().unwrap()))
            })
            .await;
    });
}

#[test]
fn a_pair_made_on_the_host_is_followed_into_the_pod_and_back() {
    on_node("move", async |node: &mut Node| {
        node.add("a");
        let mut agent = Agent::start(Settings::default()).await;
        let azure = azure_veth_name("default", "a");
        agent.matcher.pods([pod("a", &[])]);
        node.node(&format!("link add {azure} type veth peer name eth0"));
        agent.until("both ends", |now| now.links.len() == 3).await;
        assert_eq!(agent.role(&azure), Some(Role::Exit), "the other end is in this namespace");
        node.node("link set eth0 netns @a");
        let veth = azure.clone();
        agent
            .until("the other end moved", |now| {
                now.links.values().any(|link| link.name == veth && link.netnsid.is_some())
            })
            .await;
        assert_eq!(agent.role(&azure), endpoint("a"), "by its name, before there is any address");
        node.within("a", "addr add 10.1.0.1/24 dev eth0");
        agent.until_inner(&azure, &["10.1.0.1"]).await;
        node.within("a", "link set eth0 netns @node");
        agent
            .until("the other end back", |now| {
                now.links.values().any(|link| link.name == azure && link.netnsid.is_none())
            })
            .await;
        assert_eq!(agent.matcher.endpoints().len(), 1, "the link has not gone");
    });
}

#[test]
fn routes_local_addresses_and_masters_are_followed() {
    on_node("routes", async |node: &mut Node| {
        node.pod("a", "vetha");
        node.pod("b", "vethb");
        let mut agent = Agent::start(Settings::default()).await;
        agent.matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
        let ifindex =
            |now: &Snapshot, name: &str| now.links.values().find(|link| link.name == name).map(|link| link.ifindex);
        let routes = |now: &Snapshot, name: &str| {
            let found = ifindex(now, name).and_then(|index| now.host_routes.get(&index).cloned());
            found.unwrap_or_default()
        };
        let address = |text: &str| text.parse::<IpAddr>().unwrap();

        node.node("route add 10.1.0.1/32 dev vetha");
        node.node("-6 route add fd00:1::1/128 dev vetha");
        agent.until("both routes", |now| routes(now, "vetha").len() == 2).await;
        assert_eq!(agent.role("vetha"), endpoint("a"), "by its route");
        node.node("route replace 10.1.0.1/32 dev vethb");
        agent.until("the route moved", |now| routes(now, "vethb").contains(&address("10.1.0.1"))).await;
        agent.until("and left", |now| !routes(now, "vetha").contains(&address("10.1.0.1"))).await;
        assert_eq!(agent.role("vetha"), endpoint("a"), "it stays");
        // The kernel says nothing of IPv4 routes that go with a device that is set down.
        node.node("link set vethb down");
        agent.until("the route went silently", |now| routes(now, "vethb").is_empty()).await;

        node.node("addr add 192.0.2.1/24 dev vetha");
        node.node("-6 addr add 2001:db8::1/64 dev vetha nodad");
        let local = |now: &Snapshot, text: &str| now.local.iter().any(|local| local.network.addr() == address(text));
        agent.until("the node's addresses", |now| local(now, "192.0.2.1") && local(now, "2001:db8::1")).await;
        assert!(local(&agent.snapshots.borrow(), "127.0.0.1"), "loopback's too");
        node.node("addr del 192.0.2.1/24 dev vetha");
        agent.until("an address went", |now| !local(now, "192.0.2.1")).await;

        node.node("link add br0 type bridge");
        node.node("link set vethb master br0");
        let master = |now: &Snapshot, name: &str| now.links.values().find(|link| link.name == name)?.master;
        agent
            .until("a port", |now| master(now, "vethb").is_some() && master(now, "vethb") == ifindex(now, "br0"))
            .await;
        assert_eq!(agent.role("br0"), Some(Role::None), "a bridge master");
        // Leaving is announced by RTM_DELLINK of family AF_BRIDGE, which is not the end of the device.
        let before = agent.snapshots.borrow().links.values().find(|link| link.name == "vethb").cloned().unwrap();
        node.node("link set vethb nomaster");
        agent.until("no port", |now| master(now, "vethb").is_none()).await;
        let after = agent.snapshots.borrow().links.values().find(|link| link.name == "vethb").cloned().unwrap();
        assert_eq!((before.kind, before.incarnation), (LinkKind::Veth, after.incarnation), "the same device");
    });
}

#[test]
fn a_reused_index_is_another_device() {
    on_node("reuse", async |node: &mut Node| {
        node.add("a");
        let mut agent = Agent::start(Settings::default()).await;
        let incarnation = |now: &Snapshot| now.links.get(&500).map(|link| link.incarnation);
        node.node("link add vetha index 500 type veth peer name eth0 netns @a");
        agent.until("the device", |now| incarnation(now).is_some()).await;
        let first = incarnation(&agent.snapshots.borrow());
        // Both before the task runs again: the states between are never seen.
        node.node("link del vetha");
        node.node("link add vetha index 500 type veth peer name eth0 netns @a");
        agent.until("another device", |now| incarnation(now).is_some_and(|now| Some(now) != first)).await;
    });
}

#[test]
fn an_overrun_is_made_good_by_a_dump() {
    on_node("overrun", async |node: &mut Node| {
        node.pod("a", "vetha");
        node.within("a", "addr add 10.1.0.1/24 dev eth0");
        let mut agent = Agent::start(Settings::default()).await;
        agent.until_inner("vetha", &["10.1.0.1"]).await;
        let incarnation =
            |now: &Snapshot| now.links.values().find(|link| link.name == "vetha").map(|link| link.incarnation);
        let first = incarnation(&agent.snapshots.borrow());
        // This thread is the only one of the runtime: nothing reads the socket while `ip` fills it.
        let mut batch = String::new();
        for round in 0..6000 {
            batch.push_str(&format!("link set vetha alias round{round}\n"));
        }
        batch.push_str("link add late type bridge\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, batch).unwrap();
        ip(&["-n", &node.name("node"), "-batch", file.path().to_str().unwrap()]);
        agent.until("the last change", |now| now.links.values().any(|link| link.name == "late")).await;
        assert_eq!(incarnation(&agent.snapshots.borrow()), first, "the device was there all the time");
    });
}

#[test]
fn a_pod_that_changes_its_addresses_without_end_delays_nobody() {
    on_node("flood", async |node: &mut Node| {
        node.pod("a", "vetha");
        let mut agent = Agent::start(Settings::default()).await;
        agent.matcher.pods([pod("a", &["10.1.0.1"]), pod("b", &["10.1.0.2"])]);
        node.within("a", "addr add 10.1.0.1/24 dev eth0");
        agent.until_inner("vetha", &["10.1.0.1"]).await;

        let change = "addr add 10.1.0.3/32 dev eth0\naddr del 10.1.0.3/32 dev eth0\n";
        let batch = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&batch, change.repeat(50_000)).unwrap();
        let (name, file) = (node.name("a"), batch.path().to_str().unwrap());
        let mut flood = Flood(Command::new("ip").args(["-n", &name, "-batch", file]).spawn().unwrap());
        for round in 0..10 {
            node.pod("b", "vethb");
            node.within("b", "addr add 10.1.0.2/24 dev eth0");
            agent.until_inner("vethb", &["10.1.0.2"]).await;
            assert_eq!(agent.role("vethb"), endpoint("b"), "round {round}");
            assert_eq!(agent.role("vetha"), endpoint("a"), "round {round}");
            node.node("link del vethb");
            agent.until("vethb gone", |now| inner(now, "vethb").is_none()).await;
            node.remove("b");
        }
        assert!(flood.0.try_wait().unwrap().is_none(), "the flood lasted all the time");
        drop(flood);
    });
}

/// A process that ends with the test.
struct Flood(std::process::Child);

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
