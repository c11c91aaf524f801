//! Bulk transfer is counted as it is on the wire, though the kernel carries it in packets of many segments; and a flood of
//! openings costs only the pod that sends it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use portcullis_testbed::{BRIDGE, Namespace, Pod, Protocol, Service, Shape, Stream};
use serde_json::json;

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];
const TARGET: u16 = 7000;
const FRONT: u16 = 8080;
/// What is sent one way.
const BULK: usize = 3 << 20;

/// What TCP tells of one end of a connection, in words of `struct tcp_info` (include/uapi/linux/tcp.h).
struct End {
    /// Segments sent, whatever the kernel carried them in, and received.
    sent: u32,
    received: u32,
    /// Segments sent again, and those that came out of order.
    untidy: u32,
}

/// What an end of a connection has sent and received when both sides have ended it: until then it may send something
/// more, an acknowledgement that waits, say.
fn at_the_end(socket: &TcpStream) -> End {
    const TCP_CLOSE: u8 = 7;
    let mut info = [0_u32; 60];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap();
        // SAFETY: the kernel writes at most `length` bytes.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        assert!(answer == 0 && length >= 144, "the kernel tells of segments (4.2)");
        if info[0].to_ne_bytes()[0] == TCP_CLOSE {
            break;
        }
        assert!(Instant::now() < deadline, "the connection does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    // tcpi_segs_out, tcpi_segs_in; tcpi_total_retrans, tcpi_rcv_ooopack (5.4).
    End { sent: info[34], received: info[35], untidy: info[25] + info[56] }
}

/// Sends a lot and waits for a byte. Gives the packets and bytes of the whole connection, or `None` where TCP had to send
/// something again or say what is missing: what it adds to its headers then cannot be told.
fn transfer(client: &Pod, to: SocketAddr, server: &Pod) -> Option<(f64, f64)> {
    let address = server.addresses().into_iter().find(|address| address.is_ipv4() == to.is_ipv4()).unwrap();
    let listener = server.namespace().run(|| Ok(TcpListener::bind((address, TARGET))?)).unwrap();
    let taken = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut left = BULK;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            left -= connection.read(&mut buffer).unwrap();
        }
        connection.write_all(&[1]).unwrap();
        assert_eq!(connection.read(&mut buffer).unwrap(), 0, "the client ends");
        connection.shutdown(Shutdown::Write).unwrap();
        at_the_end(&connection)
    });
    let mut socket = client.namespace().run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?)).unwrap();
    socket.write_all(&vec![7; BULK]).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "the server ends");
    let (own, other) = (at_the_end(&socket), taken.join().unwrap());
    // Before there was a connection the kernel sent a SYN-ACK, which it does not count as the connection's.
    let tidy = own.untidy + other.untidy == 0 && (own.sent, own.received) == (other.received, other.sent + 1);
    // A TCP header with timestamps (RFC 7323); SYN and SYN-ACK carry 8 bytes of options more.
    let headers = f64::from(14 + if to.is_ipv4() { 20 } else { 40 } + 32);
    let packets = f64::from(own.sent + own.received);
    tidy.then_some((packets, packets * headers + 16.0 + BULK as f64 + 1.0))
}

fn counted(agent: &Agent, name: &str) -> (f64, f64) {
    let labels = [("policy_namespace", "x"), ("policy_name", name), ("verdict", "allow"), ("rule", "0")];
    (agent.metric("portcullis_policy_packets_total", &labels), agent.metric("portcullis_policy_bytes_total", &labels))
}

#[test]
fn segments_are_counted_as_they_are_on_the_wire() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        bulk_is_counted(&format!("{shape:?}"), &cluster);
    }
}

