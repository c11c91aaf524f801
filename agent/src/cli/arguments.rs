//! What may be asked, and how.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::run::{OwnNode, PIN_DIR, SOCKET};
use crate::model::{Family, Name, PodKey, Protocol, Traffic};

/// Which cluster a question is about. Without any of these it is the one that this node's agent knows; called as `kubectl
/// portcullis`, the one of the kubeconfig.
#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// The cluster that this folder of manifests describes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    pub manifests: Option<PathBuf>,
    /// The cluster of this kubeconfig: its objects are listed once, with the rights of whoever asks.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig (KUBECONFIG, or ~/.kube/config, if none is given), if not the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Where this node's agent answers.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// The agent's pin directory; if it is another network namespace's, nothing is answered.
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Called as a plugin of kubectl.
    #[arg(skip)]
    pub plugin: bool,
}

/// Where a cluster's objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// In a folder.
    Manifests(&'a Path),
    /// Behind an API server.
    Cluster,
    /// In this node's agent.
    Agent,
}

impl SourceArgs {
    /// Where to ask.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        match &self.manifests {
            Some(folder) => Source::Manifests(folder),
            None if self.plugin || self.kubeconfig.is_some() || self.context.is_some() => Source::Cluster,
            None => Source::Agent,
        }
    }
}

impl Default for SourceArgs {
    fn default() -> Self {
        let (socket, pin_dir) = (SOCKET.into(), PIN_DIR.into());
        Self { manifests: None, kubeconfig: None, context: None, socket, pin_dir, plugin: false }
    }
}

/// Who reaches whom: every ordered pair of pods, each pod to itself included.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct MatrixArgs {
    /// Which cluster.
    #[command(flatten)]
    #[serde(skip)]
    pub source: SourceArgs,
    /// Only pairs of which a pod is in this namespace. May be given several times.
    #[arg(short, long = "namespace", value_name = "NAME")]
    pub namespaces: Vec<String>,
    /// Ask about this port (80/TCP, 53/udp; TCP if no protocol is given) instead of each destination's container ports.
    /// May be given several times.
    #[arg(long = "port", value_name = "PORT[/PROTOCOL]", value_parser = parse_port)]
    pub ports: Vec<Traffic>,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: MatrixOutput,
    /// Who decides: the policies' text, or the tables compiled from it. Both must agree.
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineName,
    /// What pods may send to their own node: everything, or what rules allow, as the agents are set.
    #[arg(long, value_enum, default_value_t)]
    pub own_node: OwnNode,
}

/// Why a connection is allowed or denied: which policies select each side, which rule decides, why the others do not
/// match.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
#[command(group = clap::ArgGroup::new("traffic").required(true).args(["port", "protocol"]))]
pub struct ExplainArgs {
    /// Which cluster.
    #[command(flatten)]
    #[serde(skip)]
    pub source: SourceArgs,
    /// Who opens the connection: a pod or an address.
    #[arg(long, value_name = "NAMESPACE/POD|IP")]
    pub from: PartyName,
    /// Whom it is opened to: a pod or an address.
    #[arg(long, value_name = "NAMESPACE/POD|IP")]
    pub to: PartyName,
    /// The destination port (80/TCP, 53/udp; TCP if no protocol is given).
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_parser = parse_port)]
    pub port: Option<Traffic>,
    /// A protocol without ports: icmp (ICMPv6 between IPv6 addresses) or an IP protocol number.
    #[arg(long, value_name = "icmp|NUMBER", value_parser = parse_protocol)]
    pub protocol: Option<Asked>,
    /// The form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: ExplainOutput,
    /// What pods may send to their own node: everything, or what rules allow, as the agents are set.
    #[arg(long, value_enum, default_value_t)]
    pub own_node: OwnNode,
}

impl ExplainArgs {
    /// The traffic that is asked about. Clap lets exactly one of the two options be given.
    pub(super) fn asked(&self) -> Asked {
        match (self.port, self.protocol) {
            (Some(traffic), _) => Asked::Traffic(traffic),
            (None, Some(asked)) => asked,
            (None, None) => Asked::Icmp,
        }
    }
}

/// The form of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum MatrixOutput {
    /// A line for each pair, family and port.
    #[default]
    Table,
    /// One object with all entries.
    Json,
}

