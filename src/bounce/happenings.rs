//! What happens to returned mail: each a type that writes the log line and the metric together.
//!
//! - Layer: edge
//! - Takes: facts without personal data: no address, nothing of the message's text.
//! - Gives: `tracing` events and metrics; counters with few labels.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`. The process ends after one message: where metrics matter, read them from its log.

use metrics::counter;

use crate::event::Event;
use crate::queue::PublishError;

/// The events of a report are stored.
pub(super) struct Stored<'a> {
    pub(super) events: &'a [Event],
}

impl Stored<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_bounce_messages_total", "kind" => "report").increment(1);
        for event in self.events {
            counter!("mailtap_bounce_events_total", "type" => event.kind.as_str()).increment(1);
            let class = event.data.class.map(crate::event::BounceClass::as_str);
            tracing::info!(kind = %event.kind, message_id = %event.message, class, dsn = event.data.dsn, "returned");
        }
    }
}

/// A message that gives no event.
pub(super) struct NotOurs {
    pub(super) kind: &'static str,
    pub(super) why: &'static str,
}

impl NotOurs {
    pub(super) fn emit(&self) {
        counter!("mailtap_bounce_messages_total", "kind" => self.kind).increment(1);
        tracing::info!(kind = self.kind, why = self.why, "no event");
    }
}

/// The events could not be stored; Postfix keeps the message and tries again.
pub(super) struct NotStored<'a> {
    pub(super) error: &'a PublishError,
    pub(super) events: usize,
}

impl NotStored<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_bounce_messages_total", "kind" => "not-stored").increment(1);
        tracing::warn!(error = %self.error, events = self.events, "can't store; Postfix will try again");
    }
}
