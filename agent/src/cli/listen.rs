//! The address that metrics and health are served at.

use std::net::{Ipv6Addr, SocketAddr};

/// Reads an address and a port. A DaemonSet makes them of `status.hostIP` and a port, and cannot put the brackets around
/// an IPv6 address: without them, what follows the last colon is the port, as a port there must be.
///
/// # Errors
/// It is none, in words for people.
pub(super) fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let unbracketed = text.rsplit_once(':').and_then(|(address, port)| {
        let address: Ipv6Addr = address.parse().ok()?;
        // "+80" is a number for Rust.
        let port = port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(SocketAddr::from((address, port)))
    });
    unbracketed.ok_or_else(|| {
        "is no address with a port: 127.0.0.1:9470 is one, [fd00::1]:9470 and fd00::1:9470 are, and names are not"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_its_port() {
        let rows = [
            ("IPv4", "0.0.0.0:9470", Some("0.0.0.0:9470")),
            ("IPv6", "[fd00::1]:9470", Some("[fd00::1]:9470")),
            ("IPv6 without brackets", "fd00::1:9470", Some("[fd00::1]:9470")),
            ("IPv6 that ends with zeros", "fd00:::9470", Some("[fd00::]:9470")),
            ("every group", "2001:db8:1:2:3:4:5:6:9470", Some("[2001:db8:1:2:3:4:5:6]:9470")),
            ("an IPv4 address in one of IPv6", "::ffff:192.0.2.1:9470", Some("[::ffff:192.0.2.1]:9470")),
            ("no port", "fd00::1", None),
            ("no port, every group", "2001:db8:1:2:3:4:5:6", None),
            ("no port of IPv4", "192.0.2.1", None),
            ("a port that is none", "fd00::1:99999", None),
            ("a group of an address", "fd00::1:beef", None),
            ("a sign", "fd00::1:+80", None),
            ("a name", "localhost:9470", None),
            ("no address", ":9470", None),
            ("nothing", "", None),
        ];
        for (why, text, wanted) in rows {
            let read = parse(text);
            assert_eq!(
                read.as_ref().ok().map(ToString::to_string).as_deref(),
                wanted,
                "{why}: {text:?} gives {read:?}"
            );
        }
    }
}
