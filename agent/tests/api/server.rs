//! An API server with its etcd, in the namespace of one of the testbed's hosts.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::Request;
use kube::{Client, Config};
use portcullis_testbed::{Host, Process};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::proxy::Proxy;

/// How long anything may take on a busy machine. Only failures cost it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const VARIABLE: &str = "PORTCULLIS_API_SERVER";
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";

/// Who may ask: token, user and group.
const USERS: [(&str, &str, &str); 2] = [("t-admin", "admin", "system:masters"), ("t-agent", "agent", "")];

/// The folder of the programs; says so where they are missing.
pub(crate) fn binaries() -> Option<PathBuf> {
    let cache = || {
        let named = std::env::var_os("PORTCULLIS_CLUSTER_CACHE").map(PathBuf::from);
        let cache = named.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache/portcullis")))?;
        let folders = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
        folders.filter(|path| path.join("kube-apiserver").exists()).max()
    };
    let folder = std::env::var_os(VARIABLE).map(PathBuf::from).or_else(cache);
    let found = folder.filter(|folder| folder.join("kube-apiserver").exists() && folder.join("etcd").exists());
    if found.is_none() {
        // Not by `eprintln!`, which is not shown of tests that pass.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: no kube-apiserver and etcd; build them by `cargo xtask cluster binaries`, or name their folder by {VARIABLE}"
        );
    }
    found
}

/// A running API server. Everything ends when it is dropped.
pub(crate) struct ApiServer {
    pub(crate) handle: Handle,
    pub(crate) proxy: Proxy,
    client: Client,
    etcd_client: Client,
    etcd: Option<Process>,
    server: Mutex<Option<Process>>,
    binaries: PathBuf,
    folder: tempfile::TempDir,
    host: Host,
    address: IpAddr,
}

impl ApiServer {
    pub(crate) fn start(binaries: &Path, host: &Host) -> Self {
        let folder = tempfile::Builder::new().prefix("portcullis-api-").tempdir().unwrap();
        let address = IpAddr::from(host.v4().unwrap());
        let handle = runtime_in(host);
        let table: Vec<String> =
            USERS.iter().map(|(token, user, group)| format!("{token},{user},{user},\"{group}\"\n")).collect();
        std::fs::write(folder.path().join("tokens.csv"), table.concat()).unwrap();
        openssl(folder.path(), &["genrsa", "-traditional", "-out", "key.pem", "2048"]);
        openssl(folder.path(), &["rsa", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
        let (client, etcd_client) = handle.block_on(async {
            let mut config = Config::new(format!("https://127.0.0.1:{PORT}").parse().unwrap());
            config.accept_invalid_certs = true;
            config.default_retry = false;
            config.disable_compression = true;
            let etcd = Config::new(ETCD.parse().unwrap());
            (Client::try_from(config).unwrap(), Client::try_from(etcd).unwrap())
        });
        let proxy = Proxy::start(&handle, client.clone(), SocketAddr::new(address, 8001));
        let binaries = binaries.to_owned();
        let mut server = Self {
            handle,
            proxy,
            client,
            etcd_client,
            etcd: None,
            server: Mutex::default(),
            binaries,
            folder,
            host: host.clone(),
            address,
        };
        let mut etcd = server.command("etcd");
        etcd.arg("--data-dir").arg(server.folder.path().join("etcd")).args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level",
            "warn",
        ]);
        server.etcd = Some(server.host.spawn(etcd).unwrap());
        server.run();
        server
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.host.command(self.binaries.join(program));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.folder.path())
            .current_dir(self.folder.path());
        command
    }

    /// Starts it, anew after [`Self::kill`].
    pub(crate) fn run(&self) {
        let mut command = self.command("kube-apiserver");
        command.args([
            &format!("--etcd-servers={ETCD}"),
            &format!("--secure-port={PORT}"),
            &format!("--advertise-address={}", self.address),
            "--cert-dir=certs",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=key.pub",
            "--service-account-signing-key-file=key.pem",
            "--service-cluster-ip-range=10.96.0.0/16",
            // Nothing makes service accounts here, and pods are made without.
            "--disable-admission-plugins=ServiceAccount",
        ]);
        let process = self.host.spawn(command).unwrap();
        *self.server.lock().unwrap() = Some(process.clone());
        let deadline = Instant::now() + PATIENCE;
        while self.ask("GET", "/readyz", None).is_err() {
            if process.try_wait().unwrap().is_some() || Instant::now() > deadline {
                panic!("the API server does not start:\n{}", process.stderr().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        self.server.lock().unwrap().take().unwrap().kill();
    }

    /// A kubeconfig by which a user reaches the server through the proxy.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        let token = USERS.iter().find(|(_, name, _)| *name == user).unwrap().0;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", self.proxy.address)}}],
            "users": [{"name": "test", "user": {"token": token}}],
        });
        let path = self.folder.path().join(format!("{user}.conf"));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Asks as the administrator, past the proxy.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("authorization", "Bearer t-admin");
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = request.header("content-type", kind).body(body).unwrap();
        let client = self.client.clone();
        self.wait(async move { client.request_text(request).await })
    }

    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = self.ask(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        serde_json::from_str(&answer).unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.must("GET", path, None)
    }

    /// Makes an object, with its status where it has one.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Value {
        let made = self.must("POST", path, Some(object));
        if let Some(status) = object.get("status") {
            let name = object.pointer("/metadata/name").unwrap().as_str().unwrap();
            self.must("PATCH", &format!("{path}/{name}/status"), Some(&json!({"status": status})));
        }
        made
    }

    /// Changes an object by a merge patch.
    pub(crate) fn merge(&self, path: &str, change: &Value) -> Value {
        self.must("PATCH", path, Some(change))
    }

    pub(crate) fn delete(&self, path: &str) {
        self.must("DELETE", &format!("{path}?gracePeriodSeconds=0"), None);
        if path.starts_with("/api/v1/namespaces/") && path.matches('/').count() == 4 {
            // No controller empties it.
            let name = path.rsplit('/').next().unwrap();
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}});
            self.must("PUT", &format!("{path}/finalize"), Some(&body));
        }
    }

    /// Makes etcd forget everything but what is there now.
    pub(crate) fn compact(&self) {
        let ask = |path: &str, body: Value| {
            let request = Request::builder().method("POST").uri(path).body(body.to_string().into_bytes()).unwrap();
            let client = self.etcd_client.clone();
            let answer = self.wait(async move { client.request_text(request).await }).unwrap();
            serde_json::from_str::<Value>(&answer).unwrap()
        };
        let range = ask("/v3/kv/range", json!({"key": "AA=="}));
        let revision = range.pointer("/header/revision").unwrap().clone();
        ask("/v3/kv/compaction", json!({"revision": revision, "physical": true}));
    }

    /// Runs something in the server's namespace and waits for it.
    pub(crate) fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.handle.block_on(self.handle.spawn(work)).unwrap()
    }
}

/// A runtime whose sockets are in the host's namespace; it ends with the test.
fn runtime_in(host: &Host) -> Handle {
    let (sender, receiver) = std::sync::mpsc::channel();
    let namespace = host.namespace().clone();
    std::thread::spawn(move || {
        namespace.enter().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        sender.send(runtime.handle().clone()).unwrap();
        runtime.block_on(std::future::pending::<()>());
    });
    receiver.recv().unwrap()
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
