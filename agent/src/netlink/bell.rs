//! The sockets that hear of changes.

use std::io;

use futures::FutureExt;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::Error;

/// The receive buffer: room for some thousand notifications. What overruns it is read again by a dump.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How many datagrams are read before what they say is acted on. A pod that changes its addresses without end must not
/// keep others waiting.
const BURST: usize = 256;

/// A multicast subscription.
pub(super) struct Bell {
    socket: TokioSocket,
}

/// What one read brought: whole datagrams, and whether some were lost.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) datagrams: Vec<Vec<u8>>,
    pub(super) lost: bool,
}

impl Bell {
    /// Subscribes to groups of this namespace.
    pub(super) fn new(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Socket { what, source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        // Every group used here is below 32 and fits the address of bind(2).
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
        // Past `net.core.rmem_max`, with CAP_NET_ADMIN. Without it the default does: overruns only cost dumps.
        if let Err(error) = setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BUFFER) {
            tracing::debug!(%error, "the netlink receive buffer keeps its default size");
        }
        socket.socket_mut().bind(&SocketAddr::new(0, mask)).map_err(failed("subscribe to changes"))?;
        Ok(Self { socket })
    }

    /// Hears the groups of every namespace that has a number in this one as well (NETLINK_LISTEN_ALL_NSID).
    pub(super) fn of_all_namespaces(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let bell = Self::new(groups)?;
        bell.socket
            .socket_ref()
            .set_listen_all_namespaces(true)
            .map_err(|source| Error::Socket { what: "hear of changes in other namespaces", source })?;
        Ok(bell)
    }

    /// Waits for a datagram and reads those that follow at once. May be dropped while it waits; nothing is lost then.
    pub(super) async fn hear(&self) -> Result<Heard, Error> {
        let mut heard = Heard::default();
        let mut next = Some(self.socket.recv_from_full().await);
        while let Some(received) = next {
            match received {
                // Only the kernel (port 0) speaks for the kernel; another process may send to this socket.
                Ok((datagram, from)) if from.port_number() == 0 => heard.datagrams.push(datagram),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard.lost = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Socket { what: "read", source });
                }
            }
            if heard.datagrams.len() >= BURST {
                break;
            }
            next = self.socket.recv_from_full().now_or_never();
        }
        Ok(heard)
    }
}

/// Splits a datagram into messages, header included; `None` for what does not add up.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Ok(buffer) = NetlinkBuffer::new_checked(datagram) else {
            datagram = &[];
            return Some(None);
        };
        let length = buffer.length() as usize;
        let message = datagram.get(..length);
        // Messages are aligned to 4 bytes (NLMSG_ALIGN).
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
