//! Services by IPVS, as kube-proxy's mode of that name makes them: their addresses are the node's own, on a device
//! `kube-ipvs0`, and translation happens where packets for the node itself are delivered.

use std::net::IpAddr;
use std::time::Duration;

use portcullis_testbed::{Outcome, Probe, Protocol, Shape, probe_all};
use serde_json::json;

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::{self, policy};

const PODS: [(&str, usize); 5] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1), ("y/c", 1)];

fn wanted() -> bool {
    // The module is loaded by the first who asks for it.
    let asked = std::process::Command::new("ipvsadm").arg("-ln").output();
    if asked.is_ok_and(|output| output.status.success()) {
        return true;
    }
    // The guests of the kernel matrix have it, so it is tested somewhere.
    assert!(std::env::var_os("PORTCULLIS_GUEST").is_none(), "no IPVS");
    eprintln!("skipped: this machine has no IPVS");
    false
}

/// x/a may reach pods `b` only. Behind each Service is one pod.
#[test]
fn a_service_by_ipvs_is_judged_by_its_backend() {
    if !wanted() {
        return;
    }
    for (shape, others) in [(Shape::Routed, &[(false, true), (true, false)][..]), (Shape::Bridged, &[])] {
        for &(agents, known_services) in [(true, true)].iter().chain(others) {
            let cluster = LiveCluster::new(&Plan { agents, known_services, ..Plan::new(shape, &PODS) });
            let node = cluster.bed.node(0).namespace();
            node.ip(["link add kube-ipvs0 type dummy"]).unwrap();
            node.sysctl("net/ipv4/vs/conntrack", "1").unwrap();
            let mut rows = Vec::new();
            for (at, backend) in (0_u8..).zip(["x/b", "x/c", "y/b", "y/c"]) {
                let backend = cluster.pod(backend);
                let vips: [IpAddr; 2] = [[10, 0, 9, at].into(), [0xfd00, 0x10, 0x96, 0, 0, 0, 9, at.into()].into()];
                let name = format!("x/ipvs-{at}");
                let ports = [(Protocol::Tcp, 8080, 80), (Protocol::Udp, 8080, 80)];
                if known_services {
                    let objects = manifests::service(&name, &vips, &ports, std::slice::from_ref(backend));
                    cluster.manifests.write(&format!("service-ipvs-{at}"), &objects);
                }
                for vip in vips {
                    let own = backend.addresses().into_iter().find(|own| own.is_ipv4() == vip.is_ipv4()).unwrap();
                    let bracketed = |address: IpAddr, port: u16| std::net::SocketAddr::new(address, port).to_string();
                    node.ip([format!("addr add {vip} dev kube-ipvs0")]).unwrap();
                    for (flag, protocol) in [("-t", Protocol::Tcp), ("-u", Protocol::Udp)] {
                        let service = bracketed(vip, 8080);
                        node.tool("ipvsadm", &["-A", flag, &service, "-s", "rr"]).unwrap();
                        node.tool("ipvsadm", &["-a", flag, &service, "-r", &bracketed(own, 80), "-m"]).unwrap();
                        let answered = backend.name().ends_with("/b") || !agents;
                        let patience = Duration::from_millis(400);
                        let probe = Probe::new(cluster.pod("x/a"), vip, protocol, 8080).timeout(patience);
                        rows.push((format!("{} by {vip} {protocol}", backend.name()), probe, answered));
                    }
                }
            }
            let spec = json!({
                "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress", "Egress"],
                "egress": [{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]}],
            });
            cluster.enforce(&[policy("x", "client", &spec)]);
            let probes: Vec<Probe> = rows.iter().map(|(_, probe, _)| probe.clone()).collect();
            let again = |probe: &Probe| probe.clone().timeout(Duration::from_secs(5)).run();
            let outcomes =
                probes.iter().zip(probe_all(&probes)).zip(&rows).map(|((probe, outcome), (_, _, answered))| {
                    if *answered && outcome == Outcome::Timeout { again(probe) } else { outcome }
                });
            let wrong = rows.iter().zip(outcomes).filter(|((_, _, answered), outcome)| {
                if *answered { !matches!(outcome, Outcome::Answered(_)) } else { *outcome != Outcome::Timeout }
            });
            let wrong: Vec<String> = wrong
                .map(|((what, _, answered), outcome)| format!("{what}: {outcome:?}, expected {answered}"))
                .collect();
            let context = format!("{shape:?}, agents {agents}, known {known_services}");
            assert!(wrong.is_empty(), "{context}:\n{}", wrong.join("\n"));
        }
    }
}
