//! The real database: Dgraph, built from its Go module.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use portcullis_testbed::{Pod, Process};
use serde_json::Value;

use super::manifests::NamedPort;
use super::ready;
use crate::{go, process};

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
pub(crate) fn ensure(folder: &Path) -> Result<PathBuf> {
    let place = folder.join(format!("dgraph-{VERSION}"));
    if place.exists() {
        return Ok(place);
    }
    go::ensure()?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    eprintln!("  Dgraph {VERSION} is built from source once: about two minutes on two cores");
    // Outside of any module, where flags of a workspace have no say.
    let module = process::output_of(go::command().current_dir(folder).args([
        "mod",
        "download",
        "-json",
        &format!("{MODULE}@{VERSION}"),
    ]))?;
    let module: Value = serde_json::from_str(&module).context("cannot read what `go mod download` printed")?;
    let source = module.get("Dir").and_then(Value::as_str).context("`go mod download` names no folder")?;
    let program = go::Program { module: Path::new(source), package: "./dgraph", variables: "" };
    program.ensure(&place).context("cannot build Dgraph")?;
    Ok(place)
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
