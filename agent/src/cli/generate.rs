//! What is made from the command line's own description: completions and manual pages.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;

use super::{command_line, settings};

/// Print what makes a shell complete commands and options: `source <(portcullis completions bash)`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Print the manual page, or write one for each command into a folder.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Write portcullis.1, portcullis-run.1 and so on into this folder, which must exist.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The command as help and documents describe it.
pub(super) fn described() -> clap::Command {
    settings::with_variables(settings::prepared(command_line::command_named(None)))
}

/// Writes the completions of a shell.
///
/// # Errors
/// Those of the writer.
pub fn write_completions(args: &CompletionsArgs, out: &mut dyn Write) -> io::Result<()> {
    // The generator itself panics when it cannot write.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut described(), "portcullis", &mut text);
    out.write_all(&text)
}

/// Writes the manual: the main page to `out`, or every page into a folder.
///
/// # Errors
/// Those of the writer and of the folder's files.
pub fn write_manual(args: &ManArgs, out: &mut dyn Write) -> io::Result<()> {
    match &args.dir {
        None => clap_mangen::Man::new(described()).render(out),
        Some(dir) => write_pages(dir),
    }
}

fn write_pages(dir: &Path) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    clap_mangen::generate_to(described().disable_help_subcommand(true), dir).map_err(named)
}

#[cfg(test)]
mod tests;
