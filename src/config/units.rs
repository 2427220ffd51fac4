//! Durations, sizes, addresses and names as people write them.
//!
//! - Layer: decision
//! - Takes: text like `250ms`, `64MiB`, `unix:/run/x.sock`, `*.example.org`.
//! - Gives: values with units.
//! - On failure: a sentence that says what was expected.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::identity::CampaignId;

/// `250ms`, `10s`, `5m`, `2h`, `90d`.
///
/// # Errors
/// A sentence for people.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("`{text}` is not a duration: write a number and ms, s, m, h or d, like \"10s\"");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(expected)
}

/// `512KiB`, `64MiB`, `2GiB`, `100B`.
///
/// # Errors
/// A sentence for people.
pub fn bytes(text: &str) -> Result<u64, String> {
    let expected =
        || format!("`{text}` is not a size: write a number and B, KiB, MiB or GiB, like \"64MiB\"");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(expected()),
    };
    number.checked_mul(factor).ok_or_else(expected)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim()))
}

/// `0660` and the like: of a socket, which its owner has to read and write.
///
/// # Errors
/// A sentence for people.
pub fn socket_mode(text: &str) -> Result<u32, String> {
    let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    match mode.filter(|mode| *mode <= 0o777) {
        None => Err(format!("`{text}` is not a file mode: write three or four octal digits, like \"0660\"")),
        Some(mode) if mode & 0o600 != 0o600 => Err(format!(
            "`{text}` keeps the socket's owner from it: the first digit of three must be 6 or 7, as in \"0660\""
        )),
        Some(mode) => Ok(mode),
    }
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
    /// A host by its name, which is looked up when it is needed.
    Named {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

/// `unix:/path` or `inet:HOST:PORT`, as Postfix writes milters.
///
/// # Errors
/// A sentence for people.
pub fn listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(Listen::Unix(path.into()));
    }
    let place = text.strip_prefix("inet:").unwrap_or_default();
    address(place).map(Listen::Tcp).ok().or_else(|| named(place)).ok_or_else(|| {
        format!("`{text}` is not a milter address: write unix:/PATH or inet:HOST:PORT, like \"inet:127.0.0.1:8891\"")
    })
}

fn named(place: &str) -> Option<Listen> {
    let (host, port) = place.rsplit_once(':')?;
    // What is all digits and dots was meant as an address.
    let is_name = is_domain(host) && host.bytes().any(|byte| byte.is_ascii_alphabetic());
    is_name.then(|| Some(Listen::Named { host: host.to_owned(), port: port.parse().ok()? })).flatten()
}

/// `127.0.0.1:8025`, `[::1]:8025`, `localhost:8025`.
///
/// # Errors
/// A sentence for people.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let expected = || {
        format!(
            "`{text}` is not an IP address and a port: write \"127.0.0.1:8025\", \"[::1]:8025\" or \"localhost:8025\""
        )
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    match text.strip_prefix("localhost:") {
        Some(_) => text.to_socket_addrs().ok().and_then(|mut all| all.next()).ok_or_else(expected),
        None => Err(expected()),
    }
}

/// A domain name, or `*.` and one: lower case, ASCII.
///
/// # Errors
/// A sentence for people.
pub fn domain_pattern(text: &str) -> Result<String, String> {
    let (star, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
    let good = idna::domain_to_ascii(name.trim_end_matches('.')).ok().filter(|name| is_domain(name));
    good.map(|name| format!("{star}{name}"))
        .ok_or_else(|| format!("`{text}` is not a domain: write \"example.org\" or \"*.example.org\""))
}

/// `newsletter-12`, `newsletter-*`.
///
/// # Errors
/// A sentence for people.
pub fn campaign_pattern(text: &str) -> Result<String, String> {
    let begin = text.strip_suffix('*').unwrap_or(text);
    match begin.parse::<CampaignId>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "`{text}` is not a campaign ({}): write \"spring-sale\" or \"newsletter-*\"",
            error.why
        )),
    }
}

fn is_domain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_their_unit() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("90d").unwrap(), Duration::from_secs(90 * 86_400));
        assert_eq!(bytes("64MiB").unwrap(), 64 << 20);
        for bad in
            ["", "10", "s", "10 parsecs", "-1s", "1.5h", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "64", "64MB", "1TB", "99999999999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn milter_addresses_are_written_as_in_postfix() {
        assert_eq!(listen("unix:/run/m.sock").unwrap(), Listen::Unix("/run/m.sock".into()));
        assert_eq!(listen("inet:127.0.0.1:8891").unwrap(), Listen::Tcp(([127, 0, 0, 1], 8891).into()));
        let named = Listen::Named { host: "milter.internal.invalid".into(), port: 8893 };
        assert_eq!(
            listen("inet:milter.internal.invalid:8893").unwrap(),
            named,
            "whether it resolves is seen later"
        );
        for bad in [
            "/run/m.sock",
            "unix:",
            "inet:8891",
            "inet:8891@localhost",
            "inet:relay.test:x",
            "inet:relay.test:70000",
            "inet:300.0.0.1:8891",
            "inet::8891",
            "relay.test:8891",
        ] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sockets_mode_lets_its_owner_in() {
        for (text, mode) in [("0660", 0o660), ("666", 0o666), ("0777", 0o777), ("600", 0o600)] {
            assert_eq!(socket_mode(text).unwrap(), mode);
        }
        for bad in ["", "66", "6", "00660", "1660", "0668", "+660", "u=rw", "0066", "0460", "0260"] {
            assert!(socket_mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn domains_become_ascii() {
        assert_eq!(domain_pattern("Exämple.ORG.").unwrap(), "xn--exmple-cua.org");
        assert_eq!(domain_pattern("*.example.org").unwrap(), "*.example.org");
        for bad in ["", "a@b", "exa mple.org", "a..b", "*"] {
            assert!(domain_pattern(bad).is_err(), "{bad}");
        }
    }
}
