//! The watch of one kind: what is there, then what changes, for as long as somebody listens.
//!
//! One request gives both where the server has streaming lists (`sendInitialEvents`, 1.32 by default): it tells what is
//! there as of a moment, marks the end of that by a bookmark, and goes on with changes. Otherwise pages tell what is there.
//! Both are consistent reads, not what some replica had in its cache, so that nothing ever goes back to what was before. A
//! connection that ends is taken up again from the last version that was told; where the server has forgotten that, all is
//! listed again, and what it does not tell is gone.

use std::time::Duration;

use futures::{AsyncBufReadExt, AsyncReadExt};
use kube::core::Request;
use kube::core::params::WatchParams;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout};

use super::ask::{self, Lines};
use super::backoff::between;
use super::config::Connection;
use super::failure::Failure;
use super::follow::Timing;
use super::kind::Kind;
use super::list;
use super::object::{self, Line, Marker};
use super::pace::{Course, Pace};
use super::store::Told;
use super::sync::SyncReport;

/// A bookmark with this annotation ends what is there (KEP-3157).
const INITIAL_END: &str = "k8s.io/initial-events-end";
/// How often a server may be behind what was told before everything is listed again.
const TRIES: u32 = 5;
/// How many streaming lists may break off before pages are read, and how many lists in pages before streams are tried again.
const BROKEN: [u32; 2] = [2, 4];
/// How long a watch is kept open, at least and at most, that is to show that the server tells again what happens. Servers
/// send a bookmark two seconds before the end (`nextBookmarkTime` of apiserver's cacher).
const PROOF: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(10)];
/// Objects that are handed on together while all are listed.
const CHUNK: usize = 200;
/// The memory that is kept for the next line.
const LINE: usize = 64 * 1024;
/// A longer line is no object: etcd takes 1.5 MiB, of which JSON may write each byte as six.
const LONGEST_LINE: u64 = 32 * 1024 * 1024;

/// Why a request is over.
enum End {
    /// All was read in pages: the watch can begin.
    Listed,
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
    /// The server has said that it knows no others.
    only_pages: bool,
    /// How the request under way goes.
    course: Course,
    /// Requests in a row that did not show that what is known is what the server has.
    unproven: u32,
    /// Lists in a row that broke off.
    broken: u32,
    /// Answers in a row by which the server is behind what was told.
    behind: u32,
}

impl Watcher {
    pub(super) fn new(
        kind: Kind,
        connection: Connection,
        timing: Timing,
        report: SyncReport,
        told: Sender<Told>,
    ) -> Self {
        let (course, version) = (Course::default(), None);
        let (paged, only_pages, unproven, broken, behind) = (false, false, 0, 0, 0);
        Self { kind, connection, timing, report, told, version, paged, only_pages, course, unproven, broken, behind }
    }

