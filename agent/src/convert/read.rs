//! From JSON to Kubernetes' own types, telling the field where that fails.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_ignored::Path as IgnoredPath;
use serde_json::Value;

use super::field::{Converted, Invalid};
use super::{network_policy, subject};
use crate::model::{Policy, Subject};

/// A policy that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Why.
    pub invalid: Vec<Invalid>,
    /// The pods that it is about, where that can be told.
    pub subject: Option<Subject>,
}

/// Reads a value as an API type, and tells the fields that the type does not have.
///
/// # Errors
/// The first field that is not of the type's form; its path is empty where it is the object itself.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<(T, Vec<String>), Invalid> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    match serde_ignored::deserialize(deserializer, |path| unknown.push(dotted(&path))) {
        Ok(object) => Ok((object, unknown)),
        Err(error) => {
            let path = track.path().to_string();
            Err(Invalid { field: if path == "." { String::new() } else { path }, message: error.to_string() })
        }
    }
}

/// A NetworkPolicy as JSON. It is read strictly: a misspelt field of its spec, or one that only a later version of the API
/// has, would silently widen or narrow what it allows.
///
/// # Errors
/// All that [`network_policy()`] refuses, wrong types and unknown fields of the spec.
pub fn read_network_policy(mut value: Value) -> Result<Converted<Policy>, Refused> {
    fill_in_null_elements(&mut value);
    // The pods of a policy whose rules do not even have the right types are still worth knowing.
    let stub = serde_json::json!({
        "metadata": {"name": value.pointer("/metadata/name"), "namespace": value.pointer("/metadata/namespace")},
        "spec": {"podSelector": value.pointer("/spec/podSelector")},
    });
    let refused = |invalid| {
        let stub = typed::<NetworkPolicy>(stub).ok();
        Refused { invalid, subject: stub.and_then(|(policy, _)| subject(&policy)) }
    };
    let (policy, unknown) = match typed::<NetworkPolicy>(value) {
        Ok(read) => read,
        Err(invalid) => return Err(refused(vec![invalid])),
    };
    let message = "unknown field: check its spelling and its indentation";
    let unknown = unknown.into_iter().filter(|field| field.starts_with("spec."));
    let mut faults: Vec<Invalid> = unknown.map(|field| Invalid { field, message: message.into() }).collect();
    match network_policy(&policy) {
        Ok(converted) if faults.is_empty() => return Ok(converted),
        Ok(_) => {}
        Err(more) => faults.extend(more),
    }
    Err(refused(faults))
}

/// An element that is null (a dash with nothing behind it) is an empty one, as the API server decodes it: `ingress: [null]`
/// is a rule that allows everything.
fn fill_in_null_elements(policy: &mut Value) {
    let fill = |list: Option<&mut Value>| {
        for element in list.and_then(Value::as_array_mut).into_iter().flatten().filter(|element| element.is_null()) {
            *element = Value::Object(serde_json::Map::new());
        }
    };
    for (rules, peers) in [("/spec/ingress", "from"), ("/spec/egress", "to")] {
        fill(policy.pointer_mut(rules));
        for rule in policy.pointer_mut(rules).and_then(Value::as_array_mut).into_iter().flatten() {
            fill(rule.get_mut(peers));
            fill(rule.get_mut("ports"));
        }
    }
}

/// `spec.ingress[0].from`, as [`serde_path_to_error`] writes paths too.
fn dotted(path: &IgnoredPath<'_>) -> String {
    match path {
        IgnoredPath::Root => String::new(),
        IgnoredPath::Seq { parent, index } => format!("{}[{index}]", dotted(parent)),
        IgnoredPath::Map { parent, key } => {
            let parent = dotted(parent);
            if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") }
        }
        IgnoredPath::Some { parent }
        | IgnoredPath::NewtypeStruct { parent }
        | IgnoredPath::NewtypeVariant { parent } => dotted(parent),
    }
}
