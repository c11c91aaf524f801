//! What nodes, pods and the outside host have in common: a namespace with addresses, servers and processes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::capture::Capture;
use crate::process::{Process, ProcessInner};
use crate::server::Server;
use crate::{Namespace, Protocol, lock};

/// How long a link may take to come up after it was set up.
const LINK_UP: Duration = Duration::from_secs(5);

/// A handle to a host; clones are the same host. Its servers and processes end with the testbed, or with its last
/// handle.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    namespace: Namespace,
    interface: String,
    addresses: Mutex<Vec<IpAddr>>,
    servers: Mutex<Vec<Server>>,
    sctp_ports: Arc<Mutex<BTreeSet<u16>>>,
    processes: Mutex<Vec<Weak<ProcessInner>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.name, lock(&self.addresses))
    }
}

impl Host {
    pub(crate) fn new(name: &str, namespace: Namespace, interface: &str, addresses: Vec<IpAddr>) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            namespace,
            interface: interface.to_owned(),
            addresses: Mutex::new(addresses),
            servers: Mutex::default(),
            sctp_ports: Arc::default(),
            processes: Mutex::default(),
        }))
    }

    /// The name with which its servers answer: `ns/name` of a pod, `node0`, `outside`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// The interface that leads away from it: `eth0`.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.0.interface
    }

    /// Its addresses: those given when it was made, first, then those added since.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        lock(&self.0.addresses).clone()
    }

    /// Its first IPv4 address.
    ///
    /// # Errors
    /// When it has none.
    pub fn v4(&self) -> Result<Ipv4Addr> {
        let found = self.addresses().into_iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        found.with_context(|| format!("{} has no IPv4 address", self.name()))
    }

    /// Its first IPv6 address.
    ///
    /// # Errors
    /// When it has none.
    pub fn v6(&self) -> Result<Ipv6Addr> {
        let found = self.addresses().into_iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        });
        found.with_context(|| format!("{} has no IPv6 address", self.name()))
    }

    /// Adds an address to its interface, as a host address (/32, /128). Nothing else learns of it: no route leads to
    /// it, which is what a pod that takes a foreign address looks like.
    ///
    /// # Errors
    /// When `ip` refuses it.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        self.namespace().ip([format!("addr add {}{nodad} dev {}", host_prefix(address), self.interface())])?;
        lock(&self.0.addresses).push(address);
        Ok(())
    }

    /// Removes an address from its interface, whatever its prefix length.
    ///
    /// # Errors
    /// When it is not there.
    pub fn del_address(&self, address: IpAddr) -> Result<()> {
        let shown = self.namespace().tool("ip", &["-o", "addr", "show", "dev", self.interface()])?;
        let prefix = shown
            .split_whitespace()
            .find(|word| word.split_once('/').is_some_and(|(a, _)| a.parse() == Ok(address)))
            .with_context(|| format!("{} has no address {address}", self.name()))?;
        self.namespace().ip([format!("addr del {prefix} dev {}", self.interface())])?;
        lock(&self.0.addresses).retain(|have| *have != address);
        Ok(())
    }

    /// Starts a server on `port` in both families; it answers with this host's name, and is reachable when this
    /// returns.
    ///
    /// # Errors
    /// When the port is taken, or `protocol` is ICMP, which the kernel answers.
    pub fn serve(&self, protocol: Protocol, port: u16) -> Result<()> {
        let mut servers = lock(&self.0.servers);
        if protocol == Protocol::Sctp {
            if !servers.iter().any(|server| server.protocol == Protocol::Sctp) {
                servers.push(Server::start_sctp(self.namespace(), self.name(), Arc::clone(&self.0.sctp_ports))?);
            }
            if !lock(&self.0.sctp_ports).insert(port) {
                bail!("{} serves {protocol} port {port} already", self.name());
            }
            return Ok(());
        }
        let server = Server::start(self.namespace(), self.name(), protocol, port)
            .with_context(|| format!("cannot serve {protocol} port {port} on {}", self.name()))?;
        servers.push(server);
        Ok(())
    }

    /// Ends the server on `port`, with its connections.
    ///
    /// # Errors
    /// When there is none.
    pub fn stop_serving(&self, protocol: Protocol, port: u16) -> Result<()> {
        let mut servers = lock(&self.0.servers);
        let before = servers.len();
        let found = if protocol == Protocol::Sctp {
            lock(&self.0.sctp_ports).remove(&port)
        } else {
            servers.retain(|server| (server.protocol, server.port) != (protocol, port));
            servers.len() < before
        };
        if !found {
            bail!("{} does not serve {protocol} port {port}", self.name());
        }
        Ok(())
    }

    /// A command that will run in this host's network namespace, with the caller's mounts (so bpffs stays in sight).
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.namespace().command(program)
    }

    /// Starts a command made by [`Self::command`] and follows its output. It is killed when the testbed ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        let process = Process::spawn(self.namespace(), command)?;
        lock(&self.0.processes).push(process.downgrade());
        Ok(process)
    }

    /// Sends a frame, Ethernet header first, out of `interface`, as a program with a packet socket would.
    ///
    /// # Errors
    /// When there is no such interface, or it is down.
    pub fn inject(&self, interface: &str, frame: &[u8]) -> Result<()> {
        crate::capture::inject(self.namespace(), interface, frame)
    }

    /// Starts to record the frames that pass `interface`.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn capture(&self, interface: &str) -> Result<Capture> {
        Capture::start(self.namespace(), interface)
    }

    /// The index of one of its interfaces.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        self.namespace().run(|| {
            nix::net::if_::if_nametoindex(interface)
                .with_context(|| format!("{} has no interface {interface}", self.name()))
        })
    }

    /// The MAC address of one of its interfaces.
    ///
    /// # Errors
    /// When there is no such interface, or it has none.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        self.namespace().run(|| {
            nix::ifaddrs::getifaddrs()?
                .filter(|entry| entry.interface_name == interface)
                .find_map(|entry| entry.address?.as_link_addr()?.addr())
                .with_context(|| format!("{} has no interface {interface} with a MAC address", self.name()))
        })
    }

    /// Waits until `interface` carries packets: the kernel reports a carrier a moment after `ip link set up`.
    pub(crate) fn await_link(&self, interface: &str) -> Result<()> {
        let deadline = Instant::now() + LINK_UP;
        self.namespace().run(|| {
            loop {
                let running = nix::ifaddrs::getifaddrs()?.any(|entry| {
                    entry.interface_name == interface
                        && entry.flags.contains(nix::net::if_::InterfaceFlags::IFF_RUNNING)
                });
                if running {
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    bail!("{interface} of {} has no carrier after {LINK_UP:?}", self.name());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    }

    /// Ends its servers and processes.
    pub(crate) fn shut_down(&self) {
        lock(&self.0.servers).clear();
        lock(&self.0.sctp_ports).clear();
        for process in lock(&self.0.processes).drain(..) {
            if let Some(process) = process.upgrade() {
                process.kill();
            }
        }
    }
}

/// `address/32` or `address/128`.
pub(crate) fn host_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
