//! Loads maps and programs: those that are pinned go on, what is missing is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, MapData, MapInfo};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, Pod, VerifierLogLevel};
use portcullis_common::layout::{Identity, RuleName, node_flag};

use super::attach::LINKS;
use super::counters::Counters;
use super::pins::Pins;
use super::ranges::RangeTable;
use super::{DataplaneError, LAYOUT, clock, host, layouts, lock, memory};
use crate::state::image::{Image, Memory, Regions, Sizes};

/// The programs and maps, as `cargo xtask build-ebpf` has made them; empty if it has not.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portcullis-ebpf.o"));

/// Every program.
pub(super) const PROGRAMS: [&str; 10] = [
    "from_pod",
    "to_pod",
    "to_uplink",
    "to_uplink_l3",
    "from_uplink",
    "from_uplink_l3",
    "nothing",
    "closed",
    "clock",
    "seed",
];

/// Maps that outlive the agent.
const PINNED: [&str; 14] = [
    "NODE",
    "INTERFACES",
    "ENDPOINTS",
    "ROWS",
    "NARROW",
    "WIDE",
    "PORTS",
    "RANGES",
    "COUNTERS",
    "DROPS",
    "FLOWS",
    "CONFIRMED",
    "META",
    "IDENTITIES",
];
/// The last of them, apart for its size.
const RULES: &str = "RULES";

/// What the programs are told before they are verified; the twin of the programs' own `Constants`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Constants {
    narrow_mask: u32,
    wide_mask: u32,
    share_bits: u32,
    confirmed_mask: u32,
    locked_reads: u32,
    stamp_in: u32,
    stamp_shift: u32,
    test: u32,
}

// SAFETY: eight 32-bit numbers.
unsafe impl Pod for Constants {}

/// A meta record, identity or rule name that aya may copy as bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);
// SAFETY: bytes only.
unsafe impl Pod for Raw<Identity> {}
// SAFETY: likewise.
unsafe impl Pod for Raw<RuleName> {}

/// How the dataplane is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pins are kept; below it a directory for the layout's version.
    pub pin_dir: PathBuf,
    /// Sizes of tables that are made anew.
    pub sizes: Sizes,
    /// Attach by clsact even where the kernel has TCX.
    pub clsact: bool,
    /// The stamp travels in these sixteen bits of `mark` (their lowest), not in tc_index.
    pub mark_shift: Option<u32>,
    /// For BPF_PROG_TEST_RUN: device and stamp come from `cb[]`.
    pub test: bool,
}

/// Whether tables were there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An earlier agent's tables go on.
    Adopted,
    /// The tables are new.
    Fresh,
}

/// The loaded programs and maps.
pub struct Dataplane {
    pub(super) ebpf: Ebpf,
    pub(super) dir: PathBuf,
    pub(super) pin_dir: PathBuf,
    /// The programs of agents of other layouts that are on hooks still, by the kernel's numbers.
    pub(super) others: BTreeSet<u32>,
    pub(super) tcx: bool,
    pub(super) pins: Pins,
    /// The kernel's number of each program, by name.
    pub(super) program_ids: BTreeMap<&'static str, u32>,
    /// Whether tables were there already.
    pub found: Found,
    /// Ranges.
    pub ranges: RangeTable,
    /// Counters of rules.
    pub counters: Counters,
    /// Counters of drop reasons and events.
    pub drops: Counters,
    /// Jiffies in a second.
    pub jiffies: u32,
    meta: Arc<dyn Memory>,
    identities: Array<MapData, Raw<Identity>>,
    rules: Array<MapData, Raw<RuleName>>,
}

