//! The domain of a sender's address.
//!
//! - Layer: decision
//! - Takes: an address as bytes, with or without angle brackets.
//! - Gives: its domain as ASCII, in lower case.
//! - On failure: `None` for what could not be a domain.
//! - See: RFC 5321 section 4.1.2, RFC 5890.

#![warn(clippy::indexing_slicing)]

use memchr::memrchr;

/// The domain. The local part need not be UTF-8: Postfix 3.7 escapes it byte by byte in returned mail.
#[must_use]
pub fn sender_domain(address: &[u8]) -> Option<String> {
    let at = memrchr(b'@', address)?;
    let domain = std::str::from_utf8(address.get(at + 1..)?).ok()?.trim().trim_end_matches('>');
    let domain = idna::domain_to_ascii(domain.trim_end_matches('.')).ok()?;
    let is_domain = !domain.is_empty()
        && domain.len() <= 253
        && domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    is_domain.then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_ascii_and_checked() {
        let domain = |address: &[u8]| sender_domain(address);
        assert_eq!(domain(b"a@News.Example.org"), Some("news.example.org".into()));
        assert_eq!(domain(b"<\"a@b\"@example.org.>"), Some("example.org".into()));
        assert_eq!(domain("\"m\u{fffd}\"@ex\u{e4}mple.org".as_bytes()), Some("xn--exmple-cua.org".into()));
        assert_eq!(domain(b"\"m\xff\"@example.org"), Some("example.org".into()));
        for none in [&b""[..], b"a", b"a@", b"a@[192.0.2.1]", b"a@x y", b"a@\xff"] {
            assert_eq!(domain(none), None);
        }
    }
}
