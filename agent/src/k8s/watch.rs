//! The watch of one kind: what is there, then what changes, for as long as somebody listens.
//!
//! One request gives both where the server has streaming lists (`sendInitialEvents`, 1.32 by default): it tells what is
//! there as of a moment, marks the end of that by a bookmark, and goes on with changes. Otherwise pages tell what is there.
//! Both are consistent reads, not what some replica had in its cache, so that nothing ever goes back to what was before. A
//! connection that ends is taken up again from the last version that was told; where the server has forgotten that, all is
//! listed again, and what it does not tell is gone.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::core::Request;
use kube::core::params::WatchParams;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::backoff::{Backoff, between};
use super::config::Connection;
use super::failure::Failure;
use super::follow::Timing;
use super::kind::Kind;
use super::list;
use super::object::{self, Line, Marker};
use super::store::Told;
use super::sync::SyncReport;

/// A bookmark with this annotation ends what is there (KEP-3157).
const INITIAL_END: &str = "k8s.io/initial-events-end";
/// A watch that lives longer was no failure, however it ended.
const LIVED: Duration = Duration::from_secs(5);
/// How often a server may be behind what was told before everything is listed again.
const TRIES: u32 = 5;
/// Objects that are handed on together while all are listed.
const CHUNK: usize = 200;
/// The memory that is kept for the next line.
const LINE: usize = 64 * 1024;

/// Why a request is over.
enum End {
    /// The server ended it: it goes on from where it was.
    Resume,
    /// The server has been silent for too long.
    Silence,
    /// It failed.
    Failed(Failure),
    /// Nobody listens any more.
    Unheard,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

pub(super) struct Watcher {
    kind: Kind,
    connection: Connection,
    timing: Timing,
    report: SyncReport,
    told: Sender<Told>,
    /// The last version that was told; `None`: everything must be listed.
    version: Option<String>,
    /// Lists come in pages.
    paged: bool,
}

impl Watcher {
    pub(super) const fn new(
        kind: Kind,
        connection: Connection,
        timing: Timing,
        report: SyncReport,
        told: Sender<Told>,
    ) -> Self {
        Self { kind, connection, timing, report, told, version: None, paged: false }
    }

    pub(super) async fn run(mut self) {
        let [first, last] = self.timing.backoff;
        let mut backoff = Backoff::new(first, last);
        let mut behind = 0;
        loop {
            let begun = Instant::now();
            let listing = self.version.is_none();
            let end = match self.version.clone() {
                None if self.paged => self.pages().await,
                version => self.stream(version).await,
            };
            let lived = begun.elapsed() >= LIVED;
            let retry_after = match end {
                Ok(never) => match never {},
                Err(End::Unheard) => return,
                Err(End::Silence) if self.version.is_none() => {
                    // A server that takes streaming lists for ordinary watches would never end one.
                    self.paged = true;
                    continue;
                }
                Err(End::Resume | End::Silence) => {
                    behind = 0;
                    if listing && self.version.is_none() {
                        self.tell(&Failure::other("the connection ended in the middle of the list"));
                    }
                    if lived || (listing && self.version.is_some()) {
                        backoff.reset();
                        continue;
                    }
                    None
                }
                Err(End::Failed(Failure::NoStreamingLists)) => {
                    tracing::debug!(kind = %self.kind, "the server knows no streaming lists: reading pages");
                    self.paged = true;
                    continue;
                }
                Err(End::Failed(failure)) => {
                    self.tell(&failure);
                    behind = if matches!(failure, Failure::Behind(_)) { behind + 1 } else { 0 };
                    if failure == Failure::Expired || behind >= TRIES {
                        behind = 0;
                        // At once, but for a list that expires while it is read.
                        if self.version.take().is_some() {
                            continue;
                        }
                    }
                    failure.retry_after()
                }
            };
            if lived {
                backoff.reset();
            }
            let wait = backoff.wait(retry_after);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.told.closed() => return,
            }
        }
    }

    /// Reports a failure, loudly when it is news.
    fn tell(&self, failure: &Failure) {
        let (kind, reason) = (self.kind, failure.reason());
        if *failure == Failure::Expired {
            tracing::debug!(%kind, "{reason}: listing everything again");
            return;
        }
        let news = self.report.failed(kind, reason);
        match failure {
            Failure::Refused(_) if news => tracing::error!("cannot watch {}: {reason}", kind.plural()),
            _ if news => {
                tracing::warn!("cannot watch {}: {reason}; what is known stays in force, trying again", kind.plural())
            }
            _ => tracing::debug!(%kind, "still cannot watch: {reason}"),
        }
    }

    /// The server answers.
    fn stands(&self) {
        if let Some(loss) = self.report.stands(self.kind) {
            tracing::info!("watching {} again; contact had been lost since {:.0}", self.kind.plural(), loss.since);
        }
    }

    async fn say(&self, told: Told) -> Result<(), End> {
        self.told.send(told).await.map_err(|_| End::Unheard)
    }

    /// Reads what is there in pages.
    async fn pages(&mut self) -> Result<std::convert::Infallible, End> {
        self.say(Told::Begin(self.kind)).await?;
        let mut next = None;
        loop {
            let page = list::page(&self.connection, &self.timing, self.kind, next).await?;
            self.report.heard(self.kind);
            let objects = page.objects.into_iter().map(|(_, found)| found).collect();
            self.say(Told::There(self.kind, objects)).await?;
            next = page.next;
            if next.is_none() {
                self.say(Told::End(self.kind)).await?;
                self.stands();
                self.version = Some(page.version);
                return Err(End::Resume);
            }
        }
    }

