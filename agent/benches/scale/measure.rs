//! One cluster: written, watched by an agent, changed; what that cost.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_testbed::{Families, Node, PodOptions, Testbed, TestbedOptions};
use serde_json::{Value, json};

use crate::agent::{Agent, Memory};
use crate::api::{Api, Write};
use crate::objects::{self, Size};
use crate::{Arguments, Result};

/// Pods of a minute, while pods come and go.
const PODS_A_MINUTE: u32 = 1000;
/// Between two changes of which each is waited for: the one before has settled.
const APART: Duration = Duration::from_millis(300);
/// How long nothing happens, so that what idleness costs is known.
const IDLE: Duration = Duration::from_secs(10);
/// Pods that stand at a time, of those that come and go.
const STANDING: u32 = 100;

/// What was measured of one cluster.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) size: Size,
    pub(crate) written_seconds: f64,
    pub(crate) sync_seconds: f64,
    pub(crate) sync_cpu: f64,
    pub(crate) compile_cpu: f64,
    pub(crate) greatest: Memory,
    pub(crate) synced: Memory,
    pub(crate) churned: Memory,
    pub(crate) map_kib: u64,
    pub(crate) idle_cpu: f64,
    pub(crate) changes: Vec<Changes>,
    pub(crate) churn: Churn,
    pub(crate) entries: Value,
}

/// Changes of one kind, one after another.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) what: &'static str,
    /// Milliseconds from the server's acknowledgement until endpoints were switched over.
    pub(crate) switched: Vec<f64>,
    /// Milliseconds from the server's acknowledgement to the last write.
    pub(crate) since_acknowledged: Vec<f64>,
    /// Milliseconds from the event to the last write, as the agent tells.
    pub(crate) since_heard: Vec<f64>,
    /// Seconds of CPU for each change, without what idleness costs.
    pub(crate) cpu: f64,
    /// Changes that were not in force within ten seconds.
    pub(crate) missed: usize,
}

/// Pods that come and go.
#[derive(Debug)]
pub(crate) struct Churn {
    pub(crate) pods: u32,
    pub(crate) seconds: f64,
    /// Seconds of CPU for each pod that came and went, without what idleness costs.
    pub(crate) cpu: f64,
    /// Milliseconds of every pass, as the agent tells.
    pub(crate) passes: Vec<f64>,
}

/// Makes a cluster of this size and measures an agent in it.
pub(crate) fn run(size: Size, arguments: &Arguments, binaries: &Path) -> Result<Figures> {
    let options = TestbedOptions { nodes: 1, families: Families::V4, ..TestbedOptions::default() };
    let bed = Testbed::new(options)?;
    for number in 0..size.local {
        let (namespace, name) = objects::local_name(&size, number);
        bed.add_pod(0, &format!("{namespace}/{name}"), PodOptions::default())?;
    }
    eprintln!("{} pods stand on the node; the cluster is written", size.local);
    let begun = Instant::now();
    let api = written(&bed, size, arguments, binaries)?;
    let written_seconds = begun.elapsed().as_secs_f64();
    eprintln!("written after {written_seconds:.0} s; the agent starts");
    measure(&api, bed.node(0), size, arguments, written_seconds)
}

/// An API server that has the cluster.
fn written(bed: &Testbed, size: Size, arguments: &Arguments, binaries: &Path) -> Result<Api> {
    let kept = arguments.keep.as_ref().map(|folder| {
        let Size { pods, policies, nodes, local } = size;
        folder.join(format!("etcd-{pods}-{policies}-{nodes}-{local}"))
    });
    if let Some(kept) = kept.as_ref().filter(|kept| kept.exists()) {
        return Api::start(bed.node(0), binaries, Some(kept));
    }
    let mut api = Api::start(bed.node(0), binaries, None)?;
    write(&api, bed, size)?;
    if let (Some(kept), Some(folder)) = (kept, &arguments.keep) {
        std::fs::create_dir_all(folder)?;
        api.keep(&kept)?;
    }
    Ok(api)
}

fn pods_at(object: &Value) -> String {
    format!("/api/v1/namespaces/{}/pods", object["metadata"]["namespace"].as_str().unwrap_or_default())
}

