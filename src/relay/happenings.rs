//! What the relay tells its administrators: log line and counter together.
//!
//! - Layer: edge
//! - Takes: facts of the role.
//! - Gives: `tracing` events and metrics.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`.

use std::time::Duration;

use super::send::Outcome;
use super::validate::Repair;
use crate::event::{EventId, Kind};

/// Events were taken by GA4.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) kinds: Vec<Kind>,
    pub(super) took: Duration,
}

impl Sent {
    pub(super) fn emit(&self) {
        tracing::debug!(events = self.kinds.len(), "sent");
        for kind in &self.kinds {
            metrics::counter!("mailtap_relay_sent_total", "event" => kind.as_str()).increment(1);
        }
        metrics::counter!("mailtap_relay_requests_total", "outcome" => "sent").increment(1);
        metrics::histogram!("mailtap_relay_request_seconds").record(self.took.as_secs_f64());
    }
}

/// So many requests are under way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) requests: usize,
}

impl InFlight {
    pub(super) fn emit(&self) {
        metrics::gauge!("mailtap_relay_requests_in_flight").set(self.requests as f64);
    }
}

/// A request was not taken.
#[derive(Debug)]
pub(super) struct Failed<'a> {
    pub(super) ids: &'a [EventId],
    pub(super) outcome: &'a Outcome,
    /// It was told of another one that nothing gets through.
    pub(super) is_known: bool,
}

impl Failed<'_> {
    /// Which ones, so that each dead letter can be traced to the request that made it one.
    fn listed(&self) -> String {
        self.ids.iter().map(EventId::to_string).collect::<Vec<_>>().join(" ")
    }

    pub(super) fn emit(&self) {
        let events = self.ids.len();
        let word = match self.outcome {
            Outcome::Sent => "sent",
            Outcome::NotSent(why) => {
                if self.is_known {
                    tracing::debug!(events, why, "still no connection");
                } else {
                    tracing::warn!(events, why, "no connection; trying again");
                }
                "not_sent"
            }
            Outcome::NotTried => {
                tracing::debug!(events, "a request before these found no connection");
                "not_sent"
            }
            Outcome::Trouble(status) => {
                if self.is_known {
                    tracing::debug!(events, status, "the receiver is still in trouble");
                } else {
                    tracing::warn!(events, status, "the receiver is in trouble; trying again");
                }
                "trouble"
            }
            Outcome::Refused(status) => {
                tracing::error!(events, status, ids = self.listed(), "refused: to the dead letters");
                "refused"
            }
            Outcome::Uncertain(why) => {
                tracing::error!(events, why, ids = self.listed(), "nobody knows if these events arrived");
                metrics::counter!("mailtap_relay_uncertain_total").increment(events as u64);
                "uncertain"
            }
        };
        metrics::counter!("mailtap_relay_requests_total", "outcome" => word).increment(1);
    }
}

/// An event that can't be sent is among the dead letters. Refused ones were told of with their request.
#[derive(Debug)]
pub(super) struct Dead<'a> {
    pub(super) id: EventId,
    pub(super) reason: &'a str,
}

impl Dead<'_> {
    pub(super) fn emit(&self) {
        let reason = if self.reason.starts_with("HTTP ") {
            "refused"
        } else {
            tracing::error!(id = %self.id, reason = self.reason, "an event can't be sent: it is a dead letter now");
            self.reason
        };
        metrics::counter!("mailtap_relay_dead_total", "reason" => reason.to_owned()).increment(1);
    }
}

/// An event is tried again later; why is told with its request.
#[derive(Debug)]
pub(super) struct Retried;

impl Retried {
    pub(super) fn emit(&self) {
        metrics::counter!("mailtap_relay_retried_total").increment(1);
    }
}

/// An event was mended before it was sent.
#[derive(Debug)]
pub(super) struct Repaired {
    pub(super) repair: Repair,
}

impl Repaired {
    pub(super) fn emit(&self) {
        tracing::debug!(repair = self.repair.as_str(), "an event was mended");
        metrics::counter!("mailtap_relay_repaired_total", "rule" => self.repair.as_str()).increment(1);
    }
}

/// An event is of a type that the site does not want in GA4.
#[derive(Debug)]
pub(super) struct SwitchedOff {
    pub(super) kind: Kind,
}

impl SwitchedOff {
    pub(super) fn emit(&self) {
        tracing::debug!(kind = self.kind.as_str(), "switched off: not sent");
        metrics::counter!("mailtap_relay_switched_off_total", "event" => self.kind.as_str()).increment(1);
    }
}

/// Events waited in the relay for so long that they went back to the queue.
#[derive(Debug)]
pub(super) struct GivenBack {
    pub(super) events: usize,
}

