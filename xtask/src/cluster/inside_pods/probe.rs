//! Tries addresses again and again, and writes every try down: when it began and ended, and what came of it.
//!
//! A try is a request by HTTP, since a connection alone may end in a proxy of the pod's own.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// Between two looks at the list of addresses.
const LOOK: Duration = Duration::from_millis(200);

/// What to try.
#[derive(clap::Args)]
pub(in super::super) struct Arguments {
    /// A file with an address and port on each line, read again while this runs
    #[arg(long, value_name = "FILE")]
    targets: PathBuf,
    /// Where tries are written down
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Milliseconds between two tries of an address
    #[arg(long, default_value_t = 400)]
    pause: u64,
    /// Milliseconds that an answer may take
    #[arg(long, default_value_t = 4_000)]
    timeout: u64,
    /// Let an address be once it has answered
    #[arg(long)]
    once: bool,
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    /// The server has answered.
    Answered,
    /// A connection came about, and nothing else.
    Connected,
    Refused,
    TimedOut,
    /// There is no way, or the connection broke.
    Failed,
}

const WORDS: [(Outcome, &str); 5] = [
    (Outcome::Answered, "answered"),
    (Outcome::Connected, "connected"),
    (Outcome::Refused, "refused"),
    (Outcome::TimedOut, "timed-out"),
    (Outcome::Failed, "failed"),
];

/// One try. Times are nanoseconds since 1970: all machines are this one, and so are their clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Try {
    pub(in super::super) begun: u64,
    pub(in super::super) ended: u64,
    pub(in super::super) target: SocketAddr,
    pub(in super::super) outcome: Outcome,
}

impl fmt::Display for Try {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(outcome, _)| *outcome == self.outcome).map_or("", |(_, word)| word);
        write!(formatter, "{} {} {} {word}", self.begun, self.ended, self.target)
    }
}

impl FromStr for Try {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [begun, ended, target, word] = words.as_slice() else { bail!("`{line}` is no try") };
        let outcome = WORDS.iter().find(|(_, known)| known == word).map(|(outcome, _)| *outcome);
        Ok(Self {
            begun: begun.parse()?,
            ended: ended.parse()?,
            target: target.parse()?,
            outcome: outcome.with_context(|| format!("`{word}` is no outcome"))?,
        })
    }
}

/// The time now, as tries tell it.
pub(in super::super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Tries without end.
pub(in super::super) fn run(arguments: &Arguments) -> Result<()> {
    let log = OpenOptions::new().create(true).append(true).open(&arguments.log);
    let log = Arc::new(log.with_context(|| format!("cannot write {}", arguments.log.display()))?);
    let mut running: BTreeMap<SocketAddr, Arc<AtomicBool>> = BTreeMap::new();
    loop {
        // It is replaced as a whole, so that what is read is whole.
        let listed = fs::read_to_string(&arguments.targets).unwrap_or_default();
        let wanted: Vec<SocketAddr> = listed.lines().filter_map(|line| line.parse().ok()).collect();
        running.retain(|target, is_wanted| {
            let stays = wanted.contains(target);
            is_wanted.store(stays, Ordering::Relaxed);
            stays
        });
        for target in wanted {
            running.entry(target).or_insert_with(|| start(target, arguments, Arc::clone(&log)));
        }
        sleep(LOOK);
    }
}

fn start(target: SocketAddr, arguments: &Arguments, log: Arc<File>) -> Arc<AtomicBool> {
    let is_wanted = Arc::new(AtomicBool::new(true));
    let (asked, once) = (Arc::clone(&is_wanted), arguments.once);
    let (pause, timeout) = (Duration::from_millis(arguments.pause), Duration::from_millis(arguments.timeout));
    thread::spawn(move || {
        while asked.load(Ordering::Relaxed) {
            let begun = now();
            let outcome = attempt(target, timeout);
            let line = format!("{}\n", Try { begun, ended: now(), target, outcome });
            // In one piece, since several threads write. A full disk shows by tries that are missing.
            let _ = (&*log).write_all(line.as_bytes());
            if once && outcome == Outcome::Answered {
                return;
            }
            sleep(pause);
        }
    });
    is_wanted
}

fn attempt(target: SocketAddr, timeout: Duration) -> Outcome {
    match TcpStream::connect_timeout(&target, timeout) {
        Ok(stream) => ask(stream, target, timeout),
        Err(error) if error.kind() == ErrorKind::TimedOut => Outcome::TimedOut,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(_) => Outcome::Failed,
    }
}

fn ask(mut stream: TcpStream, target: SocketAddr, timeout: Duration) -> Outcome {
    let mut answer = [0; 12];
    let asked = stream.set_read_timeout(Some(timeout)).and_then(|()| {
        stream.write_all(format!("GET /hostname HTTP/1.0\r\nHost: {target}\r\n\r\n").as_bytes())?;
        stream.read_exact(&mut answer)
    });
    match asked {
        Ok(()) if answer.ends_with(b" 200") => Outcome::Answered,
        _ => Outcome::Connected,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        for (outcome, word) in WORDS {
            for target in ["10.0.0.1:80", "[fd00::1]:8080"] {
                let one = Try { begun: 5, ended: 7, target: target.parse().expect("an address"), outcome };
                assert_eq!(one.to_string().parse::<Try>().expect("a try"), one, "{word}");
            }
        }
        for line in ["", "1 2 10.0.0.1:80", "1 2 10.0.0.1:80 perhaps", "1 x 10.0.0.1:80 failed"] {
            assert!(line.parse::<Try>().is_err(), "{line}");
        }
    }

    #[test]
    fn an_answer_is_told_from_a_connection_and_from_none() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a server");
        let target = server.local_addr().expect("its address");
        let answers = ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.0 503 Service Unavailable\r\n\r\n", ""];
        let serving = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = server.accept().expect("a client");
                let mut request = [0; 64];
                assert!(stream.read(&mut request).expect("a request") > 0);
                stream.write_all(answer.as_bytes()).expect("an answer");
            }
        });
        let patience = Duration::from_secs(20);
        let outcomes = answers.map(|_| attempt(target, patience));
        assert_eq!(outcomes, [Outcome::Answered, Outcome::Connected, Outcome::Connected]);
        serving.join().expect("the server has ended");
        // A program that another test starts in this moment may hold the socket for a while longer: then it is a connection.
        assert!(matches!(attempt(target, patience), Outcome::Refused | Outcome::Connected));
    }
}