fn write(api: &Api, bed: &Testbed, size: Size) -> Result<()> {
    let namespaced = |group: &str, kind: &str, object: Value| {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        Write::create(format!("{group}/namespaces/{namespace}/{kind}"), object)
    };
    api.ask_all((0..size.namespaces()).map(|n| Write::create("/api/v1/namespaces", objects::namespace(n))))?;
    api.ask_all((0..size.nodes).map(|n| Write::create("/api/v1/nodes", objects::node(n))))?;
    api.ask(&Write::create("/api/v1/nodes", own_node(bed.node(0))?))?;
    api.ask_all((0..size.services()).map(|n| namespaced("/api/v1", "services", objects::service(&size, n))))?;
    let slices = (0..size.services()).map(|n| objects::slice(&size, n));
    api.ask_all(slices.map(|slice| namespaced("/apis/discovery.k8s.io/v1", "endpointslices", slice)))?;
    let policies = (0..size.policies).map(|n| objects::policy(&size, n, 8000));
    api.ask_all(policies.map(|policy| namespaced("/apis/networking.k8s.io/v1", "networkpolicies", policy)))?;
    let addresses: Vec<String> = bed.pods().iter().map(|pod| Ok(pod.v4()?.to_string())).collect::<Result<_>>()?;
    let node = bed.node(0).name();
    let local = || (0..size.local).zip(&addresses).map(|(n, address)| objects::local_pod(&size, n, node, address));
    let pods = || (0..size.remote()).map(|n| objects::pod(&size, n)).chain(local());
    api.ask_all(pods().map(|pod| Write::create(pods_at(&pod), pod)))?;
    api.ask_all(pods().map(|pod| Write::status(&pods_at(&pod), pod)))
}

fn own_node(node: &Node) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
        "spec": {"podCIDR": node.pod_cidr_v4(), "podCIDRs": [node.pod_cidr_v4()]},
        "status": {"addresses": [{"type": "InternalIP", "address": node.v4()?.to_string()}]},
    }))
}

fn measure(api: &Api, node: &Node, size: Size, arguments: &Arguments, written_seconds: f64) -> Result<Figures> {
    let begun = Instant::now();
    let agent = Agent::spawn(node, &api.kubeconfig()?)?;
    let greatest = agent.await_ready()?;
    let (sync_seconds, sync_cpu) = (begun.elapsed().as_secs_f64(), agent.cpu()?);
    let compiled = agent.said("compiled", Timestamp::MIN).pop().ok_or("the log does not tell of the first compile")?;
    let compile_cpu = compiled.fields["cpu_us"].as_f64().unwrap_or(f64::NAN) / 1e6;
    let enforced = agent.metric("portcullis_endpoints")?.get("{state=\"enforced\"}").copied();
    if enforced != Some(f64::from(size.local)) {
        let said = agent.complaints().join("\n");
        return Err(format!("{enforced:?} of {} pods are enforced:\n{said}", size.local).into());
    }
    eprintln!("in sync after {sync_seconds:.1} s; idle for {} s", IDLE.as_secs());
    std::thread::sleep(Duration::from_secs(3));
    let synced = agent.memory()?;
    let before = agent.cpu()?;
    std::thread::sleep(IDLE);
    let idle_cpu = (agent.cpu()? - before) / IDLE.as_secs_f64();

    let steps = Steps { api, agent: &agent, size, idle_cpu, count: arguments.changes };
    let changes = vec![steps.policies()?, steps.labels()?, steps.pods()?];
    let churn = steps.churn(Duration::from_secs(arguments.churn))?;
    std::thread::sleep(Duration::from_secs(3));
    let churned = agent.memory()?;
    for complaint in agent.complaints().iter().take(5) {
        eprintln!("the agent says: {complaint}");
    }
    let entries = agent.metric("portcullis_table_entries")?;
    Ok(Figures {
        size,
        written_seconds,
        sync_seconds,
        sync_cpu,
        compile_cpu,
        greatest,
        synced,
        churned,
        map_kib: agent.map_memory()?,
        idle_cpu,
        changes,
        churn,
        entries: json!(entries),
    })
}

/// What changes a cluster that an agent watches.
struct Steps<'a> {
    api: &'a Api,
    agent: &'a Agent,
    size: Size,
    idle_cpu: f64,
    count: u32,
}

