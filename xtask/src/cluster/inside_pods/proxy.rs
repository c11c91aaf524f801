//! A proxy to which a pod's own iptables rules send all its traffic, as sidecars of meshes do: what the pod sends comes to
//! port 15001, what it receives to 15006, and both go on to where they were meant to go.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, getsockopt, socket, sockopt::OriginalDst,
};

/// The user as whom it runs, by whom the rules know what it sends itself.
pub(in super::super) const USER: u32 = 1337;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
/// Where it speaks to the pod's own server from, so that the rules let that be.
const PASSTHROUGH: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const TIMEOUT: Duration = Duration::from_secs(10);

/// The rules, as Istio writes them: for `iptables-restore`.
pub(in super::super) fn rules() -> String {
    format!(
        "*nat\n\
         :ISTIO_INBOUND - [0:0]\n\
         :ISTIO_OUTPUT - [0:0]\n\
         -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
         -A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
         -A ISTIO_INBOUND -p tcp -j REDIRECT --to-ports {INBOUND}\n\
         -A ISTIO_OUTPUT -s {PASSTHROUGH}/32 -o lo -j RETURN\n\
         -A ISTIO_OUTPUT -m owner --uid-owner {USER} -j RETURN\n\
         -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
         -A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports {OUTBOUND}\n\
         COMMIT\n"
    )
}

/// Serves both ports without end.
pub(in super::super) fn run() -> Result<()> {
    let listen = |port: u16| {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on port {port}"))
    };
    let (outbound, inbound) = (listen(OUTBOUND)?, listen(INBOUND)?);
    thread::spawn(move || serve(&inbound, |destination| connect_from(PASSTHROUGH, destination)));
    serve(&outbound, |destination| TcpStream::connect_timeout(&destination.into(), TIMEOUT));
    Ok(())
}

fn serve(listener: &TcpListener, onwards: fn(SocketAddrV4) -> io::Result<TcpStream>) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // Whoever cannot be reached is told of by the end of the connection.
            let _ = pass_on(&stream, onwards);
        });
    }
}

fn pass_on(stream: &TcpStream, onwards: fn(SocketAddrV4) -> io::Result<TcpStream>) -> io::Result<()> {
    let original = getsockopt(stream, OriginalDst)?;
    let destination =
        SocketAddrV4::new(Ipv4Addr::from(u32::from_be(original.sin_addr.s_addr)), u16::from_be(original.sin_port));
    if [OUTBOUND, INBOUND].contains(&destination.port()) {
        // It was sent to the proxy itself, which would send it to itself for ever.
        return Ok(());
    }
    let other = onwards(destination)?;
    let (from, to) = (stream.try_clone()?, other.try_clone()?);
    let there = thread::spawn(move || copy(&from, &to));
    copy(&other, stream);
    let _ = there.join();
    Ok(())
}

/// Until one side has said all; the other may go on speaking.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn connect_from(source: Ipv4Addr, destination: SocketAddrV4) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(destination))?;
    Ok(socket.into())
}
