//! The periodic comparison of what the tables hold with what they should: whatever wrote there, it is put right.

use portcullis_common::layout::endpoint_word;

use super::{ReconcileError, Reconciler};
use crate::state::plan::Step;

impl Reconciler {
    /// Compares rows, addresses and endpoints with what this agent wrote, and repairs what differs. Gives the number of
    /// repairs. Ports, ranges and the kernel's hooks are not compared yet.
    ///
    /// # Errors
    /// A table is full or the kernel refuses.
    pub fn audit(&mut self) -> Result<usize, ReconcileError> {
        if !self.health.synced || self.behind || self.leftovers {
            return Ok(0);
        }
        let mut steps = Vec::new();
        let mut found = 0;
        for (key, value) in self.image.narrow_rows() {
            match self.known.narrow.get(&key) {
                Some(wanted) if *wanted == value => found += 1,
                Some(wanted) => steps.push(Step::PutNarrow(key, *wanted)),
                None => steps.push(Step::DropNarrow(key)),
            }
        }
        if found < self.known.narrow.len() {
            let lost = self.known.narrow.iter().filter(|(key, _)| self.image.narrow(**key).is_none());
            steps.extend(lost.map(|(key, value)| Step::PutNarrow(*key, *value)));
        }
        found = 0;
        for (key, value) in self.image.wide_rows() {
            match self.known.wide.get(&key) {
                Some(wanted) if *wanted == value => found += 1,
                Some(wanted) => steps.push(Step::PutWide(key, *wanted)),
                None => steps.push(Step::DropWide(key)),
            }
        }
        if found < self.known.wide.len() {
            let lost = self.known.wide.iter().filter(|(key, _)| self.image.wide(key).is_none());
            steps.extend(lost.map(|(key, value)| Step::PutWide(*key, *value)));
        }
        let repaired = steps.len() + self.audit_endpoints();
        for step in &steps {
            self.take(step)?;
        }
        if repaired > 0 {
            tracing::error!(repaired, "the tables were changed by somebody else and have been put right");
        }
        Ok(repaired)
    }

    fn audit_endpoints(&self) -> usize {
        let mut repaired = 0;
        for slot in self.slots.used.values() {
            if self.image.row(slot.row) != slot.content {
                self.image.put_row(slot.row, &slot.content);
                repaired += 1;
            }
            let word = endpoint_word(slot.revision, slot.row);
            if self.image.endpoint(slot.number) != word {
                self.image.put_endpoint(slot.number, word);
                repaired += 1;
            }
        }
        repaired
    }
}
