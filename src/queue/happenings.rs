//! What happens in the spool and on the way through the broker, as log lines and metrics.
//!
//! - Layer: edge
//! - Takes: facts.
//! - Gives: one log line and one metric each.
//! - On failure: nothing can fail.

/// The connection to the broker is there.
#[derive(Debug)]
pub(super) struct BrokerReached;

impl BrokerReached {
    pub(super) fn emit(&self) {
        tracing::info!("connected to RabbitMQ");
        metrics::counter!("mailtap_queue_broker_connections_total").increment(1);
    }
}

/// The connection to the broker could not be made, or broke. Unsettled deliveries come again.
#[derive(Debug)]
pub(super) struct BrokerLost<'a> {
    pub(super) why: &'a str,
}

impl BrokerLost<'_> {
    pub(super) fn emit(&self) {
        tracing::warn!(why = self.why, "no connection to RabbitMQ, trying again");
        metrics::counter!("mailtap_queue_broker_failures_total").increment(1);
    }
}

/// A message in the work queue is no event of ours; it goes to the dead letters.
#[derive(Debug)]
pub(super) struct Malformed<'a> {
    pub(super) why: &'a str,
}

impl Malformed<'_> {
    pub(super) fn emit(&self) {
        tracing::error!(why = self.why, "a message is no event: it goes to the dead letters");
        metrics::counter!("mailtap_queue_malformed_total").increment(1);
    }
}

/// Nobody took events from the spool for longer than they may wait.
#[derive(Debug)]
pub(super) struct WaitedTooLong {
    pub(super) events: usize,
    /// They are gone; otherwise they are dead letters now.
    pub(super) lost: bool,
}

impl WaitedTooLong {
    pub(super) fn emit(&self) {
        let events = self.events;
        let fate = if self.lost {
            tracing::error!(
                events,
                "data loss: events waited in the spool for longer than spool.max_age, dropped"
            );
            "dropped"
        } else {
            tracing::error!(
                events,
                "events waited in the spool for longer than spool.max_age: to the dead letters"
            );
            "dead"
        };
        metrics::counter!("mailtap_spool_expired_total", "fate" => fate).increment(events as u64);
    }
}
