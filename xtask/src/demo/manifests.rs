//! What the agent reads: a folder of YAML files, as a person would write them.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use portcullis_testbed::{Node, Pod};

/// The policy's namespace, the database's.
pub(super) const DATABASE: &str = "dgraph";
/// The client's namespace.
pub(super) const CLIENT: &str = "pydgraph-client";
/// The policy's name.
pub(super) const POLICY: &str = "dgraph-network-policy";
/// The labels by which a client's namespace is admitted.
pub(super) const CLIENT_LABELS: [(&str, &str); 2] = [("app", "dgraph-client"), ("env", "test")];

const POLICY_FILE: &str = "network-policy.yaml";

/// A folder of manifests.
pub(super) struct Manifests {
    folder: PathBuf,
}

/// A container's port: its name and number.
pub(super) type NamedPort = (&'static str, u16);

impl Manifests {
    /// Makes the folder.
    pub(super) fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn write_nodes(&self, nodes: &[Node]) -> Result<()> {
        let documents: Vec<String> = nodes
            .iter()
            .map(|node| {
                let ranges = [node.pod_cidr_v4(), node.pod_cidr_v6()];
                format!(
                    "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec:\n  podCIDRs: [{}]\nstatus:\n  \
                     addresses:\n{}",
                    node.name(),
                    ranges.map(|range| format!("{range:?}")).join(", "),
                    list(&node.addresses(), |address| format!("{{type: InternalIP, address: {address:?}}}")),
                )
            })
            .collect();
        self.write("nodes.yaml", &documents.join("---\n"))
    }

    /// A pod as the API server shows it once it runs.
    pub(super) fn write_pod(&self, pod: &Pod, image: &str, labels: &[(&str, &str)], ports: &[NamedPort]) -> Result<()> {
        let (namespace, name) = pod.name().split_once('/').context("a pod's name has no namespace")?;
        let addresses = pod.addresses();
        let mut text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {namespace}\n  name: {name}\n  labels: {}\nspec:\n  \
             nodeName: {}\n  containers:\n  - name: {name}\n    image: {image}\n",
            flow(labels),
            pod.node().name(),
        );
        if !ports.is_empty() {
            text.push_str("    ports:\n");
            for (name, number) in ports {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "    - {{name: {name}, containerPort: {number}}}");
            }
        }
        text.push_str("status:\n  phase: Running\n");
        if let Some(first) = addresses.first() {
            let _ = writeln!(text, "  podIP: {:?}", first.to_string());
        }
        let _ = write!(text, "  podIPs:\n{}", list(&addresses, |address| format!("{{ip: {address:?}}}")));
        self.write(&format!("pod-{namespace}-{name}.yaml"), &text)
    }

    /// A namespace with these labels, and no others.
    pub(super) fn write_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {}\n", flow(labels));
        self.write(&format!("namespace-{name}.yaml"), &text)
    }

    /// The policy of the demo.
    pub(super) fn write_policy(&self) -> Result<()> {
        let labels = flow(&CLIENT_LABELS);
        self.write(
            POLICY_FILE,
            &format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {POLICY}\n  namespace: \
                 {DATABASE}\nspec:\n  podSelector:\n    matchLabels: {{app: dgraph}}\n  policyTypes: [Ingress]\n  \
                 ingress:\n  - from:\n    - podSelector: {{}}\n  - from:\n    - namespaceSelector:\n        \
                 matchLabels: {labels}\n",
            ),
        )
    }

    /// Replaces a file in one step: whoever looks sees the old file or the new one, whole.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.folder.join(format!(".{name}.draft"));
        let place = self.folder.join(name);
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &place))
            .with_context(|| format!("cannot write {}", place.display()))
    }
}

/// A YAML mapping on one line.
fn flow(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// Items of a YAML list, indented by two. Addresses are quoted, since `::1` alone is no plain scalar in a mapping.
fn list(addresses: &[IpAddr], item: impl Fn(String) -> String) -> String {
    addresses.iter().map(|address| format!("  - {}\n", item(address.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_leave_no_draft() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let manifests = Manifests::new(folder.path().join("manifests")).expect("a folder");
        manifests.write_namespace(CLIENT, &[]).expect("without labels");
        manifests.write_namespace(CLIENT, &CLIENT_LABELS).expect("with labels");
        let files: Vec<_> =
            fs::read_dir(manifests.folder()).expect("listing").map(|file| file.expect("file").file_name()).collect();
        assert_eq!(files, ["namespace-pydgraph-client.yaml"]);
        let text = fs::read_to_string(manifests.folder().join("namespace-pydgraph-client.yaml")).expect("content");
        assert!(text.ends_with("labels: {app: dgraph-client, env: test}\n"), "{text}");
    }
}
