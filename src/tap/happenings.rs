//! What happens in the tap: each a type that writes the log line and the metric together.
//!
//! - Layer: edge
//! - Takes: facts without personal data: no address, no line of the log.
//! - Gives: `tracing` events and metrics; counters with few labels.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`.

use std::path::Path;
use std::time::Duration;

use metrics::{counter, gauge};

use super::correlate::Counts;
use super::follow::Finding;
use super::tallies::Silent;
use super::unlogged::Missing;
use crate::event::Event;
use crate::queue::PublishError;

/// A piece of the log was read.
pub(super) struct Read {
    pub(super) before: Counts,
    pub(super) after: Counts,
    pub(super) foreign: u64,
    pub(super) unreadable: u64,
    pub(super) tracked: usize,
}

impl Read {
    pub(super) fn emit(&self) {
        let Self { before, after, .. } = self;
        let known = (after.lines - after.unknown) - (before.lines - before.unknown);
        counter!("mailtap_tap_lines_total", "kind" => "known").increment(known);
        counter!("mailtap_tap_lines_total", "kind" => "unknown").increment(after.unknown - before.unknown);
        counter!("mailtap_tap_lines_total", "kind" => "foreign").increment(self.foreign);
        counter!("mailtap_tap_lines_total", "kind" => "unreadable").increment(self.unreadable);
        counter!("mailtap_tap_refs_total", "verified" => "yes").increment(after.refs - before.refs);
        counter!("mailtap_tap_refs_total", "verified" => "no")
            .increment(after.unverified_refs - before.unverified_refs);
        let attempts = |reason, now: u64, then: u64| {
            counter!("mailtap_tap_attempts_not_counted_total", "reason" => reason)
                .increment(now.saturating_sub(then));
        };
        attempts("no-ref", after.attempts_without_ref, before.attempts_without_ref);
        attempts("probe", after.probes, before.probes);
        attempts("discarded", after.discarded, before.discarded);
        attempts("handed-on", after.handed_on, before.handed_on);
        attempts("copy", after.copies, before.copies);
        let refused = |by, now: u64, then: u64| {
            counter!("mailtap_tap_refused_total", "by" => by).increment(now - then);
        };
        refused("smtpd", after.refused_by_smtpd, before.refused_by_smtpd);
        refused("postscreen", after.refused_by_postscreen, before.refused_by_postscreen);
        refused("milter", after.refused_by_milter, before.refused_by_milter);
        refused("content", after.refused_for_content, before.refused_for_content);
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; the number is below 2^52")]
        gauge!("mailtap_tap_tracked_messages").set(self.tracked as f64);
        let evicted = after.evicted - before.evicted;
        if evicted > 0 {
            counter!("mailtap_tap_evicted_total").increment(evicted);
            tracing::error!(evicted, "messages forgotten before their end: raise max_tracked");
        }
        if after.lost_lines > before.lost_lines {
            LinesLost { lines: after.lost_lines - before.lost_lines }.emit();
        }
    }
}

/// Events were published.
pub(super) struct Published<'a>(pub(super) &'a [Event]);

impl Published<'_> {
    pub(super) fn emit(&self) {
        for event in self.0 {
            counter!("mailtap_tap_events_total", "type" => event.kind.as_str()).increment(1);
            tracing::debug!(kind = %event.kind, message_id = %event.message, queue_id = event.data.queue_id, "read");
        }
    }
}

/// Events could not be published; they will be.
pub(super) struct PublishFailed<'a> {
    pub(super) error: &'a PublishError,
    pub(super) events: usize,
    pub(super) retry_in: Duration,
}

impl PublishFailed<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_publish_failures_total").increment(1);
        tracing::warn!(error = %self.error, events = self.events, retry_in = ?self.retry_in, "can't publish; the log waits");
    }
}

/// Many attempts by an instance, and not one reference in its log.
pub(super) struct RefsMissing<'a>(pub(super) &'a Silent);

