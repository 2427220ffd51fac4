//! The header of the PROXY protocol, version 2: whom a proxy speaks for.
//!
//! - Layer: decision
//! - Takes: the first bytes of a connection, as many as have come.
//! - Gives: the header with its length; nothing yet, when more bytes are needed.
//! - On failure: `ProxyError`; version 1 and everything else is none.
//! - Limits: 536 bytes after the fixed 16, as the specification has it; what stands behind the addresses is skipped.
//! - See: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2.
#![warn(clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
const FIXED_BYTES: usize = 16;
/// The longest rest that is read.
const MAX_REST_BYTES: usize = 536;

/// The longest header.
pub const MAX_BYTES: usize = FIXED_BYTES + MAX_REST_BYTES;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it is; what follows is the connection's own.
    pub bytes: usize,
    /// The client; nothing where the proxy speaks for itself (a health check), or over another kind of socket.
    pub client: Option<IpAddr>,
}

/// What came instead of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// No PROXY header of version 2.
    #[error("no PROXY header of version 2")]
    Signature,
    /// Another version, or a command that is not known.
    #[error("a version or command that is not known")]
    Command,
    /// Longer than the limit, or too short for its addresses.
    #[error("a length that does not fit")]
    Length,
}

impl ProxyError {
    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signature => "proxy-signature",
            Self::Command => "proxy-command",
            Self::Length => "proxy-length",
        }
    }
}

/// How many more bytes are needed at least, so that not one of the connection's own is read.
#[must_use]
pub fn missing(bytes: &[u8]) -> usize {
    match rest_bytes(bytes) {
        Some(rest) => (FIXED_BYTES + rest).saturating_sub(bytes.len()),
        None => FIXED_BYTES.saturating_sub(bytes.len()),
    }
}

fn rest_bytes(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(14..FIXED_BYTES)?;
    Some(usize::from(u16::from_be_bytes(length.try_into().ok()?)))
}

/// Reads a header.
///
/// # Errors
/// See [`ProxyError`]; it is found as soon as the bytes allow.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, ProxyError> {
    let begin = bytes.get(..bytes.len().min(SIGNATURE.len())).unwrap_or_default();
    if !SIGNATURE.starts_with(begin) {
        return Err(ProxyError::Signature);
    }
    let Some(&command) = bytes.get(12) else { return Ok(None) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Command),
    };
    let Some(rest) = rest_bytes(bytes) else { return Ok(None) };
    if rest > MAX_REST_BYTES {
        return Err(ProxyError::Length);
    }
    let Some(addresses) = bytes.get(FIXED_BYTES..FIXED_BYTES + rest) else { return Ok(None) };
    let header = |client| Ok(Some(Header { bytes: FIXED_BYTES + rest, client }));
    if is_local {
        return header(None);
    }
    // The high half is the family, the low one the protocol: only TCP brings HTTP.
    match bytes.get(13) {
        Some(0x11) => {
            let source: [u8; 4] = source(addresses, 12)?;
            header(Some(IpAddr::V4(Ipv4Addr::from(source))))
        }
        Some(0x21) => {
            let source: [u8; 16] = source(addresses, 36)?;
            header(Some(IpAddr::V6(Ipv6Addr::from(source)).to_canonical()))
        }
        _ => header(None),
    }
}

/// The source address at the head of a block of addresses.
fn source<const N: usize>(addresses: &[u8], block: usize) -> Result<[u8; N], ProxyError> {
    if addresses.len() < block {
        return Err(ProxyError::Length);
    }
    addresses.first_chunk().copied().ok_or(ProxyError::Length)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn v4() -> Vec<u8> {
        header(0x21, 0x11, &[203, 0, 113, 9, 127, 0, 0, 1, 0x12, 0x34, 0, 80])
    }

    #[test]
    fn the_client_is_read_and_what_follows_is_left() {
        let client = Some(IpAddr::from([203, 0, 113, 9]));
        assert_eq!(parse(&v4()), Ok(Some(Header { bytes: 28, client })));
        let mut followed = v4();
        followed.extend(b"GET / HTTP/1.1\r\n");
        assert_eq!(parse(&followed), Ok(Some(Header { bytes: 28, client })));

        let mut addresses = [0; 36];
        addresses[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        let v6 = parse(&header(0x21, 0x21, &addresses)).unwrap().unwrap();
        assert_eq!(v6.client, Some("2001:db8::7".parse().unwrap()));
        addresses[..16].copy_from_slice(&"::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
        let mapped = parse(&header(0x21, 0x21, &addresses)).unwrap().unwrap();
        assert_eq!(mapped.client, Some(IpAddr::from([192, 0, 2, 1])));
    }

    #[test]
    fn further_values_are_skipped_and_a_proxy_may_speak_for_itself() {
        let mut rest = v4()[16..].to_vec();
        rest.extend([0x04, 0, 3, 1, 2, 3]);
        let read = parse(&header(0x21, 0x11, &rest)).unwrap().unwrap();
        assert_eq!((read.bytes, read.client), (34, Some(IpAddr::from([203, 0, 113, 9]))));
        for (command, family, rest) in
            [(0x20, 0x00, &[][..]), (0x20, 0x11, &rest), (0x21, 0x00, &[]), (0x21, 0x31, &[0; 216])]
        {
            let read = parse(&header(command, family, rest)).unwrap().unwrap();
            assert_eq!((read.bytes, read.client), (16 + rest.len(), None), "{command:x} {family:x}");
        }
    }

    #[test]
    fn everything_else_is_none() {
        for (bytes, error) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), ProxyError::Signature),
            (b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n".to_vec(), ProxyError::Signature),
            (header(0x11, 0x11, &[0; 12]), ProxyError::Command),
            (header(0x22, 0x11, &[0; 12]), ProxyError::Command),
            (header(0x21, 0x11, &[0; 11]), ProxyError::Length),
            (header(0x21, 0x21, &[0; 12]), ProxyError::Length),
            (header(0x21, 0x11, &[0; 537]), ProxyError::Length),
            (header(0x21, 0x11, &[0; 65_535])[..16].to_vec(), ProxyError::Length),
        ] {
            assert_eq!(parse(&bytes), Err(error), "{bytes:x?}");
        }
        assert!(parse(&header(0x21, 0x11, &[0; 536])).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn every_split_needs_more_and_the_whole_is_enough(rest in proptest::collection::vec(any::<u8>(), 12..300), family in any::<u8>()) {
            let whole = header(0x21, family, &rest);
            let read = parse(&whole);
            for end in 0..whole.len() {
                let part = parse(&whole[..end]);
                prop_assert!(part == Ok(None) || part == read, "{end}");
                let more = missing(&whole[..end]);
                prop_assert!(more > 0 && end + more <= whole.len(), "{end} {more}");
            }
            if read.is_ok() {
                prop_assert_eq!(missing(&whole), 0);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), signed in any::<bool>()) {
            let bytes = if signed { [&SIGNATURE[..], &bytes].concat() } else { bytes };
            if let Ok(Some(header)) = parse(&bytes) {
                prop_assert!(header.bytes <= bytes.len() && header.bytes <= MAX_BYTES);
            }
        }
    }
}
