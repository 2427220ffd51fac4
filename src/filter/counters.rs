//! The milter's metrics: what each means, and that each is there before it first counts.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: descriptions, and counters at zero, so that an alarm on their growth sees the first step.
//! - On failure: nothing can fail.
//! - See: `docs/operations.md`.

use mailtap_milter::driver::Failure;
use mailtap_milter::session::Unseen;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};

use super::decide::Pass;
use crate::rewrite::Reason;

const MESSAGES: &str = "mailtap_milter_messages_total";

/// Reasons of messages that passed because of trouble.
const FAILED: &[&str] = &[
    Unseen::MessageBytes.as_str(),
    Unseen::HeaderBytes.as_str(),
    Unseen::Headers.as_str(),
    Unseen::Recipients.as_str(),
    Unseen::Memory.as_str(),
    Unseen::Connections.as_str(),
    Unseen::Negotiation.as_str(),
    Unseen::Stopping.as_str(),
    Failure::Panicked.as_str(),
    Failure::TimedOut.as_str(),
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

/// Counters without labels.
const PLAIN: &[(&str, &str)] = &[
    ("mailtap_milter_links_total", "Links that lead over the tracker"),
    ("mailtap_milter_events_refused_total", "Messages whose event could not be stored"),
    ("mailtap_milter_spool_stalls_total", "How often the spool ceased to answer"),
    ("mailtap_milter_accept_failures_total", "Connections that could not be accepted"),
    (
        "mailtap_milter_connections_over_limit_total",
        "Connections beyond max_connections, whose mail passes as it came",
    ),
    (
        "mailtap_milter_connections_waiting_total",
        "Connections beyond five times max_connections, which had to wait",
    ),
    (
        "mailtap_milter_negotiation_failures_total",
        "Connections whose MTA offers too little: their mail passes as it came",
    ),
    ("mailtap_milter_answers_lost_total", "Messages whose MTA was gone before the answer"),
    ("mailtap_milter_answers_in_pieces_total", "Answers that did not go out in one write"),
];

/// Describes all, and begins to count at zero.
pub(super) fn begin(memory_limit_bytes: usize) {
    describe();
    for (name, _) in PLAIN {
        counter!(*name).increment(0);
    }
    for outcome in ["rewritten", "split"] {
        counter!(MESSAGES, "outcome" => outcome, "reason" => "").increment(0);
    }
    let headers_only =
        [Reason::NothingAllowed, Reason::NothingToRewrite].map(|reason| ("headers_only", reason.as_str()));
    let passed = PASSED.iter().map(|pass| ("passed", pass.as_str()));
    let failed = FAILED.iter().map(|reason| ("failed", *reason));
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

fn describe() {
    for (name, what) in PLAIN {
        describe_counter!(*name, *what);
    }
    describe_counter!(MESSAGES, "Messages, by what became of them and why");
    describe_counter!("mailtap_milter_connections_total", "Connections, by how they ended");
    describe_counter!(
        "mailtap_milter_timeouts_total",
        "Connections closed by a limit of time, by the stage they were in"
    );
    describe_counter!(
        "mailtap_milter_links_left_total",
        "Links of tracked messages that stayed as they were"
    );
    describe_counter!(
        "mailtap_milter_parts_left_total",
        "Parts of tracked messages that stayed as they were"
    );
    describe_counter!("mailtap_milter_copies_total", "Copies for single recipients, by what became of them");
    describe_counter!("mailtap_milter_split_stops_total", "Messages that were not split to the end, by why");
    describe_gauge!("mailtap_milter_connections", "Connections that are open");
    describe_gauge!("mailtap_milter_memory_bytes", "What counts for max_memory now");
    describe_gauge!("mailtap_milter_memory_limit_bytes", "max_memory");
    describe_histogram!(
        "mailtap_milter_message_seconds",
        "From a message's last byte to its answer; without those never worked on"
    );
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn all_is_described_and_there_from_the_start() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            begin(1 << 30);
            metrics::histogram!("mailtap_milter_message_seconds").record(0.1);
        });
        let text = recorder.handle().render();
        for line in [
            "mailtap_milter_messages_total{outcome=\"rewritten\",reason=\"\"} 0",
            "mailtap_milter_messages_total{outcome=\"failed\",reason=\"content_timeout\"} 0",
            "mailtap_milter_timeouts_total{limit=\"content_timeout\",stage=\"content\"} 0",
            "mailtap_milter_answers_lost_total 0",
            "mailtap_milter_memory_bytes 0",
            "mailtap_milter_memory_limit_bytes 1073741824",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        for name in names {
            assert!(text.contains(&format!("# HELP {name} ")), "{name} is not described");
        }
    }
}