impl RefsMissing<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_refs_missing_total").increment(1);
        tracing::warn!(
            instance = self.0.instance,
            attempts = self.0.attempts,
            setting = "milter_header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}",
            "no delivery of this Postfix instance has a logged X-Mailtap-Ref: if tracked mail goes through it, this setting is \
             missing in its main.cf (header_checks instead, if it only relays); if none does, name the others in tap.syslog_names"
        );
    }
}

/// A message that the milter marked has left the queue, and its reference was not logged.
pub(super) struct RefUnlogged<'a>(pub(super) &'a Missing);

impl RefUnlogged<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_unlogged_messages_total").increment(1);
        let Missing { queue_id, service, is_copy, is_news } = self.0;
        if *is_news {
            counter!("mailtap_tap_refs_missing_total").increment(1);
        }
        match (is_news, is_copy) {
            (true, false) => tracing::warn!(
                %queue_id,
                syslog_name = service,
                setting = "milter_header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}",
                "a tracked message was delivered, but cleanup(8) did not log its X-Mailtap-Ref: its deliveries give no \
                 events. This setting is missing in main.cf, or is overridden with -o for that cleanup service in master.cf; \
                 further messages are only counted"
            ),
            (true, true) => tracing::warn!(
                %queue_id,
                syslog_name = service,
                setting = "header_checks = regexp:{{/^X-Mailtap-(Ref|Campaign):/ INFO}}",
                "a copy for one recipient was delivered, but cleanup(8) did not log its X-Mailtap-Ref: its deliveries give no \
                 events. The cleanup service of split.address needs this setting in master.cf, as `mailtap postfix` prints it; \
                 further messages are only counted"
            ),
            (false, _) => tracing::debug!(%queue_id, syslog_name = service, "the reference was not logged"),
        }
    }
}

/// A reference in the log that no key of ours signed.
pub(super) struct RefUnverified;

impl RefUnverified {
    pub(super) fn emit(&self) {
        tracing::warn!("a logged X-Mailtap-Ref can't be verified: does this host have the milter's keyring?");
    }
}

/// Deliveries to an instance of our own were counted, since its log was read later.
pub(super) struct CountedEarly {
    pub(super) deliveries: u64,
    /// Whether they are the first ones.
    pub(super) begins: bool,
}

impl CountedEarly {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_counted_early_total").increment(self.deliveries);
        if self.begins && self.deliveries > 0 {
            tracing::warn!(
                "a message counts as delivered twice: the instance that took it goes on with it, and logs to another file. Name it \
                 in tap.own_relays, with its port"
            );
        }
    }
}

/// The rules of bounce classes were read again.
pub(super) struct RulesRead;

impl RulesRead {
    pub(super) fn emit(&self) {
        tracing::info!("bounce rules read again");
    }
}

/// They could not be.
pub(super) struct RulesUnreadable<'a> {
    pub(super) error: &'a str,
}

impl RulesUnreadable<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_rules_failures_total").increment(1);
        tracing::error!(error = self.error, "bounce rules change nothing: the ones in use stay");
    }
}

/// Lines are missing from the log.
pub(super) struct LinesLost {
    pub(super) lines: u64,
}

impl LinesLost {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_lost_lines_total").increment(self.lines);
        tracing::error!(
            lines = self.lines,
            "the logger dropped lines, and events with them: raise its rate limit, or use Postfix's maillog_file"
        );
    }
}

/// Something happened to a followed file.
pub(super) struct Found<'a> {
    pub(super) path: &'a Path,
    pub(super) finding: &'a Finding,
}

