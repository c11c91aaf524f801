//! The labels of the policy series, and what is counted under them.

use std::borrow::Cow;

use crate::metrics::OtherFigures;
use crate::model::{RuleOrigin, Verdict};
use crate::state::{RuleCause, RuleIdentity};

/// The labels of one policy series.
pub(super) type PolicyLabels<'a> = [(&'static str, Cow<'a, str>); 6];

/// The labels of what a rule decided.
pub(super) fn labels(identity: &RuleIdentity) -> PolicyLabels<'_> {
    let rule = match identity.cause {
        RuleCause::Isolation => "isolation".into(),
        RuleCause::Rule(RuleOrigin::Itself) => "self".into(),
        RuleCause::Rule(RuleOrigin::OwnNode) => "own-node".into(),
        RuleCause::Rule(RuleOrigin::Spec(index)) => index.to_string().into(),
    };
    [
        ("direction", identity.direction.to_string().into()),
        ("verdict", verdict(identity.verdict).into()),
        ("policy_kind", identity.policy.kind.to_string().into()),
        ("policy_namespace", identity.policy.namespace.as_deref().unwrap_or("").into()),
        ("policy_name", identity.policy.name.as_ref().into()),
        ("rule", rule),
    ]
}

/// The labels of what rules decided that have no series of their own.
pub(super) fn other_labels(other: &OtherFigures) -> PolicyLabels<'static> {
    [
        ("direction", other.direction.to_string().into()),
        ("verdict", verdict(other.verdict).into()),
        ("policy_kind", "".into()),
        ("policy_namespace", "".into()),
        ("policy_name", "".into()),
        ("rule", "other".into()),
    ]
}

const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}
