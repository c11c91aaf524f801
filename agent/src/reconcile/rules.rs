//! Rule numbers: their names in the kernel, so that counters survive the agent, and their end.

use std::collections::{BTreeMap, BTreeSet};

use sha1::{Digest, Sha1};

use super::{ReconcileError, Reconciler};
use crate::compile::Touched;
use crate::index::Cluster;
use crate::model::{Direction, PolicyId, RuleOrigin, Verdict};
use crate::state::{RuleCause, RuleIdentity, RuleNumber};

/// The rules that the tables name.
#[derive(Debug, Default)]
pub(super) struct RuleTable {
    pub(super) known: BTreeMap<RuleNumber, RuleIdentity>,
    /// Of those, rules that no table is to name any more, and that have their names until a grace period is over.
    ended: BTreeSet<RuleNumber>,
}

/// The name under which an agent that starts later finds a rule again.
pub(super) fn hash(identity: &RuleIdentity) -> [u8; 16] {
    let digest =
        Sha1::digest(format!("{}|{:?}|{}|{:?}", identity.direction, identity.verdict, identity.policy, identity.cause));
    let mut hash = [0; 16];
    hash.iter_mut().zip(digest).for_each(|(place, byte)| *place = byte);
    hash
}

/// Rules of one policy that are looked for by name where the policy itself cannot be read.
const RULES: u32 = 4096;

/// Every name that a policy of unknown content can give rise to.
pub(super) fn names_of(policy: &PolicyId) -> impl Iterator<Item = RuleIdentity> + '_ {
    let implied = [RuleOrigin::Itself, RuleOrigin::OwnNode].map(RuleCause::Rule);
    let causes = [RuleCause::Isolation].into_iter().chain(implied);
    let causes = causes.chain((0..RULES).map(|index| RuleCause::Rule(RuleOrigin::Spec(index))));
    causes.flat_map(move |cause| {
        let of = move |direction, verdict| RuleIdentity { direction, verdict, policy: policy.clone(), cause };
        [
            of(Direction::Ingress, Verdict::Deny),
            of(Direction::Ingress, Verdict::Allow),
            of(Direction::Egress, Verdict::Deny),
            of(Direction::Egress, Verdict::Allow),
        ]
    })
}

/// Every name that a cluster's policies can give rise to.
pub(super) fn all_names(cluster: &Cluster) -> impl Iterator<Item = RuleIdentity> + '_ {
    let directions = [Direction::Ingress, Direction::Egress];
    cluster.policies.values().flat_map(move |policy| {
        directions.into_iter().filter_map(|direction| Some((direction, policy.rules(direction)?))).flat_map(
            move |(direction, rules)| {
                let causes = rules.iter().map(|rule| rule.origin);
                let implied = [RuleOrigin::Itself, RuleOrigin::OwnNode];
                let causes = causes.chain(implied).map(RuleCause::Rule).chain([RuleCause::Isolation]);
                causes.flat_map(move |cause| {
                    [Verdict::Allow, Verdict::Deny].map(|verdict| RuleIdentity {
                        direction,
                        verdict,
                        policy: policy.id.clone(),
                        cause,
                    })
                })
            },
        )
    })
}

impl Reconciler {
    /// New rules count from 0 under their name, before a row points to them. `everything`: what changed is not known.
    pub(super) fn name_rules(&mut self, everything: bool) -> Result<(), ReconcileError> {
        let limit = self.dataplane.counters.len();
        let wanted = &self.compiler.desired().rules;
        let is_new = |(number, identity): &(&RuleNumber, &RuleIdentity)| self.rules.known.get(number) != Some(identity);
        let new: Vec<(RuleNumber, RuleIdentity)> = match self.compiler.touched() {
            Touched::Keys(keys) if !everything => {
                let ended = keys.rules.iter().copied().filter(|number| !wanted.contains_key(number));
                self.rules.ended.extend(ended);
                let touched = keys.rules.iter().filter_map(|number| wanted.get_key_value(number));
                touched.filter(is_new).map(|(number, identity)| (*number, identity.clone())).collect()
            }
            _ => {
                let known = self.rules.known.keys().copied();
                self.rules.ended = known.filter(|number| !wanted.contains_key(number)).collect();
                wanted.iter().filter(is_new).map(|(number, identity)| (*number, identity.clone())).collect()
            }
        };
        for (number, identity) in new {
            if number.0 >= limit {
                let full = crate::state::image::Full { table: "rules", used: wanted.len(), capacity: limit as usize };
                return Err(full.into());
            }
            self.dataplane.counters.reset(number.0)?;
            self.dataplane.set_rule_name(number.0, hash(&identity))?;
            self.rules.known.insert(number, identity);
        }
        Ok(())
    }

    /// Rules that are no more lose their name and count.
    pub(super) fn forget_rules(&mut self) -> Result<(), ReconcileError> {
        let wanted = &self.compiler.desired().rules;
        // Tables that the agent before has left may still count under rules that this one does not know.
        let is_kept = |number: &RuleNumber| self.kept.mentions(number.0);
        let ended = self.rules.ended.iter().copied().filter(|number| !wanted.contains_key(number));
        let (kept, gone): (BTreeSet<RuleNumber>, BTreeSet<RuleNumber>) = ended.partition(is_kept);
        for number in gone {
            if self.rules.known.contains_key(&number) {
                self.dataplane.set_rule_name(number.0, [0; 16])?;
                self.dataplane.counters.reset(number.0)?;
                self.rules.known.remove(&number);
            }
        }
        self.rules.ended = kept;
        Ok(())
    }
}
