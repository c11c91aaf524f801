//! The testbed itself, on real namespaces. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portcullis_testbed::{
    ExternalTrafficPolicy, Families, Outcome, Pod, PodOptions, Probe, Process, Protocol, Proxy, Service, Shape, Stream,
    Testbed, TestbedOptions, UdpStream, VethNames, br_netfilter_available, leftovers_after, probe, probe_all,
};

const VIP_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10);
const PROTOCOLS: [(Protocol, u16); 4] =
    [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Sctp, 80), (Protocol::Icmp, 0)];
const SECOND: Duration = Duration::from_secs(1);

fn serving_all() -> PodOptions {
    PodOptions::default().serving(Protocol::Tcp, 80).serving(Protocol::Udp, 80).serving(Protocol::Sctp, 80)
}

/// A client and a server on node 0, a server on node 1.
fn three_pods(options: TestbedOptions) -> (Testbed, Pod, Pod, Pod) {
    let bed = Testbed::new(options).expect("the testbed");
    let client = bed.add_pod(0, "x/client", serving_all()).expect("the client");
    let near = bed.add_pod(0, "y/near", serving_all()).expect("the server on the same node");
    let far = bed.add_pod(1, "y/far", serving_all()).expect("the server on the other node");
    (bed, client, near, far)
}

