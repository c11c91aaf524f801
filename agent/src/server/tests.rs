use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use super::client::get;
use super::{
    Answers, Error, FetchError, Readiness, Refusal, Server, Unavailable, Views, ask_cluster, fetch_status, log_level,
};
use crate::metrics::{self, Figures};
use crate::status::{Status, Told};

const LIMIT: Duration = Duration::from_secs(30);

/// Answers that a test can change while the server runs.
#[derive(Clone, Default)]
struct Changeable {
    figures: Arc<Mutex<Figures>>,
    out_of_order: Arc<Mutex<Option<Unavailable>>>,
}

impl Changeable {
    fn order(&self) -> Result<(), Unavailable> {
        self.out_of_order.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl Answers for Changeable {
    async fn figures(&self) -> Result<Figures, Unavailable> {
        self.order()?;
        Ok(self.figures.lock().unwrap().clone())
    }

    async fn status(&self) -> Result<Status, Unavailable> {
        self.order()?;
        Ok(status())
    }

    async fn cluster(&self, question: String) -> Result<Told, Refusal> {
        self.order()?;
        match question.strip_prefix("why ") {
            Some(what) => Ok(Told { text: format!("{what}, because"), notes: vec!["a note".to_owned()], refused: 2 }),
            None => Err(Refusal::Question("not asked well".to_owned())),
        }
    }

    async fn log_level(&self, to: Option<String>) -> Result<String, Refusal> {
        self.order()?;
        match to.as_deref() {
            None => Ok("info".to_owned()),
            Some("loud") => Err(Refusal::Question("no level".to_owned())),
            Some(to) => Ok(to.to_owned()),
        }
    }
}

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        started: "2026-03-01T12:00:00Z".parse().unwrap(),
        revision: 7,
        source: String::new(),
        synced: true,
        not_synced_because: None,
        sources: Vec::new(),
        last_update: None,
        endpoints: Vec::new(),
        exits: Vec::new(),
        tables: Vec::new(),
        problems: vec!["a problem".to_owned()],
    }
}

struct Running {
    address: std::net::SocketAddr,
    socket: PathBuf,
    answers: Changeable,
    readiness: watch::Sender<Readiness>,
    beat: watch::Sender<Instant>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    _directory: TempDir,
}

impl Running {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/portcullis.sock");
        let server = Server::bind(any_port(), &socket).await.unwrap();
        let address = server.address();
        let (readiness, readiness_view) = watch::channel(Readiness::NotReady("nothing was read yet".to_owned()));
        let (beat, beat_view) = watch::channel(Instant::now());
        let (stop, stopped) = oneshot::channel();
        let answers = Changeable::default();
        let views = Views { readiness: readiness_view, beat: beat_view, beat_limit: LIMIT, answers: answers.clone() };
        let task = tokio::spawn(server.run(views, async {
            let _ = stopped.await;
        }));
        Self { address, socket, answers, readiness, beat, stop, task, _directory: directory }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (code, _, body) = get(TcpStream::connect(self.address).await.unwrap(), path).await.unwrap();
        (code.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }
}

fn any_port() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn bind_error(socket: &Path) -> Error {
    Server::bind(any_port(), socket).await.expect_err("the server must not start")
}

#[tokio::test]
async fn metrics_are_those_of_the_moment() {
    let server = Running::start().await;
    let connection = TcpStream::connect(server.address).await.unwrap();
    let (code, headers, body) = get(connection, "/metrics").await.unwrap();
    assert_eq!(code, StatusCode::OK);
    assert_eq!(headers["content-type"], metrics::CONTENT_TYPE);
    assert_eq!(body, metrics::render(Figures::default()).unwrap(), "what the answers say");

    server.answers.figures.lock().unwrap().manifest_errors = 3;
    let (_, text) = server.get("/metrics").await;
    assert!(text.contains("portcullis_manifest_problems_total{severity=\"error\"} 3\n"), "asked anew:\n{text}");

    *server.answers.out_of_order.lock().unwrap() = Some(Unavailable("the counters cannot be read".to_owned()));
    let answer = server.get("/metrics").await;
    assert_eq!(answer, (503, "the counters cannot be read\n".to_owned()), "no half of the metrics");
}

