//! What files mean, what becomes of bad ones, and how changes are noticed.

mod documents;
mod lines;
mod live;
mod live_folders;
mod random;
mod stored;
mod watched;

use std::path::Path;

use super::problem::{Problem, Severity};
use super::store::{Contents, Outcome, Store};
use crate::index::Cluster;
use crate::model::{ObjectKey, PolicyId, PolicyKind};

/// A store with the cluster that its changes make up.
#[derive(Default)]
struct World {
    store: Store,
    cluster: Cluster,
}

impl World {
    /// Files change in one round; `None` removes one.
    fn round(&mut self, files: &[(&str, Option<&str>)]) -> Outcome {
        for (path, text) in files {
            self.store.set(Path::new(path), text.map_or(Contents::Gone, Contents::Text));
        }
        self.commit()
    }

    fn commit(&mut self) -> Outcome {
        let outcome = self.store.commit();
        for change in &outcome.changes {
            assert!(self.cluster.apply(change.clone()), "a change changes something: {change:?}");
        }
        outcome
    }

    fn put(&mut self, path: &str, text: &str) -> Outcome {
        self.round(&[(path, Some(text))])
    }

    /// How many allow rules a policy has in force for ingress, the implied one left out; `None` where it is unknown.
    fn rules(&self, name: &str) -> Option<usize> {
        rules(&self.cluster, name)
    }

    fn errors(&self) -> Vec<String> {
        lines(self.store.problems(), Severity::Error)
    }
}

fn rules(cluster: &Cluster, name: &str) -> Option<usize> {
    let policy = cluster.policies.get(&policy_id(name))?;
    Some(policy.ingress.as_ref()?.len() - 1)
}

fn policy_id(name: &str) -> PolicyId {
    PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some("default".into()), name: name.into() }
}

fn policy_key(name: &str) -> ObjectKey {
    ObjectKey::Policy(policy_id(name))
}

fn lines<'a>(problems: impl IntoIterator<Item = &'a Problem>, severity: Severity) -> Vec<String> {
    problems.into_iter().filter(|problem| problem.severity == severity).map(ToString::to_string).collect()
}

/// A policy that allows in that many ways, so that its versions can be told apart.
fn policy(name: &str, rules: usize) -> String {
    let rules = vec!["{}"; rules].join(", ");
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{rules}]}}\n"
    )
}

/// One that is refused.
fn bad_policy(name: &str) -> String {
    policy(name, 0).replace("ingress: []", "ingress: [{ports: [{port: 0}]}]")
}

fn pod(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

const BROKEN: &str = "a: [1\n";

fn documents(texts: &[&str]) -> String {
    texts.join("---\n")
}
