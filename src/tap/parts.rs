//! What the correlator is made of, and what it counts.
//!
//! - Layer: decision
//! - Takes: keys, rules and limits of the configuration.
//! - Gives: `Parts` and `Counts`.
//! - On failure: nothing can fail.

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::delivery::{Classifier, Providers, Replies};
use crate::identity::{MessageId, PseudonymKey};

/// Verifies the value of `X-Mailtap-Ref`.
pub type VerifyRef = Arc<dyn Fn(&str) -> Option<MessageId> + Send + Sync>;

/// What the correlator is made of.
pub struct Parts {
    /// Where the tap runs: part of every event's source.
    pub host: String,
    /// Hashes recipients.
    pub pseudonyms: PseudonymKey,
    /// Verifies references.
    pub verify_ref: VerifyRef,
    /// Classes of failures.
    pub classifier: Classifier,
    /// Words for relays.
    pub providers: Providers,
    /// Whether events hold replies.
    pub replies: Replies,
    /// The zone of the log, where its lines don't say.
    pub zone: TimeZone,
    /// How many messages are remembered at the most.
    pub max_tracked: usize,
    /// Relays of our own, by name or address: what they took is not delivered yet.
    pub own_relays: Vec<String>,
    /// Addresses that get copies of all mail (`always_bcc`): their attempts are no events.
    pub copy_recipients: Vec<String>,
    /// Units of Postfix: what journald dropped of others is no loss. None: of any.
    pub units: Vec<String>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("host", &self.host)
            .field("max_tracked", &self.max_tracked)
            .finish_non_exhaustive()
    }
}

/// What was seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Lines of Postfix.
    pub lines: u64,
    /// Lines of instances that are not followed.
    pub other_instances: u64,
    /// Of `lines`, those of a shape that is not known.
    pub unknown: u64,
    /// References that were verified.
    pub refs: u64,
    /// References that were not: another site's, or a key that is not in the keyring.
    pub unverified_refs: u64,
    /// Attempts of messages without a logged reference: mail that is not tracked, or a setting that is missing.
    pub attempts_without_ref: u64,
    /// Events.
    pub events: u64,
    /// Address probes and traces.
    pub probes: u64,
    /// Attempts by discard(8).
    pub discarded: u64,
    /// Attempts that handed the message to another queue of our own.
    pub handed_on: u64,
    /// Deliveries that were counted, though another queue of our own had taken the message: its log came later.
    pub counted_early: u64,
    /// Attempts for recipients of copies.
    pub copies: u64,
    /// Messages that were forgotten before their end, over the limit.
    pub evicted: u64,
    /// Lines that the logger says it left out.
    pub lost_lines: u64,
    /// Refused before there was a queue id, by smtpd(8).
    pub refused_by_smtpd: u64,
    /// The same, by postscreen(8).
    pub refused_by_postscreen: u64,
    /// Refused or discarded by a milter, at any stage.
    pub refused_by_milter: u64,
    /// Refused or discarded for its content, by cleanup(8).
    pub refused_for_content: u64,
}
