//! A cluster to test on: the testbed, one folder of manifests, and an agent on each node.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portcullis_testbed::{
    Masquerade, Outcome, Pod, PodOptions, Probe, Protocol, Service, Shape, Testbed, TestbedOptions, probe_all,
};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::manifests::{self, Labels, Manifests, split};
use crate::table::{Port, Table, show_port};

/// Long enough for any answer on an idle machine: those that do not come in time are asked for again.
const FIRST_TIMEOUT: Duration = Duration::from_millis(300);
/// Long enough for any answer on a busy machine, and for three SYNs.
const SECOND_TIMEOUT: Duration = Duration::from_secs(5);

/// What to build.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) bed: TestbedOptions,
    /// Pods and the numbers of their nodes.
    pub(crate) pods: Vec<(&'static str, usize)>,
    /// What each of them serves.
    pub(crate) ports: Vec<Port>,
    /// Whose connections to Services are masqueraded.
    pub(crate) masquerade: Masquerade,
    /// Whether Services have manifests. Without them the agents know only the range of their addresses.
    pub(crate) known_services: bool,
    /// Whether agents run.
    pub(crate) agents: bool,
    /// Further arguments of the agents.
    pub(crate) arguments: Vec<String>,
}

impl Plan {
    /// Pods that serve TCP and UDP on 80, and agents.
    pub(crate) fn new(shape: Shape, pods: &[(&'static str, usize)]) -> Self {
        Self {
            bed: TestbedOptions::shaped(shape),
            pods: pods.to_vec(),
            ports: vec![(Protocol::Tcp, 80), (Protocol::Udp, 80)],
            masquerade: Masquerade::FromOutsidePods,
            known_services: true,
            agents: true,
            arguments: Vec::new(),
        }
    }
}

/// A cluster, with a Service in front of each pod. Everything goes when it is dropped.
pub(crate) struct LiveCluster {
    // Agents go before the namespaces that they run in.
    pub(crate) agents: Vec<Agent>,
    pub(crate) manifests: Manifests,
    pods: BTreeMap<String, Pod>,
    ports: Vec<Port>,
    vips: BTreeMap<String, Vec<IpAddr>>,
    fences: Cell<u32>,
    /// Without br_netfilter a Service between pods of one bridge does not work, agent or not.
    bridged_around_services: bool,
    known_services: bool,
    /// Holds the agents' sockets.
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) bed: Testbed,
}

impl LiveCluster {
    pub(crate) fn new(plan: &Plan) -> Self {
        let bed = Testbed::new(plan.bed.clone()).unwrap();
        let mut pods = BTreeMap::new();
        for &(name, node) in &plan.pods {
            let options = PodOptions { ports: plan.ports.clone(), ..PodOptions::default() };
            pods.insert(name.to_owned(), bed.add_pod(node, name, options).unwrap());
        }
        // A pod on each node whose policies tell how far its agent has come.
        for node in bed.nodes() {
            let name = format!("fence/{}", node.name());
            let pod = bed.add_pod(node.index(), &name, PodOptions::default()).unwrap();
            pods.insert(name, pod);
        }
        let vips: BTreeMap<String, Vec<IpAddr>> =
            pods.iter().enumerate().map(|(at, (name, pod))| (name.clone(), cluster_addresses(at, pod))).collect();
        let services = pods.iter().flat_map(|(name, pod)| {
            let vips = &vips[name];
            plan.ports.iter().map(move |&(protocol, port)| Service {
                vips: vips.clone(),
                masquerade: plan.masquerade,
                ..Service::new(&format!("{name}-{protocol}-{port}"))
                    .port(protocol, service_port(port))
                    .backend(pod, port)
            })
        });
        // Without any, no rule makes the nodes track connections.
        let services: Vec<Service> = services.collect();
        if !services.is_empty() {
            bed.services(services).unwrap();
        }
        let scratch = tempfile::tempdir().unwrap();
        let bridged_around_services = plan.bed.shape == Shape::Bridged && !plan.bed.br_netfilter;
        let manifests = Manifests::new();
        let mut cluster = Self {
            bed,
            manifests,
            agents: Vec::new(),
            pods,
            ports: plan.ports.clone(),
            vips,
            fences: Cell::new(0),
            bridged_around_services,
            known_services: plan.known_services,
            scratch,
        };
        cluster.write_base(plan.known_services);
        if plan.agents {
            cluster.start_agents(&plan.arguments, &[]);
        }
        cluster
    }

