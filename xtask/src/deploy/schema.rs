//! Every field is one that the API has, and of its type: what an API server says only of objects that are sent to it.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::{apps, batch, core, networking, rbac};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Complaint;
use super::objects::Object;

/// Decodes, and gives what is wrong.
type Decode = fn(&Value) -> Vec<String>;

/// What is sent to clusters. Kinds of the Prometheus operator are its own, which no library here knows.
fn decoder(api_version: &str, kind: &str) -> Option<Decode> {
    let decode: Decode = match (api_version, kind) {
        ("v1", "Namespace") => decode::<core::v1::Namespace>,
        ("v1", "ServiceAccount") => decode::<core::v1::ServiceAccount>,
        ("v1", "ConfigMap") => decode::<core::v1::ConfigMap>,
        ("v1", "Service") => decode::<core::v1::Service>,
        ("v1", "Pod") => decode::<core::v1::Pod>,
        ("apps/v1", "DaemonSet") => decode::<apps::v1::DaemonSet>,
        ("apps/v1", "StatefulSet") => decode::<apps::v1::StatefulSet>,
        ("batch/v1", "Job") => decode::<batch::v1::Job>,
        ("networking.k8s.io/v1", "NetworkPolicy") => decode::<networking::v1::NetworkPolicy>,
        ("rbac.authorization.k8s.io/v1", "Role") => decode::<rbac::v1::Role>,
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => decode::<rbac::v1::RoleBinding>,
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => decode::<rbac::v1::ClusterRole>,
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => decode::<rbac::v1::ClusterRoleBinding>,
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => decode::<ValidatingAdmissionPolicy>,
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            decode::<ValidatingAdmissionPolicyBinding>
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor" | "PodMonitor" | "PrometheusRule") => |_| Vec::new(),
        _ => return None,
    };
    Some(decode)
}

fn decode<T: DeserializeOwned>(value: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| wrong.push(format!("there is no field {path}"));
    let decoded: Result<T, _> = serde_ignored::deserialize(value, &mut note);
    wrong.extend(decoded.err().map(|error| error.to_string()));
    wrong
}

/// Notes what is wrong with an object's fields.
pub(super) fn check(object: &Object, complaints: &mut Vec<Complaint>) {
    let key = object.key();
    match decoder(object.text("/apiVersion"), object.kind()) {
        Some(decode) => complaints.extend(decode(&object.0).into_iter().map(|wrong| format!("{key}: {wrong}"))),
        None => complaints.push(format!("{key}: kind {} is not expected here", object.text("/apiVersion"))),
    }
    if key.name.is_empty() {
        complaints.push(format!("{key}: it has no name"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_are_none_are_named() {
        let service =
            |spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec});
        let rows = [
            (service(json!({"clusterIP": "None"})), None, "well"),
            (service(json!({"clusterIp": "None"})), Some("clusterIp"), "a field that is none"),
            (service(json!({"ports": [{"port": "80"}]})), Some("80"), "a field of another type"),
            (
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}}),
                Some("not expected"),
                "another kind",
            ),
        ];
        for (object, expected, message) in rows {
            let mut complaints = Vec::new();
            check(&Object(object), &mut complaints);
            match expected {
                None => assert_eq!(complaints, Vec::<String>::new(), "{message}"),
                Some(word) => assert!(complaints.iter().any(|text| text.contains(word)), "{message}: {complaints:?}"),
            }
        }
    }
}
