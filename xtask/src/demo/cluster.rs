//! The demo's cluster: two nodes with an agent each, the database's pods and the client's.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use portcullis_testbed::{
    Pod, PodOptions, Process, Protocol, Shape, Testbed, TestbedOptions, leftovers, leftovers_after,
};
use tempfile::TempDir;

use super::agent::{self, Agent};
use super::manifests::{self, Manifests, NamedPort};
use super::prepare::{Database, Programs};
use super::traffic::{self, Answer, PATIENCE};
use super::{dgraph, pydgraph, tidy};

/// Everything that runs. [`Cluster::remove`] takes it away and says what is left; a drop does what it can.
pub(super) struct Cluster {
    // Dropped in this order: agents are uninstalled while their nodes still are.
    agents: Vec<Agent>,
    database: Vec<Process>,
    pub(super) alpha: Pod,
    pub(super) zero: Pod,
    pub(super) client: Pod,
    pub(super) manifests: Manifests,
    programs: Programs,
    folder: TempDir,
    bed: Option<Testbed>,
}

impl Cluster {
    /// Makes nodes and pods, writes the manifests (no policy yet), and starts the agents and the database.
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let prefix = format!("{}{}-", tidy::PREFIX, std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().context("cannot make a temporary folder")?;
        let bed = Testbed::new(TestbedOptions::shaped(Shape::Routed))?;
        let alpha = bed.add_pod(0, "dgraph/alpha", PodOptions::default())?;
        let client = bed.add_pod(0, "pydgraph-client/client", PodOptions::default())?;
        let zero = bed.add_pod(1, "dgraph/zero", PodOptions::default())?;
        let manifests = Manifests::new(folder.path().join("manifests"))?;
        let mut cluster = Self {
            agents: Vec::new(),
            database: Vec::new(),
            alpha,
            zero,
            client,
            manifests,
            programs: programs.clone(),
            folder,
            bed: Some(bed),
        };
        cluster.write_manifests()?;
        cluster.start_agents()?;
        cluster.start_database()?;
        Ok(cluster)
    }

    fn write_manifests(&self) -> Result<()> {
        let manifests = &self.manifests;
        let database = [("app", "dgraph")];
        manifests.write_nodes(self.bed()?.nodes())?;
        manifests.write_namespace(manifests::DATABASE, &[])?;
        manifests.write_namespace(manifests::CLIENT, &[])?;
        manifests.write_pod(&self.zero, "dgraph/dgraph", &database, &dgraph::ZERO_PORTS)?;
        manifests.write_pod(&self.alpha, "dgraph/dgraph", &database, &dgraph::ALPHA_PORTS)?;
        manifests.write_pod(&self.client, "python", &[("app", "pydgraph-client")], &[])
    }

    fn start_agents(&mut self) -> Result<()> {
        let nodes = self.bed()?.nodes().to_vec();
        for node in &nodes {
            let (manifests, sockets) = (self.manifests.folder(), self.folder.path());
            let agent = Agent::start(&self.programs.agent, node, manifests, tidy::pins_of(node.name()), sockets)?;
            self.agents.push(agent);
        }
        self.agents.iter().try_for_each(Agent::await_ready)
    }

    fn start_database(&mut self) -> Result<()> {
        match &self.programs.database {
            Database::Real { dgraph: program, .. } => {
                let started = dgraph::start(program, &self.zero, &self.alpha, self.folder.path())?;
                self.database.extend(started);
                Ok(())
            }
            Database::Listeners(_) => {
                let serve = |pod: &Pod, ports: &[NamedPort]| {
                    ports.iter().try_for_each(|(_, port)| pod.serve(Protocol::Tcp, *port))
                };
                serve(&self.zero, &dgraph::ZERO_PORTS)?;
                serve(&self.alpha, &dgraph::ALPHA_PORTS)
            }
        }
    }

    fn bed(&self) -> Result<&Testbed> {
        self.bed.as_ref().context("the testbed is gone")
    }

    pub(super) fn agents(&self) -> &[Agent] {
        &self.agents
    }

    pub(super) fn alpha_address(&self) -> Result<IpAddr> {
        Ok(self.alpha.v4()?.into())
    }

    /// Asks the database on both of its ports from a pod: by HTTP and by gRPC.
    pub(super) fn ask_database(&self, from: &Pod, action: pydgraph::Action) -> Result<[Answer; 2]> {
        let to = self.alpha_address()?;
        Ok(match &self.programs.database {
            Database::Real { python, .. } => {
                let answers = pydgraph::run(python, from, to, action);
                [answers.http, answers.grpc]
            }
            Database::Listeners(_) => {
                let ask = |port| move || traffic::connect(from, to, port, PATIENCE);
                let failed = || Answer::Failed("the thread that asked has panicked".into());
                std::thread::scope(|scope| {
                    [dgraph::HTTP, dgraph::GRPC]
                        .map(|port| scope.spawn(ask(port)))
                        .map(|asked| asked.join().unwrap_or_else(|_| failed()))
                })
            }
        })
    }

    /// Why the client may, or may not, reach the database.
    pub(super) fn explain_client(&self) -> Result<String> {
        let (from, to) = (self.client.name(), self.alpha.name());
        agent::explain(&self.programs.agent, self.manifests.folder(), from, to, dgraph::GRPC)
    }

    /// Takes everything away and returns what is left nevertheless, in words.
    pub(super) fn remove(mut self) -> Vec<String> {
        let stopped: Vec<Result<()>> = self.agents.iter().map(Agent::stop).collect();
        let outcomes = stopped.into_iter().chain(self.uninstall());
        let mut left: Vec<String> = outcomes.filter_map(Result::err).map(|error| format!("{error:#}")).collect();
        left.extend(pins().iter().map(|path| format!("{} (left by uninstall)", path.display())));
        let bed = self.bed.take();
        // The handles to the pods go here, and with them the last of their namespaces.
        drop(self);
        match bed {
            Some(bed) => left.extend(leftovers_after(bed)),
            None => left.extend(leftovers()),
        }
        left.extend(tidy::own_remains().iter().map(|path| path.display().to_string()));
        left
    }

    fn uninstall(&mut self) -> Vec<Result<()>> {
        self.agents.drain(..).map(|agent| agent.uninstall()).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in &self.agents {
            // After an interrupt it may have ended already, which is what is wanted.
            let _ = agent.stop();
        }
        for failure in self.uninstall().into_iter().filter_map(Result::err) {
            eprintln!("warning: {failure:#}");
        }
        // Where `uninstall` fails, nothing else would take the pins away.
        for path in pins() {
            if let Err(error) = tidy::remove(&path) {
                eprintln!("warning: {error:#}");
            }
        }
    }
}

/// What this process's agents have pinned.
fn pins() -> Vec<PathBuf> {
    tidy::own_remains().into_iter().filter(|path| path.starts_with(tidy::BPFFS)).collect()
}
