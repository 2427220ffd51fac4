//! What the tracker looks at in an HTTP request.
//!
//! - Layer: word
//! - Takes: method, path and headers as they came; the address of the client.
//! - Gives: them, by name.
//! - On failure: nothing can fail; header values are bytes and may be no UTF-8.
//! - See: RFC 9110.

use std::net::IpAddr;

/// The methods that the tracker tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A page, a redirect, an image.
    Get,
    /// The same without its body; no person sends it.
    Head,
    /// Everything else: never answered with a redirect.
    Other,
}

/// One request.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// The path, still percent-encoded, without the query.
    pub path: &'a str,
    /// Name in lower case, and value, in the order in which they came.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Who asks; used to tell machines from people and then forgotten.
    pub client: IpAddr,
    /// Whether that is who asks, and not a proxy of ours that named nobody.
    pub is_client_named: bool,
}

/// Shows neither the client, nor the token in the path, nor any header.
impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    /// The first value of a header; `name` in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// All values of a header; `name` in lower case.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// The host that was asked for, as it came but without its port.
    #[must_use]
    pub fn host(&self) -> Option<&'a str> {
        let host = std::str::from_utf8(self.header("host")?).ok()?.trim();
        let end = match host.strip_prefix('[') {
            Some(rest) => rest.find(']').map_or(host.len(), |at| at + 2),
            None => host.find(':').unwrap_or(host.len()),
        };
        let host = host.get(..end)?.trim_end_matches('.');
        Some(host).filter(|host| !host.is_empty())
    }

    /// Whether the visitor said by Global Privacy Control that their data is not to be shared.
    #[must_use]
    pub fn wants_privacy(&self) -> bool {
        self.all("sec-gpc").any(|value| value.trim_ascii() == b"1")
    }
}

/// Whether this can be the value of a Host header (RFC 9110 section 7.2): a name or an address, and perhaps a port. An
/// empty one is allowed where the target has no host; a comma is none, since it is what two headers are joined by.
#[must_use]
pub fn is_host(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    let bracket = value.iter().position(|byte| *byte == b']');
    let (name, rest) = match bracket {
        Some(end) if value.starts_with(b"[") => value.split_at(end + 1),
        _ => value.split_at(value.iter().position(|byte| *byte == b':').unwrap_or(value.len())),
    };
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte);
    let is_address = |byte: &u8| is_name(byte) || *byte == b':';
    let named = match name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]")) {
        Some(address) => !address.is_empty() && address.iter().all(is_address),
        None => name.iter().all(is_name),
    };
    let port = rest.strip_prefix(b":").unwrap_or(rest);
    named && port.iter().all(u8::is_ascii_digit) && (rest.is_empty() || rest.starts_with(b":"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_name_or_address() {
        for good in [
            "t.example.org",
            "t.example.org:8025",
            "T_1.example.",
            "[2001:db8::1]:443",
            "192.0.2.1",
            "",
            "a:",
        ] {
            assert!(is_host(good.as_bytes()), "{good:?}");
        }
        for bad in [
            "a b",
            "a,b",
            "a/b",
            "a@b",
            "a:b",
            "a:1:2",
            "[::1",
            "[]",
            "::1]",
            "[::1]x",
            "\u{e4}.example",
            "a\tb",
            "a<b",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
    }

    fn host(value: &'static [u8]) -> Option<&'static str> {
        let headers = Box::leak(Box::new([("host", value)]));
        let client = IpAddr::from([192, 0, 2, 1]);
        Request { method: Method::Get, path: "/", headers, client, is_client_named: true }.host()
    }

    #[test]
    fn a_host_has_no_port() {
        assert_eq!(host(b"Click.Example.org:8080"), Some("Click.Example.org"));
        assert_eq!(host(b"example.org."), Some("example.org"));
        assert_eq!(host(b"[2001:DB8::1]:443"), Some("[2001:DB8::1]"));
        assert_eq!(host(b"[2001:db8"), Some("[2001:db8"));
        assert_eq!(host(b""), None);
        assert_eq!(host(b"\xff\xfe"), None);
    }
}
