//! What can be told of the state.

use portcullis_common::layout::Counter;

use super::Reconciler;
use crate::state::RuleIdentity;

/// How the passes went.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Everything that was read first is enforced.
    pub synced: bool,
    /// Passes that changed something.
    pub changes: u64,
    /// Passes that failed.
    pub failures: u64,
    /// What went wrong in the last pass, if it failed.
    pub last_error: Option<String>,
    /// Conditions of matching that people should know.
    pub reports: Vec<String>,
}

impl Health {
    pub(super) fn succeeded(&mut self) {
        self.last_error = None;
    }

    pub(super) fn failed(&mut self, error: String) {
        self.failures += 1;
        self.last_error = Some(error);
    }
}

/// The count of one rule.
#[derive(Clone, Debug)]
pub struct RuleCount {
    /// Which rule.
    pub identity: RuleIdentity,
    /// Its packets and bytes.
    pub counter: Counter,
}

impl Reconciler {
    /// How the passes went.
    #[must_use]
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// The counts of all rules that apply to pods of this node.
    #[must_use]
    pub fn rule_counts(&self) -> Vec<RuleCount> {
        let rules = self.compiler.desired().rules.iter();
        let counts = rules.filter_map(|(number, identity)| {
            let counter = self.dataplane.counters.read(number.0).ok()?;
            Some(RuleCount { identity: identity.clone(), counter })
        });
        counts.collect()
    }
}