    pub(super) async fn run(mut self) {
        let mut pace = Pace::new(self.timing.backoff);
        loop {
            let begun = Instant::now();
            self.course = Course::default();
            let listing = self.version.is_none();
            let end = match self.version.clone() {
                None if self.paged => self.pages().await,
                version => self.stream(version).await,
            };
            let failure = match end {
                Ok(never) => match never {},
                Err(End::Unheard) => return,
                Err(End::Listed) => {
                    (self.unproven, self.broken) = (0, 0);
                    continue;
                }
                Err(End::Failed(Failure::NoStreamingLists)) if !self.paged => {
                    tracing::debug!(kind = %self.kind, "the server knows no streaming lists: reading pages");
                    (self.paged, self.only_pages) = (true, true);
                    continue;
                }
                // A server that takes streaming lists for ordinary watches would never end one.
                Err(End::Silence) if listing && self.version.is_none() && !self.paged => {
                    self.paged = true;
                    continue;
                }
                Err(end) => self.conclude(end, listing),
            };
            let asked = failure.as_ref().and_then(Failure::retry_after);
            let wait = pace.after(self.course, begun.elapsed(), failure.is_some(), asked);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.told.closed() => return,
            }
        }
    }

    /// What the end of a request means for the next. Gives what went wrong.
    fn conclude(&mut self, end: End, listing: bool) -> Option<Failure> {
        self.unproven = if self.course.stood { 0 } else { self.unproven.saturating_add(1) };
        let broke_off = listing && self.version.is_none();
        let failure = match end {
            End::Failed(failure) => Some(failure),
            End::Silence => {
                Some(Failure::other(format!("the server says nothing for {} s", self.timing.silence.as_secs())))
            }
            _ if broke_off => Some(Failure::other("the connection ended in the middle of the list")),
            // Once may be a load balancer's. The next is asked for proof.
            _ if self.unproven > 1 => Some(Failure::other("the server ends its watches without having told anything")),
            _ => None,
        };
        if let Some(failure) = &failure {
            self.tell(failure);
            if broke_off {
                self.list_otherwise(failure);
            }
        }
        self.behind = if matches!(failure, Some(Failure::Behind(_))) { self.behind + 1 } else { 0 };
        if failure == Some(Failure::Expired) || self.behind >= TRIES {
            self.behind = 0;
            self.version = None;
        }
        failure
    }

    /// A list broke off: the other way may get to its end.
    fn list_otherwise(&mut self, failure: &Failure) {
        // Where nobody answers, where rights are missing and where the server is busy, the other way fails as well, and a
        // server that starts has more work by pages.
        if matches!(failure, Failure::Refused(_)) || failure.retry_after().is_some() || !self.course.began {
            return;
        }
        self.broken += 1;
        let [streams, pages] = BROKEN;
        if !self.paged && self.broken >= streams {
            tracing::debug!(kind = %self.kind, "streaming lists break off: reading pages");
            (self.paged, self.broken) = (true, 0);
        } else if self.paged && !self.only_pages && self.broken >= pages {
            tracing::debug!(kind = %self.kind, "lists in pages break off: streaming lists are tried again");
            (self.paged, self.broken) = (false, 0);
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

    /// The server has shown that what is known is what it has. That it answers shows nothing: it may err next, or be silent.
    fn stands(&mut self) {
        self.course.stood = true;
        self.unproven = 0;
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
            self.course.began = true;
            self.report.heard(self.kind);
            let objects = page.objects.into_iter().map(|(_, found)| found).collect();
            self.say(Told::There(self.kind, objects)).await?;
            next = page.next;
            if next.is_none() {
                self.say(Told::End(self.kind)).await?;
                self.stands();
                self.version = Some(page.version);
                return Err(End::Listed);
            }
        }
    }

    /// One watch; without a version it begins with what is there.
    async fn stream(&mut self, version: Option<String>) -> Result<std::convert::Infallible, End> {
        let mut lines = self.open(version.as_deref()).await?;
        self.course.began = true;
        let mut listing = version.is_none().then(Vec::new);
        if listing.is_some() {
            self.say(Told::Begin(self.kind)).await?;
        }
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            buffer.shrink_to(LINE);
            let mut limited = (&mut lines).take(LONGEST_LINE);
            let read = timeout(self.timing.silence, limited.read_until(b'\n', &mut buffer));
            let Ok(read) = read.await else {
                tracing::debug!(kind = %self.kind, "the watch has been silent for too long: asking anew");
                return Err(End::Silence);
            };
            // A connection that breaks is made anew; if that fails, it is told.
            match read {
                Ok(0) | Err(_) => return Err(End::Resume),
                Ok(_) if buffer.last() == Some(&b'\n') => {}
                Ok(length) if length as u64 >= LONGEST_LINE => {
                    return Err(
                        Failure::other(format!("the server sends a line of more than {LONGEST_LINE} bytes")).into()
                    );
                }
                // Cut off in the middle of a line.
                Ok(_) => return Err(End::Resume),
            }
            self.line(&buffer, &mut listing).await?;
        }
    }

    async fn open(&self, version: Option<&str>) -> Result<Lines, Failure> {
        let seconds = Duration::from_secs(self.timing.watch_seconds.into());
        let [least, most] = if self.unproven > 0 && version.is_some() { PROOF } else { [seconds, seconds * 2] };
        let open = between(least.min(seconds), most.min(seconds * 2));
        let parameters = WatchParams {
            label_selector: self.kind.labels(),
            field_selector: self.kind.fields(self.connection.node.as_deref()),
            timeout: Some(u32::try_from(open.as_secs()).unwrap_or(self.timing.watch_seconds)),
            bookmarks: true,
            send_initial_events: version.is_none(),
        };
        let request = Request::new(self.kind.path()).watch(&parameters, version.unwrap_or_default());
        let mut request = request.map_err(|error| Failure::other(error.to_string()))?;
        // From 1.37 on servers compress each event of a watch on its own, of which only the first would be read.
        if let Ok(plain) = "identity".parse() {
            request.headers_mut().insert("accept-encoding", plain);
        }
        let answer = timeout(self.timing.answer, ask::lines(&self.connection.client, request)).await;
        answer.map_err(|_| Failure::timed_out(self.timing.answer))?
    }

    /// Takes one line; `listing` gathers what is there until its end has been told.
    async fn line(&mut self, text: &[u8], listing: &mut Option<Vec<object::Named>>) -> Result<(), End> {
        let Ok(Line { event, object }) = serde_json::from_slice(text) else {
            // No API server writes such a line. What follows is still worth reading.
            if !std::mem::replace(&mut self.course.garbled, true) {
                let start = String::from_utf8_lossy(text.get(..text.len().min(80)).unwrap_or_default());
                tracing::error!("a line of the watch of {} is no event and is left out: {start:?}", self.kind.plural());
            }
            return Ok(());
        };
        let watching = listing.is_none();
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
                    self.broken = 0;
                }
                Some(marker.metadata.resource_version).filter(|version| !version.is_empty() && listing.is_none())
            }
            ("ERROR", _) => {
                let marker: Marker = serde_json::from_str(object.get()).unwrap_or_default();
                return Err(Failure::of_marker(marker, None).into());
            }
            _ => None,
        };
        let Some(version) = version else {
            self.report.heard(self.kind);
            return Ok(());
        };
        if let (Some(next), Some(last)) = (number(&version), self.version.as_deref().and_then(number))
            && next < last
        {
            // What is gone is gone. Servers of old named the version that it had.
            if event == "DELETED" {
                return Ok(());
            }
            // Versions only rise, unless etcd was restored from a backup. What is known may never have been.
            return Err(Failure::Expired.into());
        }
        self.version = Some(version);
        self.course.moved |= watching;
        self.stands();
        Ok(())
    }
}

/// Versions of one kind can be compared as numbers (KEP-5504).
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}
