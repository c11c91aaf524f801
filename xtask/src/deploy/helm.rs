//! What Helm makes of the chart.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::objects::{self, Object};
use super::tools::Tools;
use super::{Complaint, EARLIER_KERNELS, root};
use crate::process;

/// Sets of values that are rendered, by a name.
pub(super) const VARIANTS: [(&str, &[&str]); 4] = [
    ("defaults", &[]),
    (
        "everything",
        &[
            "--set=serviceMonitor.enabled=true",
            "--set=podMonitor.enabled=true",
            "--set=prometheusRule.enabled=true",
            "--set=dashboard.enabled=true",
            "--set=serviceMonitor.labels.release=prometheus",
            "--set=image.repository=registry.example/portcullis",
            "--set=image.tag=1.2.3",
            "--set=imagePullSecrets[0].name=registry",
            "--set-json=settings={\"service-cidr\":[\"10.0.0.0/16\",\"fd12::/108\"],\"max-addresses\":1000000,\"allow-tunnels\":true}",
            "--set=podAnnotations.a=b",
            "--set=podLabels.c=d",
            "--set=nodeSelector.agentpool=system",
            "--set=maxUnavailable=10%",
            "--set=uninstall.unreadyNodes=leave",
            "--set-json=uninstall.tolerations=[{\"key\":\"dedicated\",\"operator\":\"Exists\"}]",
        ],
    ),
    (EARLIER_KERNELS, &["--set=kernelsBefore511=true"]),
    ("nothing", &["--set=nodeGuard.enabled=false", "--set=uninstall.enabled=false"]),
];

/// Values that the schema must refuse, and a word of its answer.
const REFUSED: [(&str, &str); 10] = [
    ("--set=imagee.tag=x", "imagee"),
    ("--set=image.repository=", "repository"),
    ("--set=image.pullPolicy=Sometimes", "pullPolicy"),
    ("--set=settings.service_cidr=10.0.0.0/16", "service_cidr"),
    ("--set=settings.listen=0.0.0.0:1", "listen"),
    ("--set-json=settings={\"service-cidr\":{\"a\":1}}", "service-cidr"),
    ("--set=port=70000", "port"),
    ("--set=maxUnavailable=0", "maxUnavailable"),
    ("--set=uninstall.unreadyNodes=skip", "unreadyNodes"),
    ("--set-json=uninstall.tolerations=[{\"keys\":\"a\"}]", "keys"),
];

/// The chart's folder.
pub(super) fn chart() -> PathBuf {
    root().join("helm/portcullis")
}

fn template(tools: &Tools, arguments: &[&str]) -> Command {
    let mut command = tools.helm();
    command.args(["template", "portcullis"]).arg(chart()).args(["--namespace", "portcullis"]).args(arguments);
    command
}

/// What is sent to the API server, hooks included.
pub(super) fn objects(tools: &Tools, arguments: &[&str]) -> Result<Vec<Object>> {
    objects::parse(&process::output_of(&mut template(tools, arguments))?)
        .with_context(|| format!("helm template {}", arguments.join(" ")))
}

/// Runs Helm's own checks, and holds the schema of values to what it must refuse.
pub(super) fn lint(tools: &Tools, complaints: &mut Vec<Complaint>) -> Result<()> {
    for (name, arguments) in VARIANTS {
        let mut command = tools.helm();
        command.args(["lint", "--strict", "--quiet"]).arg(chart()).args(arguments);
        process::run_silently(&mut command).with_context(|| format!("values: {name}"))?;
    }
    for (argument, word) in REFUSED {
        let output = template(tools, &[argument]).output().context("cannot start helm")?;
        let answer = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            complaints.push(format!("helm: {argument} is accepted, and the schema of values should refuse it"));
        } else if !answer.contains(word) {
            bail!("helm {argument}: its answer does not name {word}: {answer}");
        }
    }
    Ok(())
}
