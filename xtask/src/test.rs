//! `cargo xtask test`: all checks and tests, with their set-up, as stages.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::stages::{self, Outcome, Stage};
use crate::workspace::{self, Metadata};
use crate::{build_ebpf, cluster, deny, deploy, fuzz, kernels, live, process, walls};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    only: Vec<String>,
    /// Leave these stages out
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    skip: Vec<String>,
}

/// In this order: what is quick fails early, and what needs the BPF object follows its build. The budgets are those of
/// a machine with two cores that has built nothing before; together they stay below an hour and a half.
fn all() -> Vec<Stage> {
    let stage = |name, minutes: u64, run| Stage { name, budget: Duration::from_secs(minutes * 60), run };
    vec![
        stage("fmt", 1, fmt),
        stage("walls", 1, |_| walls::run().map(|()| Outcome::Passed)),
        stage("set-up", 6, set_up),
        stage("clippy", 4, clippy),
        stage("deny", 2, |_| deny::run()),
        stage("deploy", 6, deploy::stage),
        stage("doc", 2, doc),
        stage("test", 9, test),
        stage("fuzz", 4, fuzz::stage),
        stage("live", 26, live::run),
        stage("cluster", 14, cluster::stage),
        stage("kernels", 14, kernels::run),
    ]
}

/// Runs the stages that were asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let stages = all();
    for name in arguments.only.iter().chain(&arguments.skip) {
        if !stages.iter().any(|stage| stage.name == name) {
            let names: Vec<&str> = stages.iter().map(|stage| stage.name).collect();
            bail!("there is no stage `{name}`: the stages are {}", names.join(", "));
        }
    }
    let named = |names: &[String], stage: &Stage| names.iter().any(|name| name == stage.name);
    let wanted: Vec<Stage> = stages
        .into_iter()
        .filter(|stage| arguments.only.is_empty() || named(&arguments.only, stage))
        .filter(|stage| !named(&arguments.skip, stage))
        .collect();
    if wanted.is_empty() {
        bail!("no stage is left to run");
    }
    stages::run(&wanted)
}

fn fmt(limit: Duration) -> Result<Outcome> {
    ensure_component("rustfmt", "cargo-fmt")?;
    passed(workspace::cargo().args(["fmt", "--all", "--check"]), limit).context("run `cargo fmt --all`")
}

fn set_up(_: Duration) -> Result<Outcome> {
    live::ensure_tools()?;
    build_ebpf::run()?;
    Ok(Outcome::Passed)
}

fn clippy(limit: Duration) -> Result<Outcome> {
    ensure_component("clippy", "cargo-clippy")?;
    let mut command = workspace::cargo();
    command.args(["clippy", "--workspace", "--all-targets"]);
    add_live_features(&mut command)?;
    passed(command.args(["--", "--deny", "warnings"]), limit)
}

fn doc(limit: Duration) -> Result<Outcome> {
    let mut command = workspace::cargo();
    command
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "--deny warnings");
    passed(&mut command, limit)
}

fn test(limit: Duration) -> Result<Outcome> {
    // The packet programs are built for BPF only; on the host there is nothing of theirs to run.
    passed(
        workspace::repeatably(&mut workspace::cargo()).args(["test", "--workspace", "--exclude", "portcullis-ebpf"]),
        limit,
    )
}

fn passed(command: &mut Command, limit: Duration) -> Result<Outcome> {
    process::run_within(command, limit)?;
    Ok(Outcome::Passed)
}

/// Lints must see the live tests as well, which only their feature builds.
fn add_live_features(command: &mut Command) -> Result<()> {
    let metadata = Metadata::read()?;
    for package in metadata.packages_with_feature(live::FEATURE) {
        command.args(["--features", &format!("{package}/{}", live::FEATURE)]);
    }
    Ok(())
}

/// rustup's minimal profile has neither rustfmt nor clippy.
fn ensure_component(component: &str, program: &str) -> Result<()> {
    if process::succeeds(Command::new(program).arg("--version")) {
        return Ok(());
    }
    process::run(Command::new("rustup").args(["component", "add", component]))
        .with_context(|| format!("{component} is missing and cannot be added: try `rustup component add {component}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budgets_together_leave_time_to_spare() {
        let budget: Duration = all().iter().map(|stage| stage.budget).sum();
        assert!(budget < Duration::from_secs(90 * 60), "{budget:?}");
    }

    #[test]
    fn an_unknown_stage_is_refused_before_anything_runs() {
        let arguments = Arguments { only: vec!["nonsense".into()], skip: Vec::new() };
        let error = run(&arguments).expect_err("there is no such stage");
        assert!(error.to_string().contains("fmt, walls"), "{error}");
    }
}
