//! Pods as peers, in groups: pods of one namespace with the same labels and declared ports answer every question alike.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::atoms::{self, AtomId, Question, Signature};
use super::classes::GroupId;
use crate::model::{Labels, NamedPort, NamespaceScope, Pod, PodKey, Protocol, Selector};

/// The label that every namespace carries.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    namespace: Arc<str>,
    labels: Labels,
    ports: Vec<NamedPort>,
}

/// A group of pods that answer every question alike.
#[derive(Debug)]
pub(super) struct Group {
    key: Arc<GroupKey>,
    pub(super) atoms: Signature,
    /// In no order: few, mostly, and nobody asks for the one or the other.
    pods: Vec<Arc<Pod>>,
}

impl Group {
    pub(super) fn namespace(&self) -> &Arc<str> {
        &self.key.namespace
    }

    pub(super) fn labels(&self) -> &Labels {
        &self.key.labels
    }

    pub(super) fn ports(&self) -> &[NamedPort] {
        &self.key.ports
    }

    pub(super) fn pods(&self) -> &[Arc<Pod>] {
        &self.pods
    }
}

/// A member pod. It is the cluster's own object, as it was when its group, uid and addresses last changed: of a hundred
/// thousand pods there is to be one copy.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: GroupId,
    pub(super) pod: Arc<Pod>,
}

/// Members are told apart by their pods' names, which are in the pods already.
impl Borrow<PodKey> for Member {
    fn borrow(&self) -> &PodKey {
        &self.pod.key
    }
}

impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.pod.key.hash(state);
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.pod.key == other.pod.key
    }
}

impl Eq for Member {}

/// What a change of one pod touched.
#[derive(Debug, Default)]
pub(super) struct PodChange {
    /// Addresses claimed or given up, or that belong to another group now.
    pub(super) addresses: Vec<IpAddr>,
    /// Groups that gained, lost or changed the pod.
    pub(super) groups: Vec<GroupId>,
}

/// Pods, their groups, and namespaces.
#[derive(Debug, Default)]
pub(super) struct Pods {
    members: FxHashSet<Member>,
    groups: FxHashMap<GroupId, Group>,
    group_ids: FxHashMap<Arc<GroupKey>, GroupId>,
    next_group: u32,
    in_namespace: FxHashMap<Arc<str>, FxHashSet<GroupId>>,
    namespaces: FxHashMap<Arc<str>, Labels>,
    /// How many groups declare each number under a name and protocol.
    numbers: FxHashMap<(Arc<str>, Protocol), BTreeMap<u16, u32>>,
    new_numbers: BTreeSet<(Arc<str>, Protocol, u16)>,
    gone_numbers: BTreeSet<(Arc<str>, Protocol, u16)>,
    asked_of: AskedOf,
    empty: BTreeSet<GroupId>,
}

/// Live atoms about pods, by where they look.
#[derive(Debug, Default)]
struct AskedOf {
    named: FxHashMap<Arc<str>, Vec<(AtomId, Selector)>>,
    matching: Vec<(AtomId, Selector, Selector)>,
    ports: FxHashMap<(Arc<str>, Protocol, u16), AtomId>,
}

impl Pods {
    /// The labels of a namespace; one that is not known has only its name.
    pub(super) fn namespace_labels(&self, namespace: &Arc<str>) -> Labels {
        self.namespaces.get(namespace).cloned().unwrap_or_else(|| name_labels(namespace))
    }

    /// Whether a namespace is of a scope.
    pub(super) fn in_scope(&self, namespace: &Arc<str>, scope: &NamespaceScope) -> bool {
        match scope {
            NamespaceScope::Named(name) => name == namespace,
            NamespaceScope::Matching(selector) => match self.namespaces.get(namespace) {
                Some(labels) => selector.matches(labels),
                None => selector.matches(&name_labels(namespace)),
            },
        }
    }

    /// Takes in the labels of a namespace. Gives the groups of which other atoms hold now.
    pub(super) fn set_namespace(&mut self, namespace: &Arc<str>, labels: Option<&Labels>) -> Vec<GroupId> {
        let known = self.namespaces.get(namespace);
        if known == labels {
            return Vec::new();
        }
        match labels {
            Some(labels) => self.namespaces.insert(Arc::clone(namespace), labels.clone()),
            None => self.namespaces.remove(namespace),
        };
        let groups: Vec<GroupId> = self.in_namespace.get(namespace).into_iter().flatten().copied().collect();
        let mut changed = Vec::new();
        for id in groups {
            let Some(group) = self.groups.get(&id) else { continue };
            let signature = self.ask_all(&group.key);
            if let Some(group) = self.groups.get_mut(&id).filter(|group| group.atoms != signature) {
                group.atoms = signature;
                changed.push(id);
            }
        }
        changed
    }

