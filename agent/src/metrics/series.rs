//! The labels of the policy series, and what is counted under them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::metrics::RuleFigures;
use crate::model::{RuleOrigin, Verdict};
use crate::state::{RuleCause, RuleIdentity};

/// The labels of one policy series.
pub(super) type PolicyLabels<'a> = [(&'static str, Cow<'a, str>); 6];

/// The labels of what a rule decided.
pub(super) fn labels(identity: &RuleIdentity) -> PolicyLabels<'_> {
    let verdict = match identity.verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    };
    let rule = match identity.cause {
        RuleCause::Isolation => "isolation".into(),
        RuleCause::Rule(RuleOrigin::Itself) => "self".into(),
        RuleCause::Rule(RuleOrigin::OwnNode) => "own-node".into(),
        RuleCause::Rule(RuleOrigin::Spec(index)) => index.to_string().into(),
    };
    [
        ("direction", identity.direction.to_string().into()),
        ("verdict", verdict.into()),
        ("policy_kind", identity.policy.kind.to_string().into()),
        ("policy_namespace", identity.policy.namespace.as_deref().unwrap_or("").into()),
        ("policy_name", identity.policy.name.as_ref().into()),
        ("rule", rule),
    ]
}

/// Packets and bytes of each identity: while tables of before and after stand side by side, several rule numbers may
/// have the same, and a scrape that names a series twice is refused as a whole.
pub(super) fn sums(rules: &[RuleFigures]) -> BTreeMap<&RuleIdentity, (u64, u64)> {
    let mut sums: BTreeMap<&RuleIdentity, (u64, u64)> = BTreeMap::new();
    for figures in rules {
        let (packets, bytes) = sums.entry(&figures.rule).or_default();
        *packets = packets.saturating_add(figures.packets);
        *bytes = bytes.saturating_add(figures.bytes);
    }
    sums
}