    /// Starts an agent on each node, with these policies to begin with.
    pub(crate) fn start_agents(&mut self, arguments: &[String], policies: &[Value]) {
        self.start_first_agents(self.bed.nodes().len(), arguments, policies);
    }

    /// Starts agents on the first nodes alone. On an emulated machine it takes a while until the verifier has seen the
    /// programs of one.
    pub(crate) fn start_first_agents(&mut self, count: usize, arguments: &[String], policies: &[Value]) {
        self.prepare_first_agents(count, arguments, policies);
        self.agents.iter_mut().for_each(Agent::spawn);
        for agent in &self.agents {
            agent.await_ready();
        }
    }

    /// Like [`Self::start_first_agents`], and starts none.
    pub(crate) fn prepare_first_agents(&mut self, count: usize, arguments: &[String], policies: &[Value]) {
        self.write_policies(policies);
        for node in &self.bed.nodes()[..count] {
            self.agents.push(Agent::new(node, self.manifests.path(), self.scratch.path(), arguments));
        }
    }

    fn write_base(&self, known_services: bool) {
        let nodes: Vec<Value> = self.bed.nodes().iter().map(manifests::node).collect();
        self.manifests.write("nodes", &nodes);
        let mut services = Vec::new();
        for (name, pod) in &self.pods {
            let ports: Vec<_> =
                self.ports.iter().map(|&(protocol, port)| (protocol, service_port(port), port)).collect();
            if known_services && !ports.is_empty() {
                services.extend(manifests::service(name, &self.vips[name], &ports, std::slice::from_ref(pod)));
            }
        }
        self.manifests.write("services", &services);
        self.label(&BTreeMap::new(), &BTreeMap::new());
    }

    /// Gives namespaces and pods these labels beyond their own, and no other.
    pub(crate) fn label(&self, namespaces: &BTreeMap<String, Labels>, pods: &BTreeMap<String, Labels>) {
        let names: BTreeSet<&str> = self.pods.keys().map(|pod| split(pod).0).collect();
        let objects: Vec<Value> = names.iter().map(|name| manifests::namespace(name, namespaces.get(*name))).collect();
        self.manifests.write("namespaces", &objects);
        let objects: Vec<Value> =
            self.pods.iter().map(|(name, pod)| manifests::pod(pod, &self.ports, pods.get(name))).collect();
        self.manifests.write("pods", &objects);
    }

    /// Ends agents and clients, and leaves the testbed.
    pub(crate) fn into_bed(self) -> Testbed {
        let Self { bed, agents, pods, .. } = self;
        drop((agents, pods));
        bed
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.pods.get(name).unwrap_or_else(|| panic!("there is no pod {name}"))
    }

    /// The cluster address of a pod's Service, of one family.
    pub(crate) fn vip(&self, name: &str, v4: bool) -> IpAddr {
        *self.vips[name].iter().find(|address| address.is_ipv4() == v4).unwrap()
    }

    /// Installs a Service on every node and writes its manifest. It has the given backends, on the target port.
    pub(crate) fn expose(&self, service: Service, target: u16, backends: &[&Pod]) {
        self.expose_all(vec![(service, target, backends.to_vec())]);
    }

    /// Like [`Self::expose`], for many, which takes the nodes no longer than for one.
    pub(crate) fn expose_all(&self, services: Vec<(Service, u16, Vec<&Pod>)>) {
        let services = services.into_iter().map(|(service, target, backends)| {
            let service = backends.iter().fold(service, |service, pod| service.backend(pod, target));
            let pods: Vec<Pod> = backends.into_iter().cloned().collect();
            let name = service.name.replace('/', "-");
            let ports = [(service.protocol, service.port, target)];
            let mut objects = manifests::service(&service.name, &service.vips, &ports, &pods);
            if let Some(node_port) = service.node_port {
                objects[0]["spec"]["type"] = "NodePort".into();
                objects[0]["spec"]["externalTrafficPolicy"] = format!("{:?}", service.external_traffic_policy).into();
                objects[0]["spec"]["ports"][0]["nodePort"] = node_port.into();
            }
            if self.known_services {
                self.manifests.write(&format!("service-{name}"), &objects);
            }
            service
        });
        self.bed.services(services.collect::<Vec<Service>>()).unwrap();
    }

    /// Makes these policies the only ones, and waits until every agent enforces them.
    pub(crate) fn enforce(&self, policies: &[Value]) {
        let fence = self.write_policies(policies);
        self.await_fence(&fence);
    }

