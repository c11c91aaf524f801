//! kustomize and Helm, built from their own modules once for each set of versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::binaries::cache_folder;
use crate::{go, workspace};

/// The variable by which Kubernetes' programs are kept elsewhere; what is built here is kept beside them.
use crate::cluster::binaries::CACHE_VARIABLE;

/// The programs, and the packages that they are built from.
const PROGRAMS: [(&str, &str); 2] =
    [("kustomize", "sigs.k8s.io/kustomize/kustomize/v5"), ("helm", "helm.sh/helm/v4/cmd/helm")];

/// The programs, ready to run.
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Builds what is missing.
    pub(super) fn ensure() -> Result<Self> {
        let cache = std::env::var_os(CACHE_VARIABLE).map(PathBuf::from);
        let pins = fs::read(module().join("go.sum")).context("cannot read xtask/deploy/go.sum")?;
        let folder = cache_folder(cache.as_deref())?.join(format!("deploy-{:016x}", fingerprint(&pins)));
        for (name, package) in PROGRAMS {
            let place = folder.join(name);
            if !place.exists() {
                eprintln!("  {name} is built from source once, into {}", folder.display());
            }
            go::Program { module: &module(), package, variables: "" }.ensure(&place)?;
        }
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn kustomize(&self) -> Command {
        Command::new(self.folder.join("kustomize"))
    }

    /// Helm, which neither reads nor writes anything of the user's.
    pub(super) fn helm(&self) -> Command {
        let mut command = Command::new(self.folder.join("helm"));
        for variable in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.folder.join("helm-home"));
        }
        command.env_remove("KUBECONFIG");
        command
    }
}

/// FNV-1a: names a folder, no more.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The folder of the module that names the programs as its tools.
fn module() -> PathBuf {
    workspace::root().join("xtask/deploy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_pins_every_program() {
        let pinned = fs::read_to_string(module().join("go.mod")).expect("go.mod");
        for (name, package) in PROGRAMS {
            assert!(pinned.lines().any(|line| line.trim() == package), "{name} is no tool of go.mod");
        }
    }
}
