//! Devices of all kinds, as they come, change and go, and qdiscs of others on them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use portcullis_testbed::{BRIDGE, Namespace, Node, Outcome, Pod, PodOptions, Probe, Protocol, Shape};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::cluster::{LiveCluster, Plan};
use crate::foreign;
use crate::hooks::{REPAIRS, await_that, cluster, policies, tc, verdicts};
use crate::manifests::{self, policy};

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];

pub(crate) fn endpoint(agent: &Agent, veth: &str) -> Value {
    let status = agent.status();
    let endpoints = status["endpoints"].as_array().unwrap();
    endpoints.iter().find(|endpoint| endpoint["veth"] == veth).cloned().unwrap_or(Value::Null)
}

pub(crate) fn exits(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    status["exits"].as_array().unwrap().iter().map(|exit| exit["name"].as_str().unwrap().to_owned()).collect()
}

fn unenforced(agent: &Agent) -> bool {
    agent.metric("portcullis_unenforced_devices", &[]) > 0.5
}

#[test]
fn an_ingress_qdisc_is_reported_or_replaced_where_programs_are_filters() {
    for (arguments, enforced) in [
        (&["--attach", "auto"][..], true),
        (&["--attach", "clsact", "--replace-ingress-qdisc"], true),
        (&["--attach", "clsact"], false),
    ] {
        let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(Shape::Routed, &PODS) });
        let node = cluster.bed.node(0).clone();
        let veth = cluster.pod("x/b").veth().to_owned();
        tc(&node, &format!("qdisc add dev {veth} ingress"));
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let context = arguments.join(" ");
        if enforced {
            cluster.start_agents(&arguments, &policies());
            verdicts(&cluster, &context);
            continue;
        }
        cluster.write_policies(&policies());
        for node in cluster.bed.nodes() {
            let agent = Agent::new(node, cluster.manifests.path(), cluster.scratch.path(), &arguments);
            cluster.agents.push(agent);
        }
        cluster.agents[1].start();
        cluster.agents[0].spawn();
        let agent = &cluster.agents[0];
        await_that("the agent's word that it is not ready", || {
            agent.process().try_wait().unwrap().is_none()
                && node.http_get("127.0.0.1:9299".parse().unwrap(), "/readyz").is_ok_and(|(status, body)| {
                    status == 503 && body.contains(&veth) && body.contains("--replace-ingress-qdisc")
                })
        });
        assert!(unenforced(agent), "{context}");
        assert_eq!(endpoint(agent, &veth)["state"], "unenforced", "{context}");
        tc(&node, &format!("qdisc del dev {veth} ingress"));
        agent.await_ready();
        await_that("enforcement", || !unenforced(agent) && endpoint(agent, &veth)["state"] == "enforced");
        verdicts(&cluster, &format!("{context}: without the qdisc"));
        // And while the agent runs.
        tc(&node, &format!("qdisc del dev {veth} clsact"));
        let added = || node.namespace().tool("tc", &["qdisc", "add", "dev", &veth, "ingress"]).is_ok();
        // The agent may be quicker, with its own qdisc.
        while !added() {
            tc(&node, &format!("qdisc del dev {veth} clsact"));
        }
        await_that("a report", || unenforced(agent));
        tc(&node, &format!("qdisc del dev {veth} ingress"));
        await_that("enforcement", || !unenforced(agent));
        verdicts(&cluster, &format!("{context}: at last"));
    }
}

/// As the CNI bandwidth plugin does it: a token bucket for what the pod receives, and an ifb with another for what it
/// sends (containernetworking/plugins, plugins/meta/bandwidth).
fn limit(node: &Node, veth: &str, ifb: &str, qdisc: &str) {
    node.namespace().ip([format!("link add {ifb} type ifb"), format!("link set {ifb} up")]).unwrap();
    let bucket = "tbf rate 200mbit burst 256k latency 25ms";
    tc(node, &format!("qdisc add dev {veth} root {bucket}"));
    tc(node, &format!("qdisc add dev {ifb} root {bucket}"));
    tc(node, &format!("qdisc replace dev {veth} {qdisc}"));
    let redirect = format!("u32 match u32 0 0 action mirred egress redirect dev {ifb}");
    tc(node, &format!("filter add dev {veth} parent ffff: protocol all {redirect}").replace("parent ffff:", "ingress"));
}

