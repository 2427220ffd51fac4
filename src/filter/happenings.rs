//! What the milter role tells its administrators: log line and counter together.
//!
//! - Layer: edge
//! - Takes: facts of the role.
//! - Gives: `tracing` events and metrics.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`.

use std::path::Path;
use std::time::Duration;

use mailtap_milter::driver::BindError;

use super::agreement::{Told, Verdict};
use super::listen::Endpoint;
use super::patience::Turn;
use super::port::Found;
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
    /// Its reference, as the header `X-Mailtap-Ref` and Postfix's log show it; empty without one.
    pub(super) reference: &'a str,
    pub(super) links: u32,
    pub(super) pixel: bool,
    pub(super) recipients: usize,
    /// How long it was worked on, if it was.
    pub(super) took: Option<Duration>,
}

/// Reasons of a message that did not get an answer: what becomes of it is Postfix's own to say.
const UNANSWERED: &[&str] =
    &["answer_lost", "content_timeout", "idle_timeout", "write_timeout", "protocol", "io", "drained"];

impl MessageDone<'_> {
    pub(super) fn emit(&self) {
        let micros = u64::try_from(self.took.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
        let message_id = self.id.map(|id| id.to_string()).unwrap_or_default();
        let Self { queue_id, outcome, reason, reference, links, pixel, recipients, .. } = self;
        if *outcome != "failed" {
            tracing::info!(
                queue_id,
                "ref" = reference,
                outcome,
                reason,
                message_id,
                links,
                pixel,
                recipients,
                micros,
                "message"
            );
        } else {
            let unanswered = UNANSWERED.contains(reason);
            let fate = if unanswered { "left to Postfix's default action" } else { "passes as it came" };
            tracing::warn!(
                queue_id,
                "ref" = reference,
                outcome,
                reason,
                recipients,
                micros,
                "message {fate}"
            );
        }
        metrics::counter!("mailtap_milter_messages_total", "outcome" => *outcome, "reason" => *reason)
            .increment(1);
        if let Some(took) = self.took {
            metrics::histogram!("mailtap_milter_message_seconds").record(took.as_secs_f64());
        }
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

/// A message of Postfix's default `message_size_limit`, 10,240,000 bytes, and a good fifth more for what is rewritten.
const USUAL_BYTES: usize = 12 << 20;

/// The milter listens.
#[derive(Debug)]
pub(super) struct Listening<'a> {
    pub(super) address: &'a Endpoint,
    /// The largest answer that goes out in one write.
    pub(super) answer_room_bytes: usize,
    /// What an answer may need, rather less than more: a message of the largest size.
    pub(super) largest_bytes: usize,
    pub(super) default_action: &'static str,
}

impl Listening<'_> {
    pub(super) fn emit(&self) {
        let Self { address, answer_room_bytes, largest_bytes, default_action } = self;
        tracing::info!(%address, answer_room_bytes, default_action, "milter listens");
        if *default_action == "tempfail" || answer_room_bytes >= largest_bytes {
            return;
        }
        if *answer_room_bytes >= USUAL_BYTES {
            tracing::info!(
                answer_room_bytes,
                "unless default_action is tempfail, a message whose rewritten form is larger than answer_room_bytes passes as it \
                 came; usual mail within Postfix's default message_size_limit fits"
            );
            return;
        }
        tracing::warn!(
            answer_room_bytes,
            max_message_bytes = largest_bytes,
            "unless default_action is tempfail, a message whose rewritten form is larger than answer_room_bytes passes as it \
             came, though policy.max_message allows more: raise net.core.wmem_max, as systemd/mailtap-sysctl.conf \
             (/usr/lib/sysctl.d/60-mailtap.conf) does, or lower policy.max_message"
        );
    }
}

/// What Postfix says it does when we fail, beside what we were told.
#[derive(Debug)]
pub(super) struct PostfixSays<'a> {
    pub(super) told: &'a Told,
    pub(super) verdict: &'a Verdict,
    /// The largest message that Postfix takes.
    pub(super) message_size_limit: Option<u64>,
}

