//! Small readings: the parts of a delivery line that need a second look.
//!
//! - Layer: decision
//! - Takes: parts of a line.
//! - Gives: values that are safe in an event.
//! - On failure: `None`, or `false`, for what is not as Postfix writes it.

#![warn(clippy::indexing_slicing)]

use std::time::Duration;

use memchr::memmem;

use super::queue_id::QueueId;
use crate::identity::{MessageId, Timestamp};

/// Log lines have whole seconds: an event must not come before its message for that.
const SECOND: Duration = Duration::from_secs(2);

/// A moment that only seems to lie before the message, because the log has whole seconds, is the message's.
pub(super) fn not_before(time: Timestamp, id: MessageId) -> Timestamp {
    if time < id.time() && id.time().since(time) <= SECOND { id.time() } else { time }
}

/// The queue id in `250 2.0.0 Ok: queued as X`, if it looks like Postfix's.
pub(super) fn queued_as(text: &[u8]) -> Option<QueueId> {
    leading_id(text.get(memmem::rfind(text, b"queued as ")? + 10..)?)
}

/// The queue id in `forwarded as X`, which local(8) says of aliases and `.forward` files.
pub(super) fn forwarded_as(text: &[u8]) -> Option<QueueId> {
    leading_id(text.strip_prefix(b"forwarded as ")?)
}

fn leading_id(text: &[u8]) -> Option<QueueId> {
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(text.len());
    QueueId::parse(text.get(..end)?)
}

/// Whether a relay, `host[address]:port`, has this name or address, alone or with its port.
pub(super) fn is_relay(relay: &[u8], own: &str) -> bool {
    let end = relay.iter().position(|byte| *byte == b'[').unwrap_or(relay.len());
    let (host, rest) = relay.split_at(end);
    let mut parts = rest.strip_prefix(b"[").unwrap_or_default().splitn(2, |byte| *byte == b']');
    let (address, port) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let is = |own: &[u8]| !own.is_empty() && (host.eq_ignore_ascii_case(own) || address == own);
    let own = own.as_bytes();
    is(own) || port.starts_with(b":") && own.strip_suffix(port).is_some_and(is)
}

/// Postfix's word for TLS, if it is one.
pub(super) fn tls_word(word: &[u8]) -> Option<String> {
    let word = std::str::from_utf8(word).ok()?;
    let is_word = word.len() <= 40
        && word.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'/' | b'!' | b'?' | b'-' | b'.')
        });
    (is_word && !word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_have_names_addresses_and_ports() {
        let relay = b"Gate.example.org[192.0.2.9]:10025";
        for own in ["gate.example.org", "192.0.2.9", "192.0.2.9:10025", "GATE.example.org:10025"] {
            assert!(is_relay(relay, own), "{own}");
        }
        for own in ["", ":10025", "10025", "192.0.2.9:25", "192.0.2.9:", "192.0.2", "example.org:10025"] {
            assert!(!is_relay(relay, own), "{own}");
        }
        assert!(is_relay(b"localhost[::1]:25", "::1:25") && is_relay(b"localhost[::1]:25", "::1"));
        assert!(is_relay(b"gate", "gate") && !is_relay(b"none", "gate") && !is_relay(b"", ""));
    }
}
