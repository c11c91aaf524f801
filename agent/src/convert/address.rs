//! Addresses and ranges of addresses, in every spelling that API servers have long accepted.
//!
//! kube-apiserver parses with `ParseIPSloppy` and `ParseCIDRSloppy` (k8s.io/utils/net), which keep what Go did before
//! 1.17: leading zeros are decimal, host bits are ignored, IPv4-mapped IPv6 is an IPv4 address. Stored objects may
//! carry any of these, so they are accepted, with a warning: other software may read them in another way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::field::{Field, Findings};

/// An address, and what is odd about its spelling.
fn parse_address(text: &str) -> Option<(IpAddr, Option<&'static str>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    parse_with_leading_zeros(text).map(|address| (IpAddr::V4(address), Some("leading zeros")))
}

/// Four decimal octets, of which some have zeros in front: `010.0.0.1` is 10.0.0.1.
fn parse_with_leading_zeros(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn decimal(text: &str) -> Option<u8> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn unmapped(address: Ipv6Addr) -> Option<Ipv4Addr> {
    address.to_ipv4_mapped()
}

/// One address. `None` and a refusal where the text is none.
pub(super) fn address(text: &str, field: &Field<'_>, findings: &mut Findings) -> Option<IpAddr> {
    let Some((address, odd)) = parse_address(text) else {
        findings.refuse(field, format!("{text:?} is no IP address"));
        return None;
    };
    if let Some(odd) = odd {
        findings.warn(field, format!("{text:?} has {odd} and is read as {address}; write it so"));
    }
    match address {
        IpAddr::V6(v6) if let Some(v4) = unmapped(v6) => {
            findings.warn(field, format!("{text:?} is an IPv4-mapped address and is read as {v4}; write it so"));
            Some(IpAddr::V4(v4))
        }
        address => Some(address),
    }
}

/// One range, host bits masked. `None` and a refusal where the text is none.
pub(super) fn cidr(text: &str, field: &Field<'_>, findings: &mut Findings) -> Option<IpNet> {
    let Some(net) = parse_cidr(text) else {
        findings.refuse(
            field,
            format!("{text:?} is no CIDR: write an address range such as 192.0.2.0/24 or 2001:db8::/64"),
        );
        return None;
    };
    let Range { net, leading_zeros, mapped } = net;
    let masked = net.trunc();
    let mut odd = Vec::new();
    if leading_zeros {
        odd.push("leading zeros");
    }
    if mapped {
        odd.push("an IPv4-mapped address");
    }
    if masked.addr() != net.addr() {
        odd.push("bits set beyond the prefix length");
    }
    if !odd.is_empty() {
        findings.warn(field, format!("{text:?} has {} and is read as {masked}; write it so", odd.join(" and ")));
    }
    Some(masked)
}

struct Range {
    /// With its host bits.
    net: IpNet,
    leading_zeros: bool,
    mapped: bool,
}

fn parse_cidr(text: &str) -> Option<Range> {
    let (address, prefix) = text.split_once('/')?;
    let (address, odd) = parse_address(address)?;
    let length = decimal(prefix)?;
    let leading_zeros = odd.is_some() || (prefix.len() > 1 && prefix.starts_with('0'));
    match address {
        IpAddr::V4(v4) => Some(Range { net: IpNet::V4(Ipv4Net::new(v4, length).ok()?), leading_zeros, mapped: false }),
        // The 32 low bits of ::ffff:0:0/96 are IPv4. A shorter prefix covers more than that and stays what it says.
        IpAddr::V6(v6) => match unmapped(v6) {
            Some(v4) if (96..=128).contains(&length) => {
                Some(Range { net: IpNet::V4(Ipv4Net::new(v4, length - 96).ok()?), leading_zeros, mapped: true })
            }
            _ => Some(Range { net: IpNet::V6(Ipv6Net::new(v6, length).ok()?), leading_zeros, mapped: false }),
        },
    }
}