    /// Takes in a pod, or its going.
    pub(super) fn set_pod(&mut self, key: &PodKey, pod: Option<&Arc<Pod>>) -> PodChange {
        let mut change = PodChange::default();
        let pod = pod.filter(|pod| pod.is_member());
        let group = pod.map(|pod| self.group(pod));
        if let (Some(pod), Some(member)) = (pod, self.members.get(key))
            && Some(member.group) == group
            && member.pod.addresses == pod.addresses
            && member.pod.uid == pod.uid
        {
            return change;
        }
        if let Some(member) = self.members.take(key) {
            change.addresses.extend(&member.pod.addresses);
            change.groups.push(member.group);
            if let Some(group) = self.groups.get_mut(&member.group) {
                group.pods.retain(|pod| !Arc::ptr_eq(pod, &member.pod));
                if group.pods.is_empty() {
                    self.empty.insert(member.group);
                }
            }
        }
        if let (Some(pod), Some(group)) = (pod, group) {
            if let Some(group) = self.groups.get_mut(&group) {
                // Exactly as long as it must be at first: most groups are few pods, and stay so.
                if group.pods.is_empty() {
                    group.pods.reserve_exact(1);
                }
                group.pods.push(Arc::clone(pod));
            }
            self.empty.remove(&group);
            self.members.insert(Member { group, pod: Arc::clone(pod) });
            change.addresses.extend(&pod.addresses);
            change.groups.push(group);
        }
        change
    }

    /// The group of a pod, made if need be.
    fn group(&mut self, pod: &Pod) -> GroupId {
        let mut ports: Vec<NamedPort> = pod.ports.iter().filter(|port| !port.name.is_empty()).cloned().collect();
        ports.sort_unstable();
        ports.dedup();
        let key = GroupKey { namespace: Arc::clone(&pod.key.namespace), labels: pod.labels.clone(), ports };
        if let Some(id) = self.group_ids.get(&key) {
            return *id;
        }
        let id = GroupId(self.next_group);
        self.next_group += 1;
        for port in &key.ports {
            let numbers = self.numbers.entry((Arc::clone(&port.name), port.protocol)).or_default();
            let count = numbers.entry(port.number).or_default();
            *count += 1;
            if *count == 1 {
                self.new_numbers.insert((Arc::clone(&port.name), port.protocol, port.number));
            }
        }
        let atoms = self.ask_all(&key);
        let key = Arc::new(key);
        self.in_namespace.entry(Arc::clone(&key.namespace)).or_default().insert(id);
        self.group_ids.insert(Arc::clone(&key), id);
        self.groups.insert(id, Group { key, atoms, pods: Vec::new() });
        // Empty until the caller puts the pod in.
        self.empty.insert(id);
        id
    }

    /// All atoms that hold for a group.
    fn ask_all(&self, key: &GroupKey) -> Signature {
        let mut signature: Signature = Vec::new();
        for (id, pods) in self.asked_of.named.get(&key.namespace).into_iter().flatten() {
            if pods.matches(&key.labels) {
                signature.push(*id);
            }
        }
        if !self.asked_of.matching.is_empty() {
            let labels = self.namespace_labels(&key.namespace);
            for (id, namespaces, pods) in &self.asked_of.matching {
                if pods.matches(&key.labels) && namespaces.matches(&labels) {
                    signature.push(*id);
                }
            }
        }
        for port in &key.ports {
            let question = (Arc::clone(&port.name), port.protocol, port.number);
            signature.extend(self.asked_of.ports.get(&question));
        }
        signature.sort_unstable();
        signature.dedup();
        signature
    }

    /// Asks a new atom of every group. Gives the groups for which it holds.
    pub(super) fn add_atom(&mut self, id: AtomId, question: &Question) -> Vec<GroupId> {
        let holding: Vec<GroupId> = match question {
            Question::Pods(scope, pods) => {
                let candidates: Vec<GroupId> = match scope {
                    NamespaceScope::Named(namespace) => {
                        let asked = self.asked_of.named.entry(Arc::clone(namespace)).or_default();
                        asked.push((id, pods.clone()));
                        self.in_namespace.get(namespace).into_iter().flatten().copied().collect()
                    }
                    NamespaceScope::Matching(namespaces) => {
                        self.asked_of.matching.push((id, namespaces.clone(), pods.clone()));
                        (self.in_namespace.iter())
                            .filter(|(namespace, _)| self.in_scope(namespace, scope))
                            .flat_map(|(_, groups)| groups.iter().copied())
                            .collect()
                    }
                };
                let holds = |id: &GroupId| self.groups.get(id).is_some_and(|group| pods.matches(&group.key.labels));
                candidates.into_iter().filter(holds).collect()
            }
            Question::Port(name, protocol, number) => {
                self.asked_of.ports.insert((Arc::clone(name), *protocol, *number), id);
                let declared =
                    |port: &NamedPort| port.name == *name && port.protocol == *protocol && port.number == *number;
                let groups = self.groups.iter().filter(|(_, group)| group.key.ports.iter().any(declared));
                groups.map(|(id, _)| *id).collect()
            }
            Question::Cidr(_) | Question::OwnNode => Vec::new(),
        };
        for group in &holding {
            if let Some(group) = self.groups.get_mut(group) {
                atoms::insert(&mut group.atoms, id);
            }
        }
        holding
    }

