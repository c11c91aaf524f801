//! The pods that may run on this node, and how they are found by address and by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use sha1::{Digest, Sha1};

use crate::model::{Pod, PodKey};

/// One life of a pod: a pod deleted and created anew under its old name is another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Its namespace and name.
    pub key: PodKey,
    /// `metadata.uid`; empty where the source gives none, and then a pod created anew cannot be told from its
    /// predecessor.
    pub uid: Arc<str>,
}

impl From<&Pod> for PodId {
    fn from(pod: &Pod) -> Self {
        Self { key: pod.key.clone(), uid: pod.uid.clone() }
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

/// A pod that may run on this node: neither finished nor on the host's network, and of this node where the source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Which pod.
    pub id: PodId,
    /// `status.podIPs`; empty until the kubelet has reported them.
    pub addresses: Vec<IpAddr>,
}

impl LocalPod {
    /// A pod of the model; `None` for one that is no endpoint (finished, or on the host's network). Whether it is of
    /// this node is for the caller to say.
    pub fn of(pod: &Pod) -> Option<Self> {
        pod.is_member().then(|| Self { id: pod.into(), addresses: pod.addresses.clone() })
    }
}

/// The name that Azure CNI gives to the host's end of a pod's veth: `azv` and the first 11 hexadecimal digits of the
/// SHA-1 of `namespace.name` (`generateVethName` in Azure/azure-container-networking).
pub fn azure_veth_name(namespace: &str, name: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{name}").as_bytes());
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(11);
    format!("azv{hex}")
}

/// Whether a device's name has the shape of [`azure_veth_name`].
pub(super) fn is_azure_veth_name(name: &str) -> bool {
    name.strip_prefix("azv")
        .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// The pods with their look-ups. Two pods may have one address for a while: one that ends and its successor.
#[derive(Debug, Default)]
pub(super) struct PodIndex {
    pods: BTreeMap<PodId, LocalPod>,
    by_address: BTreeMap<IpAddr, BTreeSet<PodId>>,
    by_veth_name: BTreeMap<String, BTreeSet<PodId>>,
}

impl PodIndex {
    pub(super) fn apply(&mut self, pod: LocalPod) {
        self.delete(&pod.id);
        for address in &pod.addresses {
            self.by_address.entry(*address).or_default().insert(pod.id.clone());
        }
        let veth = azure_veth_name(&pod.id.key.namespace, &pod.id.key.name);
        self.by_veth_name.entry(veth).or_default().insert(pod.id.clone());
        self.pods.insert(pod.id.clone(), pod);
    }

    pub(super) fn delete(&mut self, id: &PodId) {
        let Some(pod) = self.pods.remove(id) else {
            return;
        };
        for address in &pod.addresses {
            remove_from(&mut self.by_address, address, id);
        }
        remove_from(&mut self.by_veth_name, &azure_veth_name(&id.key.namespace, &id.key.name), id);
    }

    pub(super) fn contains(&self, id: &PodId) -> bool {
        self.pods.contains_key(id)
    }

    pub(super) fn addresses(&self, id: &PodId) -> impl Iterator<Item = IpAddr> {
        self.pods.get(id).into_iter().flat_map(|pod| &pod.addresses).copied()
    }

    /// Pods whose addresses the kubelet has not reported yet.
    pub(super) fn without_addresses(&self) -> impl Iterator<Item = &PodId> {
        self.pods.values().filter(|pod| pod.addresses.is_empty()).map(|pod| &pod.id)
    }

    pub(super) fn with_address(&self, address: IpAddr) -> impl Iterator<Item = &PodId> {
        self.by_address.get(&address).into_iter().flatten()
    }

    pub(super) fn with_veth_name(&self, name: &str) -> impl Iterator<Item = &PodId> {
        self.by_veth_name.get(name).into_iter().flatten()
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<PodId>>, key: &K, id: &PodId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
