//! The real database: Dgraph, built from its Go module.

use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write as _, stderr};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use portcullis_testbed::{Pod, Process};
use serde_json::Value;

use super::manifests::NamedPort;
use super::ready;
use crate::process;

const MODULE: &str = "github.com/hypermodeinc/dgraph/v25";
const VERSION: &str = "v25.0.0";

/// What Dgraph zero, which coordinates, listens on.
pub(super) const ZERO_PORTS: [NamedPort; 2] = [("grpc-zero", 5080), ("http-zero", 6080)];
/// What Dgraph alpha, which holds the data, listens on.
pub(super) const ALPHA_PORTS: [NamedPort; 3] = [("grpc-int", 7080), ("http", HTTP), ("grpc", GRPC)];
/// Where clients reach Dgraph by HTTP.
pub(super) const HTTP: u16 = 8080;
/// Where clients reach Dgraph by gRPC.
pub(super) const GRPC: u16 = 9080;
/// Where alpha reaches zero.
pub(super) const ZERO: u16 = 5080;

/// How long the database may take to start; it takes about six seconds.
const START: Duration = Duration::from_secs(40);

/// Builds the program in `folder` unless it is there, and returns its path.
///
/// The build is made inside the module's own folder in Go's module cache, so that the module's `go.sum` decides which
/// dependencies are taken. `go install MODULE@VERSION` would do the same, but asks the proxy for other versions too,
/// which not every mirror answers.
pub(super) fn ensure(folder: &Path) -> Result<PathBuf> {
    let place = folder.join(format!("dgraph-{VERSION}"));
    if place.exists() {
        return Ok(place);
    }
    if !process::succeeds(Command::new("go").arg("version")) {
        bail!("Go is not installed (no go in the PATH)");
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    eprintln!("  Dgraph {VERSION} is built from source once: about two minutes on two cores");
    // Outside of any module, where flags of a workspace have no say.
    let module = process::output_of(go().current_dir(folder).args([
        "mod",
        "download",
        "-json",
        &format!("{MODULE}@{VERSION}"),
    ]))?;
    let module: Value = serde_json::from_str(&module).context("cannot read what `go mod download` printed")?;
    let source = module.get("Dir").and_then(Value::as_str).context("`go mod download` names no folder")?;
    let draft = folder.join(format!("dgraph-{VERSION}.{}", std::process::id()));
    let built = build(Path::new(source), &draft).and_then(|()| Ok(fs::rename(&draft, &place)?));
    if built.is_err() {
        let _ = fs::remove_file(&draft);
    }
    built.context("cannot build Dgraph")?;
    Ok(place)
}

/// Go, at a priority that leaves the machine usable; `nice` is in every system's coreutils.
fn go() -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "go"]).env("CGO_ENABLED", "0").env("GOWORK", "off");
    command
}

fn build(source: &Path, place: &Path) -> Result<()> {
    let mut child = go()
        .current_dir(source)
        .args(["build", "-v", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(place)
        .arg("./dgraph")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start `go build`")?;
    let mut last = Vec::new();
    if let Some(lines) = child.stderr.take() {
        let mut packages = 0_usize;
        for line in BufReader::new(lines).lines().map_while(std::io::Result::ok) {
            // `-v` names each package as it is compiled, and errors begin with `#`, a path with a line or `go:`.
            if !line.contains([' ', ':']) {
                packages += 1;
                show_progress(packages, &line);
            }
            last.push(line);
        }
        if stderr().is_terminal() {
            eprintln!();
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let from = last.len().saturating_sub(5);
        bail!("`go build` failed ({status}): {}", last[from..].join("\n"));
    }
    Ok(())
}

/// One line that changes at a terminal, a line now and then elsewhere.
fn show_progress(packages: usize, line: &str) {
    if stderr().is_terminal() {
        let mut name: String = line.chars().take(60).collect();
        name = format!("{name:60}");
        eprint!("\r  {packages:4} packages: {name}");
        let _ = stderr().flush();
    } else if packages.is_multiple_of(100) {
        eprintln!("  {packages} packages");
    }
}

/// Starts zero and alpha in their pods, with their data under `folder`, and waits until both say that they are ready. They run as long as
/// the handles that this returns.
pub(super) fn start(program: &Path, zero: &Pod, alpha: &Pod, folder: &Path) -> Result<[Process; 2]> {
    let (zero_address, alpha_address) = (zero.v4()?, alpha.v4()?);
    let coordinator = launch(program, zero, folder, &["zero", "--my", &format!("{zero_address}:{ZERO}")])?;
    let database = launch(
        program,
        alpha,
        folder,
        &[
            "alpha",
            "--my",
            &format!("{alpha_address}:7080"),
            "--zero",
            &format!("{zero_address}:{ZERO}"),
            "--security",
            "whitelist=0.0.0.0/0;",
        ],
    )?;
    for (pod, address, port, process) in
        [(zero, zero_address, 6080, &coordinator), (alpha, alpha_address, HTTP, &database)]
    {
        let address = (IpAddr::from(address), port).into();
        ready::await_ready(pod, process, address, "/health", START).with_context(|| pod.name().to_owned())?;
    }
    Ok([coordinator, database])
}

fn launch(program: &Path, pod: &Pod, folder: &Path, arguments: &[&str]) -> Result<Process> {
    let data = folder.join(pod.name().replace('/', "-"));
    fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
    let mut command = pod.command(program);
    // It keeps everything in its working directory by default. Proxies of the environment are not in this network.
    command.current_dir(&data).env_clear().env("HOME", &data);
    command.args(arguments).args(["--bindall", "--telemetry", "reports=false; sentry=false;"]);
    pod.spawn(command)
}
