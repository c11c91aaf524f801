//! Clients and servers, all on one CPU.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use portcullis_testbed::Host;

/// Where the server listens; the last rule names it.
pub(crate) const PORT: u16 = 20_000;
/// How long an answer may take before the configuration is called broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that are sent between two looks at the clock.
const CHUNK: usize = 256 << 10;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One byte there and one back, on one connection.
    Requests,
    /// A connection that is made, closed by the client, and closed by the server.
    Connections,
    /// Bytes in one direction.
    Bulk,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Requests, Self::Connections, Self::Bulk];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests/s",
            Self::Connections => "connections/s",
            Self::Bulk => "MB/s",
        }
    }
}

/// The last CPU that this process may use.
pub(crate) fn last_cpu() -> io::Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    last.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Keeps the calling thread on a CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Serves until the process ends. The first byte of a connection says what is wanted; a connection without one is closed.
pub(crate) fn serve(host: &Host, cpu: usize) -> crate::Result<()> {
    let listener = host.namespace().run(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
    // The thread is not the testbed's: it has nothing but its sockets in the namespace.
    std::thread::spawn(move || -> io::Result<()> {
        pin(cpu)?;
        for connection in listener.incoming() {
            let mut connection = connection?;
            let mut kind = [0];
            match connection.read(&mut kind) {
                Ok(1) if kind[0] == Kind::Requests as u8 => drop(std::thread::spawn(move || echo(connection))),
                Ok(1) => drop(std::thread::spawn(move || sink(connection))),
                _ => {}
            }
        }
        Ok(())
    });
    Ok(())
}

fn echo(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut byte = [0];
    while connection.read(&mut byte)? == 1 {
        connection.write_all(&byte)?;
    }
    Ok(())
}

/// Takes chunks and answers a byte for each whose first byte asks for it.
fn sink(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        connection.read_exact(&mut chunk)?;
        if chunk[0] == 1 {
            connection.write_all(&[1])?;
        }
    }
}

/// A connection for one of the kinds that last.
pub(crate) fn lasting(server: SocketAddr, kind: Kind) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(server)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(&[kind as u8])?;
    Ok(connection)
}

/// Round trips a second.
pub(crate) fn requests(mut connection: &TcpStream, time: Duration) -> io::Result<f64> {
    let mut byte = [7];
    let begun = Instant::now();
    let mut count = 0_u32;
    while begun.elapsed() < time {
        for _ in 0..16 {
            connection.write_all(&byte)?;
            connection.read_exact(&mut byte)?;
            count += 1;
        }
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Connections a second, one after another.
pub(crate) fn connections(server: SocketAddr, time: Duration) -> io::Result<f64> {
    let begun = Instant::now();
    let mut count = 0_u32;
    while begun.elapsed() < time {
        let mut connection = TcpStream::connect(server)?;
        connection.shutdown(std::net::Shutdown::Write)?;
        if connection.read(&mut [0])? != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// Megabytes a second.
pub(crate) fn bulk(mut connection: &TcpStream, time: Duration) -> io::Result<f64> {
    let mut chunk = vec![0; CHUNK];
    let begun = Instant::now();
    let mut chunks = 0_u32;
    while chunk[0] == 0 {
        chunk[0] = u8::from(begun.elapsed() >= time);
        connection.write_all(&chunk)?;
        chunks += 1;
    }
    // The answer to the last chunk: everything has been read.
    connection.read_exact(&mut [0])?;
    Ok(f64::from(chunks) * CHUNK as f64 / 1e6 / begun.elapsed().as_secs_f64())
}
