//! A real API server takes everything, and refuses the agent what it has no business with.

mod api;
mod guard;

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::tools::Tools;
use super::{Complaint, helm, kustomize};
use crate::cluster::binaries;
use crate::process;
use crate::stages::Outcome;
use api::Api;

/// Applies every rendering, installs and removes the chart, and tries what the agent's account may do. Where Kubernetes'
/// programs have not been built it does nothing, and says so.
pub(super) fn check(tools: &Tools, folders: &[PathBuf], complaints: &mut Vec<Complaint>) -> Result<Outcome> {
    let cache = std::env::var_os(binaries::CACHE_VARIABLE).map(PathBuf::from);
    let programs = binaries::folder(cache.as_deref())?;
    if let Some(missing) = ["etcd", "kube-apiserver", "kubectl"].iter().find(|name| !programs.join(name).exists()) {
        return Ok(Outcome::PassedExcept(format!(
            "nothing was sent to an API server, since {missing} is not built: `cargo xtask cluster binaries --api-server`"
        )));
    }
    let api = Api::start(&programs).context("cannot start an API server")?;
    for folder in ordered(folders) {
        complaints.extend(apply(&api, &kustomize::text(tools, folder)?, &folder.display().to_string())?);
    }
    for file in later_files(folders)? {
        complaints.extend(apply(&api, &std::fs::read_to_string(&file)?, &file.display().to_string())?);
    }
    guard::check(&api, complaints)?;
    complaints.extend(chart(tools, &api).err().map(|error| format!("{error:#}")));
    Ok(Outcome::Passed)
}

/// As a user would: the agents first, then what takes their place.
fn ordered(folders: &[PathBuf]) -> Vec<&PathBuf> {
    let mut folders: Vec<&PathBuf> = folders.iter().collect();
    folders.sort_by_key(|folder| folder.ends_with("uninstall"));
    folders
}

/// Server-side, with fields that the API does not have refused; and once more, which must change nothing.
fn apply(api: &Api, text: &str, name: &str) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for time in ["first", "second"] {
        let arguments = ["apply", "--server-side", "--validate=strict", "--filename=-"];
        if let Err(error) = api.kubectl_with_input(&arguments, text)? {
            complaints.push(format!("{name}, applied a {time} time: {error}"));
        }
    }
    Ok(complaints)
}

/// Files of the examples that are applied later.
fn later_files(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("then-")) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Installs, upgrades and removes the chart. Its hook, a Job, needs kubelets: the cluster tests run it.
fn chart(tools: &Tools, api: &Api) -> Result<()> {
    let helm = |arguments: &[&str]| {
        let mut command = tools.helm();
        command.args(arguments).args(["--namespace", "portcullis", "--kubeconfig"]).arg(api.kubeconfig());
        process::run_silently(&mut command).with_context(|| format!("helm {}", arguments.join(" ")))
    };
    let path = helm::chart();
    let path = path.to_str().context("a path that is not UTF-8")?;
    // What the kustomizations have left is taken over.
    helm(&["install", "portcullis", path, "--take-ownership", "--force-conflicts"])?;
    helm(&["upgrade", "portcullis", path, "--set=image.tag=other", "--set=settings.max-endpoints=512"])?;
    helm(&["rollback", "portcullis", "1"])?;
    helm(&["uninstall", "portcullis", "--no-hooks"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uninstall_comes_after_the_agents() {
        let folders: Vec<PathBuf> = ["deploy/uninstall", "deploy/overlays/local"].map(PathBuf::from).into();
        assert_eq!(
            ordered(&folders).last().map(|folder| folder.as_path()),
            Some(std::path::Path::new("deploy/uninstall"))
        );
    }
}
