//! Lists in pages: for servers without streaming lists, and for whoever asks once.

use kube::core::Request;
use kube::core::params::ListParams;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::config::Connection;
use super::failure::Failure;
use super::follow::Timing;
use super::kind::Kind;
use super::object::{self, Read};
use super::store::{Problem, Store, Told};
use super::{Error, ask};
use crate::index::Cluster;

/// Objects in a page: some megabytes.
const PAGE: u32 = 500;

/// Part of a list.
pub(super) struct Page {
    pub(super) objects: Vec<Read>,
    /// Where the next page begins.
    pub(super) next: Option<String>,
    /// The version from which to watch, once all pages are read.
    pub(super) version: String,
}

#[derive(Deserialize)]
struct List<'a> {
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(default)]
    r#continue: Option<String>,
}

/// Asks for one page. Objects of different pages are of one moment, unless the server says that it has expired.
pub(super) async fn page(
    connection: &Connection,
    timing: &Timing,
    kind: Kind,
    next: Option<String>,
) -> Result<Page, Failure> {
    let parameters = ListParams {
        field_selector: kind.fields(connection.node.as_deref()),
        label_selector: kind.labels(),
        limit: Some(PAGE),
        continue_token: next,
        ..ListParams::default()
    };
    let request = Request::new(kind.path()).list(&parameters).map_err(|error| Failure::other(error.to_string()))?;
    let answer = timeout(timing.answer, ask::text(&connection.client, request));
    let text = answer.await.map_err(|_| Failure::timed_out(timing.answer))??;
    let list: List<'_> = serde_json::from_str(&text).map_err(|error| {
        Failure::other(format!("the answer is no list of objects ({error}): is this an API server?"))
    })?;
    let objects = list.items.into_iter().flatten().map(|item| object::read(kind, item.get())).collect();
    let next = list.metadata.r#continue.filter(|token| !token.is_empty());
    Ok(Page { objects, next, version: list.metadata.resource_version })
}

/// A cluster read once.
#[derive(Debug)]
pub struct Loaded {
    /// What its valid objects make up.
    pub cluster: Cluster,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Lists every kind once.
///
/// # Errors
/// The server does not answer, or refuses.
pub async fn load(connection: &Connection) -> Result<Loaded, Error> {
    let timing = Timing::default();
    let (mut cluster, mut store) = (Cluster::default(), Store::default());
    let mut problems = Vec::new();
    for kind in Kind::ALL {
        let mut next = None;
        store.take(Told::Begin(kind));
        loop {
            let failed = |failure: Failure| Error::List { kind, reason: failure.reason().to_owned() };
            let page = page(connection, &timing, kind, next).await.map_err(failed)?;
            store.take(Told::There(kind, page.objects.into_iter().map(|(_, found)| found).collect()));
            let (changes, told) = store.changes();
            for change in changes {
                cluster.apply(change);
            }
            problems.extend(told);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        store.take(Told::End(kind));
    }
    Ok(Loaded { cluster, problems })
}
