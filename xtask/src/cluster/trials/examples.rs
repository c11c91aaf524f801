//! The examples of `deploy/examples`, on real pods: who reaches whom is what stands beside each.
//!
//! The file `expected.yaml` has steps: files that are applied, and what is expected then. It begins with everything
//! allowed, and the last line that covers a question answers it: `deny NAMESPACE/POD -> NAMESPACE/* : 80/TCP`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::super::images::AGNHOST;
use super::super::kubectl::Kubectl;
use super::Stand;
use super::space::{PATIENCE, eventually};
use crate::workspace;

const FOLDER: &str = "deploy/examples";
const EXPECTED: &str = "expected.yaml";

#[derive(Deserialize)]
struct Step {
    apply: Vec<String>,
    expect: Vec<String>,
}

/// A pod that is asked, with what it listens on.
#[derive(Clone, Debug)]
struct Pod {
    namespace: String,
    name: String,
    addresses: Vec<String>,
    /// Port and protocol.
    ports: Vec<(u64, String)>,
}

impl Pod {
    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Every example whose pods are made of the test image; those with images of their own have their own command.
pub(super) fn do_as_they_say(stand: &Stand) -> Result<()> {
    let mut folders: Vec<PathBuf> = fs::read_dir(workspace::root().join(FOLDER))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(EXPECTED).exists())
        .collect();
    folders.sort();
    let mut tried = 0;
    for folder in &folders {
        let Some(example) = Example::read(folder)? else { continue };
        let outcome = example.run(&stand.kubectl);
        example.remove(&stand.kubectl);
        outcome.with_context(|| format!("{}", folder.display()))?;
        tried += 1;
    }
    if tried == 0 {
        bail!("{FOLDER} has no example that can be tried");
    }
    Ok(())
}

struct Example {
    folder: PathBuf,
    steps: Vec<Step>,
    /// Those of the example's objects.
    namespaces: BTreeSet<String>,
    /// Pods in namespaces that are not the example's own.
    guests: Vec<(String, String)>,
}

impl Example {
    /// Reads it; `None` if it needs images that the nodes do not have.
    fn read(folder: &Path) -> Result<Option<Self>> {
        let steps: Vec<Step> = serde_saphyr::from_str(&read(&folder.join(EXPECTED))?)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let (mut namespaces, mut guests) = (BTreeSet::new(), Vec::new());
        for file in steps.iter().flat_map(|step| &step.apply) {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&read(&folder.join(file))?)
                .with_context(|| format!("cannot read {file} of {}", folder.display()))?;
            for object in documents {
                let word =
                    |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
                let image = word("/spec/containers/0/image");
                if word("/kind") != "Pod" && object.pointer("/spec/template").is_some()
                    || !image.is_empty() && image != AGNHOST
                {
                    return Ok(None);
                }
                let namespace = word("/metadata/namespace");
                if namespace.is_empty() {
                    namespaces.insert(word("/metadata/name"));
                } else if word("/kind") == "Pod" && is_systems(&namespace) {
                    guests.push((namespace, word("/metadata/name")));
                }
            }
        }
        Ok(Some(Self { folder: folder.to_owned(), steps, namespaces, guests }))
    }

    fn run(&self, kubectl: &Kubectl) -> Result<()> {
        for (number, step) in (1..).zip(&self.steps) {
            for file in &step.apply {
                let path = self.folder.join(file);
                // A namespace's first pods come before its service account, without which they are refused.
                eventually("the objects", || {
                    kubectl
                        .output(&["apply", "--server-side", "--force-conflicts", "--filename", &path.to_string_lossy()])
                        .map(drop)
                })?;
            }
            let pods = self.pods(kubectl)?;
            let lines = step.expect.iter().map(|line| Line::parse(line)).collect::<Option<Vec<_>>>();
            let lines = lines.with_context(|| format!("step {number} expects what cannot be read"))?;
            eventually("what is expected", || pods.iter().try_for_each(|from| check(kubectl, from, &pods, &lines)))
                .with_context(|| format!("step {number}"))?;
        }
        Ok(())
    }

    /// The pods, once all are ready.
    fn pods(&self, kubectl: &Kubectl) -> Result<Vec<Pod>> {
        let mut found = Vec::new();
        for namespace in &self.namespaces {
            let limit = format!("--timeout={}s", PATIENCE.as_secs());
            let listed = kubectl.get(&["--namespace", namespace, "pods"])?;
            let items = listed["items"].as_array().map_or(0, Vec::len);
            if items == 0 {
                continue;
            }
            kubectl.output(&["--namespace", namespace, "wait", "--for=condition=Ready", "pod", "--all", &limit])?;
            let listed = kubectl.get(&["--namespace", namespace, "pods"])?;
            found.extend(listed["items"].as_array().into_iter().flatten().map(pod));
        }
        Ok(found)
    }

    fn remove(&self, kubectl: &Kubectl) {
        // The cluster goes soon; what is in the way of another example, that says.
        for (namespace, pod) in &self.guests {
            let _ = kubectl.output(&["--namespace", namespace, "delete", "pod", pod, "--wait=false"]);
        }
        for namespace in self.namespaces.iter().filter(|namespace| !is_systems(namespace)) {
            let _ = kubectl.output(&["delete", "namespace", namespace, "--wait=false"]);
        }
    }
}

