//! What kustomize makes of folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkdir::WalkDir;

use super::objects::{self, Object};
use super::tools::Tools;
use crate::process;

/// The file that makes a folder one of kustomize's.
const FILE: &str = "kustomization.yaml";

/// Every folder that can be applied by itself.
pub(super) fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry.context("cannot list deploy/")?;
        if entry.file_name() != FILE {
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        if !text.lines().any(|line| line == "kind: Component") {
            folders.extend(entry.path().parent().map(Path::to_owned));
        }
    }
    Ok(folders)
}

/// What `kubectl apply -k` would send. A warning, such as one of a deprecated field, is an error.
pub(super) fn text(tools: &Tools, folder: &Path) -> Result<String> {
    let output = tools.kustomize().arg("build").arg(folder).output().context("cannot start kustomize")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success() && complaint.trim().is_empty(),
        "kustomize build {}: {}",
        folder.display(),
        complaint.trim()
    );
    String::from_utf8(output.stdout).context("kustomize printed something else than UTF-8")
}

/// The same, as objects.
pub(super) fn objects(tools: &Tools, folder: &Path) -> Result<Vec<Object>> {
    objects::parse(&text(tools, folder)?).with_context(|| folder.display().to_string())
}

/// The objects that a component adds to the overlay for Azure CNI, and the overlay's own.
pub(super) fn component(tools: &Tools, component: &Path) -> Result<Vec<Object>> {
    let overlay = component.with_file_name("overlays").join("azure-cni");
    let folder = tempfile::tempdir()?;
    // Roots must be relative.
    let path = folder.path().canonicalize()?;
    let up = "../".repeat(path.components().count() - 1);
    let relative =
        |path: &Path| Ok::<_, anyhow::Error>(format!("{up}{}", path.canonicalize()?.strip_prefix("/")?.display()));
    let file = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{}]\ncomponents: [{}]\n",
        relative(&overlay)?,
        relative(component)?
    );
    fs::write(path.join(FILE), file)?;
    process::run_silently(tools.kustomize().arg("version"))?;
    objects(tools, &path)
}
