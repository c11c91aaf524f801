//! The agent with the capabilities that the DaemonSet gives it, and with one of them fewer.

use portcullis_testbed::{Outcome, Probe, Protocol, Shape};
use serde_json::{Value, json};

use crate::cluster::{LiveCluster, Plan};
use crate::manifests::policy;

const AGENT: &str = include_str!("../../../deploy/base/daemonset.yaml");
const EARLIER_KERNELS: &str = include_str!("../../../deploy/kernels-before-5.11/kustomization.yaml");
const UNINSTALL: &str = include_str!("../../../deploy/uninstall/daemonset.yaml");

/// What a container adds to no capability at all.
fn added(manifest: &str, container: &str) -> Vec<String> {
    let set: Value = serde_saphyr::from_str(manifest).unwrap();
    let container = set.pointer(container).unwrap();
    let names = container.pointer("/securityContext/capabilities/add").unwrap().as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Whether this kernel counts maps against RLIMIT_MEMLOCK.
fn counts_locked_memory() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) < (5, 11)
}

/// How an agent says that it lacks one.
enum Lack {
    /// It ends with this.
    Error(&'static str),
    /// It does without, and its log has this.
    Loss(&'static str),
}

#[test]
fn the_daemon_sets_capabilities_are_enough_and_what_lacks_is_told() {
    let mut all = added(AGENT, "/spec/template/spec/containers/0");
    let mut lacks = vec![
        ("BPF", Lack::Error("missing CAP_BPF")),
        ("PERFMON", Lack::Error("missing CAP_PERFMON")),
        ("NET_ADMIN", Lack::Error("missing CAP_NET_ADMIN")),
        ("NET_BROADCAST", Lack::Loss("addresses inside pods are polled: give the agent CAP_NET_BROADCAST")),
    ];
    if counts_locked_memory() {
        assert!(EARLIER_KERNELS.contains("value: SYS_RESOURCE"), "{EARLIER_KERNELS}");
        all.push("SYS_RESOURCE".to_owned());
        lacks.push(("SYS_RESOURCE", Lack::Error("give the agent CAP_SYS_RESOURCE")));
    }
    let mut cluster = LiveCluster::new(&Plan { agents: false, ..Plan::new(Shape::Routed, &[("x/a", 0), ("x/b", 0)]) });
    let asked = |cluster: &LiveCluster, port: u16| {
        let to = cluster.pod("x/b").v4().unwrap();
        Probe::new(cluster.pod("x/a"), to, Protocol::Tcp, port).timeout(std::time::Duration::from_millis(500)).run()
    };
    let deny = policy("x", "deny", &json!({"podSelector": {"matchLabels": {"pod": "b"}}, "policyTypes": ["Ingress"]}));
    let open = policy("x", "deny", &json!({"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{}]}));

    cluster.prepare_first_agents(1, &[], std::slice::from_ref(&deny));
    cluster.agents[0].confine(all.clone());
    cluster.agents[0].start();
    assert_eq!(asked(&cluster, 80), Outcome::Timeout, "policy from the start");
    let log = cluster.agents[0].log();
    assert!(!log.contains("CAP_") && !log.contains("ot permitted"), "something is missing with all of them:\n{log}");
    cluster.enforce(&[open]);
    assert!(asked(&cluster, 80).is_answer_of("x/b"), "a change of policy");
    cluster.enforce(std::slice::from_ref(&deny));
    assert_eq!(asked(&cluster, 80), Outcome::Timeout, "and back");
    cluster.agents[0].terminate();
    uninstall(&cluster, &added(UNINSTALL, "/spec/template/spec/initContainers/0"));
    assert!(asked(&cluster, 80).is_answer_of("x/b"), "uninstalled");

    for (name, lack) in lacks {
        let fewer: Vec<String> = all.iter().filter(|other| *other != name).cloned().collect();
        assert_eq!(fewer.len() + 1, all.len(), "{name} is not what the DaemonSet adds");
        cluster.agents[0].confine(fewer);
        let said = match lack {
            Lack::Error(said) => {
                cluster.agents[0].spawn();
                let (success, log) = cluster.agents[0].await_end();
                let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
                assert!(!success && errors.len() == 1 && errors[0].contains(said), "without {name}:\n{log}");
                assert!(asked(&cluster, 80).is_answer_of("x/b"), "without {name} nothing has changed");
                continue;
            }
            Lack::Loss(said) => said,
        };
        cluster.agents[0].start();
        assert_eq!(asked(&cluster, 80), Outcome::Timeout, "without {name}");
        let log = cluster.agents[0].log();
        assert!(log.contains(said), "without {name}:\n{log}");
        cluster.agents[0].terminate();
        cluster.agents[0].uninstall();
    }
}

/// As the DaemonSet that uninstalls does, with these capabilities; and with one of them fewer it fails, says why, and
/// leaves what it cannot remove in force.
fn uninstall(cluster: &LiveCluster, names: &[String]) {
    let agent = &cluster.agents[0];
    let run = |names: &[String]| {
        let mut command = cluster.bed.node(0).command(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("uninstall").arg("--pin-dir").arg(agent.pin_dir());
        crate::confine::confine(&mut command, names);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for missing in names {
        let fewer: Vec<String> = names.iter().filter(|name| *name != missing).cloned().collect();
        let (success, said) = run(&fewer);
        assert!(!success && said.contains(&format!("missing CAP_{missing}")), "without {missing}: {said}");
        assert!(agent.pin_dir().exists(), "without {missing}");
    }
    let (success, said) = run(names);
    assert!(success, "{said}");
    assert!(!agent.pin_dir().exists(), "pins are left");
}