impl Dataplane {
    /// Loads everything and checks that the pins, if any, are this network namespace's. Gives the tables' writer too.
    ///
    /// # Errors
    /// The machine lacks something, or the kernel refuses; nothing has been changed but for pins of new maps.
    pub fn open(settings: &Settings) -> Result<(Self, Image), DataplaneError> {
        if OBJECT.is_empty() {
            return Err(DataplaneError::NoPrograms);
        }
        host::check_kernel()?;
        host::check_capabilities(host::OF_THE_AGENT)?;
        let memory = host::raise_memory_limit();
        host::raise_descriptor_limit();
        let dir = settings.pin_dir.join(LAYOUT);
        let maps = dir.join(layouts::MAPS);
        host::ensure_bpffs(&maps)?;
        let lock = lock::take(&settings.pin_dir)?;
        // An uninstall may have ended in between.
        host::ensure_bpffs(&maps)?;
        host::ensure_bpffs(&dir.join(LINKS))?;
        let namespace = host::namespace_of_this_thread()?;
        super::check_owner(&settings.pin_dir)?;
        let mut pins = Pins::new(&settings.pin_dir, &dir, lock);
        let found = if maps.join("META").exists() { Found::Adopted } else { Found::Fresh };
        let sizes = sizes_of(&maps, settings.sizes)?;
        let loaded = load(settings, &sizes, &maps, VerifierLogLevel::default());
        let mut ebpf = loaded.map_err(|error| memory.blame(error))?;
        let meta = memory::map(map_data(&ebpf, "META")?)?;
        claim(&meta, namespace, &settings.pin_dir)?;
        let mut program_ids = BTreeMap::new();
        for name in PROGRAMS {
            let failed = |source| DataplaneError::Program { name, source };
            let program = program(&mut ebpf, name)?;
            program.load().map_err(failed).map_err(|error| memory.blame(error))?;
            program_ids.insert(name, program.info().map_err(failed)?.id());
        }
        for name in PINNED.into_iter().chain([RULES]) {
            pins.hold(Path::new("maps").join(name))?;
        }
        let jiffies = clock::jiffies_per_second(program(&mut ebpf, "clock")?)?;
        let regions = Regions {
            node: memory::map(map_data(&ebpf, "NODE")?)?,
            interfaces: memory::map(map_data(&ebpf, "INTERFACES")?)?,
            endpoints: memory::map(map_data(&ebpf, "ENDPOINTS")?)?,
            rows: memory::map(map_data(&ebpf, "ROWS")?)?,
            narrow: memory::map(map_data(&ebpf, "NARROW")?)?,
            wide: memory::map(map_data(&ebpf, "WIDE")?)?,
            ports: memory::map(map_data(&ebpf, "PORTS")?)?,
        };
        let dataplane = Self {
            dir,
            pin_dir: settings.pin_dir.clone(),
            others: layouts::programs(&layouts::others(&settings.pin_dir)),
            tcx: host::has_tcx() && !settings.clsact,
            pins,
            program_ids,
            found,
            ranges: RangeTable::new(take(&mut ebpf, "RANGES")?)?,
            counters: Counters::new("COUNTERS", take(&mut ebpf, "COUNTERS")?)?,
            drops: Counters::new("DROPS", take(&mut ebpf, "DROPS")?)?,
            jiffies,
            meta,
            identities: Array::try_from(take(&mut ebpf, "IDENTITIES")?).map_err(DataplaneError::map("IDENTITIES"))?,
            rules: Array::try_from(take(&mut ebpf, RULES)?).map_err(DataplaneError::map(RULES))?,
            ebpf,
        };
        Ok((dataplane, Image::new(regions, sizes)))
    }

    /// A number above every one that was given before, of revisions.
    pub fn next_revision(&self) -> u32 {
        self.next(1)
    }

    /// A number above every one that was given before, of incarnations.
    pub fn next_incarnation(&self) -> u32 {
        self.next(2)
    }

    fn next(&self, word: usize) -> u32 {
        let word = &self.meta.words()[word];
        let number = word.load(std::sync::atomic::Ordering::Relaxed).max(1);
        word.store(number + 1, std::sync::atomic::Ordering::Relaxed);
        number as u32
    }

    /// Who is behind a slot: `namespace/name/uid`.
    #[must_use]
    pub fn identity(&self, slot: u32) -> Option<String> {
        let Raw(identity) = self.identities.get(&slot, 0).ok()?;
        let text = identity.text.split(|byte| *byte == 0).next()?;
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }

    /// Says who is behind a slot.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_identity(&mut self, slot: u32, text: &str) -> Result<(), DataplaneError> {
        let mut identity = Identity { text: [0; 384] };
        for (place, byte) in identity.text.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        self.identities.set(slot, Raw(identity), 0).map_err(DataplaneError::map("IDENTITIES"))
    }

    /// The hashes of the rules' names, by number; zero where there is none.
    pub fn rule_names(&self) -> impl Iterator<Item = (u32, [u8; 16])> + '_ {
        let names = (0..self.rules.len()).map(|number| (number, self.rules.get(&number, 0)));
        names.filter_map(|(number, name)| Some((number, name.ok()?.0.hash))).filter(|(_, hash)| *hash != [0; 16])
    }

    /// Says what a rule number stands for.
    ///
    /// # Errors
    /// The number is above the table's size.
    pub fn set_rule_name(&mut self, number: u32, hash: [u8; 16]) -> Result<(), DataplaneError> {
        self.rules.set(number, Raw(RuleName { hash }), 0).map_err(DataplaneError::map(RULES))
    }

    /// A program, for BPF_PROG_TEST_RUN.
    ///
    /// # Errors
    /// There is no such program.
    pub fn program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, DataplaneError> {
        program(&mut self.ebpf, name)
    }
}

