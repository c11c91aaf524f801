//! The kernel's connection table: one dump of it (ctnetlink, include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use portcullis_common::flow::Lifetime;
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlaBuffer, NlasIterator,
};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::Error;
use super::bell::messages;
use crate::flows::{Connection, Progress, Tuple};

/// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const NEW: u16 = SUBSYSTEM;
/// `struct nfgenmsg`: family, version, resource; 0 is every family.
const HEADER: usize = 4;

/// Attributes.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const ID: u16 = 12;
/// `enum ip_conntrack_status`.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const DYING: u32 = 1 << 9;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Reads all TCP, UDP and SCTP connections of this network namespace, one after another: there may be a million. Where the
/// kernel has no connection table there are none.
///
/// # Errors
/// The kernel refuses, or says what cannot be read; some connections may have been visited.
pub fn for_each_connection(mut visit: impl FnMut(&Connection)) -> Result<(), Error> {
    let failed = |what| move |source| Error::Socket { what, source };
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(()),
        Err(source) => return Err(Error::Socket { what: "open (netfilter)", source }),
    };
    socket.bind_auto().map_err(failed("bind (netfilter)"))?;
    // The kernel answers each read with the next part of the dump; were it ever not to, nobody shall wait for it.
    let patience = TimeVal::new(10, 0);
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &patience)
        .map_err(|error| failed("set a time limit")(error.into()))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect (netfilter)"))?;
    socket.send(&request(), 0).map_err(failed("ask for the connections"))?;
    let mut buffer: Vec<u8> = Vec::with_capacity(1 << 16);
    loop {
        buffer.clear();
        let received = socket.recv(&mut buffer, 0);
        match received {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Socket { what: "read the connections", source }),
        }
        for message in messages(&buffer).flatten() {
            let Ok(message) = NetlinkBuffer::new_checked(message) else { continue };
            match message.message_type() {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return ended(message.payload()),
                NEW => message.payload().get(HEADER..).and_then(connection).iter().for_each(&mut visit),
                _ => {}
            }
        }
    }
}

/// What an error message says: no connection table is no error.
fn ended(payload: &[u8]) -> Result<(), Error> {
    let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    match -code {
        0 | libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT => Ok(()),
        errno => Err(Error::Socket { what: "ask for the connections", source: io::Error::from_raw_os_error(errno) }),
    }
}

/// How long the kernel itself remembers a flow in a state, in seconds; `None` where it has no connection table. Where
/// several of its states are one here, the shortest.
#[must_use]
pub fn timeout(lifetime: Lifetime) -> Option<u32> {
    let names: &[&str] = match lifetime {
        Lifetime::TcpSynSent => &["tcp_timeout_syn_sent"],
        Lifetime::TcpSynReceived => &["tcp_timeout_syn_recv"],
        Lifetime::TcpEstablished => &["tcp_timeout_established"],
        Lifetime::TcpHalfClosed => &["tcp_timeout_fin_wait", "tcp_timeout_close_wait"],
        Lifetime::TcpClosed => &["tcp_timeout_last_ack", "tcp_timeout_time_wait"],
        Lifetime::TcpReset => &["tcp_timeout_close"],
        Lifetime::Udp => &["udp_timeout"],
        Lifetime::UdpStream => &["udp_timeout_stream"],
        Lifetime::SctpNew => &["sctp_timeout_cookie_wait"],
        Lifetime::SctpEstablished => &["sctp_timeout_established"],
        Lifetime::Icmp => &["icmp_timeout", "icmpv6_timeout"],
        Lifetime::Other => &["generic_timeout"],
        // No state of the connection table: net.ipv4.ipfrag_time is its default.
        Lifetime::Fragment => &[],
    };
    let read = |name: &&str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
        text.trim().parse().ok()
    };
    names.iter().filter_map(read).min()
}

fn request() -> [u8; 20] {
    let mut message = [0; 20];
    let mut buffer = NetlinkBuffer::new(&mut message[..]);
    buffer.set_length(20);
    buffer.set_message_type(GET);
    buffer.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    message
}

/// The attributes of a level; what does not add up ends it.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).filter_map(|attribute: NlaBuffer<&[u8]>| {
        let (kind, length) = (attribute.kind(), attribute.value_length());
        Some((kind, attribute.into_inner().get(4..4 + length)?))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A connection, if it is of a protocol with ports.
fn connection(bytes: &[u8]) -> Option<Connection> {
    let (mut original, mut reply, mut status, mut tcp, mut remaining, mut id) = (None, None, 0, None, 0, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            TUPLE_ORIG => original = tuple(value),
            TUPLE_REPLY => reply = tuple(value),
            STATUS => status = number(value)?,
            // CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE.
            PROTOINFO => tcp = attribute(value, 1).and_then(|info| attribute(info, 1)?.first().copied()),
            TIMEOUT => remaining = number(value)?,
            ID => id = number(value)?,
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    let answered = status & SEEN_REPLY != 0;
    let progress = match (protocol, tcp) {
        _ if status & DYING != 0 => Progress::Over,
        // Of a connection whose beginning the kernel has not seen it assumes, too, that the first packet was its opener's;
        // that is worth something only once the other side has answered.
        _ if !answered => Progress::New,
        // `enum tcp_conntrack`.
        (TCP, Some(2)) => Progress::Answered,
        (TCP, Some(3)) => Progress::Established,
        (TCP, Some(4 | 5)) => Progress::HalfClosed,
        (TCP, Some(6..=8)) => Progress::Over,
        (TCP, _) => Progress::New,
        _ if status & ASSURED != 0 => Progress::Established,
        _ => Progress::Answered,
    };
    Some(Connection { protocol, original, reply, progress, remaining, id })
}

fn tuple(bytes: &[u8]) -> Option<(u8, Tuple)> {
    // CTA_TUPLE_IP, CTA_TUPLE_PROTO.
    let (addresses, protocol) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let number = *attribute(protocol, 1)?.first()?;
    if !matches!(number, TCP | UDP | SCTP) {
        return None;
    }
    let port = |kind| attribute(protocol, kind)?.try_into().ok().map(u16::from_be_bytes);
    // CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST.
    let address = |v4, v6| -> Option<IpAddr> {
        let four = attribute(addresses, v4).and_then(|value| <[u8; 4]>::try_from(value).ok());
        let six = || attribute(addresses, v6).and_then(|value| <[u8; 16]>::try_from(value).ok());
        four.map(|bytes| Ipv4Addr::from(bytes).into()).or_else(|| six().map(|bytes| Ipv6Addr::from(bytes).into()))
    };
    let tuple = Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        source_port: port(2)?,
        destination_port: port(3)?,
    };
    Some((number, tuple))
}
