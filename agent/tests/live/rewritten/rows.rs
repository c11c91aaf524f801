//! Questions, and how their answers are judged.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use portcullis_testbed::{Host, Outcome, Probe, Protocol, pinned_source_ports, probe_all};

/// Long enough for an answer on an idle machine; those that do not come in time are asked for again.
const FIRST_TIMEOUT: Duration = Duration::from_millis(300);
/// Long enough for an answer on a busy machine.
const SECOND_TIMEOUT: Duration = Duration::from_millis(2000);

/// One row of so many is asked where everything is emulated, another each time, and then with more patience.
const SAMPLE: usize = 6;
const EMULATED_TIMEOUT: Duration = Duration::from_secs(20);

/// The answer of a Service without backends.
pub(super) const REFUSED: &str = "(refused)";

/// A question to one backend.
pub(super) struct Row<K> {
    /// What it is about.
    pub(super) what: String,
    pub(super) from: Host,
    /// The source address, where the asking host has several.
    pub(super) source: Option<IpAddr>,
    pub(super) to: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// Which of a Service's backends it is for.
    pub(super) backend: Option<usize>,
    /// Who answers.
    pub(super) answer: String,
    /// What the policies decide on.
    pub(super) key: K,
}

impl<K> Row<K> {
    fn probe(&self, timeout: Duration) -> Probe {
        let mut probe = Probe::new(&self.from, self.to, self.protocol, self.port).timeout(timeout);
        probe.source = self.source;
        match self.backend {
            Some(backend) => probe.source_port(source_port(backend)),
            None => probe,
        }
    }

    fn is_answered_by(&self, outcome: &Outcome) -> bool {
        if self.answer == REFUSED { *outcome == Outcome::Refused } else { outcome.is_answer_of(&self.answer) }
    }

    fn describe(&self) -> String {
        format!("{}: {} to {} {} {}", self.what, self.from.name(), self.to, self.protocol, self.port)
    }
}

/// A port of the client's that leads to a backend and was not used shortly before.
pub(super) fn source_port(backend: usize) -> u16 {
    static NEXT: [AtomicU16; 10] = [const { AtomicU16::new(0) }; 10];
    let range = pinned_source_ports(backend);
    range.start() + NEXT[backend].fetch_add(1, Ordering::Relaxed) % (range.end() - range.start() + 1)
}

/// Asks many more at a time than [`probe_all`] does: most of these wait for an answer that does not come.
fn ask(probes: &[Probe]) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            probes.chunks(probes.len().div_ceil(4).max(1)).map(|part| scope.spawn(|| probe_all(part))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// Asks all, those that were not answered once more with more patience, and describes every row that is wrong.
pub(super) fn judge<K>(context: &str, rows: &[Row<K>], allowed: impl Fn(&K) -> bool) -> Vec<String> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let (mut rows, mut patience) = (rows.iter().collect::<Vec<_>>(), SECOND_TIMEOUT);
    if std::env::var_os("PORTCULLIS_GUEST").is_some() {
        let first = TURN.fetch_add(1, Ordering::Relaxed) % SAMPLE;
        rows = rows.into_iter().skip(first).step_by(SAMPLE).collect();
        patience = EMULATED_TIMEOUT;
    }
    let mut outcomes = ask(&rows.iter().map(|row| row.probe(FIRST_TIMEOUT)).collect::<Vec<_>>());
    let late: Vec<usize> =
        (0..rows.len()).filter(|&at| allowed(&rows[at].key) && !rows[at].is_answered_by(&outcomes[at])).collect();
    let again = ask(&late.iter().map(|&at| rows[at].probe(patience)).collect::<Vec<_>>());
    for (at, outcome) in late.into_iter().zip(again) {
        outcomes[at] = outcome;
    }
    let mut wrong = Vec::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        let (right, expected) = if allowed(&row.key) {
            (row.is_answered_by(&outcome), format!("an answer of {}", row.answer))
        } else {
            (outcome == Outcome::Timeout, "no answer".to_owned())
        };
        if !right {
            wrong.push(format!("{context}: {}: expected {expected}, got {outcome:?}", row.describe()));
        }
    }
    wrong
}
