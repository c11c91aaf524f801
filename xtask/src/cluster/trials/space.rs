//! A trial's own namespace, with pods that ask and answer.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::images::AGNHOST;
use super::super::kubectl::Kubectl;
use super::Stand;

/// Where servers answer, by HTTP.
pub(super) const PORT: u16 = 8080;
/// How long the cluster may take for what it is told. Only failures take that long.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// How long a packet that nobody answers is waited for.
const TIMEOUT: &str = "1s";
const LOOK: Duration = Duration::from_millis(200);

/// A namespace, which goes with this value.
pub(super) struct Space<'a> {
    pub(super) name: String,
    kubectl: &'a Kubectl,
}

/// A pod that is wanted.
pub(super) struct PodPlan<'a> {
    pub(super) name: &'a str,
    /// The node's name; any otherwise.
    pub(super) node: Option<&'a str>,
    pub(super) labels: &'a [(&'a str, &'a str)],
    /// A script for the shell; a web server otherwise.
    pub(super) script: Option<String>,
}

impl<'a> PodPlan<'a> {
    pub(super) const fn new(name: &'a str, node: &'a str) -> Self {
        Self { name, node: Some(node), labels: &[], script: None }
    }

    pub(super) const fn labels(mut self, labels: &'a [(&'a str, &'a str)]) -> Self {
        self.labels = labels;
        self
    }

    pub(super) fn script(mut self, script: impl Into<String>) -> Self {
        self.script = Some(script.into());
        self
    }

    /// What a pod's `spec` says, for workloads too.
    pub(super) fn spec(&self) -> Value {
        let server = format!("exec /agnhost netexec --http-port={PORT} --udp-port={PORT}");
        let mut spec = json!({
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main",
                "image": AGNHOST,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", self.script.as_ref().unwrap_or(&server)],
            }],
        });
        if let Some(node) = self.node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        spec
    }

    fn labels_as_json(&self) -> Value {
        self.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
    }
}

/// Who may be reached where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    address: IpAddr,
    port: u16,
}

impl Target {
    pub(super) const fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port }
    }

    pub(super) const fn address(&self) -> IpAddr {
        self.address
    }

    pub(super) const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket().fmt(formatter)
    }
}

impl<'a> Space<'a> {
    pub(super) fn new(stand: &'a Stand, name: &str) -> Result<Self> {
        let kubectl = &stand.kubectl;
        // One of an earlier run may be on its way out.
        kubectl.output(&["delete", "namespace", name, "--ignore-not-found", "--wait"])?;
        kubectl.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
        let space = Self { name: name.to_owned(), kubectl };
        eventually("the service account", || space.output(&["get", "serviceaccount", "default"]).map(drop))?;
        Ok(space)
    }

    /// kubectl in this namespace.
    pub(super) fn output(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl.output(&[&["--namespace", &self.name], arguments].concat())
    }

    pub(super) fn get(&self, arguments: &[&str]) -> Result<Value> {
        self.kubectl.get(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Makes an object in this namespace.
    pub(super) fn apply(&self, mut object: Value) -> Result<()> {
        object["metadata"]["namespace"] = json!(self.name);
        self.kubectl.apply(&object)
    }

    pub(super) fn add_pod(&self, plan: &PodPlan<'_>) -> Result<()> {
        self.apply(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": plan.name, "labels": plan.labels_as_json()},
            "spec": plan.spec(),
        }))
    }

    /// Waits until every pod here is ready.
    pub(super) fn await_pods(&self) -> Result<()> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.output(&["wait", "--for=condition=Ready", "pod", "--all", &limit]).map(drop)
    }

    /// A Service before the pods with these labels.
    pub(super) fn add_service(&self, name: &str, selector: &[(&str, &str)]) -> Result<Vec<Target>> {
        let selector: Value = selector.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        self.apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {
                "ipFamilyPolicy": "PreferDualStack",
                "selector": selector,
                "ports": [{"port": 80, "targetPort": PORT}],
            },
        }))?;
        let service = self.get(&["service", name])?;
        addresses(&service, "/spec/clusterIPs", Some).map(|found| targets(found, 80))
    }

    /// The addresses of a pod, both families, at the port of its server.
    pub(super) fn targets_of(&self, pod: &str) -> Result<Vec<Target>> {
        let object = self.get(&["pod", pod])?;
        addresses(&object, "/status/podIPs", |one| one.get("ip")).map(|found| targets(found, PORT))
    }

    /// Runs a script in a pod and returns what it prints.
    pub(super) fn script(&self, pod: &str, script: &str) -> Result<String> {
        self.output(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Whether a pod reaches each of these by TCP now.
    pub(super) fn reaches(&self, pod: &str, targets: &[Target]) -> Result<Vec<bool>> {
        let tries: String = targets
            .iter()
            .map(|target| {
                format!("/agnhost connect '{target}' --timeout={TIMEOUT} >/dev/null 2>&1 && echo yes || echo no\n")
            })
            .collect();
        let said = self.script(pod, &tries)?;
        let answers: Vec<bool> = said.lines().map(|line| line == "yes").collect();
        if answers.len() != targets.len() {
            bail!("{pod} was to try {} addresses and said: {said}", targets.len());
        }
        Ok(answers)
    }

    /// Waits until a pod reaches all of these, or none.
    pub(super) fn expect(&self, pod: &str, targets: &[Target], reached: bool) -> Result<()> {
        eventually("what policy says", || {
            let answers = self.reaches(pod, targets)?;
            match answers.iter().zip(targets).find(|(answer, _)| **answer != reached) {
                Some((_, target)) if reached => bail!("{pod} does not reach {target}"),
                Some((_, target)) => bail!("{pod} reaches {target}, which policy denies"),
                None => Ok(()),
            }
        })
        .with_context(|| format!("in namespace {}", self.name))
    }

    /// The node of a pod.
    pub(super) fn node_of(&self, pod: &str) -> Result<String> {
        self.output(&["get", "pod", pod, "--output=jsonpath={.spec.nodeName}"])
    }

    pub(super) fn logs(&self, pod: &str) -> Result<String> {
        self.output(&["logs", pod])
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        // The cluster goes soon, and what fails here would fail again when the namespace is wanted next.
        let _ = self.kubectl.output(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

fn addresses<'v>(object: &'v Value, list: &str, of: impl Fn(&'v Value) -> Option<&'v Value>) -> Result<Vec<IpAddr>> {
    let listed = object.pointer(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let found: Option<Vec<IpAddr>> = listed.iter().map(|one| of(one)?.as_str()?.parse().ok()).collect();
    found.filter(|found| !found.is_empty()).with_context(|| format!("{list} has no addresses"))
}

fn targets(addresses: Vec<IpAddr>, port: u16) -> Vec<Target> {
    addresses.into_iter().map(|address| Target::new(address, port)).collect()
}

/// Tries until it succeeds; then the last reason.
pub(in super::super) fn eventually(what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what} does not come within {PATIENCE:?}")));
            }
            Err(_) => sleep(LOOK),
        }
    }
}

/// A policy for the pods with these labels, with what its `spec` says beside.
pub(super) fn policy(name: &str, selector: &[(&str, &str)], mut rest: Value) -> Value {
    let labels: Value = selector.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    rest["podSelector"] = json!({"matchLabels": labels});
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": rest,
    })
}