fn is_systems(namespace: &str) -> bool {
    namespace == "default" || namespace.starts_with("kube-")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn pod(object: &Value) -> Pod {
    let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    Pod {
        namespace: word("/metadata/namespace"),
        name: word("/metadata/name"),
        addresses: list("/status/podIPs").iter().filter_map(|one| one["ip"].as_str().map(str::to_owned)).collect(),
        ports: list("/spec/containers/0/ports")
            .iter()
            .filter_map(|port| Some((port["containerPort"].as_u64()?, protocol(port))))
            .collect(),
    }
}

/// Asks one pod about all others, by each of their addresses.
fn check(kubectl: &Kubectl, from: &Pod, pods: &[Pod], lines: &[Line]) -> Result<()> {
    let (mut script, mut questions) = (String::new(), Vec::new());
    for to in pods.iter().filter(|to| to.full_name() != from.full_name()) {
        for (port, protocol) in to.ports.iter().filter(|(_, protocol)| protocol != "SCTP") {
            let expected = expected(lines, &from.full_name(), &to.full_name(), &format!("{port}/{protocol}"));
            for address in &to.addresses {
                let address = if address.contains(':') { format!("[{address}]") } else { address.clone() };
                script.push_str(&format!(
                    "/agnhost connect '{address}:{port}' --timeout=1s --protocol={} >/dev/null 2>&1 && echo yes || echo no\n",
                    protocol.to_lowercase()
                ));
                questions.push((format!("{} -> {address}:{port} {protocol}", to.full_name()), expected));
            }
        }
    }
    if questions.is_empty() {
        return Ok(());
    }
    let said = kubectl.output(&["--namespace", &from.namespace, "exec", &from.name, "--", "sh", "-c", &script])?;
    if said.lines().count() != questions.len() {
        bail!("{} was asked {} questions and said: {said}", from.full_name(), questions.len());
    }
    for (answer, (question, expected)) in said.lines().zip(questions) {
        if (answer == "yes") != expected {
            let outcome = if expected { "does not reach" } else { "reaches" };
            bail!("{} {outcome} {question}", from.full_name());
        }
    }
    Ok(())
}

fn expected(lines: &[Line], from: &str, to: &str, port: &str) -> bool {
    lines.iter().rev().find(|line| line.covers(from, to, port)).is_none_or(|line| line.allowed)
}

/// A line of what is expected.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    allowed: bool,
    from: String,
    to: String,
    /// `PORT/PROTOCOL`; every port otherwise.
    port: Option<String>,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (verdict, rest) = line.split_once(' ')?;
        let allowed = match verdict {
            "allow" => true,
            "deny" => false,
            _ => return None,
        };
        let (from, rest) = rest.split_once(" -> ")?;
        let (to, port) = rest.split_once(" : ").map_or((rest, None), |(to, port)| (to, Some(port)));
        let port = port.map(|port| if port.contains('/') { port.to_owned() } else { format!("{port}/TCP") });
        Some(Self { allowed, from: from.to_owned(), to: to.to_owned(), port })
    }

    fn covers(&self, from: &str, to: &str, port: &str) -> bool {
        let matches = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        };
        matches(&self.from, from) && matches(&self.to, to) && self.port.as_ref().is_none_or(|wanted| wanted == port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_covers_a_question_answers_it() {
        let lines = ["deny a/x -> *", "allow a/x -> b/* : 53/UDP", "deny * -> c/z : 80"]
            .map(|line| Line::parse(line).expect("a line"));
        let rows = [
            ("a/y", "b/y", "80/TCP", true, "nothing is said of it"),
            ("a/x", "b/y", "80/TCP", false, "by the first line"),
            ("a/x", "b/y", "53/UDP", true, "by the second, which is more"),
            ("a/x", "b/y", "53/TCP", false, "another protocol"),
            ("d/d", "c/z", "80/TCP", false, "a port is of TCP unless it says more"),
        ];
        for (from, to, port, answer, message) in rows {
            assert_eq!(expected(&lines, from, to, port), answer, "{message}");
        }
        assert_eq!(Line::parse("perhaps a -> b"), None);
    }
}
