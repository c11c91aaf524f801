//! `metadata`: names and labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::field::{Field, Findings};
use super::names;
use crate::model::{Labels, Name};

const METADATA: Field<'static> = Field::Top("metadata");
/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// The object's name, of the form that its kind asks for.
pub(super) fn name(
    meta: &ObjectMeta,
    form: fn(&str) -> Result<(), String>,
    findings: &mut Findings,
) -> Option<Arc<str>> {
    let field = METADATA.field("name");
    match meta.name.as_deref() {
        Some(name) if !name.is_empty() => {
            findings.check(&field, form(name));
            Some(name.into())
        }
        _ => {
            findings.refuse(&field, "missing: give the object a name");
            None
        }
    }
}

/// Namespace and name of a namespaced object.
pub(super) fn key(meta: &ObjectMeta, form: fn(&str) -> Result<(), String>, findings: &mut Findings) -> Option<Name> {
    let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    findings.check(&METADATA.field("namespace"), names::dns_label(namespace));
    Some(Name { namespace: namespace.into(), name: name(meta, form, findings)? })
}

/// The object's labels.
pub(super) fn labels(meta: &ObjectMeta, findings: &mut Findings) -> Labels {
    let labels = meta.labels.as_ref();
    if let Some(labels) = labels {
        check_labels(labels, &METADATA.field("labels"), findings);
    }
    labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// Checks a map of labels, an object's own or a selector's.
pub(super) fn check_labels(labels: &BTreeMap<String, String>, field: &Field<'_>, findings: &mut Findings) {
    for (key, value) in labels {
        findings.check(field, names::label_key(key));
        findings.check(&field.key(key), names::label_value(value));
    }
}
