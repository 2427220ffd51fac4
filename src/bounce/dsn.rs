//! Delivery status notifications: what the machine-readable part says.
//!
//! - Layer: decision
//! - Takes: the content of a `message/delivery-status` (or `message/global-delivery-status`) part.
//! - Gives: `Status`: who reports, and what happened to each recipient.
//! - On failure: a recipient without an action, or with one that is not known, is left out.
//! - Limits: `MAX_RECIPIENTS`; what follows is left out.
//! - See: RFC 3464, RFC 6533; Postfix writes `Original-Recipient: rfc822;` without a blank, and may escape bytes.

#![warn(clippy::indexing_slicing)]

use memchr::memchr;

use super::fields::{Field, groups, value};
use crate::delivery::{EnhancedCode, enhanced_code};

/// More recipients than any transaction has.
const MAX_RECIPIENTS: usize = 10_000;

/// What a report says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Who reports, in lower case.
    pub reporting_mta: Option<String>,
    /// What the sender named the message by (`ENVID`).
    pub envelope_id: Option<Vec<u8>>,
    /// Whether a Postfix wrote it.
    pub is_postfix: bool,
    /// Recipient by recipient.
    pub recipients: Vec<Recipient>,
}

/// What happened to a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The address that the sender wrote, or else the one that was tried.
    pub address: Vec<u8>,
    /// What happened.
    pub action: Action,
    /// The enhanced status code.
    pub status: Option<EnhancedCode>,
    /// The server that refused.
    pub remote_mta: Vec<u8>,
    /// What it said. May hold addresses: for deciding only.
    pub diagnostic: Vec<u8>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It failed for good.
    Failed,
    /// It is tried again.
    Delayed,
    /// It was delivered, relayed to a system without DSN, or expanded: the log says that better.
    Delivered,
}

impl Action {
    /// The word in event ids.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Delivered => "delivered",
        }
    }

    fn parse(value: &[u8]) -> Option<Self> {
        // Some write `failed (bounced)`.
        let end = value.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(value.len());
        let word = value.get(..end)?.to_ascii_lowercase();
        Some(match word.as_slice() {
            b"failed" | b"failure" => Self::Failed,
            b"delayed" => Self::Delayed,
            b"delivered" | b"relayed" | b"expanded" => Self::Delivered,
            _ => return None,
        })
    }
}

impl Status {
    /// What the part says.
    #[must_use]
    pub fn parse(part: &[u8]) -> Self {
        let mut status = Self::default();
        for group in groups(part) {
            if let Some(mta) = value(&group, "Reporting-MTA") {
                let name = String::from_utf8_lossy(after_type(mta)).to_ascii_lowercase();
                status.reporting_mta = Some(name.trim_end_matches('.').to_owned());
            }
            if let Some(id) = value(&group, "Original-Envelope-Id") {
                status.envelope_id = Some(id.to_vec());
            }
            status.is_postfix |= value(&group, "X-Postfix-Queue-ID").is_some();
            // Some leave out the blank line: each Final-Recipient begins a recipient of its own.
            let mut starts: Vec<usize> = positions(&group, "Final-Recipient");
            if starts.len() <= 1 {
                starts = vec![0];
            }
            for (index, start) in starts.iter().enumerate() {
                let end = starts.get(index + 1).copied().unwrap_or(group.len());
                let fields = group.get(*start..end).unwrap_or_default();
                if status.recipients.len() < MAX_RECIPIENTS {
                    status.recipients.extend(recipient(fields));
                }
            }
        }
        status
    }
}

fn positions(group: &[Field], name: &str) -> Vec<usize> {
    group.iter().enumerate().filter(|(_, field)| field.is(name)).map(|(index, _)| index).collect()
}

fn recipient(fields: &[Field]) -> Option<Recipient> {
    let address =
        |name| value(fields, name).map(after_type).filter(|address| memchr(b'@', address).is_some());
    let diagnostic = value(fields, "Diagnostic-Code").map(after_type).unwrap_or_default();
    let status = value(fields, "Status").and_then(EnhancedCode::parse);
    Some(Recipient {
        address: address("Original-Recipient").or_else(|| address("Final-Recipient"))?.to_vec(),
        action: Action::parse(value(fields, "Action")?)?,
        status: status.or_else(|| enhanced_code(diagnostic)),
        remote_mta: value(fields, "Remote-MTA").map(after_type).unwrap_or_default().to_vec(),
        diagnostic: diagnostic.to_vec(),
    })
}

/// What follows `rfc822;`, `dns;`, `smtp;`; the whole where there is no such type.
fn after_type(value: &[u8]) -> &[u8] {
    let Some((kind, rest)) = memchr(b';', value).and_then(|at| value.split_at_checked(at)) else {
        return value;
    };
    let is_type = kind.trim_ascii().iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    if is_type { rest.get(1..).unwrap_or_default().trim_ascii() } else { value }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn groups_may_run_together() {
        let status = Status::parse(
            b"Reporting-MTA: dns; MX.example.net.\r\n\r\nFinal-Recipient: rfc822; a@x.example\r\nAction: Failed\r\n\
              Status: 5.1.1 (bad)\r\nFinal-Recipient: rfc822; b@x.example\r\nAction: delayed (3 hours)\r\n",
        );
        assert_eq!(status.reporting_mta.as_deref(), Some("mx.example.net"));
        let seen: Vec<_> = status.recipients.iter().map(|r| (r.address.as_slice(), r.action)).collect();
        assert_eq!(seen, [(&b"a@x.example"[..], Action::Failed), (b"b@x.example", Action::Delayed)]);
    }

    #[test]
    fn what_lacks_is_found_elsewhere() {
        let status = Status::parse(
            b"Original-Recipient: unknown\nFinal-Recipient: a@x.example\nAction: failed\n\
              Diagnostic-Code: smtp; 550-5.2.1 <a>: gone; sorry\n\nFinal-Recipient: rfc822;b@x\n\nAction: failed\n",
        );
        let [only] = status.recipients.as_slice() else { panic!("{status:?}") };
        assert_eq!(
            (only.address.as_slice(), only.status),
            (&b"a@x.example"[..], EnhancedCode::parse(b"5.2.1"))
        );
        assert_eq!(only.diagnostic, b"550-5.2.1 <a>: gone; sorry");
    }
}