impl Steps<'_> {
    /// Makes changes one after another and waits until each is in force. Before a change, `prepare` writes what changes
    /// nothing yet.
    fn each(
        &self,
        what: &'static str,
        prepare: impl Fn(u32) -> Option<Write>,
        change: impl Fn(u32) -> Write,
    ) -> Result<Changes> {
        eprintln!("{what}: {}", self.count);
        let (begun, cpu) = (Instant::now(), self.agent.cpu()?);
        let mut changes = Changes {
            what,
            switched: Vec::new(),
            since_acknowledged: Vec::new(),
            since_heard: Vec::new(),
            cpu: 0.0,
            missed: 0,
        };
        for number in 0..self.count {
            if let Some(write) = prepare(number) {
                self.api.ask(&write)?;
                std::thread::sleep(APART);
            }
            let write = change(number);
            let asked = Timestamp::now();
            self.api.ask(&write)?;
            let acknowledged = Timestamp::now();
            match self.agent.await_said("in force", asked) {
                Some(said) => {
                    // The event may be there before the answer.
                    let late = |at: Timestamp| (at.duration_since(acknowledged).as_secs_f64() * 1000.0).max(0.0);
                    // The line before: said when all but what waits for a grace period was written.
                    let written = self.agent.said("tables written", asked).into_iter().find(|line| line.at <= said.at);
                    changes.switched.extend(written.map(|line| late(line.at)));
                    changes.since_acknowledged.push(late(said.at));
                    changes.since_heard.extend(said.fields["took_ms"].as_f64());
                }
                None => changes.missed += 1,
            }
            std::thread::sleep(APART);
        }
        let used = self.agent.cpu()? - cpu - self.idle_cpu * begun.elapsed().as_secs_f64();
        changes.cpu = used / f64::from(self.count.max(1));
        Ok(changes)
    }

    /// Policies of this node's pods change.
    fn policies(&self) -> Result<Changes> {
        let size = self.size;
        let change = |number: u32| {
            let namespaces = size.namespaces();
            let local = number % size.local.min(namespaces).max(1);
            let (namespace, name) = objects::policy_name(&size, 2 * namespaces + local);
            let port = 8001 + u16::try_from(number % 100).unwrap_or(0);
            let spec = objects::policy(&size, 2 * namespaces + local, port)["spec"].take();
            let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}");
            Write::merge(path, json!({"spec": spec}))
        };
        self.each("policies edited", |_| None, change)
    }

    /// Labels of other nodes' pods change, which policies here name.
    fn labels(&self) -> Result<Changes> {
        let change = |number: u32| {
            let pod = objects::pod(&self.size, number / 2 % self.size.remote().max(1));
            let own = &pod["metadata"]["labels"]["app"];
            let app = if number.is_multiple_of(2) { &json!("app-3") } else { own };
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            Write::merge(format!("{}/{name}", pods_at(&pod)), json!({"metadata": {"labels": {"app": app}}}))
        };
        self.each("pods relabelled", |_| None, change)
    }

    /// Pods start elsewhere, which policies here name: what is waited for is their address.
    fn pods(&self) -> Result<Changes> {
        let pod = |number: u32| objects::pod(&self.size, self.later(3, number));
        let prepare = |number: u32| Some(Write::create(pods_at(&pod(number)), pod(number)));
        let changes =
            self.each("pods started", prepare, |number| Write::status(&pods_at(&pod(number)), pod(number)))?;
        for number in 0..self.count {
            self.api.ask(&delete(&pod(number)))?;
        }
        Ok(changes)
    }

    /// The number of a pod of an app that is not there yet.
    fn later(&self, app: u32, number: u32) -> u32 {
        let namespaces = self.size.namespaces();
        let index = (self.size.remote() / namespaces / 10 + 1 + number / namespaces) * 10 + app;
        index * namespaces + number % namespaces
    }

    /// Pods come and go at the pace of a busy cluster, in all namespaces and of all apps.
    fn churn(&self, time: Duration) -> Result<Churn> {
        let pods = (time.as_secs_f64() * f64::from(PODS_A_MINUTE) / 60.0) as u32;
        eprintln!("pods come and go: {pods}");
        let first = self.later(0, 0) + 20 * self.size.namespaces();
        let pod = |number: u32| objects::pod(&self.size, first + number * 7);
        let asked = Timestamp::now();
        let (begun, cpu) = (Instant::now(), self.agent.cpu()?);
        for number in 0..pods + STANDING {
            let due = begun + Duration::from_secs_f64(f64::from(number) * 60.0 / f64::from(PODS_A_MINUTE));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if number < pods {
                let pod = pod(number);
                self.api.ask(&Write::create(pods_at(&pod), pod.clone()))?;
                self.api.ask(&Write::status(&pods_at(&pod), pod))?;
            }
            if number >= STANDING {
                self.api.ask(&delete(&pod(number - STANDING)))?;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let used = self.agent.cpu()? - cpu - self.idle_cpu * seconds;
        let passes = self.agent.said("passed", asked);
        let passes = passes.iter().filter_map(|said| said.fields["took_ms"].as_f64()).collect();
        Ok(Churn { pods, seconds, cpu: used / f64::from(pods.max(1)), passes })
    }
}

fn delete(pod: &Value) -> Write {
    Write::delete(&format!("{}/{}", pods_at(pod), pod["metadata"]["name"].as_str().unwrap_or_default()))
}
