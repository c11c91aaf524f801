//! Bulk transfer is counted as it is on the wire, though the kernel carries it in packets of many segments; and a flood of
//! openings costs only the pod that sends it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use etherparse::PacketBuilder;
use portcullis_testbed::{Pod, Protocol, Service, Shape, Stream};
use serde_json::json;

use crate::agent::{Agent, PATIENCE};
use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];
const TARGET: u16 = 7000;
const FRONT: u16 = 8080;
/// What is sent one way.
const BULK: usize = 3 << 20;

/// Segments that a socket has sent and received, and what it has sent again: `struct tcp_info` of include/uapi/linux/tcp.h.
fn segments(socket: &TcpStream) -> (u32, u32) {
    let mut info = [0_u32; 60];
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
    // tcpi_segs_out, tcpi_segs_in; tcpi_total_retrans.
    (info[34] + info[35], info[25])
}

/// Sends a lot and waits for a byte. Gives the packets and bytes of the whole connection, or `None` where TCP had to send
/// something again, whose bytes cannot be told.
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
        // Open until the other side has counted.
        assert_eq!(connection.read(&mut buffer).unwrap(), 0, "the client ends");
    });
    let mut socket = client.namespace().run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?)).unwrap();
    socket.write_all(&vec![7; BULK]).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    // The acknowledgement of that byte may be delayed.
    std::thread::sleep(Duration::from_millis(300));
    let (count, again) = segments(&socket);
    // Nothing more is counted for it: a RST would be, so it is counted too.
    let ip = if to.is_ipv4() { 20 } else { 40 };
    // A TCP header with timestamps (RFC 7323); SYN and SYN-ACK carry 8 bytes of options more. FIN, FIN and ACK follow.
    drop(socket);
    taken.join().unwrap();
    let packets = f64::from(count) + 3.0;
    let bytes = packets * f64::from(14 + ip + 32) + 16.0 + BULK as f64 + 1.0;
    (again == 0).then_some((packets, bytes))
}

fn counted(agent: &Agent, name: &str) -> (f64, f64) {
    let labels = [("policy_namespace", "x"), ("policy_name", name), ("verdict", "allow"), ("rule", "0")];
    (agent.metric("portcullis_policy_packets_total", &labels), agent.metric("portcullis_policy_bytes_total", &labels))
}

#[test]
fn segments_are_counted_as_they_are_on_the_wire() {
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let vip = IpAddr::from([10, 0, 5, 1]);
        let service = Service::new("x/bulk").vip(vip).port(Protocol::Tcp, FRONT);
        let (client, server) = (cluster.pod("x/a"), cluster.pod("x/b"));
        cluster.expose(service, TARGET, &[server]);
        let any = json!([{"podSelector": {}}]);
        let subject = |pod: &str| json!({"matchLabels": {"pod": pod}});
        cluster.enforce(&[
            policy(
                "x",
                "client",
                &json!({"podSelector": subject("a"), "policyTypes": ["Egress"], "egress": [{"to": any}]}),
            ),
            policy(
                "x",
                "server",
                &json!({"podSelector": subject("b"), "policyTypes": ["Ingress"], "ingress": [{"from": any}]}),
            ),
        ]);
        let mut ways: Vec<SocketAddr> =
            server.addresses().into_iter().map(|address| SocketAddr::new(address, TARGET)).collect();
        ways.push(SocketAddr::new(vip, FRONT));
        for to in ways {
            let agent = &cluster.agents[0];
            let mut tries = 0..5;
            loop {
                assert!(tries.next().is_some(), "{shape:?}, {to}: TCP sends again each time");
                let before = [counted(agent, "client"), counted(agent, "server")];
                let Some((packets, bytes)) = transfer(client, to, server) else { continue };
                // Of a connection that takes a thousand packets, the kernel carries a few dozen.
                assert!(packets > 1000.0, "{shape:?}, {to}: {packets}");
                for (name, before) in ["client", "server"].into_iter().zip(before) {
                    let what = format!("{shape:?}, {to}: {name}");
                    agent.await_metrics(&format!("{what}: {packets} packets, {bytes} bytes"), |_| {
                        let (all, size) = counted(agent, name);
                        (all - before.0, size - before.1) == (packets, bytes)
                    });
                }
                break;
            }
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