impl GivenBack {
    pub(super) fn emit(&self) {
        tracing::debug!(events = self.events, "waited for long; back to the queue");
        metrics::counter!("mailtap_relay_given_back_total").increment(self.events as u64);
    }
}

/// Events that an hourly limit holds back went back to the queue, so that they take nobody's room.
#[derive(Debug)]
pub(super) struct PutOff {
    pub(super) events: usize,
}

impl PutOff {
    pub(super) fn emit(&self) {
        tracing::debug!(events = self.events, "above the hourly limit; back to the queue");
        metrics::counter!("mailtap_relay_put_off_total").increment(self.events as u64);
    }
}

/// Events were sent before.
#[derive(Debug)]
pub(super) struct Duplicates {
    pub(super) events: usize,
}

impl Duplicates {
    pub(super) fn emit(&self) {
        tracing::debug!(events = self.events, "sent before");
        metrics::counter!("mailtap_relay_duplicates_total").increment(self.events as u64);
    }
}

/// Nothing gets through to a property, or out of the queue; the relay pauses there.
#[derive(Debug)]
pub(super) struct Paused<'a> {
    /// The property's measurement id; `memory` or `queue`.
    pub(super) what: &'a str,
    pub(super) why: &'a str,
    pub(super) pause: Duration,
    /// It paused before, and nothing has got through since.
    pub(super) again: bool,
}

impl Paused<'_> {
    pub(super) fn emit(&self) {
        let (what, why) = (self.what, self.why);
        let pause_ms = u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX);
        if self.again {
            tracing::debug!(what, why, pause_ms, "still nothing gets through");
        } else {
            tracing::warn!(what, why, pause_ms, "nothing gets through; events wait");
        }
        metrics::gauge!("mailtap_relay_paused", "what" => what.to_owned()).set(1.0);
    }
}

/// It gets through again.
#[derive(Debug)]
pub(super) struct Resumed<'a> {
    pub(super) what: &'a str,
}

impl Resumed<'_> {
    pub(super) fn emit(&self) {
        tracing::info!(what = self.what, "requests get through again");
        metrics::gauge!("mailtap_relay_paused", "what" => self.what.to_owned()).set(0.0);
    }
}

/// The queue does not take what became of events, which would go to its dead letters or its retry queues: no events are taken
/// meanwhile.
#[derive(Debug)]
pub(super) struct Unsettled<'a> {
    pub(super) why: &'a str,
    /// Nobody was told of this reason in this outage.
    pub(super) is_news: bool,
}

impl Unsettled<'_> {
    pub(super) fn emit(&self) {
        let what = "what became of events can't be settled; no events are taken before it is; trying again each second";
        if self.is_news {
            tracing::error!(why = self.why, "{what}");
        } else {
            tracing::debug!(why = self.why, "{what}");
        }
        metrics::counter!("mailtap_relay_queue_troubles_total").increment(1);
    }
}

/// The queue has taken all that it refused.
#[derive(Debug)]
pub(super) struct SettlesAgain;

impl SettlesAgain {
    pub(super) fn emit(&self) {
        tracing::warn!("what became of events is settled again");
    }
}

/// A property has had its requests for now; the others wait. Told once until it has caught up.
#[derive(Debug)]
pub(super) struct Paced<'a> {
    /// The property's measurement id.
    pub(super) what: &'a str,
}

impl Paced<'_> {
    pub(super) fn emit(&self) {
        tracing::warn!(
            what = self.what,
            "relay.max_per_property_hour is reached; events wait for their turn"
        );
        metrics::gauge!("mailtap_relay_paced", "what" => self.what.to_owned()).set(1.0);
    }
}

/// Nothing waits for its turn any more.
#[derive(Debug)]
pub(super) struct CaughtUp<'a> {
    pub(super) what: &'a str,
}

impl CaughtUp<'_> {
    pub(super) fn emit(&self) {
        tracing::info!(
            what = self.what,
            "below relay.max_per_property_hour again; nothing waits for its turn"
        );
        metrics::gauge!("mailtap_relay_paced", "what" => self.what.to_owned()).set(0.0);
    }
}

/// Spool, broker or dedupe store is in trouble.
#[derive(Debug)]
pub(super) struct QueueTrouble<'a> {
    pub(super) why: &'a str,
    /// Nobody was told of this reason in this outage: many requests meet with it.
    pub(super) is_news: bool,
}

impl QueueTrouble<'_> {
    pub(super) fn emit(&self) {
        if self.is_news {
            tracing::warn!(why = self.why, "the queue is in trouble; trying again");
        } else {
            tracing::debug!(why = self.why, "the queue is still in trouble");
        }
        metrics::counter!("mailtap_relay_queue_troubles_total").increment(1);
    }
}
