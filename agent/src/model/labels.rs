//! Labels and the expressions that select by them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The labels of a pod or namespace. Cheap to clone; ordered, so that equal label sets compare and hash equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<BTreeMap<Arc<str>, Arc<str>>>);

impl Labels {
    /// The value of a label, if the object carries it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(AsRef::as_ref)
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        Self(Arc::new(labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect()))
    }
}

/// An expression over labels. `All([])` selects everything, `Any([])` nothing.
///
/// Kubernetes' label selectors are `All` of the first four leaf forms; Calico's grammar needs the rest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Every part holds.
    All(Vec<Selector>),
    /// At least one part holds.
    Any(Vec<Selector>),
    /// The part does not hold.
    Not(Box<Selector>),
    /// The label is present and its value is one of these.
    In(Arc<str>, BTreeSet<Arc<str>>),
    /// The label is absent, or its value is none of these (Kubernetes: "NotIn" holds for an absent key).
    NotIn(Arc<str>, BTreeSet<Arc<str>>),
    /// The label is present.
    Exists(Arc<str>),
    /// The label is absent.
    DoesNotExist(Arc<str>),
}

impl Selector {
    /// Selects everything: the empty selector `{}` of the Kubernetes API.
    #[must_use]
    pub const fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(labels)),
            Self::Not(part) => !part.matches(labels),
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.get(key).is_some(),
            Self::DoesNotExist(key) => labels.get(key).is_none(),
        }
    }
}
