//! Tests of what is told of the wire: each happening with its line and its count.
//!
//! - Layer: edge
//! - Takes: happenings as the driver tells them.
//! - Gives: proof of log lines and metrics.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use mailtap_milter::edits::CannotEdit;
use mailtap_milter::session::{SessionError, Unseen};
use mailtap_milter::wire::CommandError;
use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;

/// The log and the metrics after these happenings.
fn told(happenings: &[Happening<'_>]) -> (String, String) {
    crate::telemetry::somebody_listens();
    let lines = crate::telemetry::Captured::default();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(lines.clone()).finish();
    let recorder = PrometheusBuilder::new().build_recorder();
    let wire = Wire::new(Agreement::proven());
    tracing::subscriber::with_default(subscriber, || {
        metrics::with_local_recorder(&recorder, || {
            happenings.iter().for_each(|happening| wire.emit(happening))
        });
    });
    (lines.text(), recorder.handle().render())
}

fn which(took: Option<Duration>) -> Which<'static> {
    let mut which = Which::new(b"4jY8", 2);
    which.took = took;
    which
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|found| found == line)
}

#[test]
fn a_limit_of_time_is_told_with_its_stage_its_message_and_what_postfix_does() {
    for (end, limit, stage) in [
        (End::TimedOut(Stage::Content), "content_timeout", "content"),
        (End::TimedOut(Stage::Envelope), "idle_timeout", "envelope"),
        (End::WriteTimedOut(Stage::Content), "write_timeout", "content"),
    ] {
        let cut_off = Some(which(None));
        let (log, metrics) = told(&[Happening::Closed { end: &end, messages: 0, cut_off }]);
        let line = log.lines().find(|line| line.contains("is silent")).unwrap();
        for part in [
            "WARN",
            &format!("limit=milter.{limit}"),
            &format!("stage=\"{stage}\""),
            "queue_id=\"4jY8\"",
            "default_action=\"tempfail\"",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
        let line = log.lines().find(|line| line.contains("outcome=\"failed\"")).unwrap();
        assert!(line.contains(&format!("reason=\"{limit}\"")) && line.contains("default action"), "{line}");
        let counts = [
            format!("mailtap_milter_timeouts_total{{limit=\"{limit}\",stage=\"{stage}\"}} 1"),
            format!("mailtap_milter_messages_total{{outcome=\"failed\",reason=\"{limit}\"}} 1"),
        ];
        for count in counts {
            assert!(has(&metrics, &count), "{count}: {metrics}");
        }
    }
    let end = End::TimedOut(Stage::Negotiation);
    let (log, metrics) = told(&[Happening::Closed { end: &end, messages: 0, cut_off: None }]);
    assert!(log.contains("first_timeout") && !log.contains("outcome"), "no message was under way: {log}");
    assert!(has(&metrics, "mailtap_milter_timeouts_total{limit=\"first_timeout\",stage=\"negotiation\"} 1"));
}

#[test]
fn a_broken_connection_is_told_in_words() {
    let end = End::Protocol(SessionError::Command(CommandError::Unknown { code: 90 }));
    let cut_off = Some(which(None));
    let (log, metrics) = told(&[Happening::Closed { end: &end, messages: 0, cut_off }]);
    assert!(log.contains("unknown command 0x5a") && !log.contains("Protocol("), "{log}");
    assert!(log.lines().all(|line| line.contains("4jY8")), "{log}");
    assert!(has(&metrics, "mailtap_milter_messages_total{outcome=\"failed\",reason=\"protocol\"} 1"));
}

#[test]
fn what_postfix_gives_up_is_no_failure() {
    let end = End::PeerClosed(Stage::Content);
    let cut_off = Some(which(None));
    let (log, metrics) = told(&[Happening::Closed { end: &end, messages: 0, cut_off }]);
    assert_eq!(log, "");
    assert!(!metrics.contains("mailtap_milter_messages_total"), "{metrics}");
}

#[test]
fn a_message_that_was_never_worked_on_has_no_latency() {
    let seen = |why| Happening::LetThrough { which: which(None), why };
    let (log, metrics) = told(&[seen(Unseen::Memory), seen(Unseen::Recipients)]);
    assert!(log.contains("micros=0") && log.matches("WARN").count() == 2, "{log}");
    assert!(!metrics.contains("mailtap_milter_message_seconds"), "{metrics}");
    let which = which(Some(Duration::from_millis(3)));
    let late = Happening::Unanswered { which, why: Failure::TimedOut, fallback: false };
    let (log, metrics) = told(&[late]);
    assert!(log.contains("micros=3000"), "{log}");
    assert!(has(&metrics, "mailtap_milter_message_seconds_count 1"), "{metrics}");
}

#[test]
fn a_crowd_has_one_line_and_is_counted() {
    let waits: Vec<_> = (0..100).map(|_| Happening::ConnectionWaits).collect();
    let (log, metrics) = told(&waits);
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("milter.max_connections"), "{log}");
    assert!(has(&metrics, "mailtap_milter_connections_waiting_total 100"), "{metrics}");
    let beyond: Vec<_> = (0..100).map(|_| Happening::TooManyConnections).collect();
    let (log, metrics) = told(&beyond);
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(has(&metrics, "mailtap_milter_connections_over_limit_total 100"), "{metrics}");
    let (seldom, start) = (Seldom::default(), Instant::now());
    let lets = [0, 59, 60, 119, 120].map(|seconds| seldom.lets(start + Duration::from_secs(seconds)));
    assert_eq!(lets, [true, false, true, false, true]);
}

#[test]
fn what_else_happens_is_counted() {
    let error = std::io::Error::other("no descriptors");
    let which = which(None);
    let (_, metrics) = told(&[
        Happening::Opened,
        Happening::Opened,
        Happening::Closed { end: &End::Quit, messages: 1, cut_off: None },
        Happening::AcceptFailed(&error),
        Happening::TooManyConnections,
        Happening::CannotEdit { which, why: CannotEdit::NoMemory { needed_bytes: 1 } },
        Happening::AnswerLost { which, answered: true },
        Happening::AnswerLost { which, answered: false },
        Happening::AnswerInPieces { which, bytes: 2, first_bytes: 1 },
        Happening::MemoryHeld { before: 0, now: 300_000 },
        Happening::MemoryHeld { before: 300_000, now: 100_000 },
    ]);
    for line in [
        "mailtap_milter_connections 1",
        "mailtap_milter_connections_total{end=\"quit\"} 1",
        "mailtap_milter_accept_failures_total 1",
        "mailtap_milter_connections_over_limit_total 1",
        "mailtap_milter_answers_lost_total 2",
        "mailtap_milter_answers_in_pieces_total 1",
        "mailtap_milter_messages_total{outcome=\"failed\",reason=\"answer_lost\"} 1",
        "mailtap_milter_memory_bytes 100000",
    ] {
        assert!(has(&metrics, line), "{line} is missing in {metrics}");
    }
}
