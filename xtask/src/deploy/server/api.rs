//! etcd and kube-apiserver alone: no node, no controller.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::process;

/// How long both may take to start; it takes about four seconds.
const START: Duration = Duration::from_secs(120);
const TOKEN: &str = "the-only-user";

/// An API server of its own, which ends with this value.
pub(super) struct Api {
    folder: tempfile::TempDir,
    kubectl: PathBuf,
    services: Vec<Child>,
}

impl Api {
    /// Starts both, and waits until they answer.
    pub(super) fn start(programs: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut api = Self { folder, kubectl: programs.join("kubectl"), services: Vec::new() };
        let [clients, peers, port] = free_ports()?;
        let at = |port: u16| format!("http://127.0.0.1:{port}");
        let path = |name: &str| api.folder.path().join(name);
        let (key, public) = (path("accounts.key"), path("accounts.pub"));
        process::run_silently(Command::new("openssl").args(["genrsa", "-traditional", "-out"]).arg(&key).arg("2048"))?;
        process::run_silently(
            Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public),
        )?;
        fs::write(path("tokens.csv"), format!("{TOKEN},admin,1,\"system:masters\"\n"))?;
        fs::write(path("kubeconfig"), kubeconfig(port, &path("certs/apiserver.crt")))?;

        let mut etcd = Command::new(programs.join("etcd"));
        etcd.arg("--data-dir").arg(path("etcd"));
        etcd.args(["--listen-client-urls", &at(clients), "--advertise-client-urls", &at(clients)]);
        etcd.args(["--listen-peer-urls", &at(peers), "--initial-advertise-peer-urls", &at(peers)]);
        etcd.args(["--initial-cluster", &format!("default={}", at(peers)), "--unsafe-no-fsync", "--log-level=warn"]);
        let mut server = Command::new(programs.join("kube-apiserver"));
        server.args(["--etcd-servers", &at(clients), "--secure-port", &port.to_string()]);
        server.args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--authorization-mode=RBAC"]);
        server.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/16",
        ]);
        // Nobody makes the accounts `default` that its plugin would ask for.
        server.args(["--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]);
        for (flag, file) in [
            ("--cert-dir", "certs"),
            ("--token-auth-file", "tokens.csv"),
            ("--service-account-key-file", "accounts.pub"),
            ("--service-account-signing-key-file", "accounts.key"),
        ] {
            server.arg(flag).arg(path(file));
        }
        for (name, command) in [("etcd", &mut etcd), ("kube-apiserver", &mut server)] {
            let log = File::create(api.folder.path().join(format!("{name}.log")))?;
            let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
            api.services.push(child.with_context(|| format!("cannot start {name}"))?);
        }
        api.wait()?;
        Ok(api)
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while !process::succeeds(self.kubectl().args(["get", "--raw", "/readyz"])) {
            let ended = self.services.iter_mut().any(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > deadline {
                let logs = ["etcd", "kube-apiserver"].map(|name| {
                    let text = fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().collect();
                    format!("{name}: {}", lines[lines.len().saturating_sub(5)..].join("\n"))
                });
                bail!("it does not answer; the ends of the logs:\n{}", logs.join("\n"));
            }
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// The administrator's.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// kubectl as administrator.
    pub(super) fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cache-dir").arg(self.folder.path().join("cache"));
        command
    }

    /// kubectl with something on stdin; the inner error is what kubectl complained of.
    pub(super) fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<Result<(), String>> {
        let mut command = self.kubectl();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(complaint) })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        for child in self.services.iter_mut().rev() {
            // Whatever has ended already is ended.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Ports that nobody has now. Held until all are chosen, so that they differ.
fn free_ports() -> Result<[u16; 3]> {
    let sockets: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>().context("no free port")?;
    let ports: Vec<u16> =
        sockets.iter().map(|socket| Ok(socket.local_addr()?.port())).collect::<std::io::Result<_>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("three sockets have three ports"))
}

/// JSON is YAML.
fn kubeconfig(port: u16, authority: &Path) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"), "certificate-authority": authority,
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
    })
    .to_string()
}
