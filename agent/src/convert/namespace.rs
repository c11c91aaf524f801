//! Namespaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

use super::field::{Converted, Field, Findings, Invalid};
use super::{meta, names};
use crate::model::{Labels, Namespace};

/// Every namespace carries its name in this label; the API server puts it back when it is changed.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A Namespace.
///
/// # Errors
/// What an API server would refuse: a name or label of the wrong form.
pub fn namespace(object: &v1::Namespace) -> Result<Converted<Namespace>, Vec<Invalid>> {
    let mut findings = Findings::default();
    let name = meta::name(&object.metadata, names::dns_label, &mut findings);
    let given = meta::labels(&object.metadata, &mut findings);
    let value = name.map(|name| {
        if given.get(NAME_LABEL).is_some_and(|label| label != &*name) {
            let field = Field::Top("metadata");
            let labels = field.field("labels");
            findings.warn(&labels.key(NAME_LABEL), format!("this label is always the namespace's name, {name:?}"));
        }
        Namespace { labels: with_name_label(&given, &name), name }
    });
    findings.finish(value)
}

fn with_name_label(labels: &Labels, name: &Arc<str>) -> Labels {
    let mut labels: BTreeMap<&str, &str> = labels.iter().collect();
    labels.insert(NAME_LABEL, name);
    labels.into_iter().collect()
}
