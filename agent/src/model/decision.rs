//! What is decided about traffic, and what decided it.

use super::policy::{PolicyId, RuleOrigin};

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The packet goes on.
    Allow,
    /// The packet is dropped silently.
    Deny,
}

/// What decided. When several rules allow, the first by tier order, policy order, [`PolicyId::tie_break`] and place in
/// the policy: its spec's rules by index, then the implied ones (itself, own node).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No policy applies to the endpoint in this direction.
    NoPolicy,
    /// This rule matched.
    Rule {
        /// The policy that it stands in.
        policy: PolicyId,
        /// Which of its rules.
        origin: RuleOrigin,
    },
    /// No rule matched; the tier of this policy, the first that applies in it, ends with a denial.
    Isolation {
        /// The first policy that applies.
        policy: PolicyId,
    },
    /// The other side is a process of the own node, which ingress policy never stops.
    NodeProcess,
}

/// A verdict with its cause, for one direction of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decision {
    /// The outcome.
    pub verdict: Verdict,
    /// What decided.
    pub cause: Cause,
}
