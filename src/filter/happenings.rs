//! What the milter role tells its administrators: log line and counter together.
//!
//! - Layer: edge
//! - Takes: facts of the role.
//! - Gives: `tracing` events and metrics.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use mailtap_milter::driver::{BindError, End, Failure, Happening, Which};

use super::listen::Address;
use super::main_cf::DefaultAction;
use super::patience::Turn;
use super::postconf::Said;
use super::reinject::Sent;
use crate::identity::MessageId;
use crate::queue::{PublishError, StoreError};
use crate::rewrite::Report;

/// A message went through: the one line that each message gets.
#[derive(Debug)]
pub(super) struct MessageDone<'a> {
    pub(super) queue_id: &'a str,
    /// `rewritten`, `headers_only`, `passed` or `failed`.
    pub(super) outcome: &'static str,
    /// Why not rewritten; empty when it was.
    pub(super) reason: &'static str,
    pub(super) id: Option<MessageId>,
    pub(super) links: u32,
    pub(super) pixel: bool,
    pub(super) recipients: usize,
    pub(super) took: Duration,
}

impl MessageDone<'_> {
    pub(super) fn emit(&self) {
        let micros = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        let message_id = self.id.map(|id| id.to_string()).unwrap_or_default();
        let Self { queue_id, outcome, reason, links, pixel, recipients, .. } = self;
        if *outcome == "failed" {
            tracing::warn!(queue_id, outcome, reason, recipients, micros, "message passes as it came");
        } else {
            tracing::info!(
                queue_id, outcome, reason, message_id, links, pixel, recipients, micros, "message"
            );
        }
        metrics::counter!("mailtap_milter_messages_total", "outcome" => *outcome, "reason" => *reason)
            .increment(1);
        metrics::histogram!("mailtap_milter_message_seconds").record(self.took.as_secs_f64());
        metrics::counter!("mailtap_milter_links_total").increment(u64::from(*links));
    }
}

/// What of a tracked message was left as it came: links and parts, by reason.
#[derive(Debug)]
pub(super) struct LeftAlone<'a>(pub(super) &'a Report);

impl LeftAlone<'_> {
    pub(super) fn emit(&self) {
        for (reason, count) in self.0.left_links.iter() {
            metrics::counter!("mailtap_milter_links_left_total", "reason" => reason.as_str())
                .increment(count.into());
        }
        for (reason, count) in self.0.left_parts().iter() {
            metrics::counter!("mailtap_milter_parts_left_total", "reason" => reason.as_str())
                .increment(count.into());
        }
    }
}

/// The event of a message could not be stored, so the message passes as it came.
#[derive(Debug)]
pub(super) struct EventRefused<'a> {
    pub(super) queue_id: &'a str,
    pub(super) error: &'a PublishError,
}

impl EventRefused<'_> {
    pub(super) fn emit(&self) {
        tracing::error!(queue_id = self.queue_id, error = %self.error, "no event stored: the message goes untracked");
        metrics::counter!("mailtap_milter_events_refused_total").increment(1);
    }
}

/// The milter listens.
#[derive(Debug)]
pub(super) struct Listening<'a> {
    pub(super) address: &'a Address,
    pub(super) send_buffer_bytes: usize,
    pub(super) default_action: &'static str,
}

impl Listening<'_> {
    pub(super) fn emit(&self) {
        let Self { address, send_buffer_bytes, default_action } = self;
        tracing::info!(%address, wanted_send_buffer_bytes = send_buffer_bytes, default_action, "milter listens");
    }
}

/// What a main.cf says of us, beside what we were told.
#[derive(Debug)]
pub(super) struct PostfixSays<'a> {
    pub(super) said: &'a Said,
    pub(super) tempfail: bool,
}

impl PostfixSays<'_> {
    pub(super) fn emit(&self) {
        let directory = self.said.directory.display();
        match (self.said.action, self.tempfail) {
            (Some(DefaultAction::Accept), true) => tracing::error!(
                %directory,
                "main.cf says default_action=accept, milter.default_action says tempfail: taken for accept, so large \
                 messages pass unmodified; set both alike"
            ),
            (Some(DefaultAction::NotAccept), false) => tracing::warn!(
                %directory,
                "milter.default_action says accept, main.cf does not: large messages pass unmodified without need"
            ),
            (Some(_), _) => (),
            (None, _) => {
                tracing::info!(%directory, "main.cf names no milter at this address; see `mailtap postfix`")
            }
        }
    }
}

/// Mail is not split after all, since a main.cf says `accept`.
#[derive(Debug)]
pub(super) struct SplitOff<'a> {
    pub(super) directory: &'a Path,
}

