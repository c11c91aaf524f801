//! Every packet is judged once for each pod whose policy it concerns, by whatever devices it leaves: the counters of the
//! rules tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use portcullis_testbed::{Host, Protocol};

use super::egress::Allows;
use super::ground::{Ground, PORT, TARGET, Who};
use super::rows::source_port;
use crate::agent::{Agent, PATIENCE};

/// Datagrams to each destination.
const COUNT: u16 = 40;

fn send(from: &Host, to: SocketAddr, source_port: u16, payload: &str) {
    let sent = from.namespace().run(|| {
        let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, source_port))?;
        for _ in 0..COUNT {
            socket.send_to(payload.as_bytes(), to)?;
        }
        Ok(())
    });
    sent.unwrap();
}

/// A socket that takes what comes and says nothing.
fn listen(host: &Host) -> [UdpSocket; 2] {
    let v4 = host.namespace().run(|| Ok(UdpSocket::bind(("0.0.0.0", TARGET))?)).unwrap();
    let v6 = host.namespace().run(|| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet6,
            nix::sys::socket::SockType::Datagram,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
        let any: nix::sys::socket::SockaddrIn6 = std::net::SocketAddrV6::new([0; 8].into(), TARGET, 0, 0).into();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any)?;
        Ok(UdpSocket::from(socket))
    });
    [v4, v6.unwrap()]
}

/// How often each datagram has come.
fn arrivals(sockets: &[[UdpSocket; 2]]) -> BTreeMap<String, u16> {
    let mut arrived = BTreeMap::new();
    for socket in sockets.iter().flatten() {
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            *arrived.entry(String::from_utf8_lossy(&buffer[..length]).into_owned()).or_default() += 1;
        }
    }
    arrived
}

fn packets(agent: &Agent, policy: &str, direction: &str, verdict: &str) -> u32 {
    let (namespace, name) = crate::manifests::split(policy);
    let labels =
        [("policy_namespace", namespace), ("policy_name", name), ("direction", direction), ("verdict", verdict)];
    // Counters of so few packets are small whole numbers.
    agent.metric("portcullis_policy_packets_total", &labels) as u32
}

/// No host sends TCP any more: connections of the tables before, ended or not, would send their last segments again for
/// minutes, each of which counts.
fn silence(ground: &Ground) {
    let bed = &ground.cluster.bed;
    let pods = bed.pods();
    let hosts = pods.iter().map(|pod| &**pod).chain(bed.nodes().iter().map(|node| &**node)).chain([bed.outside()]);
    for host in hosts {
        let chain = "type filter hook output priority 0; oifname != lo meta l4proto tcp drop;";
        host.namespace().nft(&format!("table inet silence {{\nchain out {{ {chain} }}\n}}")).unwrap();
    }
}

pub(super) fn judge(ground: &Ground) -> Vec<String> {
    silence(ground);
    let client = ground.host(Who::Itself);
    let silent: Vec<[UdpSocket; 2]> = Who::ALL[1..8]
        .iter()
        .map(|who| {
            ground.host(*who).stop_serving(Protocol::Udp, TARGET).unwrap();
            listen(&ground.host(*who))
        })
        .collect();
    let allows = Allows::Block;
    ground.enforce(&allows.policies(ground));
    let [agent, other] = &ground.cluster.agents[..] else { unreachable!("a testbed of two nodes") };
    let count = || {
        [
            packets(agent, "x/client", "egress", "allow"),
            packets(agent, "x/client", "egress", "deny"),
            packets(agent, "x/servers", "ingress", "allow"),
            packets(other, "y/servers", "ingress", "allow"),
        ]
    };
    // What was sent before is counted before.
    let mut before = count();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = count();
        if std::mem::replace(&mut before, now) == now {
            break;
        }
    }
    let mut sent: BTreeMap<String, u16> = BTreeMap::new();
    let mut expected = before;
    let [allowed, denied, near, far] = &mut expected;
    for v4 in [true, false] {
        for (at, who) in Who::ALL.into_iter().enumerate().filter(|(_, who)| !matches!(who, Who::Itself | Who::Node)) {
            let front = ground.front("mixed");
            let direct = SocketAddr::new(ground.address(who, v4), TARGET);
            let balancer = SocketAddr::new(front.balancer(v4), PORT);
            let balancer = if ground.setting.known_services { balancer } else { direct };
            let node_port =
                SocketAddr::new(ground.cluster.bed.node(0).addresses()[usize::from(!v4)], front.node_port());
            for to in [direct, SocketAddr::new(front.vip(v4), PORT), balancer, node_port] {
                let payload = format!("to {to}, meant for {who:?}");
                send(&client, to, source_port(at), &payload);
                if allows.allows(who) {
                    *sent.entry(payload).or_default() += COUNT;
                }
                *(if allows.allows(who) { &mut *allowed } else { &mut *denied }) += u32::from(COUNT);
                *near += if who == Who::Near { u32::from(COUNT) } else { 0 };
                *far += if who == Who::Far { u32::from(COUNT) } else { 0 };
            }
        }
    }
    // The last ones may still be under way.
    let deadline = Instant::now() + PATIENCE;
    let mut counted = count();
    while counted.iter().zip(expected).any(|(now, wanted)| *now < wanted) && Instant::now() < deadline {
        counted = count();
    }
    // What connections of earlier rows send once more on a busy machine is allowed, and counted, as well. It is less than half of
    // what any row sends, so one that is counted twice, or not at all, is still seen.
    let again = counted[0].saturating_sub(expected[0]);
    let mut wrong = Vec::new();
    if counted[1..] != expected[1..] || counted[0] < expected[0] || again >= u32::from(COUNT) / 2 {
        wrong.push(format!("allowed, denied, to near, to far: {counted:?}, should be {expected:?}, were {before:?}"));
    }
    // What was denied may not arrive either, though nobody would hear an answer.
    let arrived = arrivals(&silent);
    for payload in sent.keys().chain(arrived.keys()).collect::<BTreeSet<_>>() {
        let (sent, arrived) = (sent.get(payload).unwrap_or(&0), arrived.get(payload).unwrap_or(&0));
        if sent != arrived {
            wrong.push(format!("of {sent} datagrams that are allowed {payload}, {arrived} have arrived"));
        }
    }
    wrong
}