impl Found<'_> {
    pub(super) fn emit(&self) {
        let log = self.path.display();
        let kind = match self.finding {
            Finding::Rotated => {
                tracing::info!(%log, "rotated");
                "rotated"
            }
            Finding::Truncated { recovered: true } => {
                tracing::info!(%log, "copied and truncated");
                "truncated"
            }
            Finding::Truncated { recovered: false } => {
                tracing::warn!(%log, "truncated, and no copy found: lines may be lost");
                "truncated-without-copy"
            }
            Finding::PredecessorGone => {
                tracing::error!(%log, "the file of the last run is gone: lines may be lost");
                "predecessor-gone"
            }
            Finding::PredecessorCompressed(file) => {
                let file = file.display();
                tracing::error!(%log, %file, "not read, since lz4 is not known here: unpack it and use --once");
                "predecessor-compressed"
            }
            Finding::PredecessorUnreadable(file) => {
                let file = file.display();
                tracing::error!(%log, %file, "a rotated file can't be read: lines may be lost; look at its rights");
                "predecessor-unreadable"
            }
            Finding::PredecessorDamaged => {
                tracing::error!(%log, "a packed file is not whole: lines may be lost");
                "predecessor-damaged"
            }
        };
        counter!("mailtap_tap_file_changes_total", "kind" => kind).increment(1);
    }
}

/// The source can't be read now.
pub(super) struct SourceFailed<'a> {
    pub(super) source: String,
    pub(super) error: &'a std::io::Error,
    /// Whether the last try met something else: each try counts, and is told once.
    pub(super) is_news: bool,
}

impl SourceFailed<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_source_failures_total").increment(1);
        if self.is_news {
            tracing::warn!(source = self.source, error = %self.error, "can't read the log; trying again");
        }
    }
}

/// There is no file under the path, and none was there before.
pub(super) struct SourceMissing<'a>(pub(super) &'a Path);

impl SourceMissing<'_> {
    pub(super) fn emit(&self) {
        tracing::warn!(source = %self.0.display(), "the log is not there; waiting for it: {}", super::NO_LOG_FILE);
    }
}

/// What could not be read is read.
pub(super) struct SourceBack;

impl SourceBack {
    pub(super) fn emit(&self) {
        tracing::info!("the log is read again");
    }
}

/// journalctl ended.
pub(super) struct JournalEnded {
    pub(super) status: String,
    pub(super) restart_in: Duration,
}

impl JournalEnded {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_journal_restarts_total").increment(1);
        tracing::warn!(status = self.status, restart_in = ?self.restart_in, "journalctl ended");
    }
}

/// The checkpoint was saved.
pub(super) struct CheckpointSaved {
    pub(super) took: Duration,
    pub(super) tracked: usize,
}

impl CheckpointSaved {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_checkpoints_total").increment(1);
        tracing::debug!(took = ?self.took, tracked = self.tracked, "checkpoint saved");
    }
}

/// The checkpoint could not be saved: after a restart more is read again, with the same ids.
pub(super) struct CheckpointFailed<'a> {
    pub(super) error: &'a std::io::Error,
}

impl CheckpointFailed<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_checkpoint_failures_total").increment(1);
        tracing::warn!(error = %self.error, "can't save the checkpoint");
    }
}

/// The checkpoint is damaged: the log is read from its beginning.
pub(super) struct CheckpointDamaged<'a> {
    pub(super) error: &'a dyn std::error::Error,
}

impl CheckpointDamaged<'_> {
    pub(super) fn emit(&self) {
        counter!("mailtap_tap_checkpoint_failures_total").increment(1);
        tracing::warn!(error = %self.error, "starting without a checkpoint: the log is read from its beginning");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::{Data, EventId, Kind};
    use crate::identity::{MessageId, Timestamp};

    #[test]
    fn a_line_of_json_keeps_its_text_beside_the_message_id() {
        crate::telemetry::somebody_listens();
        let lines = crate::telemetry::Captured::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(lines.clone())
            .finish();
        let message = MessageId::from([7; 10]);
        let event = Event {
            id: EventId::of("test").finish(),
            source: String::new(),
            kind: Kind::Delivered,
            time: Timestamp::from_secs(1),
            message,
            data: Data::default(),
        };
        tracing::subscriber::with_default(subscriber, || Published(&[event]).emit());
        let line: serde_json::Value = serde_json::from_str(&lines.text()).unwrap();
        assert_eq!(line["message"], "read");
        assert_eq!(line["message_id"], message.to_string());
    }
}