#[tokio::test]
async fn ready_while_in_sync() {
    let server = Running::start().await;
    assert_eq!(server.get("/readyz").await, (503, "nothing was read yet\n".to_owned()), "before the first sync");
    server.readiness.send_replace(Readiness::Ready);
    assert_eq!(server.get("/readyz").await, (200, "ready\n".to_owned()), "in sync");
    server.readiness.send_replace(Readiness::NotReady("table peers is full".to_owned()));
    assert_eq!(server.get("/readyz").await, (503, "table peers is full\n".to_owned()), "not any more");
    server.readiness.send_replace(Readiness::Ready);
    assert_eq!(server.get("/readyz").await.0, 200, "again");
    let Running { address, readiness, .. } = server;
    drop(readiness);
    let (code, ..) = get(TcpStream::connect(address).await.unwrap(), "/readyz").await.unwrap();
    assert_eq!(code, 503, "whoever knew is gone");
}

#[tokio::test]
async fn healthy_while_the_main_loop_beats() {
    let server = Running::start().await;
    assert_eq!(server.get("/healthz").await, (200, "ok\n".to_owned()), "also before the first sync");
    server.beat.send_replace(Instant::now().checked_sub(LIMIT + Duration::from_secs(5)).unwrap());
    let (code, text) = server.get("/healthz").await;
    assert_eq!(code, 503, "no beat for longer than the limit");
    assert!(text.starts_with("the main loop has been stuck for 3"), "{text}");
    server.beat.send_replace(Instant::now());
    assert_eq!(server.get("/healthz").await.0, 200, "it beats again");
    let Running { address, beat, .. } = server;
    drop(beat);
    let (code, _, text) = get(TcpStream::connect(address).await.unwrap(), "/healthz").await.unwrap();
    assert_eq!((code.as_u16(), &text[..]), (503, &b"the main loop has ended\n"[..]), "there is none any more");
}

#[tokio::test]
async fn status_is_on_the_socket_alone() {
    let server = Running::start().await;
    assert_eq!(fetch_status(&server.socket).await.unwrap(), status());
    assert_eq!(server.get("/status").await.0, 404, "pods and addresses are not told over TCP");
    let mode = std::fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "root alone may ask");

    *server.answers.out_of_order.lock().unwrap() = Some(Unavailable("still starting".to_owned()));
    let error = fetch_status(&server.socket).await.unwrap_err();
    assert_eq!(error.to_string(), "the agent cannot answer now: still starting");
}

#[tokio::test]
async fn questions_are_answered_on_the_socket_alone() {
    let server = Running::start().await;
    let told = ask_cluster(&server.socket, "why x".to_owned()).await.unwrap();
    assert_eq!((told.text.as_str(), told.refused), ("x, because", 2));
    let error = ask_cluster(&server.socket, "what".to_owned()).await.unwrap_err();
    assert_eq!(error.to_string(), "not asked well", "the agent's own words");
    assert_eq!(log_level(&server.socket, None).await.unwrap(), "info");
    assert_eq!(log_level(&server.socket, Some("debug".to_owned())).await.unwrap(), "debug");
    assert_eq!(log_level(&server.socket, Some("loud".to_owned())).await.unwrap_err().to_string(), "no level");
    for path in ["/cluster", "/log-level"] {
        assert_eq!(server.get(path).await.0, 404, "{path}: pods and addresses are not told over TCP");
    }
    *server.answers.out_of_order.lock().unwrap() = Some(Unavailable("the agent is stopping".to_owned()));
    let error = ask_cluster(&server.socket, "why x".to_owned()).await.unwrap_err();
    assert_eq!(error.to_string(), "the agent cannot answer now: the agent is stopping");
}

#[tokio::test]
async fn a_server_that_stops_leaves_no_socket() {
    let server = Running::start().await;
    let idle = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(server.get("/healthz").await.0, 200);
    server.stop.send(()).unwrap();
    server.task.await.unwrap();
    assert!(!server.socket.exists(), "the socket is gone");
    drop(idle);
    let error = fetch_status(&server.socket).await.unwrap_err();
    assert!(error.to_string().contains("is `portcullis run` running on this node?"), "{error}");
    Server::bind(server.address, &server.socket).await.expect("address and socket are free again");
}

/// Never answers; tells when it is asked.
#[derive(Default)]
struct Stuck(Arc<Notify>);

