//! What happens in the spool and on the way through the broker, as log lines and metrics.
//!
//! - Layer: edge
//! - Takes: facts.
//! - Gives: a log line and a metric each, where they need one.
//! - On failure: nothing can fail.

use std::time::Duration;

use super::PublishError;
use super::amqp::AmqpError;

/// The connection to the broker is there.
#[derive(Debug)]
pub(super) struct BrokerReached<'a> {
    /// Host and port.
    pub(super) broker: &'a str,
}

impl BrokerReached<'_> {
    pub(super) fn emit(&self) {
        tracing::info!(broker = self.broker, "connected to RabbitMQ");
        metrics::counter!("mailtap_queue_broker_connections_total").increment(1);
    }
}

/// The connection to the broker could not be made, or broke. Unsettled deliveries come again.
#[derive(Debug)]
pub(super) struct BrokerLost<'a> {
    pub(super) error: &'a AmqpError,
    /// Nobody was told of this reason in this outage.
    pub(super) is_news: bool,
}

impl BrokerLost<'_> {
    pub(super) fn emit(&self) {
        let (why, what) = (self.error, self.error.headline());
        if self.is_news {
            tracing::warn!(%why, "{what}; trying again until it works");
        } else {
            tracing::debug!(%why, "{what}; trying again");
        }
        metrics::counter!("mailtap_queue_broker_failures_total").increment(1);
    }
}

/// A message found no exchange or no queue: the topology was declared again.
#[derive(Debug)]
pub(super) struct DeclaredAgain<'a> {
    /// Why that failed.
    pub(super) error: Option<&'a AmqpError>,
}

impl DeclaredAgain<'_> {
    pub(super) fn emit(&self) {
        match self.error {
            None => tracing::warn!("exchanges, queues or bindings were missing in RabbitMQ: declared again"),
            Some(why) => {
                tracing::debug!(%why, "exchanges, queues or bindings are missing in RabbitMQ, and can't be declared")
            }
        }
        metrics::counter!("mailtap_queue_declared_again_total").increment(1);
    }
}

/// A work queue was deleted under the relay that consumes it.
#[derive(Debug)]
pub(super) struct QueueDeleted<'a> {
    pub(super) queue: &'a str,
}

impl QueueDeleted<'_> {
    pub(super) fn emit(&self) {
        tracing::error!(
            queue = self.queue,
            "a work queue was deleted in RabbitMQ: the events in it are lost"
        );
        metrics::counter!("mailtap_queue_deleted_total").increment(1);
    }
}

/// A copy for those who watch was dropped: they are faster asked for than written.
#[derive(Debug)]
pub(super) struct CopyDropped;

impl CopyDropped {
    pub(super) fn emit(&self) {
        metrics::counter!("mailtap_queue_copies_dropped_total").increment(1);
    }
}

/// There is no way for copies; only those who watch miss them.
#[derive(Debug)]
pub(super) struct CopiesDenied<'a> {
    pub(super) why: &'a AmqpError,
}

impl CopiesDenied<'_> {
    pub(super) fn emit(&self) {
        tracing::debug!(why = %self.why, "no copies of events for those who watch; trying again");
        metrics::counter!("mailtap_queue_copies_denied_total").increment(1);
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

/// Such a message is among the dead letters.
#[derive(Debug)]
pub(super) struct Buried;

impl Buried {
    pub(super) fn emit(&self) {
        metrics::counter!("mailtap_relay_dead_total", "reason" => "malformed").increment(1);
    }
}

/// So many dead letters are in RabbitMQ: those of this relay, and of the broker itself, which tells of none.
#[derive(Debug)]
pub(super) struct DeadLettersThere {
    pub(super) count: u32,
}

impl DeadLettersThere {
    pub(super) fn emit(&self) {
        metrics::gauge!("mailtap_relay_dead_letters").set(f64::from(self.count));
    }
}

/// How a work queue stands.
#[derive(Debug)]
pub(super) struct WorkQueue<'a> {
    pub(super) queue: &'a str,
    pub(super) ready: u32,
    pub(super) consumers: u32,
}

impl WorkQueue<'_> {
    pub(super) fn emit(&self) {
        let queue = || self.queue.to_owned();
        metrics::gauge!("mailtap_queue_messages_ready", "queue" => queue()).set(f64::from(self.ready));
        metrics::gauge!("mailtap_queue_consumers", "queue" => queue()).set(f64::from(self.consumers));
    }
}

/// Messages wait in a work queue, and for some minutes no relay has consumed it.
#[derive(Debug)]
pub(super) struct NobodyTakes<'a> {
    pub(super) queue: &'a str,
    pub(super) ready: u32,
}

impl NobodyTakes<'_> {
    pub(super) fn emit(&self) {
        tracing::warn!(
            queue = self.queue,
            messages = self.ready,
            "no relay takes the events of a work queue: is it down, or the queue in nobody's relay.queues?"
        );
        metrics::counter!("mailtap_queue_untaken_total").increment(1);
    }
}