#[test]
fn pods_with_limited_bandwidth_are_enforced_and_limited() {
    for (attach, qdisc, shapes) in
        [("auto", "ingress", [Shape::Routed, Shape::Bridged]), ("clsact", "clsact", [Shape::Bridged, Shape::Routed])]
    {
        for (shape, first) in shapes.into_iter().zip([true, false]) {
            let context = format!("{attach}, {shape:?}, limits first {first}");
            let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(shape, &PODS) });
            let node = cluster.bed.node(0).clone();
            let set = |cluster: &LiveCluster| {
                for (pod, ifb) in [("x/a", "ifb-a"), ("x/b", "ifb-b"), ("x/c", "ifb-c")] {
                    limit(&node, cluster.pod(pod).veth(), ifb, qdisc);
                }
            };
            if first {
                set(&cluster);
            }
            cluster.start_agents(&["--attach".to_owned(), attach.to_owned()], &policies());
            if !first {
                set(&cluster);
            }
            verdicts(&cluster, &context);
            let shown = node.namespace().tool("ip", &["-s", "-o", "link", "show", "dev", "ifb-a"]).unwrap();
            let sent: u64 = shown
                .split("TX:")
                .nth(1)
                .unwrap()
                .split('\\')
                .nth(1)
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(sent > 0, "{context}: nothing went through the limit: {shown}");
            assert!(!exits(&cluster.agents[0]).iter().any(|exit| exit.starts_with("ifb")), "{context}");
            let repaired = cluster.agents[0].metric(REPAIRS, &[("what", "displaced")]);
            assert!(repaired < 0.5, "{context}: nobody was before ours");
        }
    }
}

#[test]
fn ports_of_the_pods_bridge_are_exits_whatever_the_list_says() {
    for attach in ["auto", "clsact"] {
        let cluster = cluster(Shape::Bridged, &["--attach", attach, "--uplink", "eth0"]);
        let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
        let guest = Namespace::new(&format!("{}-guest", cluster.bed.id())).unwrap();
        node.namespace()
            .ip([
                format!("link add guest0 type veth peer name eth0 netns {}", guest.path()),
                format!("link set guest0 master {BRIDGE} up"),
                "link add apart0 type veth peer name apart1".to_owned(),
                "link set apart0 up".to_owned(),
            ])
            .unwrap();
        guest.ip(["link set eth0 up", "addr add 192.0.2.9/24 dev eth0", "route add default dev eth0"]).unwrap();
        await_that("the port among the exits", || exits(agent).contains(&"guest0".to_owned()));
        let found = exits(agent);
        assert!(found.contains(&"eth0".to_owned()) && !found.contains(&"apart0".to_owned()), "{attach}: {found:?}");
        verdicts(&cluster, attach);
        node.namespace().ip(["link set guest0 nomaster"]).unwrap();
        await_that("the port apart", || !exits(agent).contains(&"guest0".to_owned()));
        assert_eq!(
            foreign::names(node, "guest0", true),
            Vec::<String>::new(),
            "{attach}: nothing of ours is left on it"
        );
        let filters = node.namespace().tool("tc", &["filter", "show", "dev", "guest0", "ingress"]).unwrap();
        assert_eq!(filters.trim(), "", "{attach}");
    }
}

