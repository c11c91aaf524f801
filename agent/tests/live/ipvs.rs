//! Services by IPVS, as kube-proxy's mode of that name makes them: their addresses are the node's own, on a device
//! `kube-ipvs0`, and translation happens where packets for the node itself are delivered.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portcullis_testbed::{Namespace, Outcome, Pod, Probe, Protocol, Shape, probe_all};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::{self, policy};

const PODS: [(&str, usize); 5] = [("x/a", 0), ("x/b", 0), ("x/c", 0), ("y/b", 1), ("y/c", 1)];
/// The Services, by what is behind them. x/a may reach pods `b` only.
const SERVICES: [&[&str]; 5] = [&["x/b"], &["x/c"], &["y/b"], &["y/c"], &["x/b", "y/c"]];
const PORT: u16 = 8080;
const TARGET: u16 = 80;
const PROTOCOLS: [(&str, Protocol); 2] = [("-t", Protocol::Tcp), ("-u", Protocol::Udp)];
/// Enough questions to a Service for each of its backends to get some.
const TIMES: usize = 4;

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

fn vips(service: usize) -> [IpAddr; 2] {
    let at = u8::try_from(service).unwrap();
    [[10, 0, 9, at].into(), [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x900 + u16::from(at)].into()]
}

fn backends(cluster: &LiveCluster, service: usize) -> Vec<&Pod> {
    SERVICES[service].iter().map(|backend| cluster.pod(backend)).collect()
}

/// What kube-proxy does on a node, but for masquerade.
fn install(cluster: &LiveCluster, node: &Namespace) {
    node.sysctl("net/ipv4/vs/conntrack", "1").unwrap();
    let mut devices = vec!["link add kube-ipvs0 type dummy".to_owned()];
    let mut rules = String::new();
    for service in 0..SERVICES.len() {
        for vip in vips(service) {
            devices.push(format!("addr add {vip} dev kube-ipvs0"));
            for (flag, _) in PROTOCOLS {
                let front = SocketAddr::new(vip, PORT);
                rules.push_str(&format!("-A {flag} {front} -s rr\n"));
                for pod in backends(cluster, service) {
                    let own = pod.addresses().into_iter().find(|own| own.is_ipv4() == vip.is_ipv4()).unwrap();
                    rules.push_str(&format!("-a {flag} {front} -r {} -m\n", SocketAddr::new(own, TARGET)));
                }
            }
        }
    }
    node.ip(devices).unwrap();
    node.tool_with_input("ipvsadm", &["--restore"], &rules).unwrap();
}

fn objects(cluster: &LiveCluster) -> Vec<Value> {
    let ports = PROTOCOLS.map(|(_, protocol)| (protocol, PORT, TARGET));
    let objects = (0..SERVICES.len()).map(|service| {
        let pods: Vec<Pod> = backends(cluster, service).into_iter().cloned().collect();
        manifests::service(&format!("x/ipvs-{service}"), &vips(service), &ports, &pods)
    });
    objects.flatten().collect()
}

/// x/a may reach pods `b`, who admit it alone, and answers nobody else.
fn policies() -> Vec<Value> {
    let both = json!(["Ingress", "Egress"]);
    let pods = |name: &str| json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": name}}}]);
    let client = json!({
        "podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": both, "egress": [{"to": pods("b")}],
    });
    let server = json!({
        "podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": both, "ingress": [{"from": pods("a")}],
    });
    vec![policy("x", "client", &client), policy("x", "server", &server)]
}

/// Asks every Service several times, and describes those whose backends do not answer as they should: those that
/// `allowed` says all do, and no other.
fn judge(cluster: &LiveCluster, context: &str, allowed: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut rows = Vec::new();
    for from in ["x/a", "x/c"] {
        for service in (0..SERVICES.len()).filter(|service| from == "x/a" || SERVICES[*service] == ["x/b"]) {
            for (vip, (_, protocol)) in vips(service).into_iter().flat_map(|vip| PROTOCOLS.map(|one| (vip, one))) {
                let probe = Probe::new(cluster.pod(from), vip, protocol, PORT);
                rows.extend((0..TIMES).map(|_| (from, service, probe.clone())));
            }
        }
    }
    // In turn, so that each backend gets its share.
    let ask = |patience| probe_all(&rows.iter().map(|(.., probe)| probe.clone().timeout(patience)).collect::<Vec<_>>());
    let answers = |outcomes: &[Outcome], from: &str, service: usize, wanted: &Probe| {
        let mut answers: Vec<String> = Vec::new();
        for ((asker, asked, probe), outcome) in rows.iter().zip(outcomes) {
            if (*asker, *asked, probe.to, probe.protocol) == (from, service, wanted.to, wanted.protocol) {
                answers.push(match outcome {
                    Outcome::Answered(name) => name.clone(),
                    Outcome::Timeout => String::new(),
                    other => format!("{other:?}"),
                });
            }
        }
        answers.sort();
        answers.dedup();
        answers
    };
    let mut wrong = Vec::new();
    // A busy machine may be late once.
    for patience in [Duration::from_millis(600), Duration::from_secs(5)] {
        let outcomes = ask(patience);
        wrong.clear();
        for (from, service, probe) in rows.iter().step_by(TIMES) {
            let behind = SERVICES[*service];
            let mut expected: Vec<String> = behind
                .iter()
                .map(|backend| if allowed(from, backend) { (*backend).to_owned() } else { String::new() })
                .collect();
            expected.sort();
            expected.dedup();
            let answers = answers(&outcomes, from, *service, probe);
            if answers != expected {
                let what = format!("{from} to {} {} before {behind:?}", probe.to, probe.protocol);
                wrong.push(format!("{context}: {what}: answers {answers:?}, expected {expected:?}"));
            }
        }
        if wrong.is_empty() {
            break;
        }
    }
    wrong
}

#[test]
fn a_service_by_ipvs_is_judged_by_its_backend() {
    if !wanted() {
        return;
    }
    for shape in [Shape::Routed, Shape::Bridged] {
        let plan = Plan { agents: false, known_services: false, ..Plan::new(shape, &PODS) };
        let mut cluster = LiveCluster::new(&plan);
        before_agents(&cluster);
        // All that IPVS does is done on the first node.
        cluster.start_first_agents(1, &[], &policies());
        with_agents(&cluster, shape);
    }
}

/// Makes the Services, all of whose backends answer where nobody enforces.
pub(crate) fn before_agents(cluster: &LiveCluster) {
    assert!(wanted(), "no IPVS");
    install(cluster, cluster.bed.node(0).namespace());
    let wrong = judge(cluster, "without agents", |_, _| true);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub(crate) fn with_agents(cluster: &LiveCluster, shape: Shape) {
    let by_policy = |from: &str, backend: &str| from == "x/a" && backend.ends_with("/b");
    cluster.enforce(&policies());
    let mut wrong = judge(cluster, "Services that the agents do not know", by_policy);
    cluster.manifests.write("services-ipvs", &objects(cluster));
    cluster.enforce(&policies());
    wrong.extend(judge(cluster, "Services that the agents know", by_policy));
    assert!(wrong.is_empty(), "{shape:?}:\n{}", wrong.join("\n"));
    eprintln!("judged {} Services by IPVS of {shape:?} pods", SERVICES.len());
}
