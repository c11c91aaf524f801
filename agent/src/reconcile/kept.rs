//! Endpoints that stay as the agent before has left them, since something that it may have enforced could not be read yet.
//!
//! The last good version of a policy lives in the agent that read it. When that agent ends while a manifest is broken, its
//! successor cannot know it: judged by what is left, the pods that it protected would be open. The old tables still stand
//! beside the new ones, so such endpoints keep their row, and with it their policy sets and the addresses, ranges and ports
//! of the old bank, until everything has been read. They follow no change meanwhile, which is why the agent says it is not
//! ready. Pods that the agent before did not know have no such row: what is known applies to them.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::layout::{narrow, reach};

use super::{Reconciler, rules};
use crate::model::PolicyId;
use crate::state::image::Image;

/// What the sources could not read since the agent started, each with the reason for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Nobody knows what is in these: it may be anything.
    pub anything: Vec<String>,
    /// Policies without a valid version.
    pub policies: BTreeMap<PolicyId, String>,
}

/// What is kept, and what is needed to decide that.
#[derive(Debug, Default)]
pub(super) struct Kept {
    unread: Unread,
    /// The rules that each policy set of the agent before can count under.
    rules: BTreeMap<u32, BTreeSet<u32>>,
    /// The numbers of rules by the hash of their name.
    names: BTreeMap<[u8; 16], u32>,
    /// The rules of unread policies that the agent before counted under, with the reason.
    refused: Vec<(BTreeSet<u32>, String)>,
    /// Why each device's endpoint stays as it was.
    pub(super) reasons: BTreeMap<u32, String>,
}

impl Kept {
    /// Learns from the tables as the agent before has left them.
    pub(super) fn start(&mut self, image: &Image, sets: &BTreeSet<u32>, names: BTreeMap<[u8; 16], u32>) {
        self.rules = rules_of(image, sets);
        self.names = names;
        self.find_refused();
    }

    fn learn(&mut self, unread: Unread) -> bool {
        let different = unread != self.unread;
        if different {
            self.unread = unread;
            self.find_refused();
        }
        different
    }

    fn find_refused(&mut self) {
        self.refused.clear();
        if self.names.is_empty() {
            return;
        }
        for (policy, reason) in &self.unread.policies {
            let numbers = rules::names_of(policy).filter_map(|identity| self.names.get(&rules::hash(&identity)));
            self.refused.push((numbers.copied().collect(), reason.clone()));
        }
    }

    /// Whether tables of the agent before may still count under this rule.
    pub(super) fn mentions(&self, rule: u32) -> bool {
        self.rules.values().any(|rules| rules.contains(&rule))
    }

    /// The tables of the agent before are gone.
    pub(super) fn end(&mut self) {
        self.rules.clear();
        self.names.clear();
        self.refused.clear();
        self.reasons.clear();
    }

    fn reason(&self, sets: [u32; 2]) -> Option<&str> {
        if sets == [0, 0] {
            return None;
        }
        if let Some(reason) = self.unread.anything.first() {
            return Some(reason);
        }
        let counted: Vec<&BTreeSet<u32>> = sets.iter().filter_map(|set| self.rules.get(set)).collect();
        let was_in_force = |numbers: &BTreeSet<u32>| counted.iter().any(|rules| !rules.is_disjoint(numbers));
        self.refused.iter().find(|(numbers, _)| was_in_force(numbers)).map(|(_, reason)| reason.as_str())
    }
}

/// The rules that verdicts of these policy sets name.
fn rules_of(image: &Image, sets: &BTreeSet<u32>) -> BTreeMap<u32, BTreeSet<u32>> {
    let mut profiles: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let mut named: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let mut of_profile: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (key, value) in image.narrow_rows() {
        let first = (key >> 32) as u32 & 0x0fff_ffff;
        match key >> 60 {
            narrow::PROFILE | narrow::PROFILE_ITSELF | narrow::SET_DEFAULT if sets.contains(&first) => {
                profiles.entry(first).or_default().insert(value as u32);
            }
            narrow::REACH | narrow::REACH_DEFAULT if sets.contains(&first) && reach::is_none(value) => {
                named.entry(first).or_default().insert(value as u32);
            }
            narrow::VERDICT | narrow::PROFILE_DEFAULT => {
                of_profile.entry(first).or_default().insert(value as u32);
            }
            _ => {}
        }
    }
    for (set, profiles) in profiles {
        let rules = profiles.iter().filter_map(|profile| of_profile.get(profile)).flatten();
        named.entry(set).or_default().extend(rules);
    }
    named
}

impl Reconciler {
    /// Takes in what the sources could not read since the agent started. Tells whether that is something else now.
    pub fn unread(&mut self, unread: Unread) -> bool {
        self.kept.learn(unread)
    }