    /// Makes these policies the only ones, and returns the name of one more by which it can be seen that they are in
    /// force.
    pub(crate) fn write_policies(&self, policies: &[Value]) -> String {
        self.fences.set(self.fences.get() + 1);
        let fence = format!("fence-{}", self.fences.get());
        let mut policies = policies.to_vec();
        policies.push(manifests::policy("fence", &fence, &json!({"podSelector": {}, "ingress": [{}]})));
        self.manifests.write("policies", &policies);
        fence
    }

    /// Waits until every agent enforces what was written no later than this fence: it has a series in `/metrics` while
    /// it selects a pod of the node.
    pub(crate) fn await_fence(&self, fence: &str) {
        for agent in &self.agents {
            agent.await_metrics(fence, |samples| samples.iter().any(|sample| sample.has(&[("policy_name", fence)])));
        }
    }

    /// Whether every agent enforces what was written no later than this fence.
    pub(crate) fn has_passed(&self, fence: &str) -> bool {
        self.agents.iter().all(|agent| agent.metrics().iter().any(|sample| sample.has(&[("policy_name", fence)])))
    }

    /// Asks for every cell of a table, at the Service's and the pod's addresses of both families, and describes what is
    /// wrong. As in the upstream suite, a wrong cell is asked for once more; here only one that was not answered, since
    /// the policies are known to be in force, and nothing but a busy machine can excuse it.
    pub(crate) fn check(&self, table: &Table) -> Vec<String> {
        let mut cells: Vec<(String, bool, Probe)> = Vec::new();
        for cell in table.cells() {
            let (from, to, (protocol, port)) = &cell;
            let allowed = table.allows(&cell);
            for address in self.pod(to).addresses() {
                let vip = self.vip(to, address.is_ipv4());
                let one_bridge = self.pod(from).node().index() == self.pod(to).node().index();
                let services_work = !(self.bridged_around_services && one_bridge);
                for (route, address, port) in [("service", vip, service_port(*port)), ("pod", address, *port)] {
                    if route == "service" && !services_work {
                        continue;
                    }
                    let what = format!(
                        "{from} -> {to} {} by {route} address {address} port {port}",
                        show_port((*protocol, cell.2.1))
                    );
                    let probe = Probe::new(self.pod(from), address, *protocol, port).timeout(FIRST_TIMEOUT);
                    cells.push((what, allowed, probe));
                }
            }
            assert!(self.ports.contains(&cell.2), "{to} does not serve {}", show_port(cell.2));
        }
        // Outcomes by the name of the one who shall answer.
        let ask = |cells: &[(String, bool, Probe)]| {
            let probes: Vec<Probe> = cells.iter().map(|(_, _, probe)| probe.clone()).collect();
            probe_all(&probes)
        };
        let mut wrong = Vec::new();
        let mut late = Vec::new();
        for ((what, allowed, probe), outcome) in cells.iter().zip(ask(&cells)) {
            match (allowed, &outcome) {
                (true, Outcome::Answered(name)) if what.contains(&format!("-> {name} ")) => {}
                (false, Outcome::Timeout) => {}
                (true, Outcome::Timeout) => late.push((what.clone(), true, probe.clone().timeout(SECOND_TIMEOUT))),
                _ => wrong.push(describe(what, *allowed, &outcome)),
            }
        }
        for ((what, allowed, _), outcome) in late.iter().zip(ask(&late)) {
            if !matches!(&outcome, Outcome::Answered(name) if what.contains(&format!("-> {name} "))) {
                wrong.push(describe(what, *allowed, &outcome));
            }
        }
        wrong
    }
}

fn describe(what: &str, allowed: bool, outcome: &Outcome) -> String {
    let expected = if allowed { "an answer" } else { "no answer" };
    format!("{what}: expected {expected}, got {outcome:?}")
}

/// The Service's port for a port of the pod: 80 and 81 stand for each other, so that an agent which judges the port
/// before translation is wrong in every scenario about ports.
pub(crate) fn service_port(port: u16) -> u16 {
    match port {
        80 => 81,
        81 => 80,
        other => other + 10_000,
    }
}

/// Addresses for the `at`th Service, of the families that its pod has.
fn cluster_addresses(at: usize, pod: &Pod) -> Vec<IpAddr> {
    let last = u8::try_from(10 + at).unwrap();
    let v4 = pod.v4().is_ok().then_some(IpAddr::from([10, 0, 0, last]));
    let v6 = pod.v6().is_ok().then_some(IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(last)]));
    v4.into_iter().chain(v6).collect()
}
