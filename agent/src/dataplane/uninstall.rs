//! Takes everything of ours away, and nothing else.

use std::path::Path;

use super::{DataplaneError, attach, host, layouts, load, lock};

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pins of links.
    pub links: usize,
    /// Pins of maps.
    pub maps: usize,
}

/// Removes the pins under a directory, of every layout, and with them programs and tables: links end with their last
/// reference.
///
/// A clsact qdisc stays, also one that an agent has made: nobody can tell who else counts on it, and empty it does nothing.
///
/// # Errors
/// A capability is missing; or the pins are another network namespace's or an agent's that runs, which would put everything
/// back, or cannot be removed.
pub fn uninstall(pin_dir: &Path) -> Result<Removed, DataplaneError> {
    host::check_capabilities(host::OF_UNINSTALL)?;
    check_owner(pin_dir)?;
    // A running agent would put back what is removed.
    let _lock = if pin_dir.exists() { Some(lock::take(pin_dir)?) } else { None };
    let all = layouts::all(pin_dir);
    // What comes up a bridge without a stamp is dropped only while every port stamps.
    all.iter().try_for_each(|layout| load::disarm(layout))?;
    let links = layouts::end_links(&all)? + attach::remove_filters();
    let maps = layouts::remove_maps(&all)?;
    // A directory that is not ours alone stays.
    drop(std::fs::remove_dir(pin_dir));
    Ok(Removed { links, maps })
}

/// Checks that pins, if there are any, are this network namespace's.
///
/// # Errors
/// They are another's, or cannot be read.
pub fn check_owner(pin_dir: &Path) -> Result<(), DataplaneError> {
    let namespace = host::namespace_of_this_thread()?;
    for layout in layouts::all(pin_dir) {
        if load::owner(&layout)?.is_some_and(|owner| owner != namespace) {
            return Err(DataplaneError::OtherNamespace { path: pin_dir.to_owned() });
        }
    }
    Ok(())
}
