//! Labels and the expressions that select by them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The labels of a pod or namespace. Cheap to clone; ordered, so that equal label sets compare and hash equal.
///
/// Sorted by key in one piece of memory: a cluster has a hundred thousand of them, and a map's node has room for eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a label, if the object carries it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value.as_ref())
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }

    /// The same labels with other copies of their texts.
    #[must_use]
    pub fn with_texts(&self, mut copy: impl FnMut(&Arc<str>) -> Arc<str>) -> Self {
        Self(self.0.iter().map(|(key, value)| (copy(key), copy(value))).collect())
    }

    /// Whether nobody else shares them.
    #[must_use]
    pub fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        // Of two labels with one key the later counts.
        let sorted: BTreeMap<Arc<str>, Arc<str>> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self(sorted.into_iter().collect())
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

#[cfg(test)]
mod tests {
    use super::Labels;

    #[test]
    fn labels_are_found_by_key_and_the_later_of_two_counts() {
        let labels: Labels = [("b", "1"), ("a", "2"), ("c", "3"), ("a", "4")].into_iter().collect();
        let rows = [("a", Some("4")), ("b", Some("1")), ("c", Some("3")), ("", None), ("ab", None), ("d", None)];
        for (key, value) in rows {
            assert_eq!(labels.get(key), value, "{key}");
        }
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "4"), ("b", "1"), ("c", "3")]);
        assert_eq!(labels, [("c", "3"), ("b", "1"), ("a", "4")].into_iter().collect(), "in whatever order they came");
    }
}