impl PostfixSays<'_> {
    pub(super) fn emit(&self) {
        let Self { told, verdict, message_size_limit } = *self;
        let message_size_limit = message_size_limit.unwrap_or_default();
        let listens = &told.listens;
        let differs = told.tempfail && !told.is_proven(verdict);
        match told.advice(verdict) {
            Some(advice) if matches!(verdict, Verdict::Accept(_)) => {
                tracing::error!(%listens, message_size_limit, "{advice}");
            }
            Some(advice) => tracing::warn!(%listens, message_size_limit, "{advice}"),
            None if told.tempfail && *verdict == Verdict::Tempfail => {
                tracing::info!(%listens, message_size_limit, "main.cf says default_action=tempfail, as milter.default_action does");
            }
            None => (),
        }
        metrics::gauge!("mailtap_milter_default_action_differs").set(if differs { 1.0 } else { 0.0 });
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
        if matches!(*reason, "port_away" | "not_all") {
            // The one is told when it begins; the other is how things are.
            tracing::debug!(reason, "not split");
        } else {
            tracing::warn!(reason, error, "not split: the recipients without a copy share the original");
        }
        metrics::counter!("mailtap_milter_split_stops_total", "reason" => *reason).increment(1);
    }
}

/// The port for copies ceases to take them, or takes them again.
#[derive(Debug)]
pub(super) struct PortTurn {
    pub(super) what: Found,
    pub(super) turn: Turn,
}

impl PortTurn {
    pub(super) fn emit(&self) {
        match (self.turn, self.what) {
            (Turn::Same, _) => (),
            (Turn::Stalled, Found::Refuses) => tracing::warn!(
                "the port for copies (split.address) refuses every recipient: messages to several recipients share one set of links; its \
                 service in master.cf must take mail from this host (mynetworks, smtpd_relay_restrictions), as `mailtap postfix` prints it"
            ),
            (Turn::Stalled, _) => tracing::warn!(
                "the port for copies (split.address) does not answer: messages to several recipients share one set of links, at once, until \
                 it does; is it in master.cf, as `mailtap postfix` prints it?"
            ),
            (Turn::Recovered, _) => tracing::warn!("the port for copies (split.address) takes them again"),
        }
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

/// The socket keeps its group, since it can't be given to another one.
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
            "the socket can't be given to this group (milter.socket_group) and keeps the one it was made with: only a member of the \
             group can, and under systemd nobody with PrivateUsers=yes or without SystemCallFilter=@chown; a setgid directory \
             gives the socket its own group (install -d -o mailtap -g {} -m 2750 {})",
            self.group,
            self.path.parent().unwrap_or(self.path).display(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said at the start of a milter with this room for an answer.
    fn said(default_action: &'static str, answer_room_bytes: usize) -> String {
        crate::telemetry::somebody_listens();
        let lines = crate::telemetry::Captured::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
        let address = Endpoint::Unix("/milter.sock".into());
        let largest_bytes = 40 << 20;
        tracing::subscriber::with_default(subscriber, || {
            Listening { address: &address, answer_room_bytes, largest_bytes, default_action }.emit();
        });
        lines.text()
    }

    #[test]
    fn a_send_buffer_for_usual_mail_is_no_reason_to_warn() {
        // What net.core.wmem_max gives by default, and with systemd/mailtap-sysctl.conf.
        let (small, shipped) = (312 << 10, 24 << 20);
        assert!(said("accept", small).contains("WARN") && said("unknown", small).contains("wmem_max"));
        let usual = said("accept", shipped);
        assert!(!usual.contains("WARN") && usual.contains("message_size_limit"), "{usual}");
        for well in [said("tempfail", small), said("accept", 40 << 20)] {
            assert!(well.contains("milter listens") && !well.contains("passes as it came"), "{well}");
        }
    }
}
