//! Questions to the kernel.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteMessage;

use super::Error;
use super::parse::{self, Route};
use crate::endpoints::Link;

/// The kernel answers in milliseconds. An answer that cannot be decoded is dropped below this room, and a question
/// without a dump's end would wait for ever.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks on a connection of its own. NETLINK_GET_STRICT_CHK is set on it: without it the kernel ignores the namespace
/// and the index in a request for addresses, and answers with this namespace's own.
#[derive(Debug)]
pub(super) struct Kernel {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel {
    pub(super) fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(|source| Error::Socket { what: "connect with strict checking (kernel 4.20)", source })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// All devices, and the indexes of those that are there but could not be read: the crate that reads the messages
    /// drops one of which it does not understand an attribute, and a device that is silently missing would look
    /// deleted.
    pub(super) async fn links(&self) -> Result<(Vec<Link>, BTreeSet<u32>), Error> {
        let before = indexes()?;
        let messages = all(self.handle.link().get().execute(), || "the devices".into()).await?;
        let read: BTreeSet<u32> = messages.iter().map(|message| message.header.index).collect();
        let missing: BTreeSet<u32> = before.difference(&read).copied().collect();
        // Those that went while the answer came are not there either.
        let unread = if missing.is_empty() { missing } else { &missing & &indexes()? };
        if !unread.is_empty() {
            tracing::error!(ifindexes = ?unread, "devices whose description cannot be read: new ones are not enforced, known \
                ones stay as they were");
        }
        Ok((messages.iter().filter_map(parse::link).collect(), unread))
    }

    /// One device; `None` when it is gone.
    pub(super) async fn link(&self, ifindex: u32) -> Result<Option<Link>, Error> {
        let answer = self.handle.link().get().match_index(ifindex).execute();
        match all(answer, || format!("device {ifindex}")).await {
            Ok(messages) => Ok(messages.iter().find_map(parse::link)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The routes of all tables that matter here.
    pub(super) async fn routes(&self) -> Result<BTreeSet<Route>, Error> {
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let what = || format!("the routes ({family:?})");
            match all(self.handle.route().get(request).execute(), what).await {
                Ok(messages) => routes.extend(messages.iter().filter_map(parse::route)),
                // A kernel without IPv6 knows no such family.
                Err(error) if error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// The addresses of the device `index` in the namespace that has the number `netnsid` here; `None` when the
    /// namespace or the device has gone, or the kernel does not tell.
    pub(super) async fn peer_addresses(&self, index: u32, netnsid: i32) -> Result<Option<Vec<IpNet>>, Error> {
        let mut addresses = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = self.handle.address().get();
            request.message_mut().header.family = family;
            request.message_mut().header.index = index;
            request.message_mut().attributes.push(AddressAttribute::TargetNetNsId(netnsid));
            let what = || format!("the addresses of device {index} in namespace {netnsid} ({family:?})");
            match all(request.set_link_index_filter(index).execute(), what).await {
                Ok(messages) => addresses.extend(messages.iter().filter_map(parse::address)),
                Err(error) if error.is_unsupported() && family == AddressFamily::Inet6 => {}
                Err(error @ Error::Timeout { .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "no addresses of a veth's other end");
                    return Ok(None);
                }
            }
        }
        Ok(Some(addresses))
    }

    /// The Ethernet address of the device `index` in the namespace that has the number `netnsid` here; `None` as above.
    pub(super) async fn peer_mac(&self, index: u32, netnsid: i32) -> Result<Option<[u8; 6]>, Error> {
        let mut request = self.handle.link().get().match_index(index);
        // The kernel's IFLA_TARGET_NETNSID, by its older name.
        request.message_mut().attributes.push(LinkAttribute::IfNetnsId(netnsid));
        match all(request.execute(), || format!("device {index} in namespace {netnsid}")).await {
            Ok(messages) => Ok(messages.iter().find_map(parse::mac)),
            Err(error @ Error::Timeout { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "no Ethernet address of a veth's other end");
                Ok(None)
            }
        }
    }
}

impl Error {
    fn code(&self) -> Option<i32> {
        match self {
            Self::Request { source: rtnetlink::Error::NetlinkError(message), .. } => Some(-message.raw_code()),
            _ => None,
        }
    }

    fn is_gone(&self) -> bool {
        self.code() == Some(libc::ENODEV)
    }

    fn is_unsupported(&self) -> bool {
        matches!(self.code(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
    }
}

/// The indexes of all devices of this namespace, by the C library.
fn indexes() -> Result<BTreeSet<u32>, Error> {
    let listed = nix::net::if_::if_nameindex()
        .map_err(|error| Error::Socket { what: "list the devices", source: error.into() })?;
    Ok(listed.iter().map(|interface| interface.index()).collect())
}

/// Collects an answer.
async fn all<T>(
    answer: impl Stream<Item = Result<T, rtnetlink::Error>>,
    what: impl Fn() -> String,
) -> Result<Vec<T>, Error> {
    match tokio::time::timeout(ANSWER, answer.try_collect()).await {
        Ok(Ok(messages)) => Ok(messages),
        Ok(Err(source)) => Err(Error::Request { what: what(), source }),
        Err(_) => Err(Error::Timeout { what: what(), seconds: ANSWER.as_secs() }),
    }
}
