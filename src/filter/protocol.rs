//! What the milter role tells of the wire: connections, time limits, messages that the handler did not get or answer.
//!
//! - Layer: edge
//! - Takes: happenings of the driver.
//! - Gives: `tracing` events and metrics.
//! - On failure: nothing can fail.
//! - Limits: what can happen at every connection of a crowd has one line a minute, and is counted each time.
//! - See: `docs/operations.md`, `docs/postfix.md`.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mailtap_milter::driver::{End, Failure, Happening, Which};
use mailtap_milter::session::Stage;

use super::agreement::Agreement;
use super::happenings::MessageDone;
use crate::service::open_files;

/// Between two lines on the same crowd.
const SELDOM: Duration = Duration::from_secs(60);

/// Who tells of the wire.
#[derive(Debug)]
pub(super) struct Wire {
    /// What Postfix does with a message that gets no answer.
    agreement: Arc<Agreement>,
    waits: Seldom,
    crowd: Seldom,
}

/// Lets one of many through, now and then.
#[derive(Debug, Default)]
struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    fn lets(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.duration_since(last) >= SELDOM);
        if due {
            *last = Some(now);
        }
        due
    }
}

impl Wire {
    pub(super) const fn new(agreement: Arc<Agreement>) -> Self {
        Self { agreement, waits: Seldom(Mutex::new(None)), crowd: Seldom(Mutex::new(None)) }
    }

    pub(super) fn emit(&self, happening: &Happening<'_>) {
        match happening {
            Happening::Opened => metrics::gauge!("mailtap_milter_connections").increment(1.0),
            Happening::Closed { end, cut_off, .. } => self.closed(end, cut_off.as_ref()),
            Happening::AcceptFailed(error) => {
                let remedy = open_files::remedy(error);
                tracing::warn!(%error, remedy, "can't accept a connection; going on");
                metrics::counter!("mailtap_milter_accept_failures_total").increment(1);
            }
            Happening::TooManyConnections => {
                if self.crowd.lets(Instant::now()) {
                    tracing::warn!(
                        "more connections than milter.max_connections: mail of those beyond passes as it came; this is said \
                         once a minute at most"
                    );
                }
                metrics::counter!("mailtap_milter_connections_over_limit_total").increment(1);
            }
            Happening::ConnectionWaits => {
                metrics::counter!("mailtap_milter_connections_waiting_total").increment(1);
                if self.waits.lets(Instant::now()) {
                    tracing::warn!(
                        "more than five times milter.max_connections: Postfix waits for an answer until others end; this is \
                         said once a minute at most"
                    );
                }
            }
            Happening::MemoryHeld { before, now } => memory_held(*before, *now),
            Happening::CannotNegotiate(error) => {
                tracing::error!(%error, "Postfix does not offer what rewriting needs: its mail passes as it came");
                metrics::counter!("mailtap_milter_negotiation_failures_total").increment(1);
            }
            Happening::LetThrough { which, why } => failed(which, why.as_str()),
            Happening::CannotEdit { which, why } => {
                // The message's own line counts it.
                tracing::warn!(queue_id = %queue(which), %why, "the answer can't be given");
            }
            Happening::Unanswered { which, why, fallback } => {
                if *why == Failure::Panicked {
                    let queue_id = queue(which);
                    tracing::error!(%queue_id, "a defect of mailtap: please report the panic above");
                }
                if *fallback {
                    tracing::warn!(queue_id = %queue(which), "who has a copy gets no other, who has none the original");
                }
                failed(which, why.as_str());
            }
            Happening::AnswerLost { which, answered } => {
                metrics::counter!("mailtap_milter_answers_lost_total").increment(1);
                if *answered {
                    tracing::warn!(queue_id = %queue(which), "Postfix was gone before the answer");
                } else {
                    failed(which, "answer_lost");
                }
            }
            Happening::AnswerInPieces { .. } => {
                metrics::counter!("mailtap_milter_answers_in_pieces_total").increment(1);
            }
            _ => {}
        }
    }

    /// A connection ended; a message that it cut off has its line.
    fn closed(&self, end: &End, cut_off: Option<&Which<'_>>) {
        metrics::gauge!("mailtap_milter_connections").decrement(1.0);
        metrics::counter!("mailtap_milter_connections_total", "end" => end.as_str()).increment(1);
        let queue_id = cut_off.map(queue).unwrap_or_default();
        match end {
            End::TimedOut(stage) => self.late(limit(*stage), *stage, &queue_id),
            End::WriteTimedOut(stage) => self.late("write_timeout", *stage, &queue_id),
            End::Protocol(_) | End::Io(_) => {
                tracing::warn!(%queue_id, default_action = self.agreement.default_action(), "{end}; the connection is closed");
            }
            _ => (),
        }
        let reason = match end {
            End::TimedOut(stage) => limit(*stage),
            // Postfix has given it up itself, or is gone.
            End::Quit | End::PeerClosed(_) => return,
            end => end.as_str(),
        };
        if let Some(which) = cut_off {
            failed(which, reason);
        }
    }

    fn late(&self, limit: &'static str, stage: Stage, queue_id: &str) {
        let (stage, default_action) = (stage.as_str(), self.agreement.default_action());
        tracing::warn!(
            limit = %format_args!("milter.{limit}"),
            stage,
            queue_id,
            default_action,
            "Postfix is silent, or reads nothing, for longer than this limit: the connection is closed; the rest of its SMTP \
             session gets no answer, and meets milter_default_action"
        );
        metrics::counter!("mailtap_milter_timeouts_total", "limit" => limit, "stage" => stage).increment(1);
    }
}

/// The setting that limits a stage.
const fn limit(stage: Stage) -> &'static str {
    match stage {
        Stage::Negotiation => "first_timeout",
        Stage::Content => "content_timeout",
        _ => "idle_timeout",
    }
}

#[allow(clippy::cast_precision_loss)] // Exact up to 8 PiB.
fn memory_held(before: usize, now: usize) {
    let gauge = metrics::gauge!("mailtap_milter_memory_bytes");
    if now > before {
        gauge.increment((now - before) as f64);
    } else {
        gauge.decrement((before - now) as f64);
    }
}

fn queue<'a>(which: &Which<'a>) -> Cow<'a, str> {
    String::from_utf8_lossy(which.queue_id)
}

/// The line of a message that the handler did not get, or did not answer.
fn failed(which: &Which<'_>, reason: &'static str) {
    let Which { recipients, took, .. } = *which;
    let (queue_id, outcome) = (&*queue(which), "failed");
    let (id, reference, links, pixel) = (None, "", 0, false);
    MessageDone { queue_id, outcome, reason, id, reference, links, pixel, recipients, took }.emit();
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
