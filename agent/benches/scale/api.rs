//! A real API server with its etcd, on loopback of the node under test, and whoever writes to it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::Request;
use futures::{StreamExt, TryStreamExt};
use kube::{Client, Config};
use portcullis_testbed::{Node, Process, SERVICE_RANGE_V4};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::Result;

const PATIENCE: Duration = Duration::from_secs(300);
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
/// Requests under way at one time, each on a connection of its own.
const AT_ONCE: usize = 48;
const USERS: &str = "t-admin,admin,admin,system:masters\n";

/// The API server; it ends when this is dropped.
pub(crate) struct Api {
    node: Node,
    binaries: PathBuf,
    folder: tempfile::TempDir,
    runtime: Runtime,
    client: Client,
    etcd: Option<Process>,
    server: Option<Process>,
}

/// A request, and how it is answered.
pub(crate) struct Write {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Value,
}

impl Write {
    /// Makes an object in the collection at this path.
    pub(crate) fn create(path: impl Into<String>, body: Value) -> Self {
        Self { method: "POST", path: path.into(), body }
    }

    /// Writes the status of an object that is there.
    pub(crate) fn status(collection: &str, body: Value) -> Self {
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        Self { method: "PUT", path: format!("{collection}/{name}/status"), body }
    }

    /// Changes an object.
    pub(crate) fn merge(path: String, body: Value) -> Self {
        Self { method: "PATCH", path, body }
    }

    /// Deletes a pod at once.
    pub(crate) fn delete(path: &str) -> Self {
        Self { method: "DELETE", path: format!("{path}?gracePeriodSeconds=0"), body: json!({}) }
    }
}

impl Api {
    /// Starts both, over what `data` holds if anything.
    pub(crate) fn start(node: &Node, binaries: &Path, data: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("portcullis-bench-scale-").tempdir()?;
        fs::write(folder.path().join("tokens.csv"), USERS)?;
        openssl(folder.path(), &["genrsa", "-traditional", "-out", "key.pem", "2048"])?;
        openssl(folder.path(), &["rsa", "-in", "key.pem", "-pubout", "-out", "key.pub"])?;
        if let Some(data) = data {
            copy(data, &folder.path().join("etcd"))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let mut config = Config::new(format!("https://127.0.0.1:{PORT}").parse()?);
            config.accept_invalid_certs = true;
            config.default_retry = false;
            config.disable_compression = true;
            Ok::<_, Box<dyn std::error::Error>>(Client::try_from(config)?)
        })?;
        let (node, binaries) = (node.clone(), binaries.to_owned());
        let mut api = Self { node, binaries, folder, runtime, client, etcd: None, server: None };
        api.run()?;
        Ok(api)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.node.command(self.binaries.join(program));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.folder.path());
        command.current_dir(self.folder.path());
        command
    }

    fn run(&mut self) -> Result<()> {
        let mut etcd = self.command("etcd");
        etcd.args(["--data-dir", "etcd", "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn"]);
        etcd.args(["--quota-backend-bytes", "8589934592", "--snapshot-count", "50000"]);
        self.etcd = Some(self.node.spawn(etcd)?);
        let mut server = self.command("kube-apiserver");
        server.args([
            &format!("--etcd-servers={ETCD}"),
            &format!("--secure-port={PORT}"),
            &format!("--advertise-address={}", self.node.v4().unwrap_or(Ipv4Addr::LOCALHOST)),
            "--cert-dir=certs",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=key.pub",
            "--service-account-signing-key-file=key.pem",
            &format!("--service-cluster-ip-range={SERVICE_RANGE_V4}"),
            // What would only slow the writing of a cluster that nobody asks about anything else.
            "--disable-admission-plugins=ServiceAccount,LimitRanger,ResourceQuota,PodSecurity,Priority,RuntimeClass,\
             DefaultTolerationSeconds,TaintNodesByCondition",
            "--enable-priority-and-fairness=false",
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=0",
        ]);
        let process = self.node.spawn(server)?;
        self.server = Some(process.clone());
        let deadline = Instant::now() + PATIENCE;
        while self.ask(&Write { method: "GET", path: "/readyz".into(), body: Value::Null }).is_err() {
            if process.try_wait()?.is_some() || Instant::now() > deadline {
                let log = process.stderr();
                let last = log[log.len().saturating_sub(20)..].join("\n");
                return Err(format!("the API server does not start:\n{last}").into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Ends both, keeps what etcd holds in `folder`, and starts them again.
    pub(crate) fn keep(&mut self, folder: &Path) -> Result<()> {
        for process in [self.server.take(), self.etcd.take()].into_iter().flatten() {
            process.terminate(PATIENCE)?;
        }
        let draft = folder.with_extension("draft");
        let _ = fs::remove_dir_all(&draft);
        copy(&self.folder.path().join("etcd"), &draft)?;
        fs::rename(&draft, folder)?;
        self.run()
    }

    /// A kubeconfig that reaches the server.
    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        let server = format!("https://127.0.0.1:{PORT}");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "clusters": [{"name": "bench", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "bench", "user": {"token": "t-admin"}}],
        });
        let path = self.folder.path().join("kubeconfig");
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Asks one thing, and waits for the answer.
    pub(crate) fn ask(&self, write: &Write) -> Result<()> {
        let asked = request(self.client.clone(), write.method, write.path.clone(), write.body.to_string());
        self.wait(asked)
    }

    /// Asks in order, with many requests under way.
    pub(crate) fn ask_all(&self, writes: impl Iterator<Item = Write> + Send) -> Result<()> {
        let client = &self.client;
        let asked = futures::stream::iter(writes)
            .map(|write| Ok(request(client.clone(), write.method, write.path, write.body.to_string())))
            .try_buffer_unordered(AT_ONCE)
            .try_for_each(|()| std::future::ready(Ok(())));
        self.wait(asked)
    }

    /// Runs something whose sockets are the node's.
    fn wait(&self, work: impl Future<Output = Result<(), String>> + Send) -> Result<()> {
        let answer = self.node.namespace().run(|| Ok(self.runtime.block_on(work)))?;
        Ok(answer?)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        for process in [self.server.take(), self.etcd.take()].into_iter().flatten() {
            process.kill();
        }
    }
}

async fn request(client: Client, method: &'static str, path: String, body: String) -> Result<(), String> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(&path).header("authorization", "Bearer t-admin");
    let request = request.header("content-type", kind).body(body.into_bytes()).map_err(|error| error.to_string())?;
    client.request_text(request).await.map(drop).map_err(|error| format!("{method} {path}: {error}"))
}

fn openssl(folder: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-r").arg("--").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("cannot copy {}", from.display()).into()) }
}
