//! The agent on the nodes of a configuration: the real program, as a process of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_testbed::{Node, Pod, Process, Testbed};
use serde_json::{Value, json};

use crate::Result;
use crate::netfilter::rules;

const BPFFS: &str = "/sys/fs/bpf";
/// The id of the process that made the pins follows.
const PREFIX: &str = "portcullis-bench-veth-";
const LISTEN: &str = "127.0.0.1:9299";

/// An agent, its folder and its pins; all of it goes when this is dropped.
pub(crate) struct Agent {
    process: Option<Process>,
    pins: PathBuf,
    folder: PathBuf,
}

impl Agent {
    /// Starts one on each node with policies of this many rules in force.
    pub(crate) fn on_every_node(testbed: &Testbed, rules: u32) -> Result<Vec<Self>> {
        remove_remains();
        let mut agents: Vec<Self> = Vec::new();
        for node in testbed.nodes() {
            let name = format!("{PREFIX}{}-{}-{}", std::process::id(), testbed.id(), node.name());
            let (pins, folder) = (Path::new(BPFFS).join(&name), std::env::temp_dir().join(&name));
            // In being before anything is made, so that a failure half-way leaves nothing.
            agents.push(Self { process: None, pins, folder });
            let agent = agents.last_mut().ok_or("no agent")?;
            agent.start(testbed, node, rules)?;
        }
        for (agent, node) in agents.iter().zip(testbed.nodes()) {
            let patience = Duration::from_secs(180);
            let ready = node.wait_http_200(LISTEN.parse()?, "/readyz", patience);
            if let Err(error) = ready {
                let log = agent.process.as_ref().map(Process::stderr).unwrap_or_default();
                return Err(format!("the agent is not ready: {error:#}\n{}", log.join("\n")).into());
            }
        }
        Ok(agents)
    }

    fn start(&mut self, testbed: &Testbed, node: &Node, rules: u32) -> Result<()> {
        let manifests = self.folder.join("manifests");
        fs::create_dir_all(&manifests)?;
        fs::write(manifests.join("cluster.yaml"), cluster(testbed, rules)?)?;
        let mut command = node.command(env!("CARGO_BIN_EXE_portcullis"));
        command.arg("run").arg("--manifests").arg(&manifests).arg("--pin-dir").arg(&self.pins);
        command.arg("--socket").arg(self.folder.join("socket"));
        command.args(["--node-name", node.name(), "--listen", LISTEN, "--max-endpoints", "16"]);
        // Both pods may be this node's, with rules of their own.
        command.args(["--max-rules", "32768"]);
        self.process = Some(node.spawn(command)?);
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            process.kill();
        }
        let _ = fs::remove_dir_all(&self.pins);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes what benchmarks left that were killed.
fn remove_remains() {
    for folder in [Path::new(BPFFS), &std::env::temp_dir()] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Pods, and a policy for each of the two that talk. JSON is YAML.
fn cluster(testbed: &Testbed, count: u32) -> Result<String> {
    let mut documents =
        vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}}).to_string()];
    let mut put = |name: &str, node: &str, address: Ipv4Addr| documents.push(pod(name, node, address).to_string());
    let pods = testbed.pods();
    let both: [&Pod; 2] = [pods.first().ok_or("no client")?, pods.get(1).ok_or("no server")?];
    for pod in both {
        put(pod.name().trim_start_matches("bench/"), pod.node().name(), pod.v4()?);
    }
    for (i, (address, _)) in rules(count, Ipv4Addr::UNSPECIFIED).take(count as usize - 1).enumerate() {
        put(&format!("peer-{i}"), "elsewhere", address);
    }
    for (at, (subject, other, direction, side)) in
        [("client", "server", "Egress", "to"), ("server", "client", "Ingress", "from")].into_iter().enumerate()
    {
        let spec: Vec<Value> = rules(count, both[at].v4()?)
            .enumerate()
            .map(|(i, (_, port))| {
                let peer = if i + 1 == count as usize { other.to_owned() } else { format!("peer-{i}") };
                json!({
                    side: [{"podSelector": {"matchLabels": {"name": peer}}}],
                    "ports": [{"protocol": "TCP", "port": port}],
                })
            })
            .collect();
        documents.push(
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": subject, "namespace": "bench"},
                "spec": {
                    "podSelector": {"matchLabels": {"name": subject}},
                    "policyTypes": [direction], direction.to_lowercase(): spec,
                },
            })
            .to_string(),
        );
    }
    Ok(documents.join("\n---\n"))
}

fn pod(name: &str, node: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "bench", "name": name, "uid": name, "labels": {"name": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}