/// BIG TCP (Linux 5.19 for IPv6, 6.3 for IPv4): what has more than 64 KiB cannot say its own length. IPv4's is 0 then, IPv6
/// has a jumbo payload option, which no segment has that the packet becomes.
#[test]
fn packets_of_more_than_64_kib_are_judged_and_counted_as_their_segments() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        // The kernel takes the option for a part of each segment when it compares them with the MTU of the way
        // (`skb_gso_network_seglen`), so they are shorter than that.
        for name in ["x/a", "x/b"] {
            cluster.pod(name).namespace().ip(["link set eth0 mtu 1480"]).unwrap();
        }
        let mut families = Vec::new();
        for v4 in [true, false] {
            let mut made = true;
            for name in ["x/a", "x/b"] {
                let pod = cluster.pod(name);
                for (namespace, device) in [(pod.namespace(), "eth0"), (cluster.bed.node(0).namespace(), pod.veth())] {
                    made &= let_be_big(namespace, device, v4);
                }
            }
            if shape == Shape::Bridged {
                made &= let_be_big(cluster.bed.node(0).namespace(), BRIDGE, v4);
            }
            if made {
                families.push(v4);
            } else {
                eprintln!("skipped: this kernel's veths carry no packets of more than 64 KiB, IPv4 {v4}");
            }
        }
        let capture = cluster.bed.node(0).capture(cluster.pod("x/a").veth()).unwrap();
        bulk_is_counted(&format!("{shape:?}, BIG TCP"), &cluster);
        let big: BTreeSet<bool> = std::iter::from_fn(|| capture.next(Duration::from_millis(1)).unwrap())
            .filter(|frame| frame.bytes.len() > 65_549)
            .map(|frame| frame.ethertype() == 0x0800)
            .collect();
        assert_eq!(
            big,
            families.into_iter().collect(),
            "{shape:?}: families of packets of more than 64 KiB that were seen"
        );
    }
}

/// Lets a device carry larger packets than any IP header can tell, as `ip link set gso_max_size` does, which knows IPv4's
/// setting in newer versions only. Tells whether the kernel has it.
fn let_be_big(namespace: &Namespace, device: &str, v4: bool) -> bool {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 5;
    // include/uapi/linux/if_link.h
    const IFLA_GSO_MAX_SIZE: u16 = 41;
    const IFLA_GRO_MAX_SIZE: u16 = 58;
    const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
    const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;
    const SIZE: u32 = 180_000;
    let kinds =
        if v4 { [IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE] } else { [IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE] };
    let set = namespace.run(|| {
        let index = i32::try_from(nix::net::if_::if_nametoindex(device)?)?;
        let mut message = Vec::new();
        message.extend(48_u32.to_ne_bytes());
        message.extend([RTM_NEWLINK, NLM_F_REQUEST_ACK].iter().flat_map(|word| word.to_ne_bytes()));
        message.extend([0; 8]);
        message.extend([0; 4]);
        message.extend(index.to_ne_bytes());
        message.extend([0; 8]);
        for kind in kinds {
            message.extend([8, kind].iter().flat_map(|word| word.to_ne_bytes()));
            message.extend(SIZE.to_ne_bytes());
        }
        let netlink =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 128];
        recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Ok(i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) == 0)
    });
    // A kernel that does not know an attribute passes it over, and says that all is well.
    let shown = namespace.tool("ip", &["-d", "link", "show", device]).unwrap_or_default();
    set.unwrap() && (v4 || shown.contains(&format!("gso_max_size {SIZE}")))
}

