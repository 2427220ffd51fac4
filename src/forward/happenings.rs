//! What happens to the forwarder, as log lines and metrics.
//!
//! - Layer: edge
//! - Takes: facts.
//! - Gives: one log line and one metric each.
//! - On failure: nothing can fail.

use crate::queue::StoreError;
use crate::queue::amqp::AmqpError;

/// The broker is there.
#[derive(Debug)]
pub(super) struct Connected<'a> {
    /// Host and port.
    pub(super) broker: &'a str,
}

impl Connected<'_> {
    pub(super) fn emit(&self) {
        tracing::info!(broker = self.broker, "connected to RabbitMQ");
        metrics::counter!("mailtap_forward_connections_total").increment(1);
    }
}

/// The broker is away; events wait in the spool.
#[derive(Debug)]
pub(super) struct Lost<'a> {
    pub(super) error: &'a AmqpError,
    /// Nobody was told of this reason in this outage.
    pub(super) is_news: bool,
}

impl Lost<'_> {
    pub(super) fn emit(&self) {
        let (why, what) = (self.error, self.error.headline());
        if self.is_news {
            tracing::warn!(%why, "{what}; events wait in the spool");
        } else {
            tracing::debug!(%why, "{what}; trying again");
        }
        metrics::counter!("mailtap_forward_failures_total", "what" => "broker").increment(1);
    }
}

/// The spool can't be read or written.
#[derive(Debug)]
pub(super) struct SpoolTrouble<'a> {
    pub(super) error: &'a StoreError,
}

impl SpoolTrouble<'_> {
    pub(super) fn emit(&self) {
        tracing::error!(error = %self.error, "the spool can't be used");
        metrics::counter!("mailtap_forward_failures_total", "what" => "spool").increment(1);
    }
}

/// The broker confirmed events, and they left the spool.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) count: usize,
}

impl Forwarded {
    pub(super) fn emit(&self) {
        tracing::trace!(count = self.count, "forwarded");
        metrics::counter!("mailtap_forward_events_total").increment(self.count as u64);
    }
}

/// The broker gave an event back, which stays in the spool. Told when it begins; each is counted, each try of it.
#[derive(Debug)]
pub(super) struct NotTaken<'a> {
    /// `unroutable`, `nack` or `denied`.
    pub(super) kind: &'static str,
    pub(super) why: &'a str,
    pub(super) begins: bool,
}

impl NotTaken<'_> {
    pub(super) fn emit(&self) {
        if self.begins {
            tracing::error!(why = self.why, "events stay in the spool: RabbitMQ does not take them");
        }
        metrics::counter!("mailtap_forward_refused_total", "why" => self.kind).increment(1);
    }
}

/// No event comes back any more.
#[derive(Debug)]
pub(super) struct TakesAgain {
    pub(super) times: u64,
}

impl TakesAgain {
    pub(super) fn emit(&self) {
        tracing::warn!(times = self.times, "RabbitMQ gives no events back any more");
    }
}

/// The broker takes no messages for now.
#[derive(Debug)]
pub(super) struct Blocked;

impl Blocked {
    pub(super) fn emit(&self) {
        tracing::warn!("RabbitMQ takes no messages: it is short of memory or disk");
        metrics::counter!("mailtap_forward_blocked_total").increment(1);
    }
}

/// The broker takes messages again.
#[derive(Debug)]
pub(super) struct Unblocked;

impl Unblocked {
    pub(super) fn emit(&self) {
        tracing::info!("RabbitMQ takes messages again");
        metrics::counter!("mailtap_forward_unblocked_total").increment(1);
    }
}
