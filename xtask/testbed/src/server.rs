//! Servers: one thread per server, inside the host's namespace, that answers with the host's name.
//!
//! TCP: on connecting the server writes `name\n`, then echoes what it is sent. UDP: each datagram is answered by
//! `name\n` and the datagram. SCTP: see [`crate::sctp`].

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use socket2::{Domain, Socket, Type};

use crate::datagram::DatagramSocket;
use crate::{Namespace, Protocol, lock, sctp};

/// A running server; dropping it closes its sockets and waits for its thread.
pub(crate) struct Server {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts a TCP or UDP server on `port`, both families. It is reachable when this returns.
    pub(crate) fn start(namespace: &Namespace, name: &str, protocol: Protocol, port: u16) -> Result<Self> {
        let name = name.to_owned();
        match protocol {
            Protocol::Tcp => {
                let listener = namespace.run(|| tcp_listener(port))?;
                Self::spawn(namespace, protocol, port, move |stop| serve_tcp(&listener, stop, &name))
            }
            Protocol::Udp => {
                let sockets =
                    namespace.run(|| Ok([DatagramSocket::udp(true, port)?, DatagramSocket::udp(false, port)?]))?;
                Self::spawn(namespace, protocol, port, move |stop| {
                    serve_datagrams(&sockets, stop, |payload| {
                        let mut answer = format!("{name}\n").into_bytes();
                        answer.extend(payload);
                        Some(answer)
                    })
                })
            }
            Protocol::Sctp | Protocol::Icmp => bail!("{protocol} is not served by port"),
        }
    }

    /// Starts the one SCTP responder of a host; `ports` are those on which somebody listens.
    pub(crate) fn start_sctp(namespace: &Namespace, name: &str, ports: Arc<Mutex<BTreeSet<u16>>>) -> Result<Self> {
        let name = name.to_owned();
        let sockets = namespace
            .run(|| Ok([DatagramSocket::raw(true, sctp::PROTOCOL)?, DatagramSocket::raw(false, sctp::PROTOCOL)?]))?;
        let mut own_tag = 1u32;
        Self::spawn(namespace, Protocol::Sctp, 0, move |stop| {
            serve_datagrams(&sockets, stop, |payload| {
                let packet = sctp::Packet::decode(payload).ok()?;
                own_tag = own_tag.wrapping_add(1).max(1);
                let listening = lock(&ports).contains(&packet.destination).then_some(name.as_str());
                packet.answer(own_tag, listening).map(|answer| answer.encode())
            })
        })
    }

    fn spawn(
        namespace: &Namespace,
        protocol: Protocol,
        port: u16,
        serve: impl FnOnce(&EventFd) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(EventFd::new().context("cannot make an event descriptor")?);
        let watched = Arc::clone(&stop);
        let thread = namespace.thread(&format!("{protocol}-{port}"), move || serve(&watched))?;
        Ok(Self { protocol, port, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tcp_listener(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())
        .with_context(|| format!("cannot bind TCP port {port}"))?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn serve_tcp(listener: &TcpListener, stop: &EventFd, name: &str) -> Result<()> {
    let banner = format!("{name}\n");
    let mut connections: Vec<TcpStream> = Vec::new();
    loop {
        let mut watched = vec![readable(stop), readable(listener)];
        watched.extend(connections.iter().map(readable));
        wait(&mut watched)?;
        let ready: Vec<bool> = watched.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        if ready[0] {
            return Ok(());
        }
        let mut at = 1;
        connections.retain(|connection| {
            at += 1;
            !ready[at] || echo(connection).is_ok()
        });
        while let Ok((mut connection, _)) = listener.accept() {
            connection.set_nonblocking(false)?;
            connection.set_nodelay(true)?;
            // A peer that reads nothing may not hold up the others for long.
            connection.set_write_timeout(Some(Duration::from_secs(1)))?;
            if connection.write_all(banner.as_bytes()).is_ok() {
                connections.push(connection);
            }
        }
    }
}

/// Echoes what can be read; an error ends the connection.
fn echo(mut connection: &TcpStream) -> std::io::Result<()> {
    let mut buffer = [0u8; 16_384];
    match connection.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        length => connection.write_all(&buffer[..length]),
    }
}

fn serve_datagrams(
    sockets: &[DatagramSocket],
    stop: &EventFd,
    mut respond: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) -> Result<()> {
    loop {
        let mut watched = vec![readable(stop)];
        watched.extend(sockets.iter().map(readable));
        wait(&mut watched)?;
        if watched[0].any().unwrap_or(true) {
            return Ok(());
        }
        for socket in sockets {
            while let Ok(received) = socket.receive() {
                if let Some(answer) = respond(&received.payload) {
                    // The peer may be out of reach by now; it will see that by itself.
                    let _ = socket.answer(&received, &answer);
                }
            }
        }
    }
}

fn readable<Fd: AsFd>(fd: &Fd) -> PollFd<'_> {
    PollFd::new(fd.as_fd(), PollFlags::POLLIN)
}

fn wait(watched: &mut [PollFd<'_>]) -> Result<()> {
    loop {
        match poll(watched, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot poll"),
            Ok(_) => return Ok(()),
        }
    }
}