/// The form of an explanation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum ExplainOutput {
    /// Sentences.
    #[default]
    Text,
    /// One object.
    Json,
}

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum EngineName {
    /// The direct evaluator.
    #[default]
    Evaluator,
    /// The compiled tables.
    Tables,
}

/// The traffic that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// A protocol and a port; the port is 0 where the protocol has none.
    Traffic(Traffic),
    /// An echo request of the family's ICMP.
    Icmp,
}

impl Asked {
    /// The traffic in one family.
    #[must_use]
    pub const fn traffic(self, family: Family) -> Traffic {
        match (self, family) {
            (Self::Traffic(traffic), _) => traffic,
            (Self::Icmp, Family::V4) => echo_request(Protocol::ICMP),
            (Self::Icmp, Family::V6) => echo_request(Protocol::ICMPV6),
        }
    }
}

/// Echo request is type 8 of ICMP (RFC 792) and type 128 of ICMPv6 (RFC 4443), code 0 of both.
const fn echo_request(protocol: Protocol) -> Traffic {
    let kind: u16 = if protocol.0 == Protocol::ICMP.0 { 8 } else { 128 };
    Traffic { protocol, port: kind << 8 }
}

/// One side of a connection as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PartyName {
    /// A pod.
    Pod(PodKey),
    /// An address, a pod's or not.
    Address(IpAddr),
}

impl fmt::Display for PartyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(pod) => pod.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Why an argument is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// Neither a pod nor an address.
    #[error("neither a pod (NAMESPACE/POD, such as default/{0}) nor an IP address")]
    Party(String),
    /// Not one port.
    #[error("a range of ports cannot be asked about; name each port, such as --port 80/TCP")]
    Range,
    /// Not a port number.
    #[error("{0:?} is not a port number from 1 to 65535")]
    Port(String),
    /// Not a protocol with ports.
    #[error("{0:?} is not TCP, UDP or SCTP, the protocols that have ports (`explain --protocol` asks about others)")]
    PortProtocol(String),
    /// Not a protocol.
    #[error("{0:?} is neither icmp nor an IP protocol number from 0 to 255")]
    Protocol(String),
    /// A protocol with ports, without one.
    #[error("{0} has ports; ask with --port, such as --port 80/{0}")]
    PortMissing(Protocol),
}

impl From<PartyName> for String {
    fn from(name: PartyName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for PartyName {
    type Error = ArgumentError;

    fn try_from(text: String) -> Result<Self, ArgumentError> {
        text.parse()
    }
}

impl FromStr for PartyName {
    type Err = ArgumentError;

    fn from_str(text: &str) -> Result<Self, ArgumentError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Pod(Name::new(namespace, name)))
            }
            _ => Err(ArgumentError::Party(text.trim_matches('/').to_owned())),
        }
    }
}

/// `80/TCP`; the protocol in any case, TCP where none is given.
fn parse_port(text: &str) -> Result<Traffic, ArgumentError> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let is_range = |(first, last): (&str, &str)| first.parse::<u16>().is_ok() && last.parse::<u16>().is_ok();
    if number.split_once('-').is_some_and(is_range) {
        return Err(ArgumentError::Range);
    }
    let protocol = with_ports(protocol).ok_or_else(|| ArgumentError::PortProtocol(protocol.to_owned()))?;
    match number.parse() {
        Ok(port) if port > 0 => Ok(Traffic { protocol, port }),
        _ => Err(ArgumentError::Port(number.to_owned())),
    }
}

fn with_ports(name: &str) -> Option<Protocol> {
    [Protocol::TCP, Protocol::UDP, Protocol::SCTP]
        .into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(name))
}

