//! Pins of every layout. An agent of another layout has left programs that judge by tables which nobody writes any more:
//! once this one's are everywhere, those go; and uninstalling takes them all.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::attach::LINKS;
use super::{Dataplane, DataplaneError, Direction, LAYOUT, bpf, links};

/// The folder of maps' pins.
pub(super) const MAPS: &str = "maps";

/// The directories of all layouts in a pin directory: `v` and a number.
pub(super) fn all(pin_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(pin_dir) else { return Vec::new() };
    let is_layout = |path: &PathBuf| {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix('v'));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_layout).collect()
}

/// Those that are not this agent's.
pub(super) fn others(pin_dir: &Path) -> Vec<PathBuf> {
    all(pin_dir).into_iter().filter(|dir| !dir.ends_with(LAYOUT)).collect()
}

/// The ids of the programs behind the links of these layouts.
pub(super) fn programs(layouts: &[PathBuf]) -> BTreeSet<u32> {
    pins(layouts, LINKS).iter().filter_map(|pin| links::program_of(pin).ok()).filter(|id| *id != 0).collect()
}

/// Ends the links of these layouts, and removes their pins; gives their number.
pub(super) fn end_links(layouts: &[PathBuf]) -> Result<usize, DataplaneError> {
    let mut files = pins(layouts, LINKS);
    // Programs on egress first, of all layouts: they judge by the others' stamps.
    files.sort_by_key(|file| file.to_string_lossy().ends_with(Direction::Ingress.name()));
    remove(layouts, LINKS, &files)
}

/// Removes the pins of the maps of these layouts, and their directories; gives the maps' number.
pub(super) fn remove_maps(layouts: &[PathBuf]) -> Result<usize, DataplaneError> {
    let removed = remove(layouts, MAPS, &pins(layouts, MAPS))?;
    for dir in layouts {
        // A directory that is not ours alone stays.
        drop(std::fs::remove_dir(dir));
    }
    Ok(removed)
}

fn pins(layouts: &[PathBuf], folder: &str) -> Vec<PathBuf> {
    let entries = layouts.iter().filter_map(|dir| std::fs::read_dir(dir.join(folder)).ok()).flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn remove(layouts: &[PathBuf], folder: &str, files: &[PathBuf]) -> Result<usize, DataplaneError> {
    for file in files {
        if let Ok(pinned) = bpf::pinned(file) {
            // What is no link has nothing to detach.
            drop(bpf::detach(pinned.as_fd()));
        }
        std::fs::remove_file(file).map_err(DataplaneError::file(file))?;
    }
    for dir in layouts.iter().map(|dir| dir.join(folder)).filter(|dir| dir.exists()) {
        std::fs::remove_dir(&dir).map_err(DataplaneError::file(&dir))?;
    }
    Ok(files.len())
}

impl Dataplane {
    /// Takes away what agents of other layouts have left, for this agent's programs are everywhere. Gives the number of
    /// links.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn end_other_layouts(&mut self) -> Result<usize, DataplaneError> {
        let others = others(&self.pin_dir);
        let ended = end_links(&others)?;
        remove_maps(&others)?;
        self.others.clear();
        Ok(ended)
    }
}
