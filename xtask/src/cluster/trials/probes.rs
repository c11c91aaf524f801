//! Pods that try without end, and tell of every try.

use anyhow::{Result, bail};

use super::space::{PodPlan, Space, Target, eventually};

const PASSED: &str = "PASSED";
const FAILED: &str = "failed";

/// A pod that connects again and again.
pub(super) struct Probe {
    pod: String,
}

impl Probe {
    pub(super) fn start(
        space: &Space<'_>,
        pod: &str,
        node: &str,
        labels: &[(&str, &str)],
        target: &Target,
    ) -> Result<Self> {
        // A busy machine may take long to answer: only what nobody answers takes all this time.
        let script = format!(
            "while :; do /agnhost connect '{target}' --timeout=4s >/dev/null 2>&1 && echo {PASSED} || echo {FAILED}; \
             sleep 0.1; done"
        );
        space.add_pod(&PodPlan::new(pod, node).labels(labels).script(script))?;
        Ok(Self { pod: pod.to_owned() })
    }

    pub(super) fn tries(&self, space: &Space<'_>) -> Result<usize> {
        Ok(space.logs(&self.pod)?.lines().count())
    }

    pub(super) fn failures(&self, space: &Space<'_>) -> Result<usize> {
        Ok(space.logs(&self.pod)?.matches(FAILED).count())
    }

    pub(super) fn await_tries(&self, space: &Space<'_>, number: usize) -> Result<()> {
        eventually("the next try", || match self.tries(space)? {
            tries if tries >= number => Ok(()),
            tries => bail!("{} has tried {tries} times, not {number} times", self.pod),
        })
    }

    pub(super) fn check_never_passed(&self, space: &Space<'_>) -> Result<()> {
        match space.logs(&self.pod)?.matches(PASSED).count() {
            0 => Ok(()),
            passed => bail!("{passed} connections of {} passed, which policy denies", self.pod),
        }
    }
}
