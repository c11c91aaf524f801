//! Pods as service meshes make them: their own iptables rules send all their traffic through a proxy in the pod. The policy
//! is that of the tutorial's Istio variant, with its namespaces.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::images::AGNHOST;
use super::super::inside_pods::image::{PROGRAM, TAG};
use super::super::inside_pods::probe::now;
use super::super::inside_pods::proxy;
use super::Stand;
use super::askers::{Askers, pod_of};
use super::space::{PORT, Space, eventually, policy};
use crate::workspace;

const POLICY: &str = "deploy/examples/tutorial-istio/then-policy.yaml";
const INJECTED: &str = "istio-injection=enabled";
/// What kubelet asks for, and nobody else.
const PROBED: &str = "/echo?msg=kubelet";
const SERVER: [(&str, &str); 1] = [("app", "dgraph")];

/// Kubelet's probes reach a server behind its proxy; whoever policy admits is answered through both proxies, by the pod's
/// address and by the Service's; nobody else is, though his own proxy takes his connection at once.
pub(super) fn policy_is_judged_outside_of_sidecars(stand: &Stand) -> Result<()> {
    let space = |name: &str| Space::new(stand, name);
    let (servers, allowed, denied) = (space("dgraph")?, space("pydgraph-allow")?, space("pydgraph-deny")?);
    for injected in [&servers, &allowed] {
        stand.kubectl.output(&["label", "namespace", &injected.name, INJECTED])?;
    }
    servers.apply(pod_of("server", &SERVER, &meshed(server())))?;
    let (asking, kept_out) = (Askers::new(&allowed)?, Askers::new(&denied)?);
    asking.aim("all", [])?;
    kept_out.aim("all", [])?;
    allowed.apply(pod_of("client", &[], &meshed(asking.spec(Some("node2"), "all", &[]))))?;
    denied.apply(pod_of("client", &[], &kept_out.spec(Some("node2"), "all", &[])))?;
    denied.apply(pod_of("meshed", &[], &meshed(kept_out.spec(Some("node1"), "all", &[]))))?;
    let mut targets = servers.add_service("server", &SERVER)?;
    // Ready only by kubelet's probe, which comes from the node.
    [&servers, &allowed, &denied].into_iter().try_for_each(Space::await_pods).context("behind their proxies")?;
    targets.extend(servers.targets_of("server")?);
    // The redirection is of IPv4, as the mesh's own is unless it is told otherwise.
    targets.retain(|target| target.address().is_ipv4());
    asking.aim("all", &targets)?;
    kept_out.aim("all", &targets)?;
    let all = [(&asking, "client"), (&kept_out, "client"), (&kept_out, "meshed")];
    all.iter().try_for_each(|(askers, pod)| askers.expect(pod, &targets, true, now())).context("without policy")?;

    let path = workspace::root().join(POLICY);
    stand.kubectl.output(&["apply", "--server-side", "--filename", &path.display().to_string()])?;
    let since = now();
    kept_out.expect("client", &targets, false, since)?;
    kept_out.expect("meshed", &targets, false, now()).context("through its own proxy")?;
    asking.expect("client", &targets, true, now())?;
    check_ready(&servers)?;

    // What leaves the pod is judged as well, on where it ends.
    allowed.apply(policy("silent", &[], json!({"policyTypes": ["Egress"], "egress": []})))?;
    asking.expect("client", &targets, false, now()).context("with a policy of its own")
}

/// A web server that kubelet asks whether it is ready.
fn server() -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "enableServiceLinks": false,
        "automountServiceAccountToken": false,
        "nodeSelector": {"kubernetes.io/hostname": "node1"},
        "containers": [{
            "name": "main",
            "image": AGNHOST,
            "imagePullPolicy": "IfNotPresent",
            "command": ["/agnhost", "netexec", format!("--http-port={PORT}")],
            "readinessProbe": {"httpGet": {"path": PROBED, "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5},
        }],
    })
}

/// Puts the proxy into a pod, with the rules that send everything to it.
fn meshed(mut spec: Value) -> Value {
    let script = format!("iptables-restore <<'END'\n{}END\n", proxy::rules());
    spec["initContainers"] = json!([{
        "name": "redirect",
        "image": TAG,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "securityContext": {"runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"]}},
    }]);
    if let Some(containers) = spec["containers"].as_array_mut() {
        containers.push(json!({
            "name": "proxy",
            "image": TAG,
            "imagePullPolicy": "IfNotPresent",
            "command": [PROGRAM, "cluster", "proxy"],
            "securityContext": {"runAsUser": proxy::USER},
        }));
    }
    spec
}

/// The server is still ready once kubelet has asked it again: had it not been answered, it would say so by now.
fn check_ready(space: &Space<'_>) -> Result<()> {
    let asked = || -> Result<usize> { Ok(space.logs("server")?.matches(PROBED).count()) };
    let before = asked()?;
    eventually("kubelet's next probes", || match asked()? {
        now if now < before + 4 => bail!("the server was asked {} times", now - before),
        _ => Ok(()),
    })?;
    let path = "--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    match space.output(&["get", "pod", "server", path])?.as_str() {
        "True" => Ok(()),
        other => bail!("with policy in force, the server is ready: {other}"),
    }
}
