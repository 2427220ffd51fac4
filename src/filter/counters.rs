//! The milter's metrics: that each is there before it first counts.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: counters at zero, for the reasons that only the milter knows, so that an alarm on their growth sees the first step.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`.

use mailtap_milter::driver::Failure;
use mailtap_milter::session::Unseen;
use metrics::{counter, gauge};

use super::decide::Pass;
use crate::rewrite::Reason;
use crate::telemetry;

const MESSAGES: &str = "mailtap_milter_messages_total";

/// Reasons of messages that passed because of trouble, beside those of the driver.
const FAILED: &[&str] = &[
    Pass::NoKey.as_str(),
    "answer_lost",
    "answer_too_large",
    "cannot_edit",
    "content_timeout",
    "drained",
    "event_late",
    "event_refused",
    "idle_timeout",
    "internal",
    "io",
    "message_size_limit",
    "protocol",
    "write_timeout",
];

/// Reasons of messages that passed as they should: those of the envelope. What a message itself may say is a longer list, and
/// appears as it occurs.
const PASSED: &[Pass] =
    &[Pass::NullSender, Pass::OutOfScope, Pass::NoRecipient, Pass::AlreadyTracked, Pass::NoConsent];

const ENDS: &[&str] = &[
    "quit",
    "peer_closed",
    "peer_closed_in_message",
    "protocol",
    "timeout",
    "write_timeout",
    "io",
    "drained",
];

/// Limits of time, and the stages that they end.
const TIMEOUTS: &[(&str, &str)] = &[
    ("first_timeout", "negotiation"),
    ("idle_timeout", "idle"),
    ("idle_timeout", "envelope"),
    ("content_timeout", "content"),
    ("write_timeout", "idle"),
    ("write_timeout", "envelope"),
    ("write_timeout", "content"),
    ("write_timeout", "answer"),
];

/// Begins to count at zero.
pub(super) fn begin(memory_limit_bytes: usize) {
    telemetry::count_from_zero("milter");
    for outcome in ["rewritten", "split"] {
        counter!(MESSAGES, "outcome" => outcome, "reason" => "").increment(0);
    }
    let headers_only =
        [Reason::NothingAllowed, Reason::NothingToRewrite].map(|reason| ("headers_only", reason.as_str()));
    let passed = PASSED.iter().map(|pass| ("passed", pass.as_str()));
    let unseen = Unseen::ALL.iter().map(|why| why.as_str());
    let unanswered = Failure::ALL.iter().map(|why| why.as_str());
    let failed = FAILED.iter().copied().chain(unseen).chain(unanswered).map(|reason| ("failed", reason));
    for (outcome, reason) in headers_only.into_iter().chain(passed).chain(failed) {
        counter!(MESSAGES, "outcome" => outcome, "reason" => reason).increment(0);
    }
    for end in ENDS {
        counter!("mailtap_milter_connections_total", "end" => *end).increment(0);
    }
    for (limit, stage) in TIMEOUTS {
        counter!("mailtap_milter_timeouts_total", "limit" => *limit, "stage" => *stage).increment(0);
    }
    gauge!("mailtap_milter_connections").increment(0.0);
    gauge!("mailtap_milter_memory_bytes").increment(0.0);
    #[allow(clippy::cast_precision_loss)] // Exact up to 8 PiB.
    gauge!("mailtap_milter_memory_limit_bytes").set(memory_limit_bytes as f64);
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn all_is_there_from_the_start() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            begin(1 << 30);
        });
        let text = recorder.handle().render();
        for line in [
            "mailtap_milter_messages_total{outcome=\"rewritten\",reason=\"\"} 0",
            "mailtap_milter_messages_total{outcome=\"failed\",reason=\"content_timeout\"} 0",
            "mailtap_milter_timeouts_total{limit=\"content_timeout\",stage=\"content\"} 0",
            "mailtap_milter_answers_lost_total 0",
            "mailtap_milter_copies_total{result=\"uncertain\"} 0",
            "mailtap_milter_memory_bytes 0",
            "mailtap_milter_memory_limit_bytes 1073741824",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
    }
}
