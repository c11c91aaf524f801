//! Portcullis in the cluster: its image, and what `deploy/` says of it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::kubectl::Kubectl;
use crate::image::{self, Architecture, Profile};
use crate::workspace::{self, Metadata};

/// What is applied: the installation that takes the image which nodes have.
const OVERLAY: &str = "deploy/overlays/local";
const NAMESPACE: &str = "portcullis";
const DAEMON_SET: &str = "daemonset/portcullis";
/// How long all nodes together may take.
const PATIENCE: &str = "--timeout=180s";

/// Builds the agent into an image in the target directory.
pub(super) fn build_image() -> Result<PathBuf> {
    let architecture = Architecture::own();
    let program = image::build_agent(architecture, Profile::Release)?;
    let archive = Metadata::read()?.target_directory()?.join("portcullis-image.tar");
    image::write(&program, image::TAG, architecture, &archive)?;
    Ok(archive)
}

/// Applies the manifests and waits until every node's agent is ready.
pub(super) fn install(kubectl: &Kubectl) -> Result<()> {
    let overlay = workspace::root().join(OVERLAY);
    let overlay = overlay.to_str().context("a path that is not UTF-8")?;
    kubectl.output(&["apply", "--server-side", "--kustomize", overlay])?;
    kubectl.output(&["--namespace", NAMESPACE, "rollout", "status", DAEMON_SET, PATIENCE]).context(
        "Portcullis does not become ready; `kubectl --namespace portcullis logs daemonset/portcullis` says why",
    )?;
    Ok(())
}