impl Answers for Stuck {
    async fn figures(&self) -> Result<Figures, Unavailable> {
        self.0.notify_one();
        std::future::pending().await
    }

    async fn status(&self) -> Result<Status, Unavailable> {
        Err(Unavailable(String::new()))
    }

    async fn cluster(&self, _question: String) -> Result<Told, Refusal> {
        Ok(Told::default())
    }

    async fn log_level(&self, _to: Option<String>) -> Result<String, Refusal> {
        Ok(String::new())
    }
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_keep_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("portcullis.sock");
    let mut server = Server::bind(any_port(), &socket).await.unwrap();
    server.grace = Duration::from_millis(1);
    let stuck = Stuck::default();
    let asked = stuck.0.clone();
    let request = tokio::spawn(get(TcpStream::connect(server.address()).await.unwrap(), "/metrics"));
    let (_readiness, readiness) = watch::channel(Readiness::Ready);
    let (_beat, beat) = watch::channel(Instant::now());
    let views = Views { readiness, beat, beat_limit: LIMIT, answers: stuck };
    let run = server.run(views, async move { asked.notified().await });
    tokio::time::timeout(LIMIT, run).await.expect("it stops without the answer");
    assert!(!socket.exists(), "it has stopped");
    request.abort();
}

#[tokio::test]
async fn two_servers_on_one_socket() {
    let server = Running::start().await;
    let error = bind_error(&server.socket).await;
    let expected = format!(
        "the socket {} is in use by a running process, probably another portcullis agent: stop it, or choose another \
         path with --socket",
        server.socket.display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(fetch_status(&server.socket).await.unwrap(), status(), "the first still answers");
}

#[tokio::test]
async fn two_servers_that_start_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("portcullis.sock");
    drop(UnixListener::bind(&socket).unwrap());
    // The other one has claimed the path, and has not bound its socket yet.
    let claim = File::create(directory.path().join("portcullis.sock.lock")).unwrap();
    claim.lock().unwrap();
    let error = bind_error(&socket).await;
    assert!(matches!(error, Error::SocketInUse { .. }), "{error}");
    assert!(socket.exists(), "what is there is the other's to replace");
    drop(claim);
    Server::bind(any_port(), &socket).await.expect("a claim ends with its holder");
}

#[tokio::test]
async fn a_left_over_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("portcullis.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a listener that died leaves its socket");
    Server::bind(any_port(), &socket).await.expect("nobody serves it");
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    let error = bind_error(&file).await;
    assert!(matches!(error, Error::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");

    let foreign = directory.path().join("foreign.sock");
    let listener = UnixListener::bind(&foreign).unwrap();
    let error = bind_error(&foreign).await;
    assert!(matches!(error, Error::SocketInUse { .. }), "a program without our lock listens there: {error}");
    assert!(foreign.exists(), "its socket stays");
    drop(listener);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind(any_port()).await.unwrap();
    let address = taken.local_addr().unwrap();
    let socket = directory.path().join("portcullis.sock");
    let error = Server::bind(address, &socket).await.unwrap_err();
    assert!(matches!(error, Error::AddressInUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("on {address}: the address is in use")), "{error}");
    assert!(!socket.exists(), "nothing is left behind");

    // RFC 5737: an address that is no node's.
    let error = Server::bind("192.0.2.1:1".parse().unwrap(), &socket).await.unwrap_err();
    assert!(error.to_string().contains("--listen"), "{error}");

    std::fs::write(directory.path().join("file"), "").unwrap();
    let below_file = directory.path().join("file/portcullis.sock");
    let long = directory.path().join("x".repeat(120));
    for (path, reason) in [(below_file, "the directory cannot be made"), (long, "longer than a socket's path may be")] {
        let error = bind_error(&path).await;
        assert!(matches!(error, Error::Socket { .. }), "{reason}: {error}");
        assert!(error.to_string().contains("--socket"), "{reason}: {error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_status() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let other = axum::Router::new().route("/status", axum::routing::get(async || "hello"));
    let task = tokio::spawn(async { axum::serve(listener, other).await });
    let error = fetch_status(&socket).await.unwrap_err();
    assert!(matches!(error, FetchError::Unintelligible { .. }), "{error}");
    task.abort();
}
