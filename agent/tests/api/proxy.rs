//! A way to the API server that can be made bad: refusals, silence, broken connections, objects that no server would send.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, Response};
use futures::{Stream, StreamExt};
use kube::Client;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// What happens to requests whose path and query hold a text.
#[derive(Clone)]
pub(crate) enum Fault {
    /// This status, and after how many seconds to come back.
    Refuse(u16, u32, &'static str),
    /// No answer at all.
    Hang,
}

/// What becomes of a line of an answer.
type Rewrite = Arc<dyn Fn(&str, String) -> String + Send + Sync>;

#[derive(Clone, Default)]
struct Rules {
    faults: Vec<(&'static str, Fault)>,
    rewrite: Option<Rewrite>,
    /// Answers stop in the middle, and connections stay.
    mute: bool,
}

#[derive(Clone)]
struct Shared {
    client: Client,
    rules: watch::Sender<Rules>,
    /// Rises when all connections break.
    cuts: watch::Sender<u64>,
    seen: Arc<Mutex<Vec<String>>>,
}

/// A running proxy. It passes everything on until told otherwise.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Shared,
}

impl Proxy {
    pub(crate) fn start(handle: &Handle, client: Client, address: SocketAddr) -> Self {
        let shared =
            Shared { client, rules: watch::Sender::default(), cuts: watch::Sender::default(), seen: Arc::default() };
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let listener = handle.block_on(handle.spawn(TcpListener::bind(address))).unwrap().unwrap();
        handle.spawn(async move { axum::serve(listener, router).await });
        Self { address, shared }
    }

    pub(crate) fn fault(&self, part: &'static str, fault: Fault) {
        self.shared.rules.send_modify(|rules| rules.faults.push((part, fault)));
    }

    pub(crate) fn rewrite(&self, rewrite: impl Fn(&str, String) -> String + Send + Sync + 'static) {
        self.shared.rules.send_modify(|rules| rules.rewrite = Some(Arc::new(rewrite)));
    }

    pub(crate) fn mute(&self) {
        self.shared.rules.send_modify(|rules| rules.mute = true);
    }

    /// Passes everything on again.
    pub(crate) fn heal(&self) {
        self.shared.rules.send_replace(Rules::default());
    }

    /// Breaks all answers that are under way.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The requests since this was last asked, by method, path and query.
    pub(crate) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }
}

async fn pass(State(shared): State<Shared>, request: Request<Body>) -> Response<Body> {
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    shared.seen.lock().unwrap().push(format!("{} {target}", request.method()));
    let fault =
        shared.rules.borrow().faults.iter().find(|(part, _)| target.contains(part)).map(|(_, fault)| fault.clone());
    match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Refuse(code, seconds, message)) => refusal(code, seconds, message),
        None => forward(shared, target, request).await,
    }
}

fn refusal(code: u16, seconds: u32, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "Test", "code": code,
        "details": {"retryAfterSeconds": seconds},
    });
    Response::builder().status(code).body(Body::from(status.to_string())).unwrap()
}

async fn forward(shared: Shared, target: String, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let mut onward = Request::builder().method(parts.method).uri(&target);
    for name in ["authorization", "content-type", "accept"] {
        if let Some(value) = parts.headers.get(name) {
            onward = onward.header(name, value);
        }
    }
    let answer = match shared.client.send(onward.body(kube::client::Body::from(body)).unwrap()).await {
        Ok(answer) => answer,
        Err(error) => return refusal(502, 0, &error.to_string()),
    };
    let (parts, body) = answer.into_parts();
    let body = Body::new(body).into_data_stream();
    let passing = Passing { lines: Vec::new(), body: Box::pin(body), cuts: shared.cuts.subscribe(), shared, target };
    let mut answer = Response::new(Body::from_stream(futures::stream::unfold(Some(passing), Passing::next)));
    *answer.status_mut() = parts.status;
    for (name, value) in &parts.headers {
        if name != "content-length" && name != "transfer-encoding" {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

/// An answer on its way.
struct Passing {
    body: Pin<Box<dyn Stream<Item = Result<Bytes, axum::Error>> + Send>>,
    /// Of the last line what has come of it.
    lines: Vec<u8>,
    cuts: watch::Receiver<u64>,
    shared: Shared,
    target: String,
}

impl Passing {
    async fn next(passing: Option<Self>) -> Option<(Result<Bytes, std::io::Error>, Option<Self>)> {
        let mut this = passing?;
        loop {
            let item = tokio::select! {
                _ = this.cuts.changed() => return Some((Err(std::io::Error::other("cut")), None)),
                item = this.body.next() => item,
            };
            if this.shared.rules.borrow().mute {
                let _ = this.cuts.changed().await;
                return Some((Err(std::io::Error::other("cut")), None));
            }
            let Some(rewrite) = this.shared.rules.borrow().rewrite.clone() else {
                let kept = std::mem::take(&mut this.lines);
                return match item {
                    Some(Ok(bytes)) => Some((Ok([kept, bytes.to_vec()].concat().into()), Some(this))),
                    Some(Err(error)) => Some((Err(std::io::Error::other(error)), None)),
                    None if kept.is_empty() => None,
                    None => Some((Ok(kept.into()), None)),
                };
            };
            let ended = item.is_none();
            if let Some(item) = item {
                this.lines.extend(item.unwrap_or_default());
            }
            let complete = if ended {
                this.lines.len()
            } else {
                this.lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
            };
            let text: Vec<u8> = this.lines.drain(..complete).collect();
            let text = String::from_utf8(text).unwrap();
            let text: String = text.split_inclusive('\n').map(|line| rewrite(&this.target, line.to_owned())).collect();
            if ended {
                return Some((Ok(text.into()), None));
            }
            if !text.is_empty() {
                return Some((Ok(text.into()), Some(this)));
            }
        }
    }
}

/// For tests that wait for something that must not come: long enough for what would come at once.
pub(crate) const MOMENT: Duration = Duration::from_millis(500);