fn expect_all(what: &str, probes: &[(Probe, Outcome)]) {
    let asked: Vec<Probe> = probes.iter().map(|(probe, _)| probe.clone()).collect();
    let mut wrong = Vec::new();
    for (outcome, (probe, wanted)) in probe_all(&asked).iter().zip(probes) {
        if outcome != wanted {
            wrong.push(format!(
                "{} to {} {} {}: {outcome:?}, not {wanted:?}",
                probe.from.name(),
                probe.to,
                probe.protocol,
                probe.port
            ));
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

fn everybody_reaches_everybody(shape: Shape) {
    let (bed, client, near, far) = three_pods(TestbedOptions::shaped(shape));
    for (protocol, port) in &PROTOCOLS[..3] {
        bed.node(0).serve(*protocol, *port).expect("a server on the node");
        bed.outside().serve(*protocol, *port).expect("a server outside");
    }
    let mut rows = Vec::new();
    for from in [&**bed.node(0), &**bed.node(1), bed.outside(), &client, &near, &far] {
        for to in [&**bed.node(0), bed.outside(), &client, &near, &far] {
            assert_eq!(to.addresses().len(), 2, "{} has an address of each family", to.name());
            for address in to.addresses() {
                for (protocol, port) in PROTOCOLS {
                    let name = if protocol == Protocol::Icmp { address.to_string() } else { to.name().to_owned() };
                    rows.push((Probe::new(from, address, protocol, port), Outcome::Answered(name)));
                }
            }
        }
        for (protocol, port) in [(Protocol::Tcp, 81), (Protocol::Udp, 81), (Protocol::Sctp, 81)] {
            rows.push((Probe::new(from, near.v4().unwrap(), protocol, port), Outcome::Refused));
            rows.push((Probe::new(from, near.v6().unwrap(), protocol, port), Outcome::Refused));
        }
    }
    expect_all("everybody reaches everybody", &rows);

    let idle = bed.add_pod(1, "z/idle", PodOptions::default()).expect("a pod that serves nothing");
    let refused: Vec<_> = idle
        .addresses()
        .into_iter()
        .flat_map(|address| PROTOCOLS[..3].iter().map(move |(protocol, port)| (address, *protocol, *port)))
        .map(|(address, protocol, port)| (Probe::new(&client, address, protocol, port), Outcome::Refused))
        .collect();
    expect_all("a pod that serves nothing refuses", &refused);
    drop(idle);
    drop((client, near, far));
    drop((rows, refused));
    assert_eq!(leftovers_after(bed), Vec::<String>::new(), "left behind");
}

#[test]
fn routed_pods_reach_everybody() {
    everybody_reaches_everybody(Shape::Routed);
}

#[test]
fn bridged_pods_reach_everybody() {
    everybody_reaches_everybody(Shape::Bridged);
}

fn services_translate(shape: Shape, proxy: Proxy) {
    let (bed, client, near, far) = three_pods(TestbedOptions { proxy, ..TestbedOptions::shaped(shape) });
    for (at, protocol) in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().enumerate() {
        for (name, host, port) in [("near", &near, 8080), ("far", &far, 8081), ("self", &client, 8082)] {
            let service = Service::new(&format!("{name}-{protocol}"))
                .vip(VIP_V4)
                .vip(VIP_V6)
                .port(protocol, port)
                .backend(host, 80)
                .node_port(port + 22_000 + 100 * u16::try_from(at).unwrap());
            bed.service(service).expect("a service");
        }
    }
    let mut rows = Vec::new();
    for (at, protocol) in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().enumerate() {
        let at = 100 * u16::try_from(at).unwrap();
        for (server, port) in [(&near, 8080), (&far, 8081), (&client, 8082)] {
            let answer = Outcome::Answered(server.name().to_owned());
            for vip in [IpAddr::from(VIP_V4), VIP_V6.into()] {
                // A node process is a client like any other, and `client` reaches itself (hairpin).
                for from in [&*client, &*far, &**bed.node(0), &**bed.node(1)] {
                    rows.push((Probe::new(from, vip, protocol, port), answer.clone()));
                }
            }
            for node in bed.nodes() {
                for address in node.addresses() {
                    for from in [bed.outside(), &*far] {
                        rows.push((Probe::new(from, address, protocol, port + 22_000 + at), answer.clone()));
                    }
                }
            }
        }
    }
    expect_all("services", &rows);

    bed.service(Service::new("near-tcp").vip(VIP_V4).port(Protocol::Tcp, 8080)).expect("a service without backends");
    assert_eq!(probe(&client, VIP_V4, Protocol::Tcp, 8080), Outcome::Refused, "a service without backends refuses");
    bed.remove_service("near-tcp").expect("removed");
    bed.remove_service("near-tcp").expect_err("removed twice");
    // Nobody knows the address any more: the fabric says so.
    let gone = probe(&client, VIP_V4, Protocol::Tcp, 8080);
    assert!(!matches!(gone, Outcome::Answered(_)), "a removed service answered: {gone:?}");
}

#[test]
fn services_by_iptables_nft_routed() {
    services_translate(Shape::Routed, Proxy::IptablesNft);
}

#[test]
fn services_by_iptables_legacy_bridged() {
    services_translate(Shape::Bridged, Proxy::IptablesLegacy);
}

#[test]
fn services_by_nftables_routed() {
    services_translate(Shape::Routed, Proxy::Nftables);
}

#[test]
fn services_by_nftables_bridged() {
    services_translate(Shape::Bridged, Proxy::Nftables);
}

#[test]
fn backends_are_taken_in_turn() {
    for proxy in [Proxy::IptablesNft, Proxy::Nftables] {
        let (bed, client, near, far) = three_pods(TestbedOptions { proxy, ..TestbedOptions::default() });
        let service = Service::new("both").vip(VIP_V4).backend(&near, 80).backend(&far, 80).in_turn();
        bed.service(service).expect("a service");
        for (at, wanted) in ["y/near", "y/far", "y/near", "y/far"].into_iter().enumerate() {
            let outcome = probe(&client, VIP_V4, Protocol::Tcp, 80);
            assert!(outcome.is_answer_of(wanted), "{proxy:?}, connection {at}: {outcome:?}, not {wanted}");
        }
    }
}

#[test]
fn node_ports_masquerade_unless_local() {
    use ExternalTrafficPolicy::{Cluster, Local};
    let (bed, _client, near, _far) = three_pods(TestbedOptions::default());
    let outside = bed.outside().v4().unwrap();
    let node = bed.node(0).v4().unwrap();
    for (policy, seen) in [(Cluster, node), (Local, outside)] {
        let service = Service::new("s").backend(&near, 80).node_port(30_080).external_traffic_policy(policy);
        bed.service(service).expect("a service");
        let capture = near.capture("eth0").expect("a capture");
        assert!(probe(bed.outside(), node, Protocol::Tcp, 30_080).is_answer_of("y/near"), "{policy:?}");
        let syn = capture
            .next_matching(SECOND, |frame| !frame.outgoing && frame.ethertype() == 0x0800)
            .expect("captured")
            .expect("a packet");
        assert_eq!(syn.payload()[12..16], seen.octets(), "the source that the backend sees, {policy:?}");
    }
}

#[test]
fn local_traffic_policy_drops_where_no_backend_is() {
    for proxy in [Proxy::IptablesNft, Proxy::Nftables] {
        let (bed, _client, near, far) = three_pods(TestbedOptions { proxy, ..TestbedOptions::default() });
        let service = Service::new("s")
            .backend(&near, 80)
            .node_port(30_080)
            .external_traffic_policy(ExternalTrafficPolicy::Local);
        bed.service(service).expect("a service");
        let answer = Outcome::Answered("y/near".into());
        let mut rows = Vec::new();
        for (node, outside) in [(bed.node(0), answer.clone()), (bed.node(1), Outcome::Timeout)] {
            for address in node.addresses() {
                rows.push((Probe::new(bed.outside(), address, Protocol::Tcp, 30_080), outside.clone()));
                rows.push((Probe::new(&far, address, Protocol::Tcp, 30_080), answer.clone()));
            }
        }
        expect_all(&format!("{proxy:?}"), &rows);
    }
}

#[test]
fn bridges_bypass_iptables_unless_told() {
    if !br_netfilter_available() {
        return;
    }
    for br_netfilter in [true, false] {
        let (bed, client, near, far) =
            three_pods(TestbedOptions { br_netfilter, ..TestbedOptions::shaped(Shape::Bridged) });
        bed.service(Service::new("near").vip(VIP_V4).port(Protocol::Udp, 8080).backend(&near, 80)).expect("a service");
        bed.service(Service::new("far").vip(VIP_V4).port(Protocol::Udp, 8081).backend(&far, 80)).expect("a service");
        let from_far = probe(&client, VIP_V4, Protocol::Udp, 8081);
        assert!(from_far.is_answer_of("y/far"), "{from_far:?}");
        // Without br_netfilter the answer takes the short way, and comes from an address that the client never asked.
        let from_near = probe(&client, VIP_V4, Protocol::Udp, 8080);
        assert_eq!(from_near.is_answer_of("y/near"), br_netfilter, "{from_near:?}");
    }
}

#[test]
fn a_testbed_may_have_one_family() {
    for (families, v4) in [(Families::V4, true), (Families::V6, false)] {
        for shape in [Shape::Routed, Shape::Bridged] {
            let (bed, client, _near, far) = three_pods(TestbedOptions {
                families,
                mtu: 1400,
                veth_names: VethNames::Random,
                ..TestbedOptions::shaped(shape)
            });
            assert_eq!((client.v4().is_ok(), client.v6().is_ok()), (v4, !v4), "{families:?}");
            assert!(client.veth().starts_with("veth"), "{}", client.veth());
            assert!(client.namespace().tool("ip", &["link", "show", "eth0"]).unwrap().contains("mtu 1400"));
            for to in [&*far, bed.outside(), &**bed.node(0)] {
                assert_eq!(to.addresses().len(), 1, "{families:?}: {to:?}");
                let address = to.addresses()[0];
                assert_eq!(probe(&client, address, Protocol::Icmp, 0), Outcome::Answered(address.to_string()));
            }
        }
    }
}

#[test]
fn dropped_packets_time_out() {
    let (bed, client, near, far) = three_pods(TestbedOptions::default());
    bed.node(0)
        .namespace()
        .nft(&format!(
            "table inet block {{ chain forward {{ type filter hook forward priority 0; oifname {} drop; }}; }}",
            near.veth()
        ))
        .expect("a drop rule");
    let mut rows = Vec::new();
    for (protocol, port) in PROTOCOLS {
        for (to, blocked) in [(&near, true), (&far, false)] {
            for address in to.addresses() {
                let name = if protocol == Protocol::Icmp { address.to_string() } else { to.name().to_owned() };
                let wanted = if blocked { Outcome::Timeout } else { Outcome::Answered(name) };
                rows.push((Probe::new(&client, address, protocol, port), wanted));
            }
        }
    }
    expect_all("blocked", &rows);
}

#[test]
fn streams_notice_a_break_and_its_end() {
    let (bed, client, near, far) = three_pods(TestbedOptions::shaped(Shape::Bridged));
    let mut stream = Stream::open(&client, far.v6().unwrap(), 80, SECOND).expect("a stream");
    assert_eq!(stream.server(), "y/far");
    stream.exchange(SECOND).expect("an exchange");
    let running = Stream::open(&client, far.v4().unwrap(), 80, SECOND)
        .and_then(|stream| stream.run(Duration::from_millis(2), Duration::from_millis(100)))
        .expect("a running stream");
    let udp = UdpStream::start(&client, far.v4().unwrap(), 9000, &far, 9000, Duration::from_millis(2)).expect("udp");
    let report = running.wait_for_exchanges(20, SECOND).expect("exchanges");
    assert!(report.is_lossless(), "{report:?}");
    let report = udp.wait_for_received(20, SECOND).expect("datagrams");
    assert_eq!((report.longest_gap, report.duplicates), (0, 0), "{report:?}");

    let block = "table inet block { chain forward { type filter hook forward priority 0; drop; }; }";
    bed.node(1).namespace().nft(block).expect("a drop rule");
    stream.exchange(Duration::from_millis(100)).expect_err("an exchange through a drop rule");
    let report = running.wait_until(|report| report.timeouts > 0, SECOND).expect("a timeout");
    assert!(!report.is_lossless(), "{report:?}");
    assert!(udp.report().lost() > 0, "{:?}", udp.report());

    bed.node(1).namespace().nft("delete table inet block").expect("the rule goes");
    stream.exchange(3 * SECOND).expect("an exchange after the block");
    assert!(stream.retransmits().unwrap() > 0, "TCP has sent again what was dropped");
    running.wait_for_exchanges(5, 3 * SECOND).expect("exchanges after the block");
    udp.wait_for_received(5, SECOND).expect("datagrams after the block");
    let report = udp.stop();
    assert!(report.longest_gap > 5 && report.lost() == report.longest_gap, "{report:?}");

    near.stop_serving(Protocol::Tcp, 80).expect("the server stops");
    far.stop_serving(Protocol::Tcp, 80).expect("the server stops");
    let report = running.wait_until(|report| report.broken.is_some(), SECOND).expect("a broken connection");
    assert!(report.exchanges > 20, "{report:?}");
}

#[test]
fn frames_are_injected_and_captured() {
    let bed = Testbed::new(TestbedOptions { nodes: 1, ..TestbedOptions::default() }).expect("the testbed");
    let pod = bed.add_pod(0, "x/pod", PodOptions::default()).expect("a pod");
    let capture = bed.node(0).capture(pod.veth()).expect("a capture");
    let frame: Vec<u8> = [[0xaa; 6], pod.mac("eth0").expect("a MAC")]
        .concat()
        .into_iter()
        // 0x88b5 is IEEE's Ethertype for local experiments.
        .chain([0x88, 0xb5])
        .chain(*b"sixty bytes are the least that an Ethernet frame may have ...!")
        .collect();
    pod.inject("eth0", &frame).expect("injected");
    let seen = capture.next_matching(SECOND, |frame| frame.ethertype() == 0x88b5).expect("captured");
    assert_eq!(seen.expect("the frame").bytes, frame);
    bed.node(0).inject(pod.veth(), &frame).expect("injected");
    let seen = capture.next_matching(SECOND, |frame| frame.ethertype() == 0x88b5).expect("captured");
    assert!(seen.expect("the frame").outgoing);
    let nothing = capture.next_matching(Duration::from_millis(50), |frame| frame.ethertype() == 0x88b5);
    assert_eq!(nothing.expect("captured"), None);
}

#[test]
fn pods_come_and_go_and_change_addresses() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let (bed, client, near, _far) = three_pods(TestbedOptions::shaped(shape));
        let (veth, addresses) = (near.veth().to_owned(), near.addresses());
        bed.add_pod(0, "y/near", PodOptions::default()).expect_err("the same name twice");
        bed.remove_pod(&near).expect("removed");
        assert_eq!(bed.node(0).ifindex(&veth).ok(), None, "the veth is gone");
        drop(near);
        let again = bed.add_pod(0, "y/near", serving_all()).expect("made anew");
        assert_eq!(again.addresses(), addresses, "addresses are given again");
        assert_eq!(again.veth() == veth, shape == Shape::Routed, "only Azure's names are given again");
        let v4 = again.v4().unwrap();
        assert!(probe(&client, v4, Protocol::Tcp, 80).is_answer_of("y/near"));

        again.del_address(v4.into()).expect("the address goes");
        assert!(!probe(&client, v4, Protocol::Tcp, 80).is_answer_of("y/near"), "without its address");
        again.add_address(v4.into()).expect("the address comes");
        again.add_address(Ipv4Addr::new(10, 244, 0, 99).into()).expect("a foreign address");
        assert_eq!(again.addresses().len(), 3);
        again.del_address(Ipv4Addr::new(10, 244, 0, 98).into()).expect_err("an address that is not there");
        let fixed = bed.add_pod(0, "z/fixed", serving_all().at_v4(Ipv4Addr::new(10, 244, 0, 77))).expect("a pod");
        assert_eq!(fixed.v4().unwrap(), Ipv4Addr::new(10, 244, 0, 77));
        assert!(probe(&client, fixed.v4().unwrap(), Protocol::Udp, 80).is_answer_of("z/fixed"));
    }
}

#[test]
fn programs_run_in_the_nodes_namespace() {
    let bed = Testbed::new(TestbedOptions { nodes: 1, ..TestbedOptions::default() }).expect("the testbed");
    let node = bed.node(0);
    let mut command = node.command("sh");
    command.args(["-c", "ip -o addr show dev eth0 >&2; echo ready >&2; exec sleep 1000"]);
    let process = node.spawn(command).expect("started");
    process.wait_for_line(|line| line == "ready", 5 * SECOND).expect("a line");
    let address = format!("{}/16", node.v4().unwrap());
    assert!(process.stderr().iter().any(|line| line.contains(&address)), "{:?}", process.stderr());
    process.wait_for_line(|line| line == "never", Duration::from_millis(20)).expect_err("no such line");
    process.terminate(SECOND).expect("terminated");
    process.wait_for_line(|line| line == "never", SECOND).expect_err("it has ended");

    node.serve(Protocol::Tcp, 8080).expect("a server that does not speak HTTP");
    let address = SocketAddr::from(([127, 0, 0, 1], 8080));
    node.wait_http_200(address, "/readyz", Duration::from_millis(20)).expect_err("no HTTP");

    let mut lasting = node.command("sleep");
    lasting.arg("1000");
    let lasting = node.spawn(lasting).expect("started");
    let pod = bed.add_pod(0, "x/pod", serving_all()).expect("a pod");
    let mut in_pod = pod.command("sleep");
    in_pod.arg("1000");
    let in_pod = pod.spawn(in_pod).expect("started");

    // The pod's handle keeps its namespace and its node's, and nothing else.
    let found = leftovers_after(bed);
    assert!(found.iter().all(|what| what.contains(" (descriptor ")), "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(in_pod.try_wait().expect("its status").is_some(), "a process outlives its testbed");
    assert!(lasting.try_wait().expect("its status").is_some(), "a process outlives its testbed");
}

#[test]
fn leftovers_are_named() {
    let bed = Testbed::new(TestbedOptions { nodes: 1, ..TestbedOptions::default() }).expect("the testbed");
    let pod = bed.add_pod(0, "x/pod", serving_all()).expect("a pod");
    let id = bed.id().to_owned();
    let socket = pod.namespace().run(|| Ok(std::net::UdpSocket::bind("127.0.0.1:0")?)).expect("a socket");
    let mut child = bed.node(0).command("sleep").arg("1000").spawn().expect("a process");
    drop(pod);
    let found = leftovers_after(bed).join("\n");
    for (what, part) in [
        ("a process in a node", format!("{id}-node0 (process {}", child.id())),
        ("a socket in a pod", format!("{id}-pod-x.pod (socket")),
    ] {
        assert!(found.contains(&part), "{what} ({part}) is not in:\n{found}");
    }
    assert_eq!(found.lines().count(), 2, "{found}");
    child.kill().expect("killed");
    child.wait().expect("waited for");
    drop(socket);
    assert_eq!(portcullis_testbed::leftovers_of(&id), Vec::<String>::new());
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let (send, id) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let (bed, client, near, _far) = three_pods(TestbedOptions::default());
        send.send(bed.id().to_owned()).unwrap();
        let stream = Stream::open(&client, near.v4().unwrap(), 80, SECOND).unwrap();
        let _running = stream.run(Duration::from_millis(2), SECOND).unwrap();
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert_eq!(portcullis_testbed::leftovers_of(&id.recv().unwrap()), Vec::<String>::new());
}

/// Set in the process that [`a_killed_process_leaves_nothing_behind`] starts, to run [`victim`].
const VICTIM: &str = "PORTCULLIS_TESTBED_VICTIM";

#[test]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let bed = Testbed::new(TestbedOptions { nodes: 1, ..TestbedOptions::default() }).expect("the testbed");
    // The thread that asks for the process ends before the process does.
    let asked = std::thread::scope(|scope| {
        let sleep = || {
            let mut command = bed.node(0).command("sleep");
            command.arg("1000");
            bed.node(0).spawn(command)
        };
        scope.spawn(sleep).join()
    });
    let process: Process = asked.expect("no panic").expect("started");
    assert!(process.wait(Duration::from_millis(100)).is_err(), "it ended with the thread that asked for it");
    eprintln!("VICTIM {} {}", process.id(), bed.node(0).namespace().path());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_process_leaves_nothing_behind() {
    use std::io::{BufRead, BufReader};
    let mut killed = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let line = BufReader::new(killed.stderr.take().unwrap())
        .lines()
        .map(|line| line.expect("a line"))
        .find_map(|line| line.split_once("VICTIM ").map(|(_, rest)| rest.to_owned()))
        .expect("the victim's line");
    let (process, namespace) = line.split_once(' ').expect("a process and a namespace");
    let inode = std::fs::read_link(namespace).expect("the victim's namespace");
    let sleeping = std::fs::read_link(format!("/proc/{process}/ns/net")).expect("the victim's process");
    assert_eq!(sleeping, inode, "the process runs in the node's namespace");
    killed.kill().expect("killed");
    killed.wait().expect("waited for");
    let deadline = std::time::Instant::now() + 5 * SECOND;
    // The orphan may be listed, without a namespace, until its new parent has waited for it.
    while std::fs::read_link(format!("/proc/{process}/ns/net")).is_ok_and(|is| is == inode) {
        assert!(std::time::Instant::now() < deadline, "process {process} outlives the one that started it");
        std::thread::sleep(Duration::from_millis(5));
    }
}