/// Sends a lot each way, and expects each packet in the counters of both pods' policies.
fn bulk_is_counted(context: &str, cluster: &LiveCluster) {
    let vip = IpAddr::from([10, 0, 5, 1]);
    let service = Service::new("x/bulk").vip(vip).port(Protocol::Tcp, FRONT);
    let (client, server) = (cluster.pod("x/a"), cluster.pod("x/b"));
    cluster.expose(service, TARGET, &[server]);
    let any = json!([{"podSelector": {}}]);
    let subject = |pod: &str| json!({"matchLabels": {"pod": pod}});
    let egress = json!({"podSelector": subject("a"), "policyTypes": ["Egress"], "egress": [{"to": any}]});
    let ingress = json!({"podSelector": subject("b"), "policyTypes": ["Ingress"], "ingress": [{"from": any}]});
    cluster.enforce(&[policy("x", "client", &egress), policy("x", "server", &ingress)]);
    let mut ways: Vec<SocketAddr> =
        server.addresses().into_iter().map(|address| SocketAddr::new(address, TARGET)).collect();
    ways.push(SocketAddr::new(vip, FRONT));
    for to in ways {
        let agent = &cluster.agents[0];
        let mut tries = 0..20;
        loop {
            assert!(tries.next().is_some(), "{context}, {to}: TCP sends again each time; {:?}", agent.drops());
            let before = [counted(agent, "client"), counted(agent, "server")];
            let Some((packets, bytes)) = transfer(client, to, server) else { continue };
            // Of a connection that takes a thousand packets, the kernel carries a few dozen.
            assert!(packets > 1000.0, "{context}, {to}: {packets}");
            for (name, before) in ["client", "server"].into_iter().zip(before) {
                let (all, size) = counted(agent, name);
                assert_eq!((all - before.0, size - before.1), (packets, bytes), "{context}, {to}: {name}");
            }
            break;
        }
    }
}

#[test]
fn a_flood_of_openings_costs_only_the_pod_that_sends_it() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let any = json!([{"namespaceSelector": {}}]);
        // Isolated in both directions, so that an answer passes only on a flow that is known.
        let spec = |pod: &str, egress: serde_json::Value| {
            let types = ["Ingress", "Egress"];
            let subject = json!({"matchLabels": {"pod": pod}});
            json!({"podSelector": subject, "policyTypes": types, "ingress": [{"from": any}], "egress": egress})
        };
        // x/c may open connections to y/b only, where its flood goes.
        let to_y = json!([{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}]}]);
        cluster.enforce(&[policy("x", "b", &spec("b", json!([]))), policy("x", "c", &spec("c", to_y))]);
        let (client, flooding, target) = (cluster.pod("x/a"), cluster.pod("x/c"), cluster.pod("y/b"));
        let mut streams = Vec::new();
        for server in [cluster.pod("x/b"), flooding] {
            for address in server.addresses() {
                let stream = Stream::open(client, address, 80, PATIENCE).unwrap();
                streams.push((
                    format!("to {} at {address}", server.name()),
                    stream.run(Duration::from_millis(4), PATIENCE).unwrap(),
                ));
            }
        }
        let before = cluster.agents[0].drops();
        flood(flooding, target);
        cluster.agents[0].await_metrics("the share of the pod that sends is full", |samples| {
            samples.iter().any(|sample| sample.has(&[("event", "evicted")]) && sample.value > 1000.0)
        });
        for (name, stream) in streams {
            stream.wait_for_exchanges(20, PATIENCE).unwrap_or_else(|error| panic!("{shape:?}, {name}: {error:#}"));
            let report = stream.stop();
            assert!(report.broken.is_none() && report.timeouts == 0, "{shape:?}, {name}: {report:?}");
        }
        assert_eq!(cluster.agents[0].metric("portcullis_flow_events_total", &[("event", "established_evicted")]), 0.0);
        assert_eq!(cluster.agents[0].drops(), before, "{shape:?}: nothing was dropped");
    }
}

/// Sends SYN after SYN, each from another port, to one that is closed: nothing but the flood comes of it.
fn flood(from: &Pod, to: &Pod) {
    let (source, destination) = (from.v4().unwrap(), to.v4().unwrap());
    let frames = (0..8_000_u16).map(|port| {
        let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
        let mut packet = Vec::new();
        builder.tcp(20_000 + port, 999, 1, 1000).syn().write(&mut packet, &[]).unwrap();
        packet
    });
    let frames: Vec<Vec<u8>> = frames.collect();
    let sent = from.namespace().run(|| {
        use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(destination, 0));
        for (number, frame) in frames.iter().enumerate() {
            sendto(raw.as_raw_fd(), frame, &to, MsgFlags::empty())?;
            if number % 64 == 0 {
                // Queues of the testbed's devices are short.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    });
    sent.unwrap();
}
