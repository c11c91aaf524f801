//! A node: containerd, kubelet and kube-proxy, configured for a machine that is a set of namespaces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::images::PAUSE;
use super::machine::{bind, bind_folder};
use super::plan::{Cni, Machine, Node, POD_CIDRS, Plan};
use super::state::{FOLDER, State, folder_of};
use super::supervise::Service;

/// Folders that are this node's own, each in the place where programs look for it.
pub(super) const FOLDERS: [&str; 6] = [
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/cni/net.d",
];

/// Settings of the whole machine that kubelet would change. It is shown files that have what it wants already.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Where kubelet finds pods that no API server knows.
const STATIC_PODS: &str = "/var/lib/kubelet/manifests";

/// The folder in which containerd looks for plugins of CNI.
pub(super) fn plugins() -> PathBuf {
    Path::new(FOLDER).join("cni")
}

/// The file that says that images are there and the node is known to the API server.
pub(super) fn admitted(node: Node) -> PathBuf {
    folder_of(Machine::Node(node)).join("admitted")
}

/// What the API server is told of the node before kubelet starts, since nothing here hands out ranges of addresses.
pub(super) fn object(node: Node) -> Value {
    let name = node.name();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": node.pods_v4(), "podCIDRs": [node.pods_v4(), node.pods_v6()]},
    })
}

/// Puts the node's own folders and files into place, inside the machine, and names its services.
pub(super) fn prepare(state: &State, node: Node) -> Result<Vec<Service>> {
    let folder = folder_of(Machine::Node(node));
    for place in FOLDERS {
        bind_folder(&folder.join("root").join(place.trim_start_matches('/')), place)?;
    }
    // Else kubelet complains of it every second.
    fs::create_dir_all(STATIC_PODS)?;
    for (name, value) in SYSCTLS {
        let own = folder.join("sysctls").join(name);
        fs::create_dir_all(own.parent().unwrap_or(&folder))?;
        fs::write(&own, value)?;
        bind(&own, &format!("/proc/sys/{name}"))?;
    }
    write_json(Path::new("/etc/cni/net.d/10-portcullis.conflist"), &network(state.plan.cni, node))?;
    fs::write(folder.join("containerd.toml"), containerd()).context("cannot write containerd.toml")?;
    write_json(&folder.join("kubelet.json"), &kubelet())?;
    write_json(&folder.join("kube-proxy.json"), &proxy(&state.plan, node))?;
    Ok(services(state, node, &folder))
}

fn services(state: &State, node: Node, folder: &Path) -> Vec<Service> {
    let program = |name: &str| state.binaries.join(name);
    let containerd = Service::new("containerd", "containerd").arguments(["--config", "containerd.toml"]);
    let kubelet = Service::new("kubelet", program("kubelet"))
        .arguments([
            format!("--config={}", folder.join("kubelet.json").display()),
            format!("--kubeconfig={FOLDER}/{}.conf", node.name()),
            format!("--hostname-override={}", node.name()),
            format!("--node-ip={},{}", node.v4(), node.v6()),
            "--v=2".into(),
        ])
        .after(admitted(node));
    let proxy = Service::new("kube-proxy", program("kube-proxy"))
        .arguments([format!("--config={}", folder.join("kube-proxy.json").display()), "--v=2".into()])
        .after(admitted(node));
    vec![containerd, kubelet, proxy]
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, serde_json::to_vec_pretty(value)?).with_context(|| format!("cannot write {}", path.display()))
}

/// The list of plugins that connect a pod.
fn network(cni: Cni, node: Node) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{"subnet": node.pods_v4()}], [{"subnet": node.pods_v6()}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    });
    let first = match cni {
        Cni::Azv => json!({"type": "azv", "ipam": ipam}),
        Cni::Ptp => json!({"type": "ptp", "ipMasq": false, "ipam": ipam}),
        Cni::Bridge => json!({
            "type": "bridge", "bridge": "cbr0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "ipam": ipam,
        }),
    };
    let ports = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    json!({"cniVersion": "0.4.0", "name": "portcullis", "plugins": [first, ports]})
}

fn containerd() -> String {
    let plugins = plugins().display().to_string();
    // A process without CAP_SYS_RESOURCE may not lower any score by which the kernel chooses what to end, and runc then
    // fails without saying so. Security modules are no part of what is tested.
    format!(
        r#"version = 2
disabled_plugins = [
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.internal.v1.tracing",
]
[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "staticPodPath": STATIC_PODS,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "resolvConf": "",
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": ["pods"],
        // Disks of developers' machines are full.
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "serializeImagePulls": false,
    })
}

fn proxy(plan: &Plan, node: Node) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": plan.proxy.mode(),
        "clientConnection": {"kubeconfig": format!("{FOLDER}/proxy.conf")},
        "clusterCIDR": POD_CIDRS,
        "hostnameOverride": node.name(),
        // These settings can be changed in the first network namespace only.
        "conntrack": {"maxPerCore": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
        "nodePortAddresses": ["primary"],
        "oomScoreAdj": 0,
    })
}
