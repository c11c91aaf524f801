//! Portcullis in the cluster: its image, and what `deploy/` says of it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::kubectl::Kubectl;
use crate::image::{self, Architecture, Profile};
use crate::workspace::{self, Metadata};

/// What is applied: the installation that takes the image which nodes have.
const OVERLAY: &str = "deploy/overlays/local";
/// The image of an agent whose tables have another layout.
pub(super) const OTHER_TAG: &str = "portcullis:other-layout";
/// What makes it one.
const OTHER_FEATURE: &str = "portcullis/other-layout";
/// What cleans the nodes.
const UNINSTALL: &str = "deploy/uninstall";
const NAMESPACE: &str = "portcullis";
const DAEMON_SET: &str = "daemonset/portcullis";
const CONTAINER: &str = "agent";
/// How long all nodes together may take.
const PATIENCE: &str = "--timeout=180s";

/// Builds the agent into an image in the target directory.
pub(super) fn build_image(profile: Profile) -> Result<PathBuf> {
    let architecture = Architecture::own();
    let program = image::build_agent(architecture, profile)?;
    let archive = Metadata::read()?.target_directory()?.join("portcullis-image.tar");
    image::write(&program, image::TAG, architecture, &archive)?;
    Ok(archive)
}

/// Builds an agent into an image that differs in the layout of its tables, for changes from one to the other.
pub(super) fn build_other_image() -> Result<PathBuf> {
    let program = image::build_dev(&["--features", OTHER_FEATURE])?;
    let archive = Metadata::read()?.target_directory()?.join("portcullis-other-image.tar");
    image::write(&program, OTHER_TAG, Architecture::own(), &archive)?;
    Ok(archive)
}

/// Applies the manifests and waits until every node's agent is ready.
pub(super) fn install(kubectl: &Kubectl) -> Result<()> {
    kubectl.output(&["apply", "--server-side", "--kustomize", &folder(OVERLAY)])?;
    await_ready(kubectl)
}

/// Waits until every node has an agent of the wanted image, ready.
pub(super) fn await_ready(kubectl: &Kubectl) -> Result<()> {
    kubectl.output(&["--namespace", NAMESPACE, "rollout", "status", DAEMON_SET, PATIENCE]).map(drop).context(
        "Portcullis does not become ready; `kubectl --namespace portcullis logs daemonset/portcullis` says why",
    )
}

/// Has the agents run from another image, node by node.
pub(super) fn set_image(kubectl: &Kubectl, image: &str) -> Result<()> {
    kubectl.output(&["--namespace", NAMESPACE, "set", "image", DAEMON_SET, &format!("{CONTAINER}={image}")])?;
    await_ready(kubectl)
}

/// Ends the agents, and waits until they have ended.
pub(super) fn remove_agents(kubectl: &Kubectl) -> Result<()> {
    kubectl.output(&["--namespace", NAMESPACE, "delete", DAEMON_SET, "--cascade=foreground", PATIENCE]).map(drop)
}

/// Has every node cleaned, and waits for that.
pub(super) fn uninstall(kubectl: &Kubectl) -> Result<()> {
    kubectl.output(&["apply", "--server-side", "--kustomize", &folder(UNINSTALL)])?;
    await_ready(kubectl)
}

/// Removes what has cleaned, with everything else of Portcullis.
pub(super) fn finish_uninstall(kubectl: &Kubectl) -> Result<()> {
    kubectl.output(&["delete", "--ignore-not-found", "--kustomize", &folder(UNINSTALL), PATIENCE]).map(drop)
}

fn folder(path: &str) -> String {
    workspace::root().join(path).display().to_string()
}