#[test]
fn veths_of_any_index_are_endpoints_and_an_index_may_come_again() {
    // As many devices as a bucket of the interface table has places (8), and one more: same low bits.
    let index = |at: u32| 70_001 + at * 4096;
    let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(Shape::Routed, &PODS) });
    let add = |cluster: &LiveCluster, at: u32| {
        let options = PodOptions::default().serving(Protocol::Tcp, 80).with_veth_index(index(at));
        cluster.bed.add_pod(0, &format!("z/p{at}"), options).unwrap()
    };
    let mut more: Vec<Pod> = (0..8).map(|at| add(&cluster, at)).collect();
    let objects = |pods: &[Pod]| {
        let mut objects = vec![manifests::namespace("z", None)];
        objects.extend(pods.iter().map(|pod| manifests::pod(pod, &[], None)));
        objects
    };
    cluster.manifests.write("more", &objects(&more));
    let deny = |pod: &str| json!({"podSelector": {"matchLabels": {"pod": pod}}, "policyTypes": ["Ingress"]});
    let mut all = policies();
    all.extend([policy("z", "even", &deny("p0")), policy("z", "last", &deny("p7"))]);
    cluster.start_agents(&[], &all);
    let ask = |cluster: &LiveCluster, to: &Pod, allowed: bool| {
        let patience = Duration::from_millis(if allowed { 3000 } else { 300 });
        Probe::new(cluster.pod("x/c"), to.v4().unwrap(), Protocol::Tcp, 80).timeout(patience).run()
    };
    for (at, pod) in more.iter().enumerate() {
        let allowed = ![0, 7].contains(&at);
        let outcome = ask(&cluster, pod, allowed);
        assert_eq!(
            matches!(outcome, Outcome::Answered(_)),
            allowed,
            "{} at {}: {outcome:?}",
            pod.name(),
            index(at as u32)
        );
        let found = endpoint(&cluster.agents[0], pod.veth());
        assert_eq!((&found["pod"], &found["ifindex"]), (&json!(pod.name()), &json!(index(at as u32))), "{found}");
    }
    // There is no place for the ninth: it is closed, and that is said.
    more.push(add(&cluster, 8));
    cluster.manifests.write("more", &objects(&more));
    let agent = &cluster.agents[0];
    await_that("a report of the ninth", || {
        agent.status()["problems"].to_string().contains("closed: the interfaces table")
    });
    assert_eq!(ask(&cluster, &more[8], false), Outcome::Timeout, "the ninth");
    cluster.bed.remove_pod(&more[8]).unwrap();

    // Another pod with the index of one that is denied, and the other way round.
    for (gone, name, denied) in [(&more[0], "z/new", false), (&more[1], "z/p0", true)] {
        let at = cluster.bed.node(0).ifindex(gone.veth()).unwrap();
        cluster.bed.remove_pod(gone).unwrap();
        let options = PodOptions::default().serving(Protocol::Tcp, 80).with_veth_index(at);
        let new = cluster.bed.add_pod(0, name, options).unwrap();
        let mut objects = objects(&more[2..8]);
        objects.push(manifests::pod(&new, &[], None));
        cluster.manifests.write("more", &objects);
        let agent = &cluster.agents[0];
        await_that(name, || {
            let found = endpoint(agent, new.veth());
            found["pod"] == json!(name) && found["state"] == "enforced" && found["ifindex"] == json!(at)
        });
        let outcome = ask(&cluster, &new, !denied);
        assert_eq!(matches!(outcome, Outcome::Answered(_)), !denied, "{name} at {at}: {outcome:?}");
    }
    verdicts(&cluster, "beside them");
}

#[test]
fn a_veth_may_be_renamed_and_go_to_another_namespace_and_come_back() {
    for attach in ["auto", "clsact"] {
        let cluster = cluster(Shape::Bridged, &["--attach", attach]);
        let (agent, node) = (&cluster.agents[0], cluster.bed.node(0));
        let veth = cluster.pod("x/b").veth();
        let ifindex = node.ifindex(veth).unwrap();
        node.namespace()
            .ip([
                format!("link set {veth} down"),
                format!("link set {veth} name other0"),
                "link set other0 up".to_owned(),
            ])
            .unwrap();
        await_that("the new name", || endpoint(agent, "other0")["pod"] == "x/b");
        verdicts(&cluster, &format!("{attach}: renamed"));
        let away = Namespace::new(&format!("{}-away", cluster.bed.id())).unwrap();
        node.namespace().ip([format!("link set other0 netns {}", away.path())]).unwrap();
        await_that("its end as an endpoint", || endpoint(agent, "other0").is_null());
        for ingress in [true, false] {
            assert!(!foreign::link_pin(agent.pin_dir(), ifindex, ingress).exists(), "{attach}: a pin is left");
        }
        let programs = away.run(|| {
            use aya::programs::{SchedClassifier, TcAttachType};
            Ok(SchedClassifier::query_tcx("other0", TcAttachType::Ingress)?.1.len())
        });
        assert_eq!(programs.unwrap(), 0, "{attach}: nothing of ours went with it");
        away.ip([format!("link set other0 netns {}", node.namespace().path())]).unwrap();
        node.namespace()
            .ip([
                format!("link set other0 master {BRIDGE} up"),
                "link set other0 type bridge_slave hairpin on".to_owned(),
            ])
            .unwrap();
        await_that("its return", || endpoint(agent, "other0")["pod"] == "x/b");
        verdicts(&cluster, &format!("{attach}: back"));
    }
}

