//! Texts and labels that many pods have in common, kept once: replicas differ in name, uid and address only.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::model::{Labels, Pod};

/// No look for what nobody uses any more before there is this much.
const FEW: usize = 1024;

/// What pods share.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    texts: FxHashSet<Arc<str>>,
    labels: FxHashSet<Labels>,
    /// Entries after the last look.
    kept: usize,
}

impl Shared {
    /// Makes a pod share what others have.
    pub(super) fn share(&mut self, pod: &mut Pod) {
        pod.key.namespace = self.text(&pod.key.namespace);
        pod.node = pod.node.as_ref().map(|node| self.text(node));
        for port in &mut pod.ports {
            port.name = self.text(&port.name);
        }
        pod.ports.shrink_to_fit();
        pod.addresses.shrink_to_fit();
        pod.labels = match self.labels.get(&pod.labels) {
            Some(known) => known.clone(),
            None => {
                let labels = pod.labels.with_texts(|text| self.text(text));
                self.labels.insert(labels.clone());
                labels
            }
        };
        if self.texts.len() + self.labels.len() > 2 * self.kept + FEW {
            self.labels.retain(|labels| !labels.is_unshared());
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.kept = self.texts.len() + self.labels.len();
        }
    }

    fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        self.texts.insert(Arc::clone(text));
        Arc::clone(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    fn pod(namespace: &str, name: &str, app: &str) -> Pod {
        Pod {
            key: Name::new(namespace, name),
            uid: "".into(),
            labels: [("app", app), ("name", name)].into_iter().collect(),
            addresses: Vec::new(),
            node: None,
            host_network: false,
            finished: false,
            ports: Vec::new(),
        }
    }

    #[test]
    fn pods_share_what_is_equal() {
        let mut shared = Shared::default();
        let (mut one, mut two) = (pod("x", "a", "web"), pod("x", "a", "web"));
        shared.share(&mut one);
        shared.share(&mut two);
        assert!(Arc::ptr_eq(&one.key.namespace, &two.key.namespace), "a namespace");
        assert_eq!(one, pod("x", "a", "web"), "and are what they were");
        assert_eq!((shared.labels.len(), shared.texts.len()), (1, 5), "x, app, web, name, a");
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let mut shared = Shared::default();
        for i in 0..10 * FEW {
            shared.share(&mut pod("x", &format!("pod-{i}"), "web"));
        }
        assert!(shared.labels.len() + shared.texts.len() < 3 * FEW, "{} labels", shared.labels.len());
    }
}
