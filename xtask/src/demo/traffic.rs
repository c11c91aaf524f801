//! Who asks whom, and how it was answered.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use portcullis_testbed::Host;

/// How long a client waits for an answer before it gives up.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// How long a change of policy may take to be in force before the test goes on and says what it sees.
const SETTLE: Duration = Duration::from_secs(10);

/// How a question was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// By the server; the text says what was asked and learnt, if there is more to say.
    Answered(String),
    /// Not at all: what a denied packet looks like from outside.
    Timeout,
    /// By a refusal: nobody listens there.
    Refused,
    /// In some other way.
    Failed(String),
}

/// What a test wants of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Answer,
    Timeout,
}

impl Expected {
    pub(super) fn is_met_by(self, answer: &Answer) -> bool {
        match self {
            Self::Answer => matches!(answer, Answer::Answered(_)),
            Self::Timeout => *answer == Answer::Timeout,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "answers",
            Self::Timeout => "times out",
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(detail) if detail.is_empty() => f.write_str("answers"),
            Self::Answered(detail) => write!(f, "answers ({detail})"),
            Self::Timeout => f.write_str("times out"),
            Self::Refused => f.write_str("refuses"),
            Self::Failed(why) => write!(f, "fails: {why}"),
        }
    }
}

/// Opens a TCP connection and closes it.
pub(super) fn connect(from: &Host, to: IpAddr, port: u16, patience: Duration) -> Answer {
    let opened =
        from.namespace().run(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(to, port), patience).map(drop)));
    match opened {
        Ok(Ok(())) => Answer::Answered(String::new()),
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Answer::Timeout,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Answer::Refused,
        Ok(Err(error)) => Answer::Failed(error.to_string()),
        Err(error) => Answer::Failed(format!("{error:#}")),
    }
}

/// Tries to connect until that goes as expected, and returns how long it took at most until the change was in force:
/// `None` when it did not go so before the time was up.
///
/// A packet that was dropped was so soon after it was sent; one that was answered says nothing of before.
pub(super) fn settle(from: &Host, to: IpAddr, port: u16, expected: Expected, changed: Instant) -> Option<Duration> {
    // A dropped SYN is sent again only after a second, so it is better to ask anew, soon: with more patience each time,
    // for a loaded machine. In turn, such a machine must not make an answer look like a denial.
    let mut patience = match expected {
        Expected::Answer => Duration::from_millis(1),
        Expected::Timeout => Duration::from_millis(300),
    };
    while changed.elapsed() < SETTLE {
        let sent = Instant::now();
        let answer = connect(from, to, port, patience);
        if expected.is_met_by(&answer) {
            let known = if expected == Expected::Timeout { sent } else { Instant::now() };
            return Some(known - changed);
        }
        if expected == Expected::Answer {
            patience = (patience * 2).min(Duration::from_millis(200));
        }
        // Answers come at once; without a pause the agent would have to share its processor with this loop.
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_expected_will_do() {
        let rows = [
            (Expected::Answer, Answer::Answered(String::new()), true, "an answer for an answer"),
            (Expected::Answer, Answer::Timeout, false, "silence for an answer"),
            (Expected::Answer, Answer::Refused, false, "a refusal is no answer"),
            (Expected::Timeout, Answer::Timeout, true, "silence for silence"),
            (Expected::Timeout, Answer::Refused, false, "a closed port is not a denial"),
            (Expected::Timeout, Answer::Failed("odd".into()), false, "a failure is not a denial"),
            (Expected::Timeout, Answer::Answered(String::new()), false, "an answer for silence"),
        ];
        for (expected, answer, met, message) in rows {
            assert_eq!(expected.is_met_by(&answer), met, "{message}");
        }
    }
}
