//! The examples of `deploy/examples`: what each allows and denies stands beside it, and `portcullis matrix` and `explain`
//! must say the same, by both engines.
//!
//! A folder is an example if it has an `expected.yaml`: steps, each with the files that are applied on top of those before
//! (objects of the same name are replaced), and what is expected then. It begins with everything allowed; each line changes a
//! part, the last one wins: `deny NAMESPACE/POD -> NAMESPACE/* : 80/TCP`, where `*` stands for all pods, no port for all
//! ports, and an address for a host outside the cluster. Pods' ways to themselves are not asked about.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    apply: Vec<String>,
    expect: Vec<String>,
}

#[derive(Deserialize)]
struct Kustomization {
    resources: Vec<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")
}

fn examples() -> Vec<PathBuf> {
    let folders = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut examples: Vec<PathBuf> = folders.filter(|path| path.join("expected.yaml").exists()).collect();
    examples.sort();
    assert!(examples.len() > 10, "{examples:?}");
    examples
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The objects of a cluster, and what its own components would add to them.
#[derive(Default)]
struct Cluster {
    objects: BTreeMap<[String; 3], Value>,
    /// Pods in the order of their first appearance, which their addresses follow.
    pods: Vec<String>,
}

impl Cluster {
    fn apply(&mut self, mut object: Value) {
        let key = ["/kind", "/metadata/namespace", "/metadata/name"].map(|field| text(&object, field).to_owned());
        match key[0].as_str() {
            "StatefulSet" => return self.apply(first_pod(&object)),
            "Pod" => self.run(&mut object),
            // As the API server does.
            "Namespace" => {
                object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(key[2]);
            }
            _ => {}
        }
        self.objects.insert(key, object);
    }

    /// Gives a pod what a kubelet would.
    fn run(&mut self, pod: &mut Value) {
        let name = format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        if !self.pods.contains(&name) {
            self.pods.push(name.clone());
        }
        let number = 1 + self.pods.iter().position(|known| *known == name).unwrap();
        let (v4, v6) = (format!("10.244.0.{number}"), format!("fd00::{number:x}"));
        pod["status"] = json!({"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]});
    }

    fn write(&self, folder: &Path) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": self.objects.values().collect::<Vec<_>>()});
        fs::write(folder.join("objects.json"), list.to_string()).unwrap();
    }
}

/// What a StatefulSet's controller makes of it.
fn first_pod(set: &Value) -> Value {
    let mut pod = set["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["namespace"] = set["metadata"]["namespace"].clone();
    pod["metadata"]["name"] = json!(format!("{}-0", text(set, "/metadata/name")));
    pod
}

/// From, to, port/protocol.
type Question = (String, String, String);

fn ask(manifests: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .arg("--manifests")
        .arg(manifests)
        .args(["--output", "json"])
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{complaint}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every verdict of `portcullis matrix`. Both families must agree.
fn matrix(manifests: &Path, engine: &str) -> BTreeMap<Question, String> {
    let mut verdicts = BTreeMap::new();
    for entry in ask(manifests, &["matrix", "--engine", engine])["entries"].as_array().unwrap() {
        let field = |name: &str| text(entry, &format!("/{name}")).to_owned();
        if field("from") == field("to") {
            continue;
        }
        let question = (field("from"), field("to"), format!("{}/{}", entry["port"], field("protocol")));
        let before = verdicts.insert(question.clone(), field("verdict"));
        assert!(before.is_none_or(|before| before == field("verdict")), "{question:?}: families differ");
    }
    verdicts
}

/// A line of what is expected.
struct Line<'a> {
    verdict: &'a str,
    from: &'a str,
    to: &'a str,
    port: Option<String>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (verdict, rest) = line.split_once(' ').filter(|(verdict, _)| ["allow", "deny"].contains(verdict))?;
        let (from, rest) = rest.split_once(" -> ")?;
        let (to, port) = rest.split_once(" : ").map_or((rest, None), |(to, port)| (to, Some(port)));
        let port = port.map(|port| if port.contains('/') { port.to_owned() } else { format!("{port}/TCP") });
        Some(Self { verdict, from, to, port })
    }

    fn covers(&self, (from, to, port): &Question) -> bool {
        let matches = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(namespace) => name.starts_with(namespace),
            None => pattern == name,
        };
        matches(self.from, from) && matches(self.to, to) && self.port.as_ref().is_none_or(|wanted| wanted == port)
    }

    fn is_about_outside(&self) -> bool {
        [self.from, self.to].iter().any(|party| party.parse::<std::net::IpAddr>().is_ok())
    }

    /// What `portcullis explain` says, of the port that the line names or of each that the pod has.
    fn explained(&self, manifests: &Path, ports: &BTreeSet<String>) -> Vec<String> {
        let ports = self.port.clone().map_or_else(|| ports.clone(), |port| BTreeSet::from([port]));
        let verdict = |port: &String| {
            let answer = ask(manifests, &["explain", "--from", self.from, "--to", self.to, "--port", port]);
            text(&answer, "/answers/0/verdict").to_owned()
        };
        ports.iter().map(verdict).collect()
    }
}

/// Runs one step, and returns what was not as expected.
fn check(manifests: &Path, expect: &[String]) -> Vec<String> {
    let verdicts = matrix(manifests, "evaluator");
    assert_eq!(verdicts, matrix(manifests, "tables"), "the engines differ");
    let lines: Vec<Line<'_>> =
        expect.iter().map(|line| Line::parse(line).unwrap_or_else(|| panic!("cannot read {line:?}"))).collect();
    let mut wrong = Vec::new();
    for (line, text) in lines.iter().zip(expect) {
        if line.is_about_outside() {
            let ports = verdicts.keys().filter(|(_, to, _)| *to == line.to).map(|(_, _, port)| port.clone()).collect();
            let ports = if line.from.contains('/') { BTreeSet::from(["443/TCP".to_owned()]) } else { ports };
            let said = line.explained(manifests, &ports);
            if said.is_empty() || said.iter().any(|said| said != line.verdict) {
                wrong.push(format!("{text}: explain says {said:?}"));
            }
        } else if !verdicts.keys().any(|question| line.covers(question)) {
            wrong.push(format!("{text}: there are no such pods or ports"));
        }
    }
    for (question, verdict) in &verdicts {
        let expected = lines.iter().rev().find(|line| line.covers(question)).map_or("allow", |line| line.verdict);
        if verdict != expected {
            wrong.push(format!("{question:?}: {verdict}, expected {expected}"));
        }
    }
    wrong
}

#[test]
fn every_example_allows_and_denies_what_it_says() {
    let mut wrong = Vec::new();
    for example in examples() {
        let mut cluster = Cluster::default();
        let steps: Vec<Step> = read(&example.join("expected.yaml"));
        for (number, step) in (1..).zip(&steps) {
            step.apply.iter().flat_map(|file| documents(&example.join(file))).for_each(|object| cluster.apply(object));
            let manifests = tempfile::tempdir().unwrap();
            cluster.write(manifests.path());
            let name = example.file_name().unwrap().to_string_lossy();
            wrong.extend(
                check(manifests.path(), &step.expect).iter().map(|what| format!("{name}, step {number}: {what}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `kubectl apply -k` applies all but what comes later (`then-`) or is for clusters without (`stand-in`), and what is
/// expected is about all files.
#[test]
fn a_kustomization_names_every_file_of_its_example() {
    for example in examples() {
        let steps: Vec<Step> = read(&example.join("expected.yaml"));
        let kustomization: Kustomization = read(&example.join("kustomization.yaml"));
        let applied: BTreeSet<String> = steps.into_iter().flat_map(|step| step.apply).collect();
        let own = |name: &&String| !name.starts_with("../");
        let files: BTreeSet<String> = fs::read_dir(&example)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !["expected.yaml", "kustomization.yaml"].contains(&name.as_str()))
            .collect();
        assert_eq!(applied.iter().filter(own).cloned().collect::<BTreeSet<_>>(), files, "{}", example.display());
        let at_once = files.iter().filter(|name| !name.starts_with("then-") && !name.starts_with("stand-in"));
        let resources: BTreeSet<&String> = kustomization.resources.iter().filter(own).collect();
        assert_eq!(resources, at_once.collect(), "{}", example.display());
    }
}

#[test]
fn a_wrong_expectation_is_noticed() {
    let mut cluster = Cluster::default();
    documents(&folder().join("limit-to-app/pods.yaml")).into_iter().for_each(|object| cluster.apply(object));
    let manifests = tempfile::tempdir().unwrap();
    cluster.write(manifests.path());
    let rows = [
        ("deny * -> limit-to-app/api", "denied by nobody"),
        ("allow nobody/nowhere -> limit-to-app/api", "no such pod"),
        ("allow limit-to-app/api -> limit-to-app/frontend : 81", "no such port"),
        ("deny 203.0.113.9 -> limit-to-app/api", "denied by nobody, from outside"),
    ];
    for (line, message) in rows {
        assert!(!check(manifests.path(), &[line.to_owned()]).is_empty(), "{message}: {line}");
    }
    assert_eq!(check(manifests.path(), &[]), Vec::<String>::new(), "everything is allowed");
}