/// `icmp`, `icmpv6`, or a number.
fn parse_protocol(text: &str) -> Result<Asked, ArgumentError> {
    if text.eq_ignore_ascii_case("icmp") {
        return Ok(Asked::Icmp);
    }
    let by_name = || text.eq_ignore_ascii_case("icmpv6").then_some(Protocol::ICMPV6).or_else(|| with_ports(text));
    let by_number = || text.parse().ok().map(Protocol);
    match by_name().or_else(by_number) {
        Some(protocol) if protocol.has_ports() => Err(ArgumentError::PortMissing(protocol)),
        Some(protocol @ (Protocol::ICMP | Protocol::ICMPV6)) => Ok(Asked::Traffic(echo_request(protocol))),
        Some(protocol) => Ok(Asked::Traffic(Traffic { protocol, port: 0 })),
        None => Err(ArgumentError::Protocol(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    enum Commands {
        Matrix(MatrixArgs),
        Explain(ExplainArgs),
    }

    #[test]
    fn ports() {
        let ok = |protocol, port| Ok(Traffic { protocol, port });
        let rows = [
            ("80/TCP", ok(Protocol::TCP, 80)),
            ("80", ok(Protocol::TCP, 80)),
            ("53/udp", ok(Protocol::UDP, 53)),
            ("65535/Sctp", ok(Protocol::SCTP, 65535)),
            ("80-90/TCP", Err(ArgumentError::Range)),
            ("80-90", Err(ArgumentError::Range)),
            ("0/TCP", Err(ArgumentError::Port("0".into()))),
            ("65536", Err(ArgumentError::Port("65536".into()))),
            ("http", Err(ArgumentError::Port("http".into()))),
            ("/TCP", Err(ArgumentError::Port(String::new()))),
            ("80/icmp", Err(ArgumentError::PortProtocol("icmp".into()))),
            ("80/", Err(ArgumentError::PortProtocol(String::new()))),
            ("80/TCP/x", Err(ArgumentError::PortProtocol("TCP/x".into()))),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_port(text), expected, "{text}");
        }
    }

    #[test]
    fn protocols() {
        let ok = |protocol, port| Ok(Asked::Traffic(Traffic { protocol: Protocol(protocol), port }));
        let rows = [
            ("icmp", Ok(Asked::Icmp)),
            ("ICMP", Ok(Asked::Icmp)),
            ("1", ok(1, 0x0800)),
            ("58", ok(58, 0x8000)),
            ("icmpv6", ok(58, 0x8000)),
            ("47", ok(47, 0)),
            ("tcp", Err(ArgumentError::PortMissing(Protocol::TCP))),
            ("17", Err(ArgumentError::PortMissing(Protocol::UDP))),
            ("256", Err(ArgumentError::Protocol("256".into()))),
            ("gre", Err(ArgumentError::Protocol("gre".into()))),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_protocol(text), expected, "{text}");
        }
        assert_eq!(Asked::Icmp.traffic(Family::V6), echo_request(Protocol::ICMPV6), "the family's own ICMP");
    }

    #[test]
    fn parties() {
        let rows = [
            ("x/a", Some(PartyName::Pod(Name::new("x", "a")))),
            ("10.0.0.1", Some(PartyName::Address([10, 0, 0, 1].into()))),
            ("fd00::1", "fd00::1".parse().ok().map(PartyName::Address)),
            ("::ffff:10.0.0.1", Some(PartyName::Address([10, 0, 0, 1].into()))),
            ("a", None),
            ("x/", None),
            ("/a", None),
            ("x/a/b", None),
            ("10.0.0.0/8/1", None),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    #[test]
    fn command_lines() {
        let rows = [
            ("matrix --manifests d", true),
            ("matrix --manifests d --port 80 --port 53/udp -o json --engine tables", true),
            ("matrix", true),
            ("matrix -n x -n y --kubeconfig f --context c", true),
            ("matrix --manifests d --kubeconfig f", false),
            ("explain --manifests d --context c --from x/a --to x/b --port 80", false),
            ("matrix --manifests d -o text", false),
            ("matrix --manifests d --port 80-90/TCP", false),
            ("explain --manifests d --from x/a --to 10.0.0.1 --port 80", true),
            ("explain --manifests d --from x/a --to x/b --protocol icmp -o json", true),
            ("explain --manifests d --from x/a --to x/b", false),
            ("explain --manifests d --from x/a --to x/b --port 80 --protocol icmp", false),
            ("explain --manifests d --from a --to x/b --port 80", false),
        ];
        for (line, expected) in rows {
            let parsed = Commands::try_parse_from(std::iter::once("portcullis").chain(line.split(' ')));
            assert_eq!(parsed.is_ok(), expected, "{line}: {parsed:?}");
        }
    }
}