/// Programs change from links to filters and back: nothing of the one is left under the other.
#[test]
fn links_and_filters_take_each_others_place() {
    let mut cluster = cluster(Shape::Routed, &["--attach", "auto"]);
    let node = cluster.bed.node(0).clone();
    node.namespace().ip(["link add p0 type veth peer name p1", "link set p0 up"]).unwrap();
    let pins = cluster.agents[0].pin_dir().to_owned();
    let veth = cluster.pod("x/b").veth().to_owned();
    let ours = |device: &str| {
        let filters = |hook: &str| {
            let shown = node.namespace().tool("tc", &["filter", "show", "dev", device, hook]).unwrap();
            shown.lines().filter(|line| line.contains(" handle ")).count()
        };
        let links = [true, false].map(|ingress| foreign::names(&node, device, ingress).len()).iter().sum::<usize>();
        (links, filters("ingress") + filters("egress"))
    };
    await_that("links", || ours("p0") == (2, 0));
    for (arguments, on_veth, on_p0) in [
        (&["--attach", "clsact"][..], (0, 2), (0, 2)),
        (&["--attach", "clsact", "--uplink", "eth0"], (0, 2), (0, 0)),
        (&["--attach", "clsact"], (0, 2), (0, 2)),
        (&["--attach", "auto"], (2, 0), (2, 0)),
        (&["--attach", "auto", "--uplink", "eth0"], (2, 0), (0, 0)),
    ] {
        let uninstall = cluster.agents[0].run_command(&["uninstall", "--pin-dir", pins.to_str().unwrap()]);
        assert!(!uninstall.status.success(), "an agent that runs would put everything back");
        cluster.agents[0].terminate();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut agent = Agent::new(&node, cluster.manifests.path(), cluster.scratch.path(), &arguments);
        agent.pin_at(pins.clone());
        agent.start();
        // The one before keeps nothing; its pins are this one's now.
        let mut before = std::mem::replace(&mut cluster.agents[0], agent);
        before.pin_at(cluster.scratch.path().join("nothing"));
        drop(before);
        let context = arguments.join(" ");
        assert_eq!((ours(&veth), ours("p0")), (on_veth, on_p0), "{context}");
        verdicts(&cluster, &context);
    }
    cluster.agents[0].terminate();
    cluster.agents[0].uninstall();
    assert_eq!((ours(&veth), ours("p0")), ((0, 0), (0, 0)), "uninstalled");
}

#[test]
fn a_tunnel_that_comes_and_goes_is_an_exit() {
    for attach in ["auto", "clsact"] {
        let cluster = cluster(Shape::Routed, &["--attach", attach]);
        let (near, far) = (cluster.bed.node(0), cluster.bed.node(1));
        let tunnel = |node: &Node, other: &Node, own: u8, range: &str| {
            let (local, remote) = (node.v4().unwrap(), other.v4().unwrap());
            let next = 3 - own;
            node.namespace()
                .ip([
                    format!("link add vx0 type vxlan id 7 local {local} remote {remote} dstport 8472"),
                    format!("addr add 198.51.100.{own}/24 dev vx0"),
                    "link set vx0 up".to_owned(),
                    format!("route replace {range} via 198.51.100.{next} dev vx0"),
                ])
                .unwrap();
        };
        tunnel(near, far, 1, &far.pod_cidr_v4());
        tunnel(far, near, 2, &near.pod_cidr_v4());
        await_that("the tunnel among the exits", || {
            cluster.agents.iter().all(|agent| exits(agent).contains(&"vx0".to_owned()))
        });
        verdicts(&cluster, &format!("{attach}: by the tunnel"));
        for (node, other) in [(near, far), (far, near)] {
            let range = other.pod_cidr_v4();
            node.namespace()
                .ip([format!("route replace {range} via {} dev eth0", other.v4().unwrap()), "link del vx0".to_owned()])
                .unwrap();
        }
        await_that("its end", || cluster.agents.iter().all(|agent| !exits(agent).contains(&"vx0".to_owned())));
        verdicts(&cluster, &format!("{attach}: without it"));
    }
}

