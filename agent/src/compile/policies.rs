//! Policies and tiers, in the order in which they are asked.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::local::Locals;
use super::pods::Pods;
use super::sets::{PolicyRules, Tier as SetTier};
use crate::model::{Direction, Labels, NamespaceScope, Order, Policy, PolicyId, Subject, Tier, TierDefault};

#[derive(Debug)]
struct Known {
    policy: Arc<Policy>,
    ingress: Option<Arc<PolicyRules>>,
    egress: Option<Arc<PolicyRules>>,
}

impl Known {
    fn rules(&self, direction: Direction) -> Option<&Arc<PolicyRules>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }
}

/// All policies and tiers.
#[derive(Debug, Default)]
pub(super) struct Policies {
    known: FxHashMap<PolicyId, Known>,
    in_namespace: FxHashMap<Arc<str>, BTreeSet<PolicyId>>,
    anywhere: BTreeSet<PolicyId>,
    tiers: FxHashMap<Arc<str>, Arc<Tier>>,
    next_rules: u32,
}

impl Policies {
    /// Takes in a policy, and marks the local pods that it selects or selected.
    pub(super) fn set_policy(&mut self, id: &PolicyId, policy: Option<&Arc<Policy>>, pods: &Pods, locals: &mut Locals) {
        if let (Some(policy), Some(before)) = (policy, self.known.get(id))
            && *policy == before.policy
        {
            return;
        }
        let before = self.known.remove(id);
        if let Some(before) = &before {
            self.unlink(id, &before.policy.subject);
            locals.mark(|_, local| local.applicable.contains(id));
        }
        let Some(policy) = policy else { return };
        let mut rules = |direction| {
            let rules = policy.rules(direction)?;
            let same = before.as_ref().and_then(|before| before.rules(direction)).filter(|same| same.rules() == rules);
            Some(same.map_or_else(
                || {
                    self.next_rules += 1;
                    Arc::new(PolicyRules { id: self.next_rules, policy: Arc::clone(policy), direction })
                },
                Arc::clone,
            ))
        };
        let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
        match &policy.subject.namespaces {
            NamespaceScope::Named(name) => {
                self.in_namespace.entry(Arc::clone(name)).or_default().insert(id.clone());
            }
            NamespaceScope::Matching(_) => {
                self.anywhere.insert(id.clone());
            }
        }
        locals.mark(|key, local| selects(&policy.subject, &key.pod.namespace, &local.pod.labels, pods));
        let known = Known { policy: Arc::clone(policy), ingress, egress };
        self.known.insert(id.clone(), known);
    }

    fn unlink(&mut self, id: &PolicyId, subject: &Subject) {
        match &subject.namespaces {
            NamespaceScope::Named(name) => {
                if let Some(ids) = self.in_namespace.get_mut(name) {
                    ids.remove(id);
                    if ids.is_empty() {
                        self.in_namespace.remove(name);
                    }
                }
            }
            NamespaceScope::Matching(_) => {
                self.anywhere.remove(id);
            }
        }
    }

    /// Takes in a tier; tells whether it is different now.
    pub(super) fn set_tier(&mut self, name: &Arc<str>, tier: Option<&Arc<Tier>>) -> bool {
        let before = match tier {
            Some(tier) => self.tiers.insert(Arc::clone(name), Arc::clone(tier)),
            None => self.tiers.remove(name),
        };
        before.as_ref() != tier
    }

    /// The policies that select a pod.
    pub(super) fn selecting(&self, namespace: &Arc<str>, labels: &Labels, pods: &Pods) -> BTreeSet<PolicyId> {
        let candidates = self.in_namespace.get(namespace).into_iter().flatten().chain(&self.anywhere);
        let known = candidates.filter_map(|id| self.known.get_key_value(id));
        known
            .filter(|(_, known)| selects(&known.policy.subject, namespace, labels, pods))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// These policies' rules for a direction, by tier and in order; empty where none governs it.
    pub(super) fn in_order(&self, ids: &BTreeSet<PolicyId>, direction: Direction) -> Vec<SetTier> {
        let mut governing: Vec<(&Known, &Arc<PolicyRules>)> = (ids.iter())
            .filter_map(|id| self.known.get(id))
            .filter_map(|known| Some((known, known.rules(direction)?)))
            .collect();
        governing.sort_by_cached_key(|(known, _)| {
            let policy = &known.policy;
            (self.tier(&policy.tier).0, Arc::clone(&policy.tier), policy.order, policy.id.tie_break())
        });
        let mut tiers: Vec<(&Arc<str>, SetTier)> = Vec::new();
        for (known, rules) in governing {
            let name = &known.policy.tier;
            if tiers.last().is_none_or(|(last, _)| *last != name) {
                let denies = self.tier(name).1 == TierDefault::Deny;
                tiers.push((name, SetTier { policies: Vec::new(), denies }));
            }
            if let Some((_, tier)) = tiers.last_mut() {
                tier.policies.push(Arc::clone(rules));
            }
        }
        tiers.into_iter().map(|(_, tier)| tier).collect()
    }

    /// Where a tier stands and how it ends. One that is not known stands after all that are and denies: a policy in it was
    /// meant to isolate. An object of the built-in tier's name changes nothing of it.
    fn tier(&self, name: &str) -> ((bool, Order), TierDefault) {
        if name == Tier::DEFAULT {
            return ((false, Tier::DEFAULT_ORDER), TierDefault::Deny);
        }
        match self.tiers.get(name) {
            Some(tier) => ((false, tier.order), tier.default),
            None => ((true, Order(None)), TierDefault::Deny),
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &PolicyId> {
        self.known.keys()
    }

    pub(super) fn tier_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tiers.keys()
    }
}

fn selects(subject: &Subject, namespace: &Arc<str>, labels: &Labels, pods: &Pods) -> bool {
    pods.in_scope(namespace, &subject.namespaces) && subject.pods.matches(labels)
}
