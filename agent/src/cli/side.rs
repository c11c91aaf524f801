//! One side's decision in the words of the answers.

use serde::Serialize;

use crate::model::{Cause, Decision, PolicyId, RuleOrigin, Verdict};

/// The decision of one side, as JSON shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Side {
    /// `allow` or `deny`.
    pub(super) verdict: &'static str,
    /// `no-policy`, `rule`, `isolation`, `self` or `own-node`.
    pub(super) reason: &'static str,
    /// The policy's kind, where a policy decided.
    pub(super) kind: Option<String>,
    /// `namespace/name` of it (the name alone for kinds without a namespace).
    pub(super) policy: Option<String>,
    /// The 0-based index of its rule, where a rule of its spec decided.
    pub(super) rule: Option<u32>,
}

impl Side {
    /// A side that no policy is about.
    pub(super) const FREE: Decision = Decision { verdict: Verdict::Allow, cause: Cause::NoPolicy };

    pub(super) fn of(decision: &Decision) -> Self {
        let (reason, policy, rule) = match &decision.cause {
            Cause::NoPolicy => ("no-policy", None, None),
            Cause::NodeProcess => ("own-node", None, None),
            Cause::Isolation { policy } => ("isolation", Some(policy), None),
            Cause::Rule { policy, origin } => match origin {
                RuleOrigin::Spec(index) => ("rule", Some(policy), Some(*index)),
                RuleOrigin::Itself => ("self", Some(policy), None),
                RuleOrigin::OwnNode => ("own-node", Some(policy), None),
            },
        };
        let kind = policy.map(|policy| policy.kind.to_string());
        Self { verdict: verdict(decision.verdict), reason, kind, policy: policy.map(policy_name), rule }
    }

    /// `deny: x/p isolates`.
    pub(super) fn brief(&self) -> String {
        let Self { verdict, reason, policy, rule, .. } = self;
        let words = match (policy, rule) {
            (Some(policy), Some(rule)) => format!("{policy} rule {rule}"),
            (Some(policy), None) => format!("{policy} {reason}"),
            (None, _) => (*reason).to_owned(),
        };
        format!("{verdict} ({words})")
    }
}

/// `allow` or `deny`.
pub(super) const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny => "deny",
    }
}

/// A connection passes if both sides allow it.
pub(super) fn both(egress: &Decision, ingress: &Decision) -> Verdict {
    egress.verdict.max(ingress.verdict)
}

/// `namespace/name`, without the kind.
pub(super) fn policy_name(policy: &PolicyId) -> String {
    match &policy.namespace {
        Some(namespace) => format!("{namespace}/{}", policy.name),
        None => policy.name.to_string(),
    }
}