/// A tun device of a node, whose packets have no link-layer header.
struct Tun(File);

impl Tun {
    fn new(node: &Node, name: &str) -> Self {
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
        const IFF_TUN: u16 = 1;
        const IFF_NO_PI: u16 = 0x1000;
        node.namespace()
            .run(|| {
                let file = File::options().read(true).write(true).open("/dev/net/tun")?;
                let mut request = [0_u8; 40];
                request[..name.len()].copy_from_slice(name.as_bytes());
                request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
                // SAFETY: a `struct ifreq`, which outlives the call.
                let status = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
                if status < 0 {
                    return Err(std::io::Error::last_os_error().into());
                }
                // SAFETY: sets a flag of an open descriptor.
                unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
                Ok(Self(file))
            })
            .unwrap()
    }

    /// The next packet to this destination, if one comes soon.
    fn next_to(&mut self, to: Ipv4Addr, patience: Duration) -> Option<Vec<u8>> {
        let deadline = std::time::Instant::now() + patience;
        let mut packet = [0; 2048];
        while std::time::Instant::now() < deadline {
            match self.0.read(&mut packet) {
                Ok(length) if length >= 20 && packet[0] >> 4 == 4 && packet[16..20] == to.octets() => {
                    return Some(packet[..length].to_vec());
                }
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        None
    }
}

#[test]
fn what_leaves_by_a_device_without_ethernet_is_judged_there() {
    for attach in ["auto", "clsact"] {
        let cluster = cluster(Shape::Routed, &["--attach", attach]);
        let (agent, node, a) = (&cluster.agents[0], cluster.bed.node(0), cluster.pod("x/a"));
        let mut tun = Tun::new(node, "tun7");
        node.namespace().ip(["link set tun7 up", "route add 198.51.100.0/24 dev tun7"]).unwrap();
        await_that("the exit", || exits(agent).contains(&"tun7".to_owned()));
        let (allowed, denied) = (Ipv4Addr::new(198, 51, 100, 5), Ipv4Addr::new(198, 51, 100, 6));
        // Addresses of Services that nobody knows: only where the packet leaves can be seen where it goes.
        for (vip, to) in [("10.0.77.5", allowed), ("10.0.77.6", denied)] {
            let rule = format!("-t nat -A PREROUTING -d {vip} -j DNAT --to-destination {to}");
            node.namespace().tool("iptables", &rule.split(' ').collect::<Vec<_>>()).unwrap();
        }
        let block = json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": format!("{allowed}/32")}}]}]});
        cluster.enforce(&[policy("x", "client", &block)]);
        let socket = a.namespace().run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:7000")?)).unwrap();
        let mut ask = |vip: &str, to: Ipv4Addr, patience: u64| {
            socket.send_to(b"hello", (vip, 9)).unwrap();
            tun.next_to(to, Duration::from_millis(patience))
        };
        assert_eq!(ask("10.0.77.6", denied, 300), None, "{attach}: a denied backend");
        let asked =
            ask("10.0.77.5", allowed, 3000).unwrap_or_else(|| panic!("{attach}: an allowed one\n{}", agent.log()));
        // The same packet with its ends exchanged is the answer: checksums of sums stay.
        let mut answer = asked;
        let (source, destination) = (answer[12..16].to_vec(), answer[16..20].to_vec());
        answer[12..16].copy_from_slice(&destination);
        answer[16..20].copy_from_slice(&source);
        let ports = (answer[20..22].to_vec(), answer[22..24].to_vec());
        answer[20..22].copy_from_slice(&ports.1);
        answer[22..24].copy_from_slice(&ports.0);
        tun.0.write_all(&answer).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut buffer = [0; 16];
        let (length, from) =
            socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{attach}: {error}\n{}", agent.log()));
        assert_eq!((&buffer[..length], from.to_string().as_str()), (&b"hello"[..], "10.0.77.5:9"), "{attach}");
        if attach == "auto" {
            assert_eq!(foreign::names(node, "tun7", true), ["from_uplink_l3"]);
        }
    }
}
