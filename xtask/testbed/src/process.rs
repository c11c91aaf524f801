//! Programs that run inside a host's namespace, such as the agent on each node.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{Host, Namespace, lock};

/// Between two attempts to reach a server that is starting.
const RETRY: Duration = Duration::from_millis(30);

/// A running program; it is killed and waited for when the last handle or the testbed goes, and the kernel kills it
/// when this process ends.
#[derive(Clone)]
pub struct Process(Arc<ProcessInner>);

pub(crate) struct ProcessInner {
    what: String,
    child: Mutex<Child>,
    stderr: Arc<Lines>,
    stdout: Arc<Lines>,
}

/// The lines that a program has written so far.
#[derive(Default)]
struct Lines {
    written: Mutex<Written>,
    grown: Condvar,
}

#[derive(Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    pub(crate) fn spawn(namespace: &Namespace, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let parent = std::process::id();
        // SAFETY: only async-signal-safe system calls (prctl, getppid) between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have ended before the signal was asked for.
                if nix::unistd::getppid().as_raw().cast_unsigned() == parent {
                    Ok(())
                } else {
                    Err(std::io::ErrorKind::NotFound.into())
                }
            });
        }
        let what = format!("{} in {}", command.get_program().to_string_lossy(), namespace.name());
        let mut child = spawn_from_lasting_thread(command).with_context(|| format!("cannot start {what}"))?;
        let stderr = Lines::follow(namespace, "stderr", child.stderr.take())?;
        let stdout = Lines::follow(namespace, "stdout", child.stdout.take())?;
        Ok(Self(Arc::new(ProcessInner { what, child: Mutex::new(child), stderr, stdout })))
    }

    pub(crate) fn downgrade(&self) -> Weak<ProcessInner> {
        Arc::downgrade(&self.0)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        lock(&self.0.child).id()
    }

    /// Waits for a line of its stderr for which `wanted` holds, from the first line on, and returns it.
    ///
    /// # Errors
    /// When the program ends or `timeout` passes before; the message holds its stderr.
    pub fn wait_for_line(&self, wanted: impl Fn(&str) -> bool, timeout: Duration) -> Result<String> {
        self.0.stderr.wait_for(&wanted, timeout).with_context(|| {
            format!("{} has not written the awaited line; its stderr:\n{}", self.0.what, self.stderr().join("\n"))
        })
    }

    /// Its stderr so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        lock(&self.0.stderr.written).lines.clone()
    }

    /// Its stdout so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<String> {
        lock(&self.0.stdout.written).lines.clone()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = lock(&self.0.child);
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended with {status}", self.0.what);
        }
        let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(id, signal).with_context(|| format!("cannot signal {}", self.0.what))
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        Ok(lock(&self.0.child).try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When `timeout` passes before.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} runs on after {timeout:?}; its stderr:\n{}", self.0.what, self.stderr().join("\n"));
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it has ended before, or has not after `timeout`.
    pub fn terminate(&self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Ends it at once (SIGKILL) and waits for that.
    pub fn kill(&self) {
        self.0.kill();
    }
}

impl ProcessInner {
    pub(crate) fn kill(&self) {
        let mut child = lock(&self.child);
        // Fails only when it has ended already, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for ProcessInner {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Lines {
    fn follow(namespace: &Namespace, label: &str, source: Option<impl Read + Send + 'static>) -> Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let kept = Arc::clone(&lines);
        // The thread ends when the last writer has closed the pipe, so nobody has to join it.
        namespace.thread(label, move || {
            let reader = source.map(BufReader::new);
            for line in reader.into_iter().flat_map(BufRead::lines).map_while(std::io::Result::ok) {
                lock(&kept.written).lines.push(line);
                kept.grown.notify_all();
            }
            lock(&kept.written).ended = true;
            kept.grown.notify_all();
            Ok(())
        })?;
        Ok(lines)
    }

    fn wait_for(&self, wanted: &impl Fn(&str) -> bool, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut written = lock(&self.written);
        let mut seen = 0;
        loop {
            if let Some(line) = written.lines[seen..].iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            seen = written.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if written.ended {
                bail!("it has ended");
            }
            if left.is_zero() {
                bail!("{timeout:?} have passed");
            }
            written = self.grown.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The parent-death signal comes when the *thread* that forked ends (prctl(2)), and tests run on threads that end: so
/// one thread that lasts as long as the process forks for all.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static ORDERS: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in receiver {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, child) = mpsc::channel();
    orders.send((command, answer)).ok().context("the thread that starts programs is gone")?;
    Ok(child.recv().context("the thread that starts programs is gone")??)
}

impl Host {
    /// Waits until a server in this host's namespace answers `GET path` with status 200.
    ///
    /// # Errors
    /// When `timeout` passes before; the message holds the last failure.
    pub fn wait_http_200(&self, address: SocketAddr, path: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.namespace().run(|| {
            loop {
                let failure = match http_get(address, path) {
                    Ok((200, _)) => return Ok(()),
                    Ok((status, body)) => format!("status {status}: {}", body.trim_end()),
                    Err(error) => format!("{error:#}"),
                };
                if Instant::now() >= deadline {
                    bail!("http://{address}{path} on {} did not answer 200 in {timeout:?}: {failure}", self.name());
                }
                std::thread::sleep(RETRY);
            }
        })
    }

    /// Asks a server in this host's namespace for `path` and returns the status and the body.
    ///
    /// # Errors
    /// When it does not answer HTTP within two seconds.
    pub fn http_get(&self, address: SocketAddr, path: &str) -> Result<(u16, String)> {
        self.namespace().run(|| http_get(address, path))
    }
}

fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    // An emulated machine may be that slow; only failures cost it.
    let patience = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&address, patience).context("cannot connect")?;
    stream.set_read_timeout(Some(patience))?;
    // HTTP/1.0 keeps the answer in one piece that ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("cannot read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).context("the answer is no HTTP")?;
    Ok((status, body.to_owned()))
}
