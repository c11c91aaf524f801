//! Label selectors.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::field::{Field, Findings};
use super::{meta, names};
use crate::model::Selector;

/// A selector: every label and every expression must hold; an empty one selects everything.
pub(super) fn selector(selector: &LabelSelector, field: &Field<'_>, findings: &mut Findings) -> Selector {
    let mut parts = Vec::new();
    if let Some(labels) = &selector.match_labels {
        meta::check_labels(labels, &field.field("matchLabels"), findings);
        parts.extend(equalities(labels));
    }
    let expressions = field.field("matchExpressions");
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        parts.extend(requirement(expression, &expressions.at(index), findings));
    }
    parts.shrink_to_fit();
    Selector::All(parts)
}

/// A plain map of labels, all of which must be there with these values.
pub(super) fn equalities(labels: &BTreeMap<String, String>) -> impl Iterator<Item = Selector> {
    labels.iter().map(|(key, value)| Selector::In(key.as_str().into(), [Arc::from(value.as_str())].into()))
}

fn requirement(expression: &LabelSelectorRequirement, field: &Field<'_>, findings: &mut Findings) -> Option<Selector> {
    findings.check(&field.field("key"), names::label_key(&expression.key));
    let values = expression.values.as_deref().unwrap_or_default();
    let list = field.field("values");
    for (index, value) in values.iter().enumerate() {
        findings.check(&list.at(index), names::label_value(value));
    }
    let operator = expression.operator.as_str();
    match (operator, values.is_empty()) {
        ("In" | "NotIn", true) => findings.refuse(&list, format!("missing: {operator} needs at least one value")),
        ("Exists" | "DoesNotExist", false) => {
            findings.refuse(&list, format!("must be left out: {operator} asks about the key alone"));
        }
        _ => {}
    }
    let key = Arc::from(expression.key.as_str());
    let values = || values.iter().map(|value| Arc::from(value.as_str())).collect();
    match operator {
        "In" => Some(Selector::In(key, values())),
        "NotIn" => Some(Selector::NotIn(key, values())),
        "Exists" => Some(Selector::Exists(key)),
        "DoesNotExist" => Some(Selector::DoesNotExist(key)),
        other => {
            findings.refuse(
                &field.field("operator"),
                format!("{other:?} is no operator: use In, NotIn, Exists or DoesNotExist"),
            );
            None
        }
    }
}
