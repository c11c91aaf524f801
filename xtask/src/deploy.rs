//! `cargo xtask deploy`: what `deploy/` holds, rendered, linted and compared by the tools that its users have.

mod dashboard;
mod facts;
mod helm;
mod kustomize;
mod names;
mod objects;
mod overlap;
mod schema;
mod server;
mod tools;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::stages::Outcome;
use crate::workspace;
use objects::Object;
use tools::Tools;

/// What to do with `deploy/`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Render and lint everything, and compare kustomize with Helm
    Check,
    /// Print what kustomize makes of a folder below deploy/
    Render {
        /// Such as overlays/azure-cni
        folder: PathBuf,
    },
    /// Build kustomize and Helm unless they are there, and print their folder
    Tools,
}

/// Carries it out.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.task {
        Task::Check => check().map(drop),
        Task::Render { folder } => {
            let text = kustomize::text(&Tools::ensure()?, &root().join(folder))?;
            Ok(std::io::stdout().write_all(text.as_bytes())?)
        }
        Task::Tools => Ok(writeln!(std::io::stdout(), "{}", Tools::ensure()?.folder().display())?),
    }
}

/// The stage of `cargo xtask test`.
pub(crate) fn stage(_: Duration) -> Result<Outcome> {
    check()
}

fn root() -> PathBuf {
    workspace::root().join("deploy")
}

/// What adds the capability that Linux before 5.11 asks for: a component, and a variant of the chart.
const EARLIER_KERNELS: &str = "kernels-before-5.11";

/// What an object is about, and what is wrong with it.
type Complaint = String;

fn check() -> Result<Outcome> {
    let tools = Tools::ensure()?;
    let mut complaints: Vec<Complaint> = Vec::new();

    let folders = kustomize::folders(&root())?;
    let mut rendered: Vec<(String, Vec<Object>)> = Vec::new();
    for folder in &folders {
        let name = folder.strip_prefix(root()).unwrap_or(folder).display().to_string();
        rendered.push((name, kustomize::objects(&tools, folder)?));
    }
    for component in ["monitoring", EARLIER_KERNELS] {
        rendered.push((component.to_owned(), kustomize::component(&tools, &root().join(component))?));
    }
    helm::lint(&tools, &mut complaints)?;
    for (name, arguments) in helm::VARIANTS {
        rendered.push((format!("helm ({name})"), helm::objects(&tools, arguments)?));
    }
    let count: usize = rendered.iter().map(|(_, objects)| objects.len()).sum();

    for (name, objects) in &rendered {
        let mut found = Vec::new();
        objects.iter().for_each(|object| schema::check(object, &mut found));
        facts::check(name, objects, &mut found);
        complaints.extend(found.into_iter().map(|complaint| format!("{name}: {complaint}")));
    }
    overlap::check(&tools, &mut complaints)?;
    names::check(&root().join("monitoring"), &mut complaints)?;
    dashboard::check(&root().join("monitoring/dashboard.json"), &mut complaints)?;
    let outcome = server::check(&tools, &folders, &mut complaints)?;

    for complaint in &complaints {
        eprintln!("  {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} thing(s) in deploy/ are not as they should be", complaints.len());
    }
    eprintln!("  {count} objects of {} renderings are as they should be", rendered.len());
    Ok(outcome)
}
