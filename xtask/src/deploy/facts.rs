//! What must be true of every DaemonSet here, however it was rendered. Each line is a promise of docs/install.md or a
//! lesson.

use serde_json::{Value, json};

use super::Complaint;
use super::objects::Object;

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
    ]
}

/// A field of every container, init containers included.
fn of_every_container() -> Vec<(&'static str, Value)> {
    vec![
        ("/securityContext/privileged", json!(false)),
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

/// A field of the agent's container.
fn of_the_agent() -> Vec<(&'static str, Value)> {
    vec![
        ("/args", json!(["run"])),
        ("/securityContext/capabilities/add", json!(["BPF", "NET_ADMIN", "NET_BROADCAST", "PERFMON"])),
        ("/startupProbe/httpGet/path", json!("/healthz")),
        ("/livenessProbe/httpGet/path", json!("/healthz")),
        ("/readinessProbe/httpGet/path", json!("/readyz")),
        ("/env/0", json!({"name": "PORTCULLIS_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})),
    ]
}

/// Notes what is wrong with the DaemonSets of one rendering.
pub(super) fn check(rendering: &str, objects: &[Object], complaints: &mut Vec<Complaint>) {
    for object in objects {
        match object.kind() {
            "DaemonSet" => daemon_set(rendering == "uninstall", object, complaints),
            "ClusterRole" | "Role" => rights(object, complaints),
            _ => {}
        }
    }
}

fn daemon_set(uninstall: bool, object: &Object, complaints: &mut Vec<Complaint>) {
    let mut expect = |at: &Value, place: &str, expected: &[(&'static str, Value)]| {
        for (field, wanted) in expected {
            let found = at.pointer(field).unwrap_or(&Value::Null);
            if found != wanted {
                complaints.push(format!("{}: {place}{field} is {found}, not {wanted}", object.key()));
            }
        }
    };
    let strategy = "/spec/updateStrategy/rollingUpdate/maxSurge";
    // Two agents on one node would fight for the port and the lock.
    expect(&object.0, "", &[("/spec/updateStrategy/type", json!("RollingUpdate")), (strategy, Value::Null)]);
    let pod = object.0.pointer("/spec/template/spec").unwrap_or(&Value::Null);
    expect(pod, "pod", &of_every_pod());
    for container in
        ["containers", "initContainers"].iter().flat_map(|list| pod[*list].as_array().into_iter().flatten())
    {
        let place = format!("container {}", container["name"]);
        expect(container, &place, &of_every_container());
        if container["name"] == "agent" && !uninstall {
            expect(container, &place, &of_the_agent());
            continue;
        }
        expect(container, &place, &[("/securityContext/capabilities/add", json!(["BPF", "NET_ADMIN", "PERFMON"]))]);
        if container["name"] == "agent" {
            expect(container, &place, &[("/args", json!(["uninstall", "--stay"])), ("/livenessProbe", Value::Null)]);
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
