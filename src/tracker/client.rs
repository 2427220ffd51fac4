//! Who asks: the peer of the connection, or whom a trusted proxy names.
//!
//! - Layer: decision
//! - Takes: the peer, the `X-Forwarded-For` headers in their order, the networks of one's own proxies.
//! - Gives: the address of the client, to tell machines from people; it is never logged or stored.
//! - On failure: what is no address ends the search: the last trustworthy one counts.
//! - See: RFC 7239 section 7.4 on trust.
#![warn(clippy::indexing_slicing)]

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The rightmost address that is not one of our proxies, as far as they name any.
    pub address: IpAddr,
    /// Whether it is that of who asks: a proxy of ours that names nobody stands for everybody.
    pub is_named: bool,
}

/// Finds out who asks.
pub fn client_address<'a>(
    peer: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted_proxies: &[IpNet],
) -> Client {
    let mut client = peer.to_canonical();
    let mut is_named = !is_trusted(client, trusted_proxies);
    let hops = forwarded_for.rev().flat_map(|header| header.rsplit(|&byte| byte == b','));
    for hop in hops {
        if !is_trusted(client, trusted_proxies) {
            break;
        }
        let Some(address) = parse(hop) else { break };
        (client, is_named) = (address, true);
    }
    Client { address: client, is_named }
}

/// Whether this is one of our proxies.
#[must_use]
pub fn is_trusted(address: IpAddr, trusted_proxies: &[IpNet]) -> bool {
    trusted_proxies.iter().any(|network| network.contains(&address))
}

/// An address, with or without port and brackets.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let address = hop
        .parse::<IpAddr>()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok())?;
    Some(address.to_canonical())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn client(peer: &str, headers: &[&str]) -> String {
        let trusted: Vec<IpNet> =
            ["127.0.0.0/8", "10.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap()).into();
        let headers = headers.iter().map(|header| header.as_bytes());
        let client = client_address(peer.parse().unwrap(), headers, &trusted);
        if client.is_named { client.address.to_string() } else { format!("the proxy {}", client.address) }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(client("192.0.2.1", &["203.0.113.9"]), "192.0.2.1", "a stranger's header says nothing");
        assert_eq!(client("127.0.0.1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client("127.0.0.1", &["198.51.100.66, 203.0.113.9, 10.1.1.1"]), "203.0.113.9");
        assert_eq!(client("127.0.0.1", &["198.51.100.66", "203.0.113.9,10.1.1.1"]), "203.0.113.9");
        assert_eq!(client("::ffff:127.0.0.1", &["::ffff:203.0.113.9"]), "203.0.113.9");
        assert_eq!(client("127.0.0.1", &["203.0.113.9:4711"]), "203.0.113.9");
        assert_eq!(client("::1", &["[2001:db8::7]:4711"]), "2001:db8::7");
        assert_eq!(client("::1", &["[2001:db8::7]"]), "2001:db8::7");
    }

    #[test]
    fn nonsense_ends_the_search() {
        assert_eq!(client("127.0.0.1", &["203.0.113.9, unknown, 10.1.1.1"]), "10.1.1.1");
        assert_eq!(client("127.0.0.1", &[""]), "the proxy 127.0.0.1");
        assert_eq!(client("127.0.0.1", &[]), "the proxy 127.0.0.1");
        assert_eq!(client("127.0.0.1", &["unknown"]), "the proxy 127.0.0.1");
        assert_eq!(client("192.0.2.1", &[]), "192.0.2.1");
    }
}
