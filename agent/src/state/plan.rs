//! The ordered way from what the tables hold to what they should hold.
//!
//! Make before break, so that at every step a packet gets the old verdict or the new one:
//!
//! 1. rows that something will point to (new profiles, verdicts, reaches);
//! 2. ports, then ranges and addresses move to their new classes, one word each: the old sets' rows for the new classes
//!    are among those just written; then Services;
//! 3. endpoints move to their new sets and revision, one word each;
//! 4. a grace period: no packet is being judged by what was;
//! 5. revisions once more, for what raced with step 3; then rows that nothing points to any more go.

use std::collections::BTreeMap;

use ipnet::IpNet;
use portcullis_common::layout::{EndpointRow, endpoint_word, wide};

use super::flat::Flat;
use super::image::{Full, Image};
use crate::model::Protocol;

/// One change of the tables.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A narrow row is new, or has this value now.
    PutNarrow(u64, u64),
    /// A wide row is new, or has this value now.
    PutWide([u64; 3], u64),
    /// An address is only known by ranges from now on.
    DropWide([u64; 3]),
    /// A range is new, or has this value now.
    PutRange(IpNet, u64),
    /// A range is gone.
    DropRange(IpNet),
    /// A port has this class now.
    PutPort(Protocol, u16, u16),
    /// An endpoint row is written that no word points to.
    PutRow(u32, EndpointRow),
    /// An endpoint has this revision and row now.
    PutEndpoint(u32, u32, u32),
    /// Wait until every program that was running has ended.
    Grace,
    /// A narrow row that nothing points to goes.
    DropNarrow(u64),
}

/// Rows that are to be written before anything points to them.
#[must_use]
pub fn make(known: &Flat, wanted: &Flat) -> Vec<Step> {
    let new = wanted.narrow.iter().filter(|(key, value)| known.narrow.get(key) != Some(value));
    new.map(|(key, value)| Step::PutNarrow(*key, *value)).collect()
}

/// Ports, ranges, addresses and Services that move, in the order that the compiler counts on.
#[must_use]
pub fn turn(known: &Flat, wanted: &Flat) -> Vec<Step> {
    let mut steps = Vec::new();
    if known.ports != wanted.ports {
        let (before, after) = (spread(&known.ports), spread(&wanted.ports));
        let moved = after.iter().filter(|(at, class)| before.get(at) != Some(class));
        steps.extend(moved.map(|(at, class)| Step::PutPort(at.0, at.1, *class)));
        let gone = before.keys().filter(|at| !after.contains_key(at));
        steps.extend(gone.map(|at| Step::PutPort(at.0, at.1, 0)));
    }
    // An exact row includes the ranges that cover it, and is asked first: new ranges come before rows that give way to
    // them, and new rows before ranges go.
    for (net, value) in wanted.ranges.iter().filter(|(net, value)| known.ranges.get(net) != Some(value)) {
        steps.push(Step::PutRange(*net, *value));
    }
    wide(known, wanted, &mut steps, wide::PEER);
    steps.extend(known.ranges.keys().filter(|net| !wanted.ranges.contains_key(net)).map(|net| Step::DropRange(*net)));
    wide(known, wanted, &mut steps, wide::SERVICE);
    steps
}

fn wide(known: &Flat, wanted: &Flat, steps: &mut Vec<Step>, kind: u64) {
    let of_kind = |key: &[u64; 3]| key[2] >> 56 == kind;
    // What goes comes first: if there is no room for what is new, there is when this is tried again.
    let gone = known.wide.keys().filter(|key| of_kind(key) && !wanted.wide.contains_key(*key));
    steps.extend(gone.map(|key| Step::DropWide(*key)));
    for (key, value) in wanted.wide.iter().filter(|(key, _)| of_kind(key)) {
        if known.wide.get(key) != Some(value) {
            steps.push(Step::PutWide(*key, *value));
        }
    }
}

/// Rows that nothing points to any more.
#[must_use]
pub fn sweep(known: &Flat, wanted: &Flat) -> Vec<Step> {
    known.narrow.keys().filter(|key| !wanted.narrow.contains_key(key)).map(|key| Step::DropNarrow(*key)).collect()
}

/// Runs as single ports.
fn spread(runs: &BTreeMap<(Protocol, u16), (u16, u16)>) -> BTreeMap<(Protocol, u16), u16> {
    let ports = runs
        .iter()
        .flat_map(|((protocol, first), (last, class))| (*first..=*last).map(move |port| ((*protocol, port), *class)));
    ports.collect()
}

/// What the steps that are not memory need.
pub trait Kernel {
    /// Why a range could not be written.
    type Error;
    /// Writes a range of a bank.
    ///
    /// # Errors
    /// The table is full, or the kernel refuses.
    fn put_range(&mut self, bank: u32, net: IpNet, value: u64) -> Result<(), Self::Error>;
    /// Removes a range of a bank.
    ///
    /// # Errors
    /// The kernel refuses.
    fn drop_range(&mut self, bank: u32, net: IpNet) -> Result<(), Self::Error>;
    /// Waits until every program that is running now has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    fn wait(&mut self) -> Result<(), Self::Error>;
}

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError<E> {
    /// A table has no room.
    #[error(transparent)]
    Full(#[from] Full),
    /// The kernel refused.
    #[error("the kernel refused a change of the tables")]
    Kernel(#[source] E),
}

/// Takes one step.
///
/// # Errors
/// A table is full or the kernel refuses; the step has then changed nothing.
pub fn take<K: Kernel>(image: &mut Image, kernel: &mut K, bank: u32, step: &Step) -> Result<(), StepError<K::Error>> {
    match step {
        Step::PutNarrow(key, value) => image.put_narrow(*key, *value)?,
        Step::PutWide(key, value) => image.put_wide(key, *value)?,
        Step::DropWide(key) => image.remove_wide(key),
        Step::PutRange(net, value) => kernel.put_range(bank, *net, *value).map_err(StepError::Kernel)?,
        Step::DropRange(net) => kernel.drop_range(bank, *net).map_err(StepError::Kernel)?,
        Step::PutPort(protocol, port, class) => image.put_port(bank, protocol.0, *port, *class),
        Step::PutRow(index, row) => image.put_row(*index, row),
        Step::PutEndpoint(slot, revision, row) => image.put_endpoint(*slot, endpoint_word(*revision, *row)),
        Step::Grace => {
            kernel.wait().map_err(StepError::Kernel)?;
            image.grace_passed();
        }
        Step::DropNarrow(key) => image.remove_narrow(*key),
    }
    Ok(())
}
