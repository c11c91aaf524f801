//! `cargo xtask cluster bench`: what Portcullis adds to the start of a pod, and how long a node is open that was rebooted.

mod reboots;
mod starts;

use anyhow::Result;

use super::super::portcullis;
use super::Stand;

pub(in super::super) fn run(stand: &Stand, pods: usize, reboots: usize) -> Result<()> {
    let without = starts::measure(stand, pods)?;
    portcullis::install(&stand.kubectl)?;
    let with = starts::measure_enforced(stand, pods)?;
    starts::tell(&without, &with);
    if reboots > 0 {
        reboots::measure(stand, reboots)?;
    }
    Ok(())
}

/// The value below which a share of them lies, in milliseconds.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1).min(last)).copied().unwrap_or(f64::NAN)
}

/// Half of them, 99 of 100, and all.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [percentile(&values, 0.5), percentile(&values, 0.99), percentile(&values, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(spread(values), [50.0, 99.0, 100.0]);
        assert_eq!(spread(vec![7.0]), [7.0; 3], "of one value");
        assert!(spread(Vec::new())[0].is_nan(), "of none");
    }
}
