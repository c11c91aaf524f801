//! What must be true of every DaemonSet here, however it was rendered. Each line is a promise of docs/install.md or a
//! lesson.

use serde_json::{Value, json};

use super::objects::Object;
use super::{Complaint, EARLIER_KERNELS};

/// A field of the DaemonSet's pod, and what must stand there.
fn of_every_pod() -> Vec<(&'static str, Value)> {
    vec![
        ("/hostNetwork", json!(true)),
        ("/priorityClassName", json!("system-node-critical")),
        ("/nodeSelector/kubernetes.io~1os", json!("linux")),
        // Every taint, the ones that nobody has thought of yet included.
        ("/tolerations", json!([{"operator": "Exists"}])),
        (
            "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
            json!([{"matchExpressions": [
                {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]},
                {"key": "kubernetes.azure.com/ebpf-dataplane", "operator": "NotIn", "values": ["cilium"]},
            ]}]),
        ),
        ("/hostPID", Value::Null),
        ("/hostIPC", Value::Null),
        ("/enableServiceLinks", json!(false)),
        ("/serviceAccountName", json!("portcullis")),
        ("/dnsPolicy", json!("Default")),
        ("/terminationGracePeriodSeconds", json!(10)),
        (
            "/volumes",
            json!([
                // A missing file system is no reason to make a folder, in which pins cannot be.
                {"name": "bpf", "hostPath": {"path": "/sys/fs/bpf", "type": "Directory"}},
                {"name": "run", "hostPath": {"path": "/run/portcullis", "type": "DirectoryOrCreate"}},
            ]),
        ),
    ]
}

/// A field of every container, init containers included.
fn of_every_container() -> Vec<(&'static str, Value)> {
    vec![
        ("/securityContext/privileged", json!(false)),
        // Without user 0 the capabilities would not be in force, nor the files its own.
        ("/securityContext/runAsUser", json!(0)),
        ("/securityContext/runAsGroup", json!(0)),
        ("/securityContext/allowPrivilegeEscalation", json!(false)),
        ("/securityContext/readOnlyRootFilesystem", json!(true)),
        ("/securityContext/capabilities/drop", json!(["ALL"])),
        ("/securityContext/seccompProfile", json!({"type": "RuntimeDefault"})),
        // containerd's default profile forbids pins below /sys/fs/bpf, and no test node runs AppArmor to notice.
        ("/securityContext/appArmorProfile", json!({"type": "Unconfined"})),
        ("/resources/limits/cpu", Value::Null),
        (
            "/volumeMounts",
            json!([
                {"name": "bpf", "mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer"},
                {"name": "run", "mountPath": "/run/portcullis"},
            ]),
        ),
    ]
}

/// A field of the agent's container. `agent/tests/live/capabilities.rs` shows that the capabilities are enough, and what each
/// is for.
fn of_the_agent(earlier_kernels: bool) -> Vec<(&'static str, Value)> {
    let capabilities = ["BPF", "NET_ADMIN", "NET_BROADCAST", "PERFMON", "SYS_RESOURCE"];
    // Only Linux before 5.11 asks for the last.
    let count = if earlier_kernels { 5 } else { 4 };
    let port = "/ports/0/containerPort";
    vec![
        ("/args", json!(["run"])),
        ("/securityContext/capabilities/add", json!(capabilities[..count])),
        ("/startupProbe", probe("/healthz", 1, 120)),
        ("/livenessProbe", probe("/healthz", 10, 6)),
        ("/readinessProbe", probe("/readyz", 5, 2)),
        // The agent's own 150 MB at most, and some 100 MiB of tables, which are there twice while their layout changes.
        ("/resources", json!({"requests": {"cpu": "50m", "memory": "300Mi"}, "limits": {"memory": "1Gi"}})),
        (
            "/env",
            json!([
                {"name": "PORTCULLIS_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                // Not all addresses: those of the node's other interfaces may be public.
                {"name": "PORTCULLIS_LISTEN", "value": "$(HOST_IP):9470"},
            ]),
        ),
        ("/envFrom/0/configMapRef/optional", Value::Null),
        (port, json!(9470)),
        ("/ports/0/hostPort", json!(9470)),
    ]
}

/// A probe as the agent's are: on a busy node an answer may take seconds.
fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": "metrics"},
        "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures,
    })
}

