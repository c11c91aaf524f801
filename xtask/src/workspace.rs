//! Where things are: the repository, the target directory, the packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// The repository's top folder.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// `cargo`, the one that runs us, in the repository's top folder.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Has property tests try the same cases each time, so that what was watched passing passes again, and a failure is the
/// change's own. Plain `cargo test` and `cargo xtask fuzz` look for new cases; what they find is saved as a regression.
pub(crate) fn repeatably(command: &mut Command) -> &mut Command {
    const SEED: &str = "PROPTEST_RNG_SEED";
    if std::env::var_os(SEED).is_none() {
        command.env(SEED, "1");
    }
    command
}

/// Flags of rustc by which what is built names source files the same wherever the checkout, cargo's home and the toolchain
/// are. The checkout is `.`, where debuggers that start there find it.
pub(crate) fn placeless() -> Result<Vec<String>> {
    let sysroot = process::output_of(Command::new("rustc").args(["--print", "sysroot"]))?;
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cargo = home("CARGO_HOME").or_else(|| Some(home("HOME")?.join(".cargo")));
    let places = [(Some(root().to_owned()), "."), (cargo, "/cargo"), (Some(PathBuf::from(sysroot)), "/rust")];
    let flag = |(place, name): (Option<PathBuf>, &str)| {
        place.map(|place| format!("--remap-path-prefix={}={name}", place.display()))
    };
    Ok(places.into_iter().filter_map(flag).collect())
}

/// What cargo knows of the workspace's own packages.
pub(crate) struct Metadata(Value);

/// A test binary that is built only with certain features.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TestTarget {
    pub(crate) package: String,
    pub(crate) name: String,
}

impl Metadata {
    /// Asks cargo.
    pub(crate) fn read() -> Result<Self> {
        let text = process::output_of(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
        Ok(Self(serde_json::from_str(&text).context("cannot read what `cargo metadata` printed")?))
    }

    /// The target directory, wherever flags, variables and configuration have put it.
    pub(crate) fn target_directory(&self) -> Result<PathBuf> {
        let path = self.0.get("target_directory").and_then(Value::as_str);
        Ok(PathBuf::from(path.context("`cargo metadata` names no target directory")?))
    }

    /// The integration tests that are built only with `feature` of their package.
    pub(crate) fn tests_requiring(&self, feature: &str) -> Vec<TestTarget> {
        let mut found = Vec::new();
        for package in list(&self.0, "packages") {
            for target in list(package, "targets") {
                let is_test = list(target, "kind").iter().any(|kind| kind == "test");
                let needs_feature = list(target, "required-features").iter().any(|needed| needed == feature);
                if is_test && needs_feature {
                    found.push(TestTarget { package: text(package, "name"), name: text(target, "name") });
                }
            }
        }
        found
    }

    /// The names of the packages that declare the feature.
    pub(crate) fn packages_with_feature(&self, feature: &str) -> Vec<String> {
        list(&self.0, "packages")
            .iter()
            .filter(|package| package.get("features").and_then(|features| features.get(feature)).is_some())
            .map(|package| text(package, "name"))
            .collect()
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_tests_are_found_by_their_required_feature() {
        let metadata = Metadata(serde_json::json!({"packages": [
            {"name": "a", "features": {"live": []}, "targets": [
                {"name": "packets", "kind": ["test"], "required-features": ["live"]},
                {"name": "plain", "kind": ["test"]},
                {"name": "tool", "kind": ["bin"], "required-features": ["live"]},
            ]},
            {"name": "b", "features": {}, "targets": []},
        ]}));
        let expected = TestTarget { package: "a".into(), name: "packets".into() };
        assert_eq!(metadata.tests_requiring("live"), [expected]);
        assert_eq!(metadata.packages_with_feature("live"), ["a"]);
    }
}
