//! `cargo xtask fuzz`: the fuzz targets, under libFuzzer, which a C++ compiler builds from the crate's own sources.
//!
//! `fuzz/instrument` stands in for rustc and adds the flags for coverage, so that a stable compiler is enough and cargo-fuzz
//! is not needed (`cargo fuzz run` works as well where it and a nightly compiler are).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::stages::Outcome;
use crate::workspace::{self, Metadata};
use crate::{apt, process};

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For how many seconds each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target
    #[arg(long, value_parser = TARGETS.map(|target| target.name))]
    target: Option<String>,
    /// Keep inputs that reach what the saved corpus does not, as few and as short as it takes
    #[arg(long)]
    save: bool,
    /// Run this one input instead: what a failure has left behind
    #[arg(long, requires = "target", value_name = "FILE")]
    input: Option<PathBuf>,
}

#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    /// The longest input, in bytes.
    longest: usize,
    /// How many inputs `cargo xtask test` tries.
    runs: u32,
}

const TARGETS: [Target; 2] =
    [Target { name: "parse", longest: 300, runs: 200_000 }, Target { name: "decide", longest: 1000, runs: 20_000 }];
/// What each target gets in `cargo xtask test`, at most.
const SHORT_RUN: Duration = Duration::from_secs(60);

/// Runs what was asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |target: &&Target| arguments.target.as_deref().is_none_or(|name| name == target.name);
    let build = Build::make(Duration::from_secs(1800))?;
    for target in TARGETS.iter().filter(wanted) {
        match &arguments.input {
            Some(input) => process::run(build.command(target).arg(input))?,
            None => build.fuzz(target, Duration::from_secs(arguments.seconds), &[])?,
        }
        if arguments.save {
            build.save(target)?;
        }
    }
    Ok(())
}

/// A short run of every target, the same each time where nothing was found before and the machine is not too slow.
pub(crate) fn stage(limit: Duration) -> Result<Outcome> {
    let build = Build::make(limit)?;
    for target in &TARGETS {
        build.fuzz(target, SHORT_RUN, &["-seed=1".to_owned(), format!("-runs={}", target.runs)])?;
    }
    Ok(Outcome::Passed)
}

/// The targets, built, and where they keep things.
struct Build {
    binaries: PathBuf,
    /// What a run finds, and what failed.
    findings: PathBuf,
    corpus: PathBuf,
}

impl Build {
    fn make(limit: Duration) -> Result<Self> {
        if !process::succeeds(Command::new("c++").arg("--version")) {
            apt::ensure(&["g++"], "fuzzing")?;
        }
        let fuzz = workspace::root().join("fuzz");
        let target = Metadata::read()?.target_directory()?;
        let mut build = workspace::cargo();
        build.args(["build", "--package", "portcullis-fuzz", "--features", "libfuzzer", "--bins"]);
        build.env("RUSTC_WORKSPACE_WRAPPER", fuzz.join("instrument"));
        process::run_within(&mut build, limit)?;
        Ok(Self { binaries: target.join("debug"), findings: target.join("fuzz"), corpus: fuzz.join("corpus") })
    }

    fn command(&self, target: &Target) -> Command {
        let mut command = Command::new(self.binaries.join(format!("fuzz-{}", target.name)));
        command.current_dir(workspace::root());
        command.arg(format!("-max_len={}", target.longest)).arg("-rss_limit_mb=1024").arg("-timeout=10");
        command
    }

    /// What a target's runs have found.
    fn found(&self, target: &Target) -> Result<PathBuf> {
        let folder = self.findings.join(target.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    fn fuzz(&self, target: &Target, time: Duration, more: &[String]) -> Result<()> {
        let failures = self.findings.join("failures");
        fs::create_dir_all(&failures).with_context(|| format!("cannot make {}", failures.display()))?;
        let mut command = self.command(target);
        command.arg(format!("-max_total_time={}", time.as_secs()));
        command.args(["-print_final_stats=1", "-verbosity=0"]).args(more);
        command.arg(format!("-artifact_prefix={}/{}-", failures.display(), target.name));
        // New inputs go to the first folder.
        command.arg(self.found(target)?).arg(self.corpus.join(target.name));
        let outcome = process::run_within(&mut command, time * 2 + Duration::from_secs(60));
        if outcome.is_err() {
            bail!(
                "`{name}` does not hold: the input is in {}; see it again by `cargo xtask fuzz --target {name} --input FILE`",
                failures.display(),
                name = target.name
            );
        }
        Ok(())
    }

    /// Adds to the corpus what reaches more.
    fn save(&self, target: &Target) -> Result<()> {
        let corpus = self.corpus.join(target.name);
        process::run(
            self.command(target)
                .args(["-set_cover_merge=1", "-use_value_profile=0"])
                .arg(&corpus)
                .arg(self.found(target)?),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_saved_corpora_stay_small_and_are_there() {
        let (mut files, mut bytes) = (0, 0);
        for target in TARGETS {
            let folder = workspace::root().join("fuzz/corpus").join(target.name);
            let before = files;
            for entry in fs::read_dir(folder).expect("a corpus for each target") {
                let metadata = entry.and_then(|entry| entry.metadata()).expect("a file");
                (files, bytes) = (files + 1, bytes + metadata.len());
            }
            assert!(files > before, "{} has inputs", target.name);
        }
        assert!(files <= 300 && bytes <= 100_000, "{files} files, {bytes} bytes");
    }
}
