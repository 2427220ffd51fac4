//! Checks `[[policy.rules]]`.
//!
//! - Layer: edge
//! - Takes: the tables as written.
//! - Gives: the same with domains in ASCII and lower case.
//! - On failure: problems, for domains that are none and rules that fit everything or change nothing.

use super::Checker;
use crate::config::raw::{Raw, TrackingRule};

pub(super) fn rules(at: &mut Checker<'_>, raw: &Raw) -> Vec<TrackingRule> {
    let mut rules = Vec::with_capacity(raw.policy.rules.len());
    for (number, rule) in raw.policy.rules.iter().enumerate() {
        let key = format!("policy.rules[{number}]");
        if rule.sender_domains.is_empty() && rule.recipient_domains.is_empty() {
            at.note(
                &key,
                "fits all mail: name sender_domains or recipient_domains, or use policy.clicks and opens",
            );
        }
        if rule.clicks.is_none() && rule.opens.is_none() {
            at.note(&key, "changes nothing: set clicks, opens or both");
        }
        rules.push(TrackingRule {
            sender_domains: at.domains(&format!("{key}.sender_domains"), &rule.sender_domains),
            recipient_domains: at.domains(&format!("{key}.recipient_domains"), &rule.recipient_domains),
            ..*rule
        });
    }
    rules
}
