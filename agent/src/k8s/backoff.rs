//! How long to wait before asking again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Waits that double from one failure to the next, each shortened at random by up to a half: thousands of agents lose one
/// API server at the same moment, and must not come back at the same moment.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// Things went well.
    pub(super) const fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait now; at least as long as the server asks for.
    pub(super) fn wait(&mut self, asked: Option<Duration>) -> Duration {
        let wait = between(self.next / 2, self.next);
        self.next = self.last.min(self.next * 2);
        match asked {
            // What the server asks of everybody it asks of everybody at once. It may ask for less than befits one that has
            // failed often.
            Some(asked) => wait.max(asked + between(Duration::ZERO, self.first.max(asked / 4))),
            None => wait,
        }
    }
}

/// Some time between the two.
pub(super) fn between(least: Duration, most: Duration) -> Duration {
    let fraction = f64::from((RandomState::new().hash_one(0) >> 32) as u32) / f64::from(u32::MAX);
    least + most.saturating_sub(least).mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_begin_anew() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 8 * second);
        for upper in [1, 2, 4, 8, 8, 8] {
            let wait = backoff.wait(None);
            assert!(wait >= upper * second / 2 && wait <= upper * second, "{wait:?} of {upper} s");
        }
        backoff.reset();
        assert!(backoff.wait(None) <= second, "after success");
        let asked = backoff.wait(Some(20 * second));
        assert!(asked >= 20 * second && asked <= 25 * second, "{asked:?}: the server asked for 20 s");
        for _ in 0..4 {
            backoff.wait(Some(second));
        }
        let asked = backoff.wait(Some(second));
        assert!(asked >= 4 * second, "{asked:?}: it always asks for 1 s and always fails");
    }

    #[test]
    fn two_agents_wait_differently() {
        let waits: std::collections::BTreeSet<Duration> =
            (0..8).map(|_| between(Duration::ZERO, Duration::from_secs(1))).collect();
        assert!(waits.len() > 1, "{waits:?}");
    }
}
