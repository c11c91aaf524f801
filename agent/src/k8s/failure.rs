//! What can go wrong with a request, as far as it makes a difference.

use std::error::Error as _;
use std::time::Duration;

use super::object::Marker;

/// No server keeps its agents away for longer, whatever it says.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The place from which to go on is too old: everything must be listed again.
    Expired,
    /// The server has not come as far as what it has told before: it lags behind another of the cluster's, or its etcd was
    /// restored from a backup.
    Behind(String),
    /// The server knows no streaming lists.
    NoStreamingLists,
    /// Somebody must see to it: rights are missing, or nobody is known by this token.
    Refused(String),
    /// Anything that may pass.
    Other {
        /// What, for people.
        reason: String,
        /// The answer's status; 0 where there was no answer.
        code: u16,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
}

impl Failure {
    pub(super) fn other(reason: impl Into<String>) -> Self {
        Self::Other { reason: reason.into(), code: 0, retry_after: None }
    }

    pub(super) fn timed_out(limit: Duration) -> Self {
        Self::other(format!("no answer within {} s", limit.as_secs()))
    }

    /// An answer with an error status, in a response or in the middle of a watch.
    pub(super) fn of_marker(marker: Marker, asked: Option<Duration>) -> Self {
        let Marker { code, reason, message, details, .. } = marker;
        let told = details.map(|details| Duration::from_secs(details.retry_after_seconds.into()));
        let retry_after = told.max(asked).filter(|asked| !asked.is_zero()).map(|asked| asked.min(LONGEST_WAIT));
        Self::of_status(code, &reason, &message, retry_after)
    }

    fn of_status(code: u16, reason: &str, message: &str, retry_after: Option<Duration>) -> Self {
        let shown = if message.is_empty() { reason } else { message };
        match (code, reason) {
            // 410 of a watch's start, its stream, or a page's continuation.
            (410, _) | (_, "Expired" | "Gone") => Self::Expired,
            // A server without the feature refuses the parameters of streaming lists (ValidateListOptions).
            (400 | 422, _) if message.contains("sendInitialEvents") || message.contains("resourceVersionMatch") => {
                Self::NoStreamingLists
            }
            _ if message.contains("Too large resource version") => Self::Behind(message.to_owned()),
            (401, _) => Self::Refused(format!(
                "the API server does not know who asks ({shown}): see to the service account's token, or the kubeconfig"
            )),
            (403, _) => Self::Refused(format!("{shown}: see to the agent's ClusterRole and its binding")),
            _ => Self::Other { reason: format!("the API server answers {code}: {shown}"), code, retry_after },
        }
    }

    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let asked = status.details.as_ref().map(|details| details.retry_after_seconds.into());
                let asked = asked.map(Duration::from_secs).filter(|asked| !asked.is_zero());
                let asked = asked.map(|asked| asked.min(LONGEST_WAIT));
                Self::of_status(status.code, &status.reason, &status.message, asked)
            }
            kube::Error::Auth(error) => Self::Refused(format!("cannot prove who asks: {error}")),
            error => {
                // "client error (Connect)" alone helps nobody: the cause stands at the end of the chain, and kube's own
                // wrapping says nothing.
                let inner = match error {
                    kube::Error::Service(inner) => Some(inner.as_ref() as &dyn std::error::Error),
                    _ => None,
                };
                let mut reason = inner.map_or_else(|| error.to_string(), ToString::to_string);
                let mut cause = inner.map_or_else(|| error.source(), std::error::Error::source);
                while let Some(next) = cause {
                    let text = next.to_string();
                    if !reason.contains(&text) {
                        reason = format!("{reason}: {text}");
                    }
                    cause = next.source();
                }
                Self::other(reason)
            }
        }
    }

    /// For people.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Expired => "the server has forgotten what changed since",
            Self::NoStreamingLists => "the server knows no streaming lists",
            Self::Behind(reason) | Self::Refused(reason) | Self::Other { reason, .. } => reason,
        }
    }

    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Other { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
