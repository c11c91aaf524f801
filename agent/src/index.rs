//! What is known of the cluster: changes go in, a snapshot is read.

mod shared;

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::Shared;

/// The label that API servers give every namespace.
const METADATA_NAME: &str = "kubernetes.io/metadata.name";

use crate::model::{
    Change, EndpointSlice, Name, Namespace, NamespaceScope, Node, Object, ObjectKey, Pod, PodKey, Policy, PolicyId,
    Service, ServiceKey, Subject, Tier,
};

/// Every object that a source has delivered, by name.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Pods.
    pub pods: BTreeMap<PodKey, Arc<Pod>>,
    /// Namespaces. A namespace that pods or policies name may be absent: it then has only its metadata.name label.
    pub namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    /// Nodes.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// Services.
    pub services: BTreeMap<ServiceKey, Arc<Service>>,
    /// Backends of Services.
    pub slices: BTreeMap<Name, Arc<EndpointSlice>>,
    /// Policies.
    pub policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// Tiers, beyond the built-in [`Tier::DEFAULT`], whose order and end an object of that name does not change.
    pub tiers: BTreeMap<Arc<str>, Arc<Tier>>,
    /// What pods have in common, once.
    shared: Shared,
}

impl Cluster {
    /// Takes in one change; tells whether anything is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Set(object) => self.set(object),
            Change::Gone(key) => self.remove(&key),
        }
    }

    /// The same with policies that judge pods' traffic to their own node: see [`Policy::judging_own_node`].
    #[must_use]
    pub fn judging_own_node(mut self) -> Self {
        for policy in self.policies.values_mut() {
            *policy = Arc::new(Policy::clone(policy).judging_own_node());
        }
        self
    }

    /// Whether a pod is a policy's subject. A namespace without an object has only the label that names it.
    #[must_use]
    pub fn selects(&self, subject: &Subject, pod: &Pod) -> bool {
        let in_scope = match &subject.namespaces {
            NamespaceScope::Named(name) => *name == pod.key.namespace,
            NamespaceScope::Matching(selector) => match self.namespaces.get(&pod.key.namespace) {
                Some(namespace) => selector.matches(&namespace.labels),
                None => selector.matches(&[(METADATA_NAME, pod.key.namespace.clone())].into_iter().collect()),
            },
        };
        in_scope && pod.is_member() && subject.pods.matches(&pod.labels)
    }

    fn set(&mut self, object: Object) -> bool {
        match object {
            Object::Pod(mut pod) => {
                self.shared.share(&mut pod);
                put(&mut self.pods, pod.key.clone(), pod)
            }
            Object::Namespace(namespace) => put(&mut self.namespaces, namespace.name.clone(), namespace),
            Object::Node(node) => put(&mut self.nodes, node.name.clone(), node),
            Object::Service(service) => put(&mut self.services, service.key.clone(), service),
            Object::EndpointSlice(slice) => put(&mut self.slices, slice.key.clone(), slice),
            Object::Policy(policy) => put(&mut self.policies, policy.id.clone(), policy),
            Object::Tier(tier) => put(&mut self.tiers, tier.name.clone(), tier),
        }
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        match key {
            ObjectKey::Pod(key) => self.pods.remove(key).is_some(),
            ObjectKey::Namespace(key) => self.namespaces.remove(key).is_some(),
            ObjectKey::Node(key) => self.nodes.remove(key).is_some(),
            ObjectKey::Service(key) => self.services.remove(key).is_some(),
            ObjectKey::EndpointSlice(key) => self.slices.remove(key).is_some(),
            ObjectKey::Policy(key) => self.policies.remove(key).is_some(),
            ObjectKey::Tier(key) => self.tiers.remove(key).is_some(),
        }
    }
}

fn put<K: Ord, V: PartialEq>(objects: &mut BTreeMap<K, Arc<V>>, key: K, value: V) -> bool {
    if objects.get(&key).is_some_and(|known| **known == value) {
        return false;
    }
    objects.insert(key, Arc::new(value));
    true
}
