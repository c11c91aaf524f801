//! `cargo xtask cluster demo`: AKS's tutorial on network policy, with the real Dgraph and its Python client in pods, by
//! `kubectl` alone.

mod images;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::kubectl::Kubectl;
use super::trials::eventually;
use crate::{demo, workspace};

pub(super) use images::ensure as ensure_images;

/// What is applied, with what comes after it.
const EXAMPLE: &str = "deploy/examples/tutorial";
const POLICY: &str = "then-policy.yaml";
const LABELS: &str = "then-labels.yaml";

const DATABASE: &str = "dgraph";
const CLIENT: &str = "pydgraph-client";
/// How long the client waits for an answer.
const SECONDS: &str = "5";

/// The client's program in its image.
const PROGRAM: &str = "/client.py";

/// How the client is answered by HTTP and by gRPC.
struct Answers([(String, String); 2]);

impl Answers {
    fn are(&self, outcome: &str) -> bool {
        self.0.iter().all(|(answer, _)| answer == outcome)
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [http, grpc] = &self.0;
        write!(formatter, "HTTP: {} {}; gRPC: {} {}", http.0, http.1, grpc.0, grpc.1)
    }
}

/// What the demo needs built: Dgraph's program, and a Python with pydgraph.
pub(super) fn ensure_programs() -> Result<(PathBuf, PathBuf)> {
    let folder = workspace::Metadata::read()?.target_directory()?.join("demo");
    Ok((demo::dgraph::ensure(&folder)?, demo::pydgraph::ensure(&folder)?))
}

/// Runs the tutorial's tests one after the other.
pub(super) fn run(kubectl: &Kubectl) -> Result<()> {
    let example = workspace::root().join(EXAMPLE);
    let namespaces = [DATABASE, CLIENT];
    for namespace in namespaces {
        kubectl.output(&["delete", "namespace", namespace, "--ignore-not-found", "--wait"])?;
    }
    // Namespaces first, so that a list that begins with something else finds them.
    kubectl.output(&["create", "namespace", DATABASE])?;
    kubectl.output(&["apply", "--server-side", "--force-conflicts", "--kustomize", &example.display().to_string()])?;
    let outcome = tests(kubectl, &example);
    for namespace in namespaces {
        kubectl.output(&["delete", "namespace", namespace, "--wait=false"])?;
    }
    outcome
}

fn tests(kubectl: &Kubectl, example: &Path) -> Result<()> {
    for (namespace, what) in [(DATABASE, "statefulset/dgraph-zero"), (DATABASE, "statefulset/dgraph-alpha")] {
        kubectl.output(&["--namespace", namespace, "rollout", "status", what, "--timeout=180s"])?;
    }
    kubectl.output(&["--namespace", CLIENT, "wait", "--for=condition=Ready", "pod/client", "--timeout=120s"])?;
    let service: Value = kubectl.get(&["--namespace", DATABASE, "service", "dgraph-alpha"])?;
    let address = service["spec"]["clusterIP"].as_str().context("dgraph-alpha has no address")?.to_owned();
    let apply = |file: &str| {
        kubectl.output(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--filename",
            &example.join(file).display().to_string(),
        ])
    };

    expect(kubectl, &address, "Test 0, no policy: data is loaded", "load", "answered")?;
    expect(kubectl, &address, "Test 0, no policy: the client is answered", "count", "answered")?;
    apply(POLICY)?;
    expect(kubectl, &address, "Test 1, policy: the client gets no answer", "count", "timeout")?;
    apply(LABELS)?;
    expect(kubectl, &address, "Test 2, labels on the client's namespace: it is answered again", "count", "answered")
}

/// A change may take a moment to be everywhere.
fn expect(kubectl: &Kubectl, address: &str, what: &str, action: &str, outcome: &str) -> Result<()> {
    let mut last = None;
    eventually(what, || {
        let answers = ask(kubectl, address, action)?;
        let fits = answers.are(outcome);
        let text = answers.to_string();
        last = Some(answers);
        if fits { Ok(()) } else { bail!("{text}") }
    })?;
    if let Some(answers) = last {
        eprintln!("  {what}\n      {answers}");
    }
    Ok(())
}

fn ask(kubectl: &Kubectl, address: &str, action: &str) -> Result<Answers> {
    let said = kubectl.output(&[
        "--namespace",
        CLIENT,
        "exec",
        "client",
        "--",
        "python3",
        PROGRAM,
        address,
        SECONDS,
        action,
    ])?;
    let report: Value = serde_json::from_str(&said).with_context(|| format!("the client said: {said}"))?;
    let answer = |port: &str| {
        let word = |name: &str| report[port][name].as_str().unwrap_or_default().to_owned();
        (word("outcome"), word("detail"))
    };
    Ok(Answers([answer("http"), answer("grpc")]))
}
