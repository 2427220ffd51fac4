//! Complaints in the abuse reporting format.
//!
//! - Layer: decision
//! - Takes: the content of a `message/feedback-report` part; or the headers of what Microsoft sends instead.
//! - Gives: `Complaint`.
//! - On failure: `None` for feedback that is no complaint.
//! - See: RFC 5965, RFC 6591 (reports on authentication are no complaints); Microsoft's Junk Mail Reporting Program.

#![warn(clippy::indexing_slicing)]

use memchr::memchr;

use super::fields::{Field, groups, value};

/// Somebody called the message spam.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Who, where the provider tells; many leave it out.
    pub recipient: Option<Vec<u8>>,
}

impl Complaint {
    /// The complaint that the part is.
    #[must_use]
    pub fn parse(part: &[u8]) -> Option<Self> {
        let fields: Vec<_> = groups(part).into_iter().flatten().collect();
        let kind = value(&fields, "Feedback-Type")?.to_ascii_lowercase();
        if !matches!(kind.as_slice(), b"abuse" | b"fraud" | b"virus" | b"other") {
            return None;
        }
        let recipient = ["Original-Rcpt-To", "Removal-Recipient"]
            .iter()
            .find_map(|name| value(&fields, name))
            .map(|address| address.strip_prefix(b"rfc822;").unwrap_or(address).trim_ascii())
            .filter(|address| memchr(b'@', address).is_some() && !is_redacted(address));
        Some(Self { recipient: recipient.map(<[u8]>::to_vec) })
    }

    /// The complaint that Microsoft's programme sends: the message itself, with a header for who complains.
    pub(super) fn of_microsoft(top: &[Field], returned: &[Field]) -> Option<Self> {
        let from = value(top, "From")?.to_ascii_lowercase();
        memchr::memmem::find(&from, b"staff@hotmail.com")?;
        let recipient = value(returned, "X-HmXmrOriginalRecipient")?;
        let recipient = (memchr(b'@', recipient).is_some() && !is_redacted(recipient)).then_some(recipient);
        Some(Self { recipient: recipient.map(<[u8]>::to_vec) })
    }
}

/// `redacted@…`, `[redacted]@…`, `xxx@…`: no address that we know.
fn is_redacted(address: &[u8]) -> bool {
    let local = address.split(|byte| *byte == b'@').next().unwrap_or_default();
    let local: Vec<u8> =
        local.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
    local.is_empty() || local == b"redacted" || local.iter().all(|byte| *byte == b'x')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_and_other_feedback() {
        let recipient = |text: &str| Complaint::parse(text.as_bytes()).map(|complaint| complaint.recipient);
        assert_eq!(
            recipient("Feedback-Type: abuse\n\nOriginal-Rcpt-To: <a@x>\n"),
            Some(Some(b"<a@x>".to_vec()))
        );
        assert_eq!(recipient("feedback-type: Abuse\r\nVersion: 1\r\n"), Some(None));
        for redacted in ["redacted@x", "[REDACTED]@x", "xxxxxx@x", "redacted", "@x"] {
            assert_eq!(
                recipient(&format!("Feedback-Type: abuse\nOriginal-Rcpt-To: {redacted}\n")),
                Some(None)
            );
        }
        for other in
            ["", "Feedback-Type: not-spam\n", "Feedback-Type: opt-out\n", "Feedback-Type: auth-failure\n"]
        {
            assert_eq!(recipient(other), None, "{other}");
        }
    }
}
