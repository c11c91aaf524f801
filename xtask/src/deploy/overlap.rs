//! kustomize and Helm give the same objects, but for what each adds by its nature.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::objects::{Key, Object};
use super::tools::Tools;
use super::{Complaint, EARLIER_KERNELS, helm, kustomize, root};

/// The kustomization, and the values by which the chart is to say the same.
const PAIRS: [(&str, &[&str]); 2] = [
    ("overlays/local", &["--set=image.tag=dev"]),
    ("overlays/azure-cni", &["--set=image.tag=0.1.0", "--set-json=settings={\"service-cidr\":[\"10.0.0.0/16\"]}"]),
];

/// The chart's objects of deploy/monitoring.
const MONITORED: [&str; 3] =
    ["--set=serviceMonitor.enabled=true", "--set=prometheusRule.enabled=true", "--set=dashboard.enabled=true"];

/// Labels and annotations that only one of the two writes.
const OWN: [&str; 5] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
    "checksum/settings",
];

/// Notes every difference.
pub(super) fn check(tools: &Tools, complaints: &mut Vec<Complaint>) -> Result<()> {
    for (folder, values) in PAIRS {
        let by_kustomize = kustomize::objects(tools, &root().join(folder))?;
        differences(folder, &by_kustomize, &helm::objects(tools, values)?, complaints);
    }
    let by_kustomize = kustomize::component(tools, &root().join("monitoring"))?;
    let values = [PAIRS[1].1, &MONITORED].concat();
    differences("monitoring", &by_kustomize, &helm::objects(tools, &values)?, complaints);
    let by_kustomize = kustomize::component(tools, &root().join(EARLIER_KERNELS))?;
    let values = [PAIRS[1].1, &["--set=kernelsBefore511=true"]].concat();
    differences(EARLIER_KERNELS, &by_kustomize, &helm::objects(tools, &values)?, complaints);
    Ok(())
}

fn differences(name: &str, by_kustomize: &[Object], by_helm: &[Object], complaints: &mut Vec<Complaint>) {
    let (ours, theirs) = (normal(by_kustomize), normal(by_helm));
    for (key, object) in &ours {
        // `helm install --create-namespace` makes it.
        if key.kind == "Namespace" {
            continue;
        }
        match theirs.get(key) {
            None => complaints.push(format!("{name}: {key} is not in the chart")),
            Some(other) => diff(&format!("{name}: {key}"), "", object, other, complaints),
        }
    }
    for (key, object) in &theirs {
        let hook = object.pointer("/metadata/annotations/helm.sh~1hook").is_some();
        if !ours.contains_key(key) && !hook {
            complaints.push(format!("{name}: {key} is in the chart only"));
        }
    }
}

/// The objects without what is one tool's own: hashes in names, labels and annotations.
fn normal(objects: &[Object]) -> BTreeMap<Key, Value> {
    let hashed: Vec<String> = objects
        .iter()
        .filter(|object| object.kind() == "ConfigMap")
        .map(|object| object.text("/metadata/name").to_owned())
        .collect();
    let plain = |name: &str| match name.rsplit_once('-') {
        Some((base, hash)) if hash.len() == 10 && hashed.iter().any(|known| known == name) => base.to_owned(),
        _ => name.to_owned(),
    };
    let mut found = BTreeMap::new();
    for object in objects {
        let mut object = object.clone();
        rename(&mut object.0, &plain);
        clean(&mut object.0);
        found.insert(object.key(), object.0);
    }
    found
}

fn rename(value: &mut Value, plain: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = plain(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, plain)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rename(field, plain)),
        _ => {}
    }
}

fn clean(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(fields) => {
            fields.retain(|name, _| !OWN.contains(&name.as_str()));
            fields.values_mut().for_each(clean);
            fields.retain(|_, field| field.as_object().is_none_or(|fields| !fields.is_empty()));
            // What the API server assumes where nothing is said.
            if fields.get("imagePullPolicy").and_then(Value::as_str) == Some("IfNotPresent") {
                fields.remove("imagePullPolicy");
            }
        }
        _ => {}
    }
}

fn diff(name: &str, path: &str, ours: &Value, theirs: &Value, complaints: &mut Vec<Complaint>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for field in names {
                let at = |fields: &serde_json::Map<String, Value>| fields.get(field).cloned().unwrap_or_default();
                diff(name, &format!("{path}/{field}"), &at(ours), &at(theirs), complaints);
            }
        }
        // A dashboard is one long text; where both end it with a newline or not means nothing.
        (Value::String(ours), Value::String(theirs)) if ours.trim_end() == theirs.trim_end() => {}
        _ if ours == theirs => {}
        _ => complaints.push(format!("{name}{path}: kustomize says {ours}, Helm {theirs}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compare(ours: Value, theirs: Value) -> Vec<String> {
        let mut complaints = Vec::new();
        differences("x", &[Object(ours)], &[Object(theirs)], &mut complaints);
        complaints
    }

    #[test]
    fn what_is_one_tools_own_is_no_difference() {
        let map = |name: &str, labels: Value, data: Value| json!({"kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data});
        let helm = json!({"helm.sh/chart": "portcullis-0.1.0", "a": "b"});
        let same = map("settings-4g2kmt4gh7", json!({"a": "b"}), json!({"A": "1"}));
        assert_eq!(compare(same.clone(), map("settings", helm.clone(), json!({"A": "1"}))), Vec::<String>::new());
        assert_eq!(compare(same.clone(), map("settings", helm.clone(), json!({"A": "2"}))).len(), 1, "another value");
        assert_eq!(compare(same.clone(), map("settings", json!({}), json!({"A": "1"}))).len(), 1, "a label is missing");
        assert_eq!(compare(same, map("other", helm, json!({"A": "1"}))).len(), 2, "another object");
    }
}