    /// One watch; without a version it begins with what is there.
    async fn stream(&mut self, version: Option<String>) -> Result<std::convert::Infallible, End> {
        let mut lines = self.open(version.as_deref()).await?;
        let mut listing = version.is_none().then(Vec::new);
        if listing.is_some() {
            self.say(Told::Begin(self.kind)).await?;
        } else {
            self.stands();
        }
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            buffer.shrink_to(LINE);
            let read = timeout(self.timing.silence, lines.read_until(b'\n', &mut buffer));
            let Ok(read) = read.await else {
                tracing::debug!(kind = %self.kind, "the watch has been silent for too long: asking anew");
                return Err(End::Silence);
            };
            // A connection that breaks is made anew; if that fails, it is told.
            match read {
                Ok(0) | Err(_) => return Err(End::Resume),
                // Cut off in the middle of a line.
                Ok(_) if buffer.last() != Some(&b'\n') => return Err(End::Resume),
                Ok(_) => self.report.heard(self.kind),
            }
            self.line(&buffer, &mut listing).await?;
        }
    }

    async fn open(&self, version: Option<&str>) -> Result<Pin<Box<dyn AsyncBufRead + Send>>, Failure> {
        let seconds = self.timing.watch_seconds;
        let open = between(Duration::from_secs(seconds.into()), Duration::from_secs(u64::from(seconds) * 2));
        let parameters = WatchParams {
            label_selector: self.kind.labels(),
            field_selector: self.kind.fields(self.connection.node.as_deref()),
            timeout: Some(u32::try_from(open.as_secs()).unwrap_or(seconds)),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        let request = Request::new(self.kind.path()).watch(&parameters, version.unwrap_or_default());
        let mut request = request.map_err(|error| Failure::other(error.to_string()))?;
        // From 1.37 on servers compress each event of a watch on its own, of which only the first would be read.
        if let Ok(plain) = "identity".parse() {
            request.headers_mut().insert("accept-encoding", plain);
        }
        let answer = timeout(self.timing.answer, self.connection.client.request_stream(request)).await;
        let lines = answer.map_err(|_| Failure::timed_out(self.timing.answer))?;
        Ok(Box::pin(lines.map_err(|error| Failure::of(&error))?))
    }

    /// Takes one line; `listing` gathers what is there until its end has been told.
    async fn line(&mut self, text: &[u8], listing: &mut Option<Vec<object::Named>>) -> Result<(), End> {
        let Ok(Line { event, object }) = serde_json::from_slice(text) else {
            // No API server writes such a line. What follows is still worth reading.
            let start = String::from_utf8_lossy(text.get(..text.len().min(80)).unwrap_or_default());
            tracing::error!("a line of the watch of {} is no event and is left out: {start:?}", self.kind.plural());
            return Ok(());
        };
        let version = match (event.as_ref(), &mut *listing) {
            ("ADDED" | "MODIFIED", Some(there)) => {
                there.push(object::read(self.kind, object.get()).1);
                if there.len() >= CHUNK {
                    let chunk = std::mem::take(there);
                    self.say(Told::There(self.kind, chunk)).await?;
                }
                None
            }
            ("ADDED" | "MODIFIED", None) => {
                let (version, found) = object::read(self.kind, object.get());
                self.say(Told::There(self.kind, vec![found])).await?;
                version
            }
            ("DELETED", there) => {
                // What was told before it must be taken in before it: else it would come back.
                if let Some(there) = there {
                    let chunk = std::mem::take(there);
                    self.say(Told::There(self.kind, chunk)).await?;
                }
                let (version, key) = object::read_key(self.kind, object.get());
                match key {
                    Ok(key) => self.say(Told::Gone(self.kind, key)).await?,
                    Err(invalid) => self.say(Told::There(self.kind, vec![Err(invalid)])).await?,
                }
                version.filter(|_| listing.is_none())
            }
            ("BOOKMARK", _) => {
                let marker: Marker = serde_json::from_str(object.get()).unwrap_or_default();
                let ends = marker.metadata.annotations.get(INITIAL_END).is_some_and(|value| value == "true");
                if ends && let Some(there) = listing.take() {
                    self.say(Told::There(self.kind, there)).await?;
                    self.say(Told::End(self.kind)).await?;
                    self.stands();
                }
                Some(marker.metadata.resource_version).filter(|version| !version.is_empty() && listing.is_none())
            }
            ("ERROR", _) => {
                let Marker { code, reason, message, details, .. } =
                    serde_json::from_str(object.get()).unwrap_or_default();
                let retry_after = details.map(|details| details.retry_after_seconds);
                return Err(Failure::of_status(code, &reason, &message, retry_after).into());
            }
            _ => None,
        };
        if let (Some(next), Some(last)) = (number(&version), number(&self.version))
            && next < last
            && event != "DELETED"
        {
            // Versions only rise, unless etcd was restored from a backup. What is known may never have been.
            return Err(Failure::Expired.into());
        }
        if version.is_some() {
            self.version = version;
        }
        Ok(())
    }
}

/// Versions of one kind can be compared as numbers (KEP-5504).
fn number(version: &Option<String>) -> Option<u64> {
    version.as_ref()?.parse().ok()
}