/// The sizes of pinned tables, which programs must be told as they are; those of settings where none is pinned.
pub(super) fn sizes_of(maps: &Path, settings: Sizes) -> Result<Sizes, DataplaneError> {
    let entries = |name: &'static str, otherwise: u32| -> Result<u32, DataplaneError> {
        let path = maps.join(name);
        if !path.exists() {
            return Ok(otherwise);
        }
        Ok(MapInfo::from_pin(&path).map_err(DataplaneError::map(name))?.max_entries())
    };
    let flows = entries("FLOWS", settings.endpoints << settings.share_bits)?;
    let sizes = Sizes {
        narrow_buckets: entries("NARROW", settings.narrow_buckets)?,
        wide_buckets: entries("WIDE", settings.wide_buckets)?,
        ranges: entries("RANGES", settings.ranges)?,
        rules: entries("COUNTERS", settings.rules)?,
        endpoints: flows >> settings.share_bits,
        share_bits: settings.share_bits,
        confirmed_buckets: entries("CONFIRMED", settings.confirmed_buckets)?,
    };
    if sizes != settings {
        tracing::warn!(?sizes, "the tables of the agent before keep their sizes; to change them, uninstall first");
    }
    Ok(sizes)
}

/// Makes the maps that are not pinned, and puts the programs together; they are not loaded yet.
pub(super) fn load(
    settings: &Settings,
    sizes: &Sizes,
    maps: &Path,
    log: VerifierLogLevel,
) -> Result<Ebpf, DataplaneError> {
    let constants = Constants {
        narrow_mask: sizes.narrow_buckets - 1,
        wide_mask: sizes.wide_buckets - 1,
        share_bits: sizes.share_bits,
        confirmed_mask: sizes.confirmed_buckets - 1,
        // Loads may pass each other on every other architecture: readers of flows take the lock there.
        locked_reads: u32::from(cfg!(not(target_arch = "x86_64"))),
        stamp_in: u32::from(settings.mark_shift.is_some()),
        stamp_shift: settings.mark_shift.unwrap_or(0),
        test: settings.test.into(),
    };
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(log);
    loader.override_global("CONSTANTS", &constants, true);
    loader.map_max_entries("NARROW", sizes.narrow_buckets);
    loader.map_max_entries("WIDE", sizes.wide_buckets);
    loader.map_max_entries("RANGES", sizes.ranges);
    loader.map_max_entries("COUNTERS", sizes.rules);
    loader.map_max_entries(RULES, sizes.rules);
    loader.map_max_entries("FLOWS", sizes.endpoints << sizes.share_bits);
    loader.map_max_entries("CONFIRMED", sizes.confirmed_buckets);
    for name in PINNED.into_iter().chain([RULES]) {
        loader.map_pin_path(name, maps.join(name));
    }
    Ok(loader.load(OBJECT)?)
}

/// Makes new pins this namespace's; refuses another's.
fn claim(meta: &Arc<dyn Memory>, namespace: u64, dir: &Path) -> Result<(), DataplaneError> {
    let owner = &meta.words()[0];
    match owner.load(std::sync::atomic::Ordering::Relaxed) {
        0 => owner.store(namespace, std::sync::atomic::Ordering::Relaxed),
        known if known == namespace => {}
        _ => return Err(DataplaneError::OtherNamespace { path: dir.to_owned() }),
    }
    Ok(())
}

/// Whose pins a layout's directory has, if there are any. In every layout that is the first word.
pub(super) fn owner(layout: &Path) -> Result<Option<u64>, DataplaneError> {
    let path = layout.join(layouts::MAPS).join("META");
    if !path.exists() {
        return Ok(None);
    }
    let data = MapData::from_pin(&path).map_err(DataplaneError::map("META"))?;
    let meta = memory::map(&data)?;
    Ok(Some(meta.words()[0].load(std::sync::atomic::Ordering::Relaxed)))
}

/// Clears the flags that count on programs on every device, if there are tables. Replies go on being looked up: programs
/// that are not taken away yet ask for the exits' word.
pub(super) fn disarm(layout: &Path) -> Result<(), DataplaneError> {
    let path = layout.join(layouts::MAPS).join("NODE");
    if path.exists() {
        let data = MapData::from_pin(&path).map_err(DataplaneError::map("NODE"))?;
        let counted_on = node_flag::ARMED | node_flag::STARTING;
        memory::map(&data)?.words()[1].fetch_and(!counted_on, std::sync::atomic::Ordering::AcqRel);
    }
    Ok(())
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, DataplaneError> {
    ebpf.take_map(name).ok_or(DataplaneError::NoPrograms)
}

fn map_data<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, DataplaneError> {
    match ebpf.map(name) {
        Some(aya::maps::Map::Array(data)) => Ok(data),
        _ => Err(DataplaneError::NoPrograms),
    }
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, DataplaneError> {
    let program = ebpf.program_mut(name).ok_or(DataplaneError::NoPrograms)?;
    program.try_into().map_err(|source| DataplaneError::Program { name, source })
}