impl SplitOff<'_> {
    pub(super) fn emit(&self) {
        tracing::error!(
            directory = %self.directory.display(),
            "several_recipients=split needs default_action=tempfail, and main.cf says accept: no message is split; set \
             default_action=tempfail there, or several_recipients=shared"
        );
    }
}

/// A recipient's copy was sent, or not.
#[derive(Debug)]
pub(super) struct CopyDone {
    pub(super) sent: Sent,
    pub(super) id: Option<MessageId>,
}

impl CopyDone {
    pub(super) fn emit(&self) {
        let result = match self.sent {
            Sent::Accepted => "accepted",
            Sent::Refused => "refused",
            Sent::Broken => "broken",
            Sent::Uncertain => "uncertain",
        };
        let message_id = self.id.map(|id| id.to_string()).unwrap_or_default();
        if self.sent == Sent::Uncertain {
            tracing::warn!(message_id, "nobody knows whether Postfix took a copy: its recipient may get two");
        } else {
            tracing::debug!(message_id, result, "copy");
        }
        metrics::counter!("mailtap_milter_copies_total", "result" => result).increment(1);
    }
}

/// A recipient for whom nothing is rewritten gets no copy, and stays with the original.
#[derive(Debug)]
pub(super) struct NoCopy {
    pub(super) reason: &'static str,
}

impl NoCopy {
    pub(super) fn emit(&self) {
        tracing::debug!(reason = self.reason, "no copy: nothing is rewritten for this recipient");
        metrics::counter!("mailtap_milter_copies_total", "result" => "not_needed").increment(1);
    }
}

/// Not everybody gets a copy: the others stay with the original.
#[derive(Debug)]
pub(super) struct SplitStopped<'a> {
    pub(super) reason: &'static str,
    pub(super) error: Option<&'a StoreError>,
}

impl SplitStopped<'_> {
    pub(super) fn emit(&self) {
        let Self { reason, error } = self;
        if *reason == "nothing_to_split" {
            return;
        }
        let error = error.map(ToString::to_string);
        tracing::warn!(reason, error, "not split: the recipients without a copy share the original");
        metrics::counter!("mailtap_milter_split_stops_total", "reason" => *reason).increment(1);
    }
}

/// The spool ceases to answer, or answers again.
#[derive(Debug)]
pub(super) struct SpoolTurn(pub(super) Turn);

impl SpoolTurn {
    pub(super) fn emit(&self) {
        match self.0 {
            Turn::Same => (),
            Turn::Stalled => {
                tracing::error!(
                    "the spool does not answer: messages pass as they came, at once, until it does"
                );
                metrics::counter!("mailtap_milter_spool_stalls_total").increment(1);
            }
            Turn::Recovered => tracing::warn!("the spool answers again"),
        }
    }
}

/// The socket keeps the group of its directory, since it can't be given to another one.
#[derive(Debug)]
pub(super) struct GroupKept<'a> {
    pub(super) path: &'a Path,
    pub(super) group: &'a str,
    pub(super) error: &'a BindError,
}

impl GroupKept<'_> {
    pub(super) fn emit(&self) {
        let why = std::error::Error::source(self.error).map(ToString::to_string);
        tracing::warn!(
            path = %self.path.display(),
            group = self.group,
            why,
            "the socket can't be given to this group; it keeps that of its directory"
        );
    }
}

fn queue<'a>(which: &Which<'a>) -> Cow<'a, str> {
    String::from_utf8_lossy(which.queue_id)
}

/// The line of a message that the handler did not get, or did not answer.
fn failed(which: &Which<'_>, reason: &'static str) {
    let Which { recipients, took, .. } = *which;
    let queue_id = &queue(which);
    MessageDone { queue_id, outcome: "failed", reason, id: None, links: 0, pixel: false, recipients, took }
        .emit();
}

/// What happened on the wire.
pub(super) struct Protocol<'a>(pub(super) &'a Happening<'a>);

impl Protocol<'_> {
    pub(super) fn emit(&self) {
        match self.0 {
            Happening::Opened => metrics::gauge!("mailtap_milter_connections").increment(1.0),
            Happening::Closed { end, .. } => {
                metrics::gauge!("mailtap_milter_connections").decrement(1.0);
                metrics::counter!("mailtap_milter_connections_total", "end" => end.as_str()).increment(1);
                if matches!(end, End::Protocol(_) | End::Io(_) | End::WriteTimedOut) {
                    tracing::warn!(?end, "milter connection broke");
                }
            }
            Happening::AcceptFailed(error) => {
                tracing::warn!(%error, "can't accept a connection; going on");
                metrics::counter!("mailtap_milter_accept_failures_total").increment(1);
            }
            Happening::TooManyConnections => {
                tracing::warn!(
                    "more connections than milter.max_connections: mail of this one passes as it came"
                );
                metrics::counter!("mailtap_milter_connections_over_limit_total").increment(1);
            }
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
}
