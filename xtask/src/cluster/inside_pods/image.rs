//! The image of what runs inside the trials' pods: this program, a shell, and iptables.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::super::images;
use crate::image::archive::{self, Image};
use crate::image::{Architecture, copy_libraries};
use crate::process;

/// What pods name it.
pub(in super::super) const TAG: &str = "portcullis-trials:dev";
/// This program in it.
pub(in super::super) const PROGRAM: &str = "/xtask";
/// What a mesh's init containers run.
const RESTORE: &str = "/usr/sbin/iptables-restore";

/// Writes the archive into a folder.
pub(in super::super) fn write(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("xtask");
    let own = std::env::current_exe().context("cannot find the own program")?;
    // Half of it is for debuggers.
    process::run_silently(Command::new("strip").arg("-o").arg(&program).arg(&own))?;
    let mut tree = images::base()?;
    tree.copy(PROGRAM, 0o755, &program)?;
    copy_libraries(&mut tree, &program)?;
    // One program under many names.
    let tables = fs::canonicalize(RESTORE).with_context(|| format!("cannot find {RESTORE}"))?;
    tree.copy(&tables.to_string_lossy(), 0o755, &tables)?
        .link(RESTORE.trim_start_matches('/'), &tables.to_string_lossy());
    copy_libraries(&mut tree, &tables)?;
    for extension in extensions() {
        tree.copy(&extension.to_string_lossy(), 0o644, &extension)?;
    }
    let image = Image {
        tags: vec![TAG.to_owned()],
        architecture: Architecture::own().name(),
        layers: vec![tree.into_layer()?],
        entrypoint: vec![PROGRAM.to_owned()],
        command: Vec::new(),
    };
    let place = folder.join("trials.tar");
    archive::write(&[image], &mut BufWriter::new(File::create(&place)?)).context("cannot make the trials' image")?;
    Ok(place)
}

/// iptables loads what knows a match or target by its name.
fn extensions() -> Vec<PathBuf> {
    // The targets that are no extension (RETURN) come from one as well.
    const NAMES: [&str; 4] = ["libxt_REDIRECT.so", "libxt_owner.so", "libxt_standard.so", "libxt_tcp.so"];
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path().join("xtables"));
    folders.flat_map(|folder| NAMES.map(|name| folder.join(name))).filter(|path| path.exists()).collect()
}
