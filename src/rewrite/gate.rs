//! What the header of a message decides: signatures, mail by machines, addresses to unsubscribe.
//!
//! - Layer: decision
//! - Takes: the header block and the plan.
//! - Gives: go on or not; what the headers opt out of; the List-Unsubscribe targets.
//! - On failure: a `Reason` that leaves the message as it came.
//! - Limits: linear in the header block.
//! - See: RFC 6376, RFC 8617, RFC 3834 section 5, RFC 2369, RFC 8058

#![warn(clippy::indexing_slicing)]

use std::collections::HashSet;

use super::header::{Block, MimeValue, slice};
use super::optout::{self, MessageOptOut};
use super::plan::Plan;
use super::reason::Reason;

/// What the header says about tracking.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) opt_out: MessageOptOut,
    /// URLs of List-Unsubscribe.
    pub(super) unsubscribe: HashSet<String>,
}

/// Asks the header.
pub(super) fn ask(message: &[u8], block: &Block, plan: &Plan) -> Result<Gate, Reason> {
    let has = |name: &[u8]| block.all(message, name).next().is_some();
    if !plan.rewrite_dkim_signed
        && (has(b"dkim-signature") || has(b"arc-message-signature") || has(b"domainkey-signature"))
    {
        return Err(Reason::DkimSigned);
    }
    let automatic = |raw| MimeValue::read(raw).is_none_or(|value| !matches!(value.main.as_str(), "" | "no"));
    if !plan.rewrite_auto_replies && block.all(message, b"auto-submitted").any(automatic) {
        return Err(Reason::AutoReply);
    }
    let fields: Vec<_> = block
        .fields
        .iter()
        .map(|field| (slice(message, &field.name), slice(message, &field.value)))
        .collect();
    let mut unsubscribe = HashSet::new();
    for value in block.all(message, b"list-unsubscribe") {
        let value = String::from_utf8_lossy(value);
        for uri in value.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
            unsubscribe.insert(uri.chars().filter(|c| !c.is_whitespace()).collect());
        }
    }
    Ok(Gate { opt_out: optout::message(&fields), unsubscribe })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn ask_of(header: &str) -> Result<Gate, Reason> {
        let block = Block::read(header.as_bytes(), 0..header.len(), true).unwrap();
        ask(header.as_bytes(), &block, &Plan::default())
    }

    #[test]
    fn signatures_and_machines() {
        assert_eq!(ask_of("DKIM-Signature: v=1\n").unwrap_err(), Reason::DkimSigned);
        assert_eq!(ask_of("Auto-Submitted: auto-replied (vacation)\n").unwrap_err(), Reason::AutoReply);
        assert!(ask_of("Auto-Submitted: No\nPrecedence: bulk\n").is_ok());
    }

    #[test]
    fn unsubscribe_targets() {
        let gate = ask_of("List-Unsubscribe: <mailto:u@e.com>,\n <https://e.com/u?\n id=1>\n").unwrap();
        let expected = ["mailto:u@e.com", "https://e.com/u?id=1"].map(str::to_owned);
        assert_eq!(gate.unsubscribe, HashSet::from(expected));
    }
}