/// A work queue that only a layout with another number of them has still holds messages.
#[derive(Debug)]
pub(super) struct LeftOver<'a> {
    pub(super) queue: &'a str,
    pub(super) count: u32,
}

impl LeftOver<'_> {
    pub(super) fn emit(&self) {
        tracing::warn!(
            queue = self.queue,
            messages = self.count,
            "a work queue of another amqp.partitions holds events, and no relay takes them: drain it with the setting of before"
        );
        metrics::counter!("mailtap_queue_left_over_total").increment(1);
    }
}

/// Messages that are no events can't be brought to the dead letters: they take room of the prefetch meanwhile.
#[derive(Debug)]
pub(super) struct Unburied<'a> {
    pub(super) why: &'a str,
    /// Nobody was told of this reason yet.
    pub(super) is_news: bool,
}

impl Unburied<'_> {
    pub(super) fn emit(&self) {
        let what = "a message that is no event can't go to the dead letters; it is held here, trying again";
        if self.is_news {
            tracing::error!(why = self.why, "{what}");
        } else {
            tracing::debug!(why = self.why, "{what}");
        }
    }
}

/// The spool took no events. Who wanted to publish them tries again, and is counted here each time, or does without: what is lost
/// is counted there.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    pub(super) events: usize,
    pub(super) error: &'a PublishError,
    /// Whether it took them until now.
    pub(super) begins: bool,
}

impl Refused<'_> {
    pub(super) fn emit(&self) {
        let why = match self.error {
            PublishError::Full => "full",
            PublishError::Storage(_) => "storage",
            PublishError::Closed => "closed",
        };
        if self.begins {
            tracing::error!(
                why = %self.error,
                "the spool refuses events: mail and links go on, but what can't wait for it is lost"
            );
        }
        metrics::counter!("mailtap_spool_refused_tries_total", "why" => why).increment(self.events as u64);
    }
}

/// After refusals, the spool takes events again.
#[derive(Debug)]
pub(super) struct TakesAgain {
    pub(super) refused: u64,
}

impl TakesAgain {
    pub(super) fn emit(&self) {
        tracing::warn!(tries = self.refused, "the spool takes events again");
    }
}

/// Events were stored too late for who published them, and are taken out again.
#[derive(Debug)]
pub(super) struct TakenBack {
    pub(super) events: usize,
}

impl TakenBack {
    pub(super) fn emit(&self) {
        tracing::warn!(events = self.events, "stored too late: events are taken out of the spool again");
        metrics::counter!("mailtap_spool_taken_back_total").increment(self.events as u64);
    }
}

/// A file in which events come in can't be read; other files are.
#[derive(Debug)]
pub(super) struct InboxUnreadable<'a> {
    pub(super) file: &'a str,
    pub(super) error: &'a std::io::Error,
}

impl InboxUnreadable<'_> {
    pub(super) fn emit(&self) {
        let (file, error) = (self.file, self.error);
        tracing::error!(file, %error, "a file of the spool can't be read: its events wait");
        metrics::counter!("mailtap_spool_inbox_unreadable_total").increment(1);
    }
}

/// A file in which events come in has bytes that are no event: it was cut by a kill or a power cut, or the disk damaged it.
#[derive(Debug)]
pub(super) struct InboxDamaged<'a> {
    pub(super) file: &'a str,
    pub(super) bytes: u64,
}

impl InboxDamaged<'_> {
    pub(super) fn emit(&self) {
        let (file, bytes) = (self.file, self.bytes);
        tracing::warn!(
            file,
            bytes,
            "a file of the spool has bytes that are no event, as after a kill: skipped"
        );
        metrics::counter!("mailtap_spool_inbox_damaged_bytes_total").increment(bytes);
    }
}

/// How full the spool is, looked at every minute.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Events that wait for their time: held, or to be tried again.
    pub(super) not_due: u64,
    /// For how long the first event that is due has waited since.
    pub(super) lag: Duration,
}

impl Filled {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(super) fn emit(&self) {
        metrics::gauge!("mailtap_spool_events").set(self.rows as f64);
        metrics::gauge!("mailtap_spool_bytes").set(self.bytes as f64);
        metrics::gauge!("mailtap_spool_events_not_due").set(self.not_due as f64);
        metrics::gauge!("mailtap_spool_lag_seconds").set(self.lag.as_secs_f64());
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

/// Nobody took news in time.
#[derive(Debug)]
pub(super) struct NewsMissed {
    /// Of which events.
    pub(super) about: &'static str,
}

impl NewsMissed {
    pub(super) fn emit(&self) {
        metrics::counter!("mailtap_queue_news_missed_total", "about" => self.about).increment(1);
    }
}
