//! How far what is known is what the API server has.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::kind::Kind;

/// Contact with the server that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// When it was last heard of.
    pub since: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// The state of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindState {
    /// The kind.
    pub kind: Kind,
    /// All of them have been read once.
    pub listed: bool,
    /// Why what is known may not be what is.
    pub loss: Option<Loss>,
    /// When the server last told anything of it, be it that nothing has changed.
    pub heard: Option<Timestamp>,
    /// How many are known.
    pub objects: u64,
    /// How often all of them were read.
    pub lists: u64,
    /// How often asking failed.
    pub failures: u64,
}

impl KindState {
    /// Whether what is known is what the server has, but for what is on its way.
    #[must_use]
    pub const fn in_sync(&self) -> bool {
        self.listed && self.loss.is_none()
    }
}

/// The state of all kinds, shared by the tasks that watch.
#[derive(Clone, Debug)]
pub struct SyncReport(Arc<Mutex<Vec<KindState>>>);

impl Default for SyncReport {
    fn default() -> Self {
        let state =
            |kind| KindState { kind, listed: false, loss: None, heard: None, objects: 0, lists: 0, failures: 0 };
        Self(Arc::new(Mutex::new(Kind::ALL.map(state).to_vec())))
    }
}

impl SyncReport {
    /// Every kind's state now.
    #[must_use]
    pub fn states(&self) -> Vec<KindState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every kind has been read once.
    #[must_use]
    pub fn all_listed(&self) -> bool {
        self.states().iter().all(|state| state.listed)
    }

    /// Why what is known may not be what is, in one sentence; `None` while in sync.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let states = self.states();
        let unread: Vec<&str> = states.iter().filter(|state| !state.listed).map(|state| state.kind.name()).collect();
        let lost: Vec<(&KindState, &Loss)> =
            states.iter().filter_map(|state| Some((state, state.loss.as_ref()?))).collect();
        let reason = lost.first().map(|(_, loss)| format!(": {}", loss.reason)).unwrap_or_default();
        if !unread.is_empty() {
            return Some(format!(
                "not everything has been read from the API server yet ({}){reason}",
                unread.join(", ")
            ));
        }
        let since = lost.iter().map(|(_, loss)| loss.since).min()?;
        let kinds: Vec<&str> = lost.iter().map(|(state, _)| state.kind.name()).collect();
        Some(format!(
            "not in sync with the API server since {since:.0} ({}){reason}; what was known then stays in force",
            kinds.join(", ")
        ))
    }

    fn change<T>(&self, kind: Kind, change: impl FnOnce(&mut KindState) -> T) -> Option<T> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter_mut().find(|state| state.kind == kind).map(change)
    }

    /// The server has told something.
    pub(super) fn heard(&self, kind: Kind) {
        self.change(kind, |state| state.heard = Some(Timestamp::now()));
    }

    /// A watch stands, again or for the first time. Tells whether contact had been lost, and since when.
    pub(super) fn stands(&self, kind: Kind) -> Option<Loss> {
        self.change(kind, |state| {
            state.heard = Some(Timestamp::now());
            state.loss.take()
        })
        .flatten()
    }

    /// Asking has failed. Tells whether that is news: contact was there, or it failed for another reason.
    pub(super) fn failed(&self, kind: Kind, reason: &str) -> bool {
        self.change(kind, |state| {
            state.failures += 1;
            let since = state.loss.as_ref().map(|loss| loss.since).or(state.heard).unwrap_or_else(Timestamp::now);
            let news = state.loss.as_ref().is_none_or(|loss| loss.reason != reason);
            state.loss = Some(Loss { since, reason: reason.to_owned() });
            news
        })
        .unwrap_or(false)
    }

    /// All objects of a kind were told, and are known now.
    pub(super) fn listed(&self, kind: Kind) {
        self.change(kind, |state| {
            state.listed = true;
            state.lists += 1;
        });
    }

    /// How many objects of a kind are known.
    pub(super) fn count(&self, kind: Kind, objects: u64) {
        self.change(kind, |state| state.objects = objects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_names_what_is_missing_and_since_when() {
        let sync = SyncReport::default();
        let said = sync.trouble().unwrap();
        assert!(said.contains("Pod, Namespace, Node") && !said.contains("since 2"), "nothing is read: {said}");
        assert!(sync.failed(Kind::Pod, "refused"), "the first failure is news");
        assert!(!sync.failed(Kind::Pod, "refused"), "the same again is not");
        assert!(sync.trouble().unwrap().ends_with(": refused"), "and is told: {}", sync.trouble().unwrap());
        for kind in Kind::ALL {
            sync.stands(kind);
            sync.listed(kind);
        }
        assert_eq!(sync.trouble(), None, "all is read");
        let heard = sync.states()[5].heard.unwrap();
        sync.failed(Kind::NetworkPolicy, "connection refused");
        let said = sync.trouble().unwrap();
        assert!(said.contains("(NetworkPolicy): connection refused"), "{said}");
        assert_eq!(sync.states()[5].loss.as_ref().unwrap().since, heard, "since it was last heard of");
        assert_eq!(sync.stands(Kind::NetworkPolicy).unwrap().since, heard, "and it is back");
        assert_eq!(sync.trouble(), None);
        assert_eq!(sync.states()[0].failures, 2);
    }
}
