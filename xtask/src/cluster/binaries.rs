//! Kubernetes' own programs, built from their Go modules once for each version.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{go, process, workspace};

/// The version of Kubernetes; `xtask/cluster/go.mod` pins the modules.
pub(crate) const VERSION: &str = "v1.36.3";

/// What says where the programs are kept.
pub(crate) const CACHE_VARIABLE: &str = "PORTCULLIS_CLUSTER_CACHE";

/// A program, and the package that it is built from.
struct Program {
    name: &'static str,
    package: &'static str,
}

const fn program(name: &'static str, package: &'static str) -> Program {
    Program { name, package }
}

/// The API server with what it needs comes first: some tests need no more than that.
const PROGRAMS: [Program; 8] = [
    program("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    program("etcd", "go.etcd.io/etcd/server/v3"),
    program("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    program("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    program("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    program("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    program("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
];

/// How many of [`PROGRAMS`], from the first, make an API server that can be talked to.
const API_SERVER: usize = 3;

/// The folder with the programs, present or not.
pub(crate) fn folder(cache: Option<&Path>) -> Result<PathBuf> {
    Ok(cache_folder(cache)?.join(format!("k8s-{VERSION}")))
}

/// Where what is built once for all checkouts is kept: as was asked for, or as the XDG specification says.
pub(crate) fn cache_folder(cache: Option<&Path>) -> Result<PathBuf> {
    if let Some(cache) = cache {
        return Ok(std::path::absolute(cache)?);
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let base =
        base.with_context(|| format!("neither XDG_CACHE_HOME nor HOME is set: name a folder by {CACHE_VARIABLE}"))?;
    Ok(base.join("portcullis"))
}

/// Builds what is missing, and returns the folder. With `api_server_only` that is kube-apiserver, etcd and kubectl.
pub(crate) fn ensure(cache: Option<&Path>, api_server_only: bool) -> Result<PathBuf> {
    let folder = folder(cache)?;
    let wanted = if api_server_only { &PROGRAMS[..API_SERVER] } else { &PROGRAMS[..] };
    let missing: Vec<&Program> = wanted.iter().filter(|program| !folder.join(program.name).exists()).collect();
    if missing.is_empty() {
        return Ok(folder);
    }
    go::ensure()?;
    eprintln!(
        "  Kubernetes {VERSION} is built from source once, into {}: about ten minutes on two cores",
        folder.display()
    );
    for program in missing {
        eprintln!("  {}", program.name);
        // Clients and the API server compare their versions; without this they call themselves v0.0.0-master.
        let version = format!("-X k8s.io/component-base/version.gitVersion={VERSION}");
        let built = go::Program { module: &module(), package: program.package, variables: &version };
        built.ensure(&folder.join(program.name))?;
    }
    Ok(folder)
}

/// A file of Kubernetes' own module, in Go's module cache.
pub(crate) fn source(file: &str) -> Result<PathBuf> {
    let listed = process::output_of(go::command().current_dir(module()).args([
        "list",
        "-m",
        "-f",
        "{{.Dir}}",
        "k8s.io/kubernetes",
    ]))?;
    let path = Path::new(&listed).join(file);
    if listed.is_empty() || !path.exists() {
        bail!("Go's module cache has no {file} of k8s.io/kubernetes");
    }
    Ok(path)
}

/// The folder of the module that names the programs as its tools.
fn module() -> PathBuf {
    workspace::root().join("xtask/cluster")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_module_pins_every_program_and_the_version() {
        let pinned = fs::read_to_string(module().join("go.mod")).expect("go.mod");
        for program in &PROGRAMS {
            let pins = pinned.lines().any(|line| line.trim().trim_start_matches("tool ") == program.package);
            assert!(pins, "{} is no tool of go.mod", program.package);
        }
        assert!(pinned.contains(&format!("k8s.io/kubernetes {VERSION}")), "another version than {VERSION}");
    }

    #[test]
    fn the_cache_is_where_it_was_asked_for() {
        let path = folder(Some(Path::new("/somewhere"))).expect("a folder");
        assert_eq!(path, Path::new("/somewhere").join(format!("k8s-{VERSION}")));
    }
}
