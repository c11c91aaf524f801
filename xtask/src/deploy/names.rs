//! Alerts and dashboard ask for metrics, labels and values that the agent really has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Complaint, objects};
use crate::workspace;

/// Series by name, each label with the values that a whole scrape had.
type Known = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// Labels whose values are the same on every node; others name a policy, a table, a node.
const CLOSED: [&str; 7] = ["state", "result", "event", "verdict", "what", "reason", "severity"];

/// Labels that Prometheus and kube-state-metrics add.
const ADDED: [&str; 5] = ["job", "instance", "node", "namespace", "daemonset"];

/// Notes what nobody would ever count.
pub(super) fn check(folder: &Path, complaints: &mut Vec<Complaint>) -> Result<()> {
    // What a test of the agent pins: its metrics, whole.
    let scrape = workspace::root().join("agent/src/metrics/tests/small.txt");
    let known = known(&fs::read_to_string(&scrape).with_context(|| scrape.display().to_string())?);
    let rule = fs::read_to_string(folder.join("prometheus-rule.yaml"))?;
    let mut expressions = Vec::new();
    for object in objects::parse(&rule)? {
        collect(&object.0, &mut expressions);
        complain_of_alerts(&object.0, complaints);
    }
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(folder.join("dashboard.json"))?)?;
    collect(&dashboard, &mut expressions);
    for expression in &expressions {
        complaints.extend(unknown(expression, &known).into_iter().map(|what| format!("{what}, in {expression}")));
    }
    Ok(())
}

/// Every alert tells people what it means.
fn complain_of_alerts(rule: &Value, complaints: &mut Vec<Complaint>) {
    let groups = rule.pointer("/spec/groups").and_then(Value::as_array).into_iter().flatten();
    for alert in groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        for field in ["/alert", "/expr", "/labels/severity", "/annotations/summary", "/annotations/description"] {
            if alert.pointer(field).and_then(Value::as_str).is_none_or(str::is_empty) {
                complaints.push(format!("alert {} has no {field}", alert["alert"]));
            }
        }
    }
}

fn collect(value: &Value, expressions: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, expressions)),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if ["expr", "definition"].contains(&name.as_str()) => {
                        expressions.push(text.clone());
                    }
                    _ => collect(field, expressions),
                }
            }
        }
        _ => {}
    }
}

fn known(scrape: &str) -> Known {
    let mut known = Known::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
        let series = known.entry(name.to_owned()).or_default();
        for (label, _, value) in matchers(rest) {
            series.entry(label).or_default().insert(value);
        }
    }
    known
}

/// The label, operator and value of each matcher in the braces that a text begins with.
fn matchers(text: &str) -> Vec<(String, String, String)> {
    let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(inner, _)| inner) else {
        return Vec::new();
    };
    let parse = |matcher: &str| {
        let (left, value) = matcher.split_once('"')?;
        let label = left.trim_end_matches(['=', '!', '~']);
        Some((label.trim().to_owned(), left[label.len()..].to_owned(), value.trim_end_matches('"').to_owned()))
    };
    inner.split(',').filter_map(parse).collect()
}

/// What an expression asks for that is not there.
fn unknown(expression: &str, known: &Known) -> Vec<String> {
    let mut wrong = Vec::new();
    for (start, _) in expression.match_indices("portcullis_") {
        let rest = &expression[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let Some(series) = known.get(name) else {
            wrong.push(format!("there is no metric {name}"));
            continue;
        };
        for (label, operator, value) in matchers(rest) {
            let Some(values) = series.get(&label) else {
                if !ADDED.contains(&label.as_str()) {
                    wrong.push(format!("{name} has no label {label}"));
                }
                continue;
            };
            let asked = if operator.ends_with('~') { value.split('|').collect() } else { vec![value.as_str()] };
            for value in asked.into_iter().filter(|value| CLOSED.contains(&label.as_str()) && !value.contains('$')) {
                if !values.contains(value) {
                    wrong.push(format!("{name} never has {label}=\"{value}\""));
                }
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let known =
            known("# TYPE portcullis_x counter\nportcullis_x_total{state=\"a\",table=\"t\"} 1\nportcullis_y 0\n");
        let rows = [
            ("sum(rate(portcullis_x_total{state=\"a\",job=~\"$job\"}[5m])) / portcullis_y", None),
            ("portcullis_x", Some("no metric portcullis_x")),
            ("portcullis_x_total{state=\"b\"}", Some("never has state=\"b\"")),
            ("portcullis_x_total{state=~\"a|c\"}", Some("never has state=\"c\"")),
            ("portcullis_x_total{table=\"other\"}", None),
            ("portcullis_x_total{stat=\"a\"}", Some("no label stat")),
        ];
        for (expression, expected) in rows {
            let wrong = unknown(expression, &known);
            match expected {
                None => assert_eq!(wrong, Vec::<String>::new(), "{expression}"),
                Some(word) => assert!(wrong.iter().any(|what| what.contains(word)), "{expression}: {wrong:?}"),
            }
        }
    }
}
