//! What an agent holds: what may not grow with the work it has done.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::Agent;

/// What it holds at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Footprint {
    pub(crate) resident_kib: u64,
    files: usize,
    threads: usize,
    pins: usize,
    /// Maps and programs that it has open, by their numbers.
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
}

impl Footprint {
    /// Of an agent that runs.
    pub(crate) fn of(agent: &Agent) -> Self {
        let process = format!("/proc/{}", agent.process().id());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let resident_kib = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let (mut maps, mut programs, mut files) = (BTreeSet::new(), BTreeSet::new(), 0);
        for entry in fs::read_dir(format!("{process}/fdinfo")).unwrap().flatten() {
            files += 1;
            // Connections of those who ask it may have gone since.
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let number = |key: &str| -> Option<u32> {
                text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            };
            maps.extend(number("map_id:"));
            programs.extend(number("prog_id:"));
        }
        let threads = fs::read_dir(format!("{process}/task")).unwrap().count();
        Self { resident_kib, files, threads, pins: count(agent.pin_dir()), maps, programs }
    }

    /// Waits until it is no more than this one, memory apart, of which `kib` more may be resident: the allocator keeps
    /// what was in use at the peak.
    pub(crate) fn await_no_more(&self, agent: &Agent, kib: u64, when: &str) {
        let deadline = Instant::now() + crate::agent::PATIENCE;
        loop {
            let now = Self::of(agent);
            // Idle threads for blocking work end after a while (tokio: ten seconds).
            let same = now.files <= self.files
                && now.threads <= self.threads
                && now.pins == self.pins
                && now.maps == self.maps
                && now.programs == self.programs;
            if same && now.resident_kib <= self.resident_kib + kib {
                eprintln!("{when}: {} KiB resident, {} before", now.resident_kib, self.resident_kib);
                return;
            }
            assert!(Instant::now() < deadline, "{when}: the agent holds more than before:\n{self:#?}\n{now:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the kernel has none of the maps and programs any more.
    pub(crate) fn await_gone(&self) {
        let deadline = Instant::now() + crate::agent::PATIENCE;
        loop {
            let maps: Vec<u32> =
                aya::maps::loaded_maps().flatten().map(|map| map.id()).filter(|id| self.maps.contains(id)).collect();
            let programs: Vec<u32> = aya::programs::loaded_programs()
                .flatten()
                .map(|program| program.id())
                .filter(|id| self.programs.contains(id))
                .collect();
            if maps.is_empty() && programs.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "maps {maps:?} and programs {programs:?} are left in the kernel");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Files below a directory.
fn count(directory: &Path) -> usize {
    fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 1 })
        .sum()
}
