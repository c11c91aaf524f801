//! SCTP associations between sockets of the kernel's own SCTP, through policy; the testbed's SCTP is half a handshake.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use portcullis_testbed::{Pod, Protocol, Service, Shape};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const PODS: [(&str, usize); 4] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1)];
/// The policy's port, and one that it does not name.
const PORTS: [u16; 2] = [7000, 7001];
/// Long enough for any answer; what is denied costs it.
const ANSWER: Duration = Duration::from_millis(2500);

fn sockaddr(address: SocketAddr) -> nix::sys::socket::SockaddrStorage {
    address.into()
}

/// A socket for one association, which behaves as one of TCP's does (RFC 6458, section 4).
fn socket(v4: bool) -> io::Result<OwnedFd> {
    let domain = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    // SAFETY: a new descriptor, nobody else's.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Answers every association with what it sends, on every port and address of the pod.
fn serve(pod: &Pod) {
    for address in pod.addresses() {
        for port in PORTS {
            let listener = pod
                .namespace()
                .run(|| {
                    let socket = socket(address.is_ipv4())?;
                    let place = sockaddr(SocketAddr::new(address, port));
                    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &place)?;
                    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(16)?)?;
                    Ok(TcpListener::from(socket))
                })
                .unwrap();
            // It ends with the process: nothing tells a blocking accept to stop.
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    std::thread::spawn(move || {
                        let mut bytes = [0; 64];
                        while let Ok(length @ 1..) = stream.read(&mut bytes) {
                            if stream.write_all(&bytes[..length]).is_err() {
                                break;
                            }
                        }
                    });
                }
            });
        }
    }
}

/// An association, if it comes about.
fn associate(from: &Pod, to: IpAddr, port: u16) -> Option<TcpStream> {
    from.namespace()
        .run(|| {
            let socket = socket(to.is_ipv4())?;
            // Without a source of its own it would offer every address of the pod, of which the peer takes each for true.
            let own = from.addresses().into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).unwrap();
            nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &sockaddr(SocketAddr::new(own, 0)))?;
            let stream = TcpStream::from(socket);
            stream.set_write_timeout(Some(ANSWER))?;
            stream.set_read_timeout(Some(ANSWER))?;
            let target = sockaddr(SocketAddr::new(to, port));
            let connected = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &target);
            Ok(connected.is_ok().then_some(stream))
        })
        .unwrap()
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"hello"
}

fn reaches(from: &Pod, to: IpAddr, port: u16) -> bool {
    associate(from, to, port).is_some_and(|mut stream| echoes(&mut stream))
}

/// The servers admit x/a on the first port; x/a may send nothing else than that.
fn policies(port: u16) -> Vec<Value> {
    let ports = json!([{"protocol": "SCTP", "port": port}]);
    let client = json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}},
        "podSelector": {"matchLabels": {"pod": "a"}},
    }]);
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": client, "ports": ports}],
    });
    let servers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]);
    let client = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": servers, "ports": ports}],
    });
    vec![policy("x", "server", &server), policy("y", "server", &server), policy("x", "client", &client)]
}

#[test]
fn associations_are_what_policy_says() {
    if let Err(error) = socket(true) {
        // The guests of the kernel matrix have it, so it is tested somewhere.
        assert!(std::env::var_os("PORTCULLIS_GUEST").is_none(), "no SCTP: {error}");
        eprintln!("skipped: this kernel has no SCTP: {error}");
        return;
    }
    for shape in [Shape::Routed, Shape::Bridged] {
        let cluster = LiveCluster::new(&Plan::new(shape, &PODS));
        let pod = |name: &str| cluster.pod(name);
        let mut ways = Vec::new();
        for (at, server) in (0..).zip([pod("x/b"), pod("y/b")]) {
            serve(server);
            let vip = IpAddr::from([10, 0, 7, at]);
            let name = format!("x/sctp-{at}");
            cluster.expose(Service::new(&name).vip(vip).port(Protocol::Sctp, 70), PORTS[0], &[server]);
            ways.extend(server.addresses().into_iter().map(|address| (server, address, PORTS[0])));
            ways.push((server, vip, 70));
        }
        cluster.enforce(&policies(PORTS[0]));
        let mut open = Vec::new();
        for &(server, to, port) in &ways {
            let what = format!("{shape:?}, {} by {to} {port}", server.name());
            let mut stream = associate(pod("x/a"), to, port).unwrap_or_else(|| panic!("{what}: no association"));
            assert!(echoes(&mut stream), "{what}: no echo");
            open.push((what, stream));
        }
        for &(server, to, _) in ways.iter().filter(|(_, _, port)| *port == PORTS[0]) {
            let what = format!("{shape:?}, {} at {to}", server.name());
            assert!(!reaches(pod("x/a"), to, PORTS[1]), "{what}: another port");
            assert!(!reaches(pod("x/c"), to, PORTS[0]), "{what}: another pod");
        }
        // A change reaches associations that are open.
        cluster.enforce(&policies(PORTS[1]));
        for (what, stream) in &mut open {
            assert!(!echoes(stream), "{what}: it goes on though policy denies it now");
        }
    }
}
