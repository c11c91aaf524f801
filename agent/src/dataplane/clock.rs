//! The kernel's jiffies: how many there are in a second.

use std::time::{Duration, Instant};

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

use super::DataplaneError;

/// The ticks per second that kernels are built with.
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// Counts jiffies over a short while: no interface tells CONFIG_HZ, and programs measure time in jiffies because that
/// costs them nothing.
pub(super) fn jiffies_per_second(clock: &SchedClassifier) -> Result<u32, DataplaneError> {
    let start = Instant::now();
    let first = read(clock)?;
    std::thread::sleep(Duration::from_millis(60));
    let ticks = read(clock)?.wrapping_sub(first);
    let measured = f64::from(ticks) / start.elapsed().as_secs_f64();
    let nearest = RATES.into_iter().min_by(|a, b| {
        let distance = |rate: &u32| (f64::from(*rate).ln() - measured.max(1.0).ln()).abs();
        distance(a).total_cmp(&distance(b))
    });
    Ok(nearest.unwrap_or(RATES[3]))
}

fn read(clock: &SchedClassifier) -> Result<u32, DataplaneError> {
    let frame = [0; 64];
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
    let outcome = clock.test_run(options).map_err(|source| DataplaneError::Program { name: "clock", source })?;
    Ok(outcome.return_value)
}