    /// Decides which endpoints stay as the agent before has left them.
    pub(super) fn keep(&mut self) {
        if !self.leftovers {
            return;
        }
        let adopted = self.slots.used.iter().filter(|(_, slot)| slot.content.bank != self.bank && slot.id.is_some());
        let reasons = adopted.filter_map(|(ifindex, slot)| {
            Some((*ifindex, self.kept.reason([slot.content.ingress, slot.content.egress])?.to_owned()))
        });
        let reasons: BTreeMap<u32, String> = reasons.collect();
        let known = std::mem::replace(&mut self.kept.reasons, reasons);
        for (ifindex, reason) in self.kept.reasons.iter().filter(|(ifindex, reason)| known.get(ifindex) != Some(reason))
        {
            tracing::error!(pod = self.pod_behind(*ifindex), "its policy is kept from before: {reason}");
        }
        for ifindex in known.keys().filter(|ifindex| !self.kept.reasons.contains_key(ifindex)) {
            tracing::info!(pod = self.pod_behind(*ifindex), "everything has been read: present policy applies again");
        }
    }

    pub(super) fn pod_behind(&self, ifindex: u32) -> String {
        let slot = self.slots.used.get(&ifindex);
        slot.and_then(|slot| slot.id.as_ref()).map(|id| id.pod.to_string()).unwrap_or_default()
    }

    /// Why endpoints stay as the agent before has left them, if some do.
    #[must_use]
    pub fn kept_because(&self) -> Option<String> {
        let count = self.kept.reasons.len();
        let reason = self.kept.reasons.values().next()?;
        Some(format!("the policy of {count} pods is kept from before: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portcullis_common::layout::{VALID, VerdictWord, narrow_key};

    use super::*;
    use crate::model::{Direction, PolicyKind, RuleOrigin, Verdict};
    use crate::state::image::{Regions, Sizes};
    use crate::state::{RuleCause, RuleIdentity};

    fn policy(name: &str) -> PolicyId {
        PolicyId { kind: PolicyKind::NetworkPolicy, namespace: Some(Arc::from("x")), name: Arc::from(name) }
    }

    /// Tables in which set 3 has one rule, number 20, of policy x/guard, and set 4 another, number 21, of x/other.
    fn kept() -> Kept {
        let sizes = Sizes::small();
        let mut image = Image::new(Regions::ordinary(&sizes), sizes);
        let mut names = BTreeMap::new();
        for (set, profile, rule, name) in [(3, 30, 20, "guard"), (4, 40, 21, "other")] {
            image.put_narrow(narrow_key(narrow::SET_DEFAULT, set, 0), VALID | profile).unwrap();
            let profile = profile as u32;
            let verdict = VerdictWord::new(false, rule).0;
            image.put_narrow(narrow_key(narrow::PROFILE_DEFAULT, profile, 0), verdict).unwrap();
            let cause = if rule == 20 { RuleCause::Isolation } else { RuleCause::Rule(RuleOrigin::Spec(7)) };
            let verdict = if rule == 20 { Verdict::Deny } else { Verdict::Allow };
            let identity = RuleIdentity { direction: Direction::Ingress, verdict, policy: policy(name), cause };
            names.insert(rules::hash(&identity), rule);
        }
        let mut kept = Kept::default();
        kept.start(&image, &BTreeSet::from([3, 4]), names);
        kept
    }

    #[test]
    fn endpoints_are_kept_that_what_is_unread_may_concern() {
        let anything = Unread { anything: vec!["a.yaml".into()], policies: BTreeMap::new() };
        let refused = |name: &str| Unread { policies: [(policy(name), name.into())].into(), ..Unread::default() };
        let rows = [
            ("all is read", Unread::default(), [3, 0], None),
            ("a file may hold anything", anything.clone(), [3, 0], Some("a.yaml")),
            ("also policy for egress", anything.clone(), [0, 4], Some("a.yaml")),
            ("no policy was in force", anything, [0, 0], None),
            ("the refused policy was in force", refused("guard"), [3, 0], Some("guard")),
            ("by a rule of it", refused("other"), [0, 4], Some("other")),
            ("on another pod", refused("guard"), [0, 4], None),
            ("the refused policy never was in force", refused("never"), [3, 4], None),
        ];
        let mut kept = kept();
        for (message, unread, sets, expected) in rows {
            kept.learn(unread);
            assert_eq!(kept.reason(sets), expected, "{message}");
        }
        assert!(kept.mentions(20) && kept.mentions(21) && !kept.mentions(22), "rules that must keep their names");
        kept.end();
        assert!(!kept.mentions(20), "once the tables are gone");
    }
}
