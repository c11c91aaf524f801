//! Bringing a cluster up.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::kubectl::Kubectl;
use super::plan::{Machine, Node, Plan};
use super::state::{FOLDER, Process, State, folder_of};
use super::{cgroups, control, down, inside, machine, network, node};

/// Debian's plugins of CNI.
const PLUGINS: &str = "/usr/lib/cni";
/// How long the API server, a container runtime or a node may take; each takes seconds on a machine that has time.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// What is needed beside the plan.
pub(super) struct Parts<'a> {
    pub(super) binaries: &'a Path,
    /// Archives of images that every node is to have.
    pub(super) images: Vec<PathBuf>,
}

/// Brings the cluster up, and returns what talks to it. One that is up already is taken if it is as planned.
pub(super) fn up(plan: Plan, parts: &Parts<'_>) -> Result<(State, Kubectl)> {
    if let Some(state) = State::read()? {
        if state.is_up() {
            if state.plan != plan {
                bail!("another cluster is up: {}; `cargo xtask cluster down` removes it", describe(&state.plan));
            }
            let kubectl = Kubectl::of(&state);
            import(&state, &parts.images)?;
            return Ok((state, kubectl));
        }
        eprintln!("  removing what is left of an earlier cluster");
    }
    down::remove()?;
    let begun = Instant::now();
    let said = |what: &str| eprintln!("  {:5.1} s  {what}", begun.elapsed().as_secs_f64());
    let mut state = prepare(plan, parts.binaries)?;
    for machine in plan.machines() {
        let id = machine::start(machine)?;
        let process = Process::of(id).with_context(|| format!("{} has ended at once", machine.name()))?;
        state.processes.insert(machine.name(), process);
        state.write()?;
    }
    said("machines started");
    let kubectl = Kubectl::of(&state);
    thread::scope(|scope| {
        let importing = scope.spawn(|| import(&state, &parts.images));
        let ready = wait(&state, "the API server", || kubectl.output(&["get", "--raw", "/readyz"]).map(drop))
            .and_then(|()| Ok(fs::write(control::ready(), "")?));
        let imported = importing.join().unwrap_or_else(|_| Err(anyhow::anyhow!("importing images has panicked")));
        ready.and(imported)
    })?;
    said("API server ready, images imported");
    kubectl.apply(
        &json!({"apiVersion": "v1", "kind": "List", "items": plan.nodes().map(node::object).collect::<Vec<_>>()}),
    )?;
    for node in plan.nodes() {
        fs::write(node::admitted(node), "")?;
    }
    for node in plan.nodes() {
        wait(&state, &node.name(), || is_ready(&kubectl, node))?;
    }
    said("nodes ready");
    wait(&state, "the default service account", || kubectl.output(&["get", "serviceaccount", "default"]).map(drop))?;
    state.is_whole = true;
    state.write()?;
    Ok((state, kubectl))
}

pub(super) fn describe(plan: &Plan) -> String {
    format!("{} nodes, pods connected by {:?}, kube-proxy in mode {}", plan.nodes, plan.cni, plan.proxy.mode())
        .to_lowercase()
}

/// Writes everything down, and makes what machines need to start.
fn prepare(plan: Plan, binaries: &Path) -> Result<State> {
    let mut folders = Vec::new();
    for machine in plan.machines() {
        folders.extend(cgroups::folders(machine)?);
    }
    let mut state = State {
        plan,
        is_whole: false,
        binaries: binaries.to_owned(),
        cgroups: folders.clone(),
        processes: BTreeMap::new(),
        tokens: control::tokens(&plan)?,
        folders: Vec::new(),
    };
    // Only what was not there before is removed in the end.
    let missing = |path: &&str| !Path::new(path).exists();
    let around = node::FOLDERS.iter().flat_map(|path| Path::new(path).ancestors().filter_map(Path::to_str));
    state.folders = around.filter(missing).map(PathBuf::from).collect();
    state.write()?;
    for folder in node::FOLDERS {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    cgroups::make(&folders)?;
    install_program()?;
    network::make(&plan)?;
    control::write_credentials(&state)?;
    Ok(state)
}

/// Copies this program, and makes it a plugin of CNI beside Debian's.
fn install_program() -> Result<()> {
    let program = Path::new(FOLDER).join(machine::PROGRAM);
    fs::copy(std::env::current_exe()?, &program).context("cannot copy this program")?;
    let plugins = node::plugins();
    fs::create_dir_all(&plugins)?;
    for entry in fs::read_dir(PLUGINS).with_context(|| format!("cannot read {PLUGINS}"))? {
        let entry = entry?;
        link(&entry.path(), &plugins.join(entry.file_name()))?;
    }
    let plugin = plugins.join("azv");
    fs::write(&plugin, format!("#!/bin/sh\nexec {} cluster cni\n", program.display()))?;
    Ok(fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
}

fn link(target: &Path, place: &Path) -> Result<()> {
    match symlink(target, place) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", place.display()))
        }
        _ => Ok(()),
    }
}

/// Gives images to the container runtimes of all nodes, once these run.
pub(super) fn import(state: &State, images: &[PathBuf]) -> Result<()> {
    thread::scope(|scope| {
        let nodes: Vec<_> =
            state.plan.nodes().map(|node| scope.spawn(move || import_on(state, node, images))).collect();
        nodes
            .into_iter()
            .try_for_each(|node| node.join().unwrap_or_else(|_| Err(anyhow::anyhow!("importing images has panicked"))))
    })
}

fn import_on(state: &State, node: Node, images: &[PathBuf]) -> Result<()> {
    let machine = Machine::Node(node);
    wait(state, "containerd", || inside::output(state, machine, &["ctr", "version"]).map(drop))?;
    for image in images {
        let path = image.to_str().context("a path that is not UTF-8")?;
        inside::output(state, machine, &["ctr", "--namespace", "k8s.io", "images", "import", path])
            .with_context(|| format!("{} cannot take {path}", node.name()))?;
    }
    Ok(())
}

pub(super) fn is_ready(kubectl: &Kubectl, node: Node) -> Result<()> {
    let node: Value = kubectl.get(&["node", &node.name()])?;
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    match ready {
        Some(condition) if condition["status"] == "True" => Ok(()),
        Some(condition) => bail!("{}", condition["message"].as_str().unwrap_or("not ready")),
        None => bail!("kubelet has not said anything yet"),
    }
}

/// Tries until it succeeds, or a machine ends, or patience does; then with the last reason and where logs are.
pub(super) fn wait(state: &State, what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(error) = attempt() else { return Ok(()) };
        let ended = state.plan.machines().find(|machine| state.process(*machine).is_none());
        if let Some(machine) = ended {
            bail!("{} has ended: its logs are in {}", machine.name(), folder_of(machine).display());
        }
        if Instant::now() > deadline {
            return Err(error.context(format!("{what} does not come: logs are in {FOLDER}")));
        }
        sleep(LOOK);
    }
}

/// Debian's packages that the nodes are made of.
pub(super) fn ensure_packages() -> Result<()> {
    const PACKAGES: [&str; 11] = [
        "containerd",
        "runc",
        "containernetworking-plugins",
        "busybox-static",
        "iproute2",
        "iptables",
        "nftables",
        "conntrack",
        "openssl",
        "gcc",
        "libc6-dev",
    ];
    crate::apt::ensure(&PACKAGES, "a Kubernetes cluster")
}