/// Notes what is wrong with the DaemonSets of one rendering.
pub(super) fn check(rendering: &str, objects: &[Object], complaints: &mut Vec<Complaint>) {
    for object in objects {
        match object.kind() {
            "DaemonSet" => daemon_set(rendering, object, complaints),
            "ClusterRole" | "Role" => rights(object, complaints),
            "Job" => job(object, complaints),
            "Namespace" if object.key().name == "portcullis" => {
                expect(object, "", &object.0, &of_the_namespace(), complaints)
            }
            "ServiceAccount" => {
                // Only pods that ask for a token get one.
                expect(object, "", &object.0, &[("/automountServiceAccountToken", json!(false))], complaints);
            }
            _ => {}
        }
    }
}

/// What Pod Security would refuse the agent otherwise.
fn of_the_namespace() -> Vec<(&'static str, Value)> {
    vec![
        ("/metadata/labels/pod-security.kubernetes.io~1enforce", json!("privileged")),
        ("/metadata/labels/pod-security.kubernetes.io~1audit", json!("privileged")),
        ("/metadata/labels/pod-security.kubernetes.io~1warn", json!("privileged")),
    ]
}

/// Notes which of these fields, below a place of an object, has something else.
fn expect(
    object: &Object,
    place: &str,
    at: &Value,
    expected: &[(&'static str, Value)],
    complaints: &mut Vec<Complaint>,
) {
    for (field, wanted) in expected {
        let found = at.pointer(field).unwrap_or(&Value::Null);
        if found != wanted {
            complaints.push(format!("{}: {place}{field} is {found}, not {wanted}", object.key()));
        }
    }
}

fn daemon_set(rendering: &str, object: &Object, complaints: &mut Vec<Complaint>) {
    let uninstall = rendering == "uninstall";
    // Overlays of AKS, and the values for it.
    let earlier_kernels = rendering.contains(EARLIER_KERNELS);
    let unavailable = match rendering {
        "uninstall" => json!("100%"),
        "helm (everything)" => json!("10%"),
        _ => json!(1),
    };
    let of_the_set = [
        ("/spec/updateStrategy/type", json!("RollingUpdate")),
        ("/spec/updateStrategy/rollingUpdate/maxUnavailable", unavailable),
        // Two agents on one node would fight for the port and the lock.
        ("/spec/updateStrategy/rollingUpdate/maxSurge", Value::Null),
        ("/spec/minReadySeconds", json!(5)),
        ("/spec/template/spec/automountServiceAccountToken", json!(!uninstall)),
    ];
    expect(object, "", &object.0, &of_the_set, complaints);
    let pod = object.0.pointer("/spec/template/spec").unwrap_or(&Value::Null);
    expect(object, "pod", pod, &of_every_pod(), complaints);
    for container in
        ["containers", "initContainers"].iter().flat_map(|list| pod[*list].as_array().into_iter().flatten())
    {
        let place = format!("container {}", container["name"]);
        expect(object, &place, container, &of_every_container(), complaints);
        if container["name"] == "agent" && !uninstall {
            expect(object, &place, container, &of_the_agent(earlier_kernels), complaints);
            continue;
        }
        let capabilities = [("/securityContext/capabilities/add", json!(["BPF", "NET_ADMIN"]))];
        expect(object, &place, container, &capabilities, complaints);
        if container["name"] == "agent" {
            let stays = [("/args", json!(["uninstall", "--stay"])), ("/livenessProbe", Value::Null)];
            expect(object, &place, container, &stays, complaints);
        }
    }
}

/// What waits for the nodes must not wait on one that does not answer, nor end with one that is lost.
fn job(object: &Object, complaints: &mut Vec<Complaint>) {
    let pod = object.0.pointer("/spec/template/spec").unwrap_or(&Value::Null);
    let stay_away =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0";
    let fields = [
        ("/nodeSelector/kubernetes.io~1os", json!("linux")),
        (stay_away, json!({"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]})),
        ("/restartPolicy", json!("Never")),
        ("/containers/0/securityContext/runAsNonRoot", json!(true)),
        ("/containers/0/securityContext/capabilities", json!({"drop": ["ALL"]})),
        ("/containers/0/securityContext/readOnlyRootFilesystem", json!(true)),
        ("/containers/0/securityContext/seccompProfile", json!({"type": "RuntimeDefault"})),
    ];
    expect(object, "pod", pod, &fields, complaints);
    if object.0.pointer("/spec/backoffLimit").and_then(Value::as_u64).is_none_or(|limit| limit == 0) {
        complaints.push(format!("{}: it ends with the node that its pod is on", object.key()));
    }
    for toleration in pod["tolerations"].as_array().into_iter().flatten() {
        let key = toleration["key"].as_str().unwrap_or_default();
        let away = ["", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].contains(&key);
        if away && !(toleration["effect"] == "NoExecute" && toleration["tolerationSeconds"] == 0) {
            complaints.push(format!("{}: it may be put on a node that does not answer: {toleration}", object.key()));
        }
    }
}

/// Nothing that reaches beyond what the agent does: no wildcard, no Secret, nothing that changes workloads or policies.
fn rights(object: &Object, complaints: &mut Vec<Complaint>) {
    const WRITES: [(&str, &str); 3] = [("nodes", "patch"), ("events", "create"), ("daemonsets", "patch")];
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let list = rule[field].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for rule in object.0["rules"].as_array().into_iter().flatten() {
        for resource in words(rule, "resources") {
            for verb in words(rule, "verbs") {
                let reads = ["get", "list", "watch"].contains(&verb.as_str());
                let known = reads || WRITES.contains(&(resource.as_str(), verb.as_str()));
                if !known || ["*", "secrets", "configmaps"].contains(&resource.as_str()) {
                    complaints.push(format!("{}: may {verb} {resource}", object.key()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(object: Value) -> Vec<String> {
        let mut complaints = Vec::new();
        check("overlays/local", &[Object(object)], &mut complaints);
        complaints
    }

    #[test]
    fn rights_beyond_the_agents_are_named() {
        let role = |resource: &str, verb: &str| json!({"kind": "ClusterRole", "metadata": {"name": "x"}, "rules": [{"resources": [resource], "verbs": [verb]}]});
        let rows = [
            (role("pods", "watch"), 0, "what policy is about"),
            (role("nodes", "patch"), 0, "the taint"),
            (role("nodes", "update"), 1, "more than a patch"),
            (role("secrets", "list"), 1, "secrets"),
            (role("*", "list"), 1, "everything"),
            (role("pods", "*"), 1, "every verb"),
        ];
        for (role, expected, message) in rows {
            assert_eq!(complaints(role).len(), expected, "{message}");
        }
    }

    #[test]
    fn a_job_that_could_wait_on_a_lost_node_is_refused() {
        let found = |tolerations: Value| {
            let spec = json!({"backoffLimit": 3, "template": {"spec": {"tolerations": tolerations}}});
            let found = complaints(json!({"kind": "Job", "metadata": {"name": "x"}, "spec": spec}));
            found.iter().filter(|text| text.contains("does not answer")).count()
        };
        let at_once = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0});
        let rows = [
            (json!([{"operator": "Exists"}]), 1, "everything"),
            (json!([{"operator": "Exists", "effect": "NoSchedule"}]), 1, "everything that keeps pods away"),
            (json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists"}]), 1, "nodes that are away"),
            (json!([at_once, {"key": "CriticalAddonsOnly", "operator": "Exists"}]), 0, "what it is"),
        ];
        for (tolerations, expected, message) in rows {
            assert_eq!(found(tolerations), expected, "{message}");
        }
    }

    #[test]
    fn a_daemon_set_without_the_facts_is_refused() {
        let found = complaints(json!({"kind": "DaemonSet", "metadata": {"name": "x"}, "spec": {"template": {"spec": {
            "containers": [{"name": "agent", "securityContext": {"privileged": true}}],
        }}}}));
        for word in
            ["/hostNetwork", "/tolerations", "/securityContext/privileged", "appArmorProfile", "/readinessProbe"]
        {
            assert!(found.iter().any(|text| text.contains(word)), "{word}: {found:#?}");
        }
    }
}
