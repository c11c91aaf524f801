//! A server on loopback that answers each request as a test says, and the watches of one kind on it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::config::{Connection, Settings, connect};
use super::super::follow::Timing;
use super::super::kind::Kind;
use super::super::store::Told;
use super::super::sync::SyncReport;
use super::super::watch::Watcher;

/// How long anything may take on a busy machine. Only failures cost it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a request is answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: &'static str,
    pub(super) body: String,
    /// The connection stays open, and silent.
    pub(super) hangs: bool,
}

impl Answer {
    pub(super) fn lines(lines: &[serde_json::Value]) -> Self {
        let body = lines.iter().map(|line| format!("{line}\n")).collect();
        Self { status: 200, headers: "", body, hangs: false }
    }

    pub(super) fn refusal(status: u16, headers: &'static str) -> Self {
        Self { status, headers, body: format!("no: {status}"), hangs: false }
    }

    pub(super) fn hanging(self) -> Self {
        Self { hangs: true, ..self }
    }
}

/// The end of a streamed list at a version.
pub(super) fn listed(version: &str) -> serde_json::Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version, "annotations": annotations}}})
}

pub(super) fn bookmark(version: &str) -> serde_json::Value {
    json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}})
}

pub(super) fn error(code: u16) -> serde_json::Value {
    json!({"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "scripted"}})
}

/// A page of a list that has no other.
pub(super) fn page(version: &str) -> Answer {
    let body = json!({"metadata": {"resourceVersion": version}, "items": []}).to_string();
    Answer { status: 200, headers: "", body, hangs: false }
}

/// What was asked, and when.
pub(super) type Asked = Vec<(String, Instant)>;

/// The watches of namespaces on a scripted server.
pub(super) struct Scene {
    asked: Arc<Mutex<Asked>>,
    pub(super) report: SyncReport,
    /// Who listens.
    _told: mpsc::Receiver<Told>,
}

impl Scene {
    /// `script` answers the request of that number.
    pub(super) async fn begin(timing: Timing, script: impl Fn(usize, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Asked>> = Arc::default();
        let (script, seen) = (Arc::new(script), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                tokio::spawn(serve(stream, script, seen));
            }
        });
        let connection = connection(&format!("http://{address}")).await;
        let report = SyncReport::default();
        let (sender, told) = mpsc::channel(1000);
        tokio::spawn(Watcher::new(Kind::Namespace, connection, timing, report.clone(), sender).run());
        Self { asked, report, _told: told }
    }

    pub(super) fn asked(&self) -> Asked {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until something holds.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let asked: Vec<String> = self.asked().into_iter().map(|(path, _)| path).collect();
            assert!(Instant::now() < deadline, "{what} has not come: {:?}\n{asked:#?}", self.report.states());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Why namespaces are not in sync, if they are not.
    pub(super) fn loss(&self) -> Option<String> {
        let states = self.report.states();
        states.iter().find(|state| state.kind == Kind::Namespace).unwrap().loss.as_ref().map(|loss| loss.reason.clone())
    }
}

async fn connection(server: &str) -> Connection {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {"token": "t"}}],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    connect(&Settings { kubeconfig: Some(path), ..Settings::default() }).await.unwrap()
}

/// Answers the one request of a connection.
async fn serve(
    stream: TcpStream,
    script: Arc<impl Fn(usize, &str) -> Answer>,
    seen: Arc<Mutex<Asked>>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line.trim().is_empty() {
            break;
        }
        head.insert(head.len(), line);
    }
    let path = head.get(&0).and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let answer = {
        let mut seen = seen.lock().unwrap();
        seen.push((path.clone(), Instant::now()));
        script(seen.len() - 1, &path)
    };
    let Answer { status, headers, body, hangs } = answer;
    let text = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}\r\n{body}");
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    if hangs {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await
}