    /// Takes dead atoms out of every group. Gives the groups for which one held.
    pub(super) fn remove_atoms(&mut self, dead: &[(AtomId, Question)]) -> Vec<GroupId> {
        let mut any = false;
        for (id, question) in dead {
            match question {
                Question::Pods(NamespaceScope::Named(namespace), _) => {
                    if let Some(asked) = self.asked_of.named.get_mut(namespace) {
                        asked.retain(|(other, _)| other != id);
                        if asked.is_empty() {
                            self.asked_of.named.remove(namespace);
                        }
                    }
                }
                Question::Pods(NamespaceScope::Matching(_), _) => {
                    self.asked_of.matching.retain(|(other, ..)| other != id);
                }
                Question::Port(name, protocol, number) => {
                    self.asked_of.ports.remove(&(Arc::clone(name), *protocol, *number));
                }
                Question::Cidr(_) | Question::OwnNode => continue,
            }
            any = true;
        }
        if !any {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for (id, group) in &mut self.groups {
            let before = group.atoms.len();
            for (atom, _) in dead {
                atoms::remove(&mut group.atoms, *atom);
            }
            if group.atoms.len() != before {
                changed.push(*id);
            }
        }
        changed
    }

    /// Forgets groups without pods.
    pub(super) fn drop_empty_groups(&mut self) {
        for id in &std::mem::take(&mut self.empty) {
            let Some(group) = self.groups.remove(id) else { continue };
            self.group_ids.remove(&group.key);
            if let Some(groups) = self.in_namespace.get_mut(&group.key.namespace) {
                groups.remove(id);
                if groups.is_empty() {
                    self.in_namespace.remove(&group.key.namespace);
                }
            }
            for port in &group.key.ports {
                let name = (Arc::clone(&port.name), port.protocol);
                if let Some(numbers) = self.numbers.get_mut(&name) {
                    if let Some(count) = numbers.get_mut(&port.number) {
                        *count -= 1;
                        if *count == 0 {
                            numbers.remove(&port.number);
                            self.gone_numbers.insert((Arc::clone(&port.name), port.protocol, port.number));
                        }
                    }
                    if numbers.is_empty() {
                        self.numbers.remove(&name);
                    }
                }
            }
        }
    }

    /// The numbers that pods declare under a name and protocol.
    pub(super) fn numbers(&self, name: &Arc<str>, protocol: Protocol) -> Vec<u16> {
        let numbers = self.numbers.get(&(Arc::clone(name), protocol));
        numbers.into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    pub(super) fn has_gone_numbers(&self) -> bool {
        !self.gone_numbers.is_empty()
    }

    /// Numbers that no pod has declared since before the last call, and that none declares now.
    pub(super) fn take_gone_numbers(&mut self) -> Vec<(Arc<str>, Protocol, u16)> {
        let gone = std::mem::take(&mut self.gone_numbers).into_iter();
        gone.filter(|(name, protocol, number)| !self.numbers(name, *protocol).contains(number)).collect()
    }

    /// Numbers declared for the first time since the last call.
    pub(super) fn take_new_numbers(&mut self) -> BTreeSet<(Arc<str>, Protocol, u16)> {
        std::mem::take(&mut self.new_numbers)
    }

    pub(super) fn member(&self, key: &PodKey) -> Option<&Member> {
        self.members.get(key)
    }

    pub(super) fn group_of(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    pub(super) fn groups_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Group> {
        let ids = self.in_namespace.get(namespace).into_iter().flatten();
        ids.filter_map(|id| self.groups.get(id))
    }

    pub(super) fn member_keys(&self) -> impl Iterator<Item = &PodKey> {
        self.members.iter().map(|member| &member.pod.key)
    }

    pub(super) fn namespace_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.namespaces.keys()
    }
}

fn name_labels(namespace: &Arc<str>) -> Labels {
    Labels::from_iter([(NAME_LABEL, Arc::clone(namespace))])
}
