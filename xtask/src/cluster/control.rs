//! The control plane: etcd, the API server, the controllers and the scheduler.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::plan::{API_PORT, CONTROL_V4, Machine, POD_CIDRS, Plan, SERVICE_CIDRS};
use super::state::{FOLDER, State, folder_of, kubeconfig};
use super::supervise::Service;
use crate::process;

/// Users other than the nodes: the name of their kubeconfig, the user and its groups.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("controllers", "system:kube-controller-manager", "system:masters"),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// The API server's own certificate with its issuer's, which it makes when it first starts.
fn authority() -> std::path::PathBuf {
    folder_of(Machine::Control).join("certs/apiserver.crt")
}

/// Names of users with their groups: those of the components and the nodes.
fn users(plan: &Plan) -> Vec<(String, String, String)> {
    let components = USERS.iter().map(|(name, user, groups)| [*name, *user, *groups].map(str::to_owned).into());
    let nodes =
        plan.nodes().map(|node| (node.name(), format!("system:node:{}", node.name()), "system:nodes".to_owned()));
    components.chain(nodes).collect()
}

/// New tokens for every user.
pub(super) fn tokens(plan: &Plan) -> Result<std::collections::BTreeMap<String, String>> {
    let fresh = || fs::read_to_string("/proc/sys/kernel/random/uuid").context("the kernel gives no random numbers");
    users(plan).into_iter().map(|(name, _, _)| Ok((name, fresh()?.trim().to_owned()))).collect()
}

/// Writes what the API server knows users by, the users' kubeconfigs, and the key of service accounts.
pub(super) fn write_credentials(state: &State) -> Result<()> {
    let folder = folder_of(Machine::Control);
    fs::create_dir_all(&folder)?;
    let mut table = String::new();
    for (index, (name, user, groups)) in users(&state.plan).into_iter().enumerate() {
        let token = state.tokens.get(&name).with_context(|| format!("{name} has no token"))?;
        table.push_str(&format!("{token},{user},{index},\"{groups}\"\n"));
        write_kubeconfig(&Path::new(FOLDER).join(format!("{name}.conf")), token)?;
    }
    fs::write(folder.join("tokens.csv"), table)?;
    let (key, public) = (folder.join("accounts.key"), folder.join("accounts.pub"));
    process::run_silently(Command::new("openssl").args(["genrsa", "-traditional", "-out"]).arg(&key).arg("2048"))?;
    process::run_silently(Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(&key).arg("-out").arg(public))?;
    give_to_caller(&kubeconfig())
}

/// JSON is YAML.
fn write_kubeconfig(path: &Path, token: &str) -> Result<()> {
    let server = format!("https://{CONTROL_V4}:{API_PORT}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "portcullis",
        "contexts": [{"name": "portcullis", "context": {"cluster": "portcullis", "user": "portcullis"}}],
        "clusters": [{"name": "portcullis", "cluster": {"server": server, "certificate-authority": authority()}}],
        "users": [{"name": "portcullis", "user": {"token": token}}],
    });
    fs::write(path, serde_json::to_vec_pretty(&config)?).with_context(|| format!("cannot write {}", path.display()))
}

/// Whoever used sudo wants to use the cluster without.
fn give_to_caller(path: &Path) -> Result<()> {
    let owner = std::env::var("SUDO_UID").ok().and_then(|id| id.parse().ok());
    std::os::unix::fs::chown(path, owner, None).with_context(|| format!("cannot give {} away", path.display()))
}

/// What runs on the control plane's machine.
pub(super) fn services(state: &State) -> Result<Vec<Service>> {
    let folder = folder_of(Machine::Control);
    let program = |name: &str| state.binaries.join(name);
    let file = |name: &str| folder.join(name).display().to_string();
    let user = |name: &str| format!("--kubeconfig={FOLDER}/{name}.conf");
    let etcd = Service::new("etcd", program("etcd")).arguments([
        format!("--data-dir={}", file("etcd")),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        // The cluster does not outlive this machine's power.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]);
    let server = Service::new("kube-apiserver", program("kube-apiserver")).arguments([
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".into(),
        format!("--advertise-address={CONTROL_V4}"),
        format!("--secure-port={API_PORT}"),
        format!("--cert-dir={}", file("certs")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
        "--allow-privileged=true".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
    ]);
    let controllers = Service::new("kube-controller-manager", program("kube-controller-manager"))
        .arguments([
            user("controllers"),
            "--leader-elect=false".into(),
            format!("--service-account-private-key-file={}", file("accounts.key")),
            format!("--root-ca-file={}", authority().display()),
            format!("--cluster-cidr={POD_CIDRS}"),
            "--bind-address=127.0.0.1".into(),
        ])
        .after(authority())
        .after(ready());
    let scheduler = Service::new("kube-scheduler", program("kube-scheduler"))
        .arguments([user("scheduler"), "--leader-elect=false".into(), "--bind-address=127.0.0.1".into()])
        .after(ready());
    Ok(vec![etcd, server, controllers, scheduler])
}

/// The file that says that the API server has been seen ready.
pub(super) fn ready() -> std::path::PathBuf {
    folder_of(Machine::Control).join("ready")
}
