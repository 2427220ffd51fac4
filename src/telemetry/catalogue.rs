//! All metrics of all roles: what each means, and that each is there before it first counts.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: descriptions; counters at zero, so that an alarm on their growth sees the first step.
//! - On failure: nothing can fail.
//! - Limits: counters with labels begin at zero for the values that are listed here; others appear as they occur.
//! - See: `docs/operations.md`; a test holds this list and the names in the sources equal.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};

/// A counter: its name, its label and values that are known before, what it counts.
type Count = (&'static str, Option<(&'static str, &'static [&'static str])>, &'static str);

#[rustfmt::skip]
const COUNTERS: &[Count] = &[
    ("mailtap_bounce_events_total", None, "Events of returned mail"),
    ("mailtap_bounce_messages_total", None, "Returned messages, by what they are"),
    ("mailtap_config_failures_total", None, "Reloads at which the configuration could not be used: the one in use stays"),
    ("mailtap_forward_blocked_total", None, "How often RabbitMQ took no messages, short of memory or disk"),
    ("mailtap_forward_connections_total", None, "Connections to RabbitMQ"),
    ("mailtap_forward_events_total", None, "Events that RabbitMQ confirmed"),
    ("mailtap_forward_failures_total", Some(("what", &["broker", "spool"])), "Connections to RabbitMQ that failed or broke, and failures of the spool"),
    ("mailtap_forward_refused_total", Some(("why", &["nack", "unroutable"])), "Events that RabbitMQ gave back, each try"),
    ("mailtap_forward_unblocked_total", None, "How often RabbitMQ took messages again"),
    ("mailtap_keyring_failures_total", Some(("file", &["keyring", "list of withdrawn consents"])), "Times that a keyring or the list of withdrawn consents could not be read: the one in use stays"),
    ("mailtap_log_lines_lost_total", None, "Lines of the log that could not be written"),
    ("mailtap_milter_accept_failures_total", None, "Connections that could not be accepted"),
    ("mailtap_milter_answers_in_pieces_total", None, "Answers that did not go out in one write"),
    ("mailtap_milter_answers_lost_total", None, "Messages whose MTA was gone before the answer"),
    ("mailtap_milter_connections_over_limit_total", None, "Connections beyond max_connections, whose mail passes as it came"),
    ("mailtap_milter_connections_total", None, "Connections, by how they ended"),
    ("mailtap_milter_connections_waiting_total", None, "Connections beyond five times max_connections, which had to wait"),
    ("mailtap_milter_copies_total", Some(("result", &["accepted", "refused", "broken", "uncertain", "not_needed"])), "Copies for single recipients, by what became of them"),
    ("mailtap_milter_events_refused_total", None, "Messages whose event could not be stored"),
    ("mailtap_milter_links_left_total", None, "Links of tracked messages that stayed as they were"),
    ("mailtap_milter_links_total", None, "Links that lead over the tracker"),
    ("mailtap_milter_messages_total", None, "Messages, by what became of them and why"),
    ("mailtap_milter_negotiation_failures_total", None, "Connections whose MTA offers too little: their mail passes as it came"),
    ("mailtap_milter_parts_left_total", None, "Parts of tracked messages that stayed as they were"),
    ("mailtap_milter_split_stops_total", Some(("reason", &["late", "memory", "no_connection", "not_all", "port_away"])), "Messages that were not split to the end, by why"),
    ("mailtap_milter_spool_stalls_total", None, "How often the spool ceased to answer"),
    ("mailtap_milter_timeouts_total", None, "Connections closed by a limit of time, by the stage they were in"),
    ("mailtap_queue_broker_connections_total", None, "Connections of the relay to RabbitMQ"),
    ("mailtap_queue_broker_failures_total", None, "Connections of the relay to RabbitMQ that failed or broke"),
    ("mailtap_queue_copies_denied_total", None, "Times that copies of events for those who watch had no way"),
    ("mailtap_queue_copies_dropped_total", None, "Copies of events for those who watch that were dropped, because they could not be written as fast"),
    ("mailtap_queue_declared_again_total", None, "Times that exchanges, queues or bindings were missing: declared again, or not to be declared"),
    ("mailtap_queue_deleted_total", None, "Work queues that were deleted under the relay, and what was in them"),
    ("mailtap_queue_left_over_total", None, "Work queues of another amqp.partitions found with messages that nobody takes"),
    ("mailtap_queue_malformed_total", None, "Messages in the work queue that are no events: dead letters now"),
    ("mailtap_queue_news_missed_total", None, "News between roles of one process that nobody took in time"),
    ("mailtap_queue_untaken_total", None, "Times that a work queue held messages and had no consumer for five minutes"),
    ("mailtap_relay_dead_total", Some(("reason", &["client_id", "event_name", "expired", "refused"])), "Events that can't be sent: dead letters now"),
    ("mailtap_relay_duplicates_total", None, "Events that came again and were sent before"),
    ("mailtap_relay_given_back_total", None, "Events that waited for so long that they went back to the queue"),
    ("mailtap_relay_put_off_total", None, "Events above an hourly limit that went back to the queue"),
    ("mailtap_relay_queue_troubles_total", None, "Failures of queue, spool or memory, each try"),
    ("mailtap_relay_repaired_total", Some(("rule", &["address", "cut", "future", "param", "session", "too_many_params"])), "Events mended before they were sent, by rule"),
    ("mailtap_relay_requests_total", Some(("outcome", &["sent", "not_sent", "trouble", "refused", "uncertain"])), "Requests, by what became of them"),
    ("mailtap_relay_retried_total", None, "Events that are tried again later"),
    ("mailtap_relay_sent_total", None, "Events that the receiver took"),
    ("mailtap_relay_switched_off_total", None, "Events of types that are not sent"),
    ("mailtap_relay_uncertain_total", None, "Events of which nobody knows whether they arrived"),
    ("mailtap_spool_expired_total", Some(("fate", &["dead", "dropped"])), "Events that waited for longer than spool.max_age, by what became of them"),
    ("mailtap_spool_inbox_damaged_bytes_total", None, "Bytes of the spool's files that are no event, as after a kill"),
    ("mailtap_spool_inbox_unreadable_total", None, "Times that a file of the spool could not be read: its events wait"),
    ("mailtap_spool_refused_tries_total", Some(("why", &["closed", "full", "storage"])), "Events that the spool did not take, each try"),
    ("mailtap_spool_taken_back_total", None, "Events stored too late for who published them, and taken out again"),
    ("mailtap_tap_attempts_not_counted_total", None, "Attempts at delivery that give no event, by why"),
    ("mailtap_tap_checkpoint_failures_total", None, "Checkpoints that could not be saved or read"),
    ("mailtap_tap_checkpoints_total", None, "Checkpoints saved"),
    ("mailtap_tap_counted_early_total", None, "Deliveries to an instance of the site's own that were counted, since its log was read later"),
    ("mailtap_tap_events_total", None, "Events published"),
    ("mailtap_tap_evicted_total", None, "Messages forgotten before their end, beyond tap.max_tracked"),
    ("mailtap_tap_file_changes_total", Some(("kind", &["rotated", "truncated", "truncated-without-copy", "predecessor-gone", "predecessor-compressed", "predecessor-unreadable", "predecessor-damaged"])), "What happened to followed files"),
    ("mailtap_tap_journal_restarts_total", None, "How often journalctl ended"),
    ("mailtap_tap_lines_total", None, "Lines read"),
    ("mailtap_tap_lost_lines_total", None, "Lines that the logger says it dropped"),
    ("mailtap_tap_publish_failures_total", None, "Times that events could not be stored: the log waits"),
    ("mailtap_tap_refs_missing_total", None, "Instances and cleanup services of Postfix that don't log mailtap's headers"),
    ("mailtap_tap_refs_total", None, "References in the log, by whether a key of ours signed them"),
    ("mailtap_tap_refused_total", Some(("by", &["smtpd", "postscreen", "milter", "content"])), "Messages that Postfix refused or discarded, by what"),
    ("mailtap_tap_rules_failures_total", None, "Times that the bounce rules could not be read again: the ones in use stay"),
    ("mailtap_tap_source_failures_total", None, "Times that the log could not be read"),
    ("mailtap_tap_unlogged_messages_total", None, "Tracked messages whose reference was not logged"),
    ("mailtap_tracker_accept_errors_total", None, "Connections that could not be accepted"),
    ("mailtap_tracker_amended_late_total", None, "Events that were gone when a correction came"),
    ("mailtap_tracker_amended_total", None, "Events corrected while they were held"),
    ("mailtap_tracker_anonymous_total", None, "Events recorded without anything personal, by why"),
    ("mailtap_tracker_certificates_total", Some(("result", &["ok", "error"])), "Certificates read again"),
    ("mailtap_tracker_clicks_total", None, "Clicks, by whether a machine made them"),
    ("mailtap_tracker_connections_cut_total", None, "Connections cut or not taken, by why"),
    ("mailtap_tracker_connections_full_total", None, "How often all connections were in use"),
    ("mailtap_tracker_connections_total", None, "Connections"),
    ("mailtap_tracker_handshakes_failed_total", None, "TLS handshakes that failed"),
    ("mailtap_tracker_late_total", None, "Clicks and opens later than tracker.late_after"),
    ("mailtap_tracker_limited_total", Some(("rate", &["client", "token"])), "Requests beyond a rate: answered, not recorded"),
    ("mailtap_tracker_lost_total", Some(("reason", &["queue-full", "rate", "spool-closed", "stopping"])), "Clicks and opens that are lost, by why"),
    ("mailtap_tracker_opens_total", None, "Opens, by whether a machine made them"),
    ("mailtap_tracker_publish_errors_total", None, "Times that events could not be stored"),
    ("mailtap_tracker_refused_total", None, "Links and pixels that are not ours, or no longer trusted"),
    ("mailtap_tracker_reloads_total", Some(("result", &["ok", "error"])), "Times that the rules on machines were read again"),
    ("mailtap_tracker_unconfirmed_total", None, "Answers that went out before their event was stored"),
    ("mailtap_tracker_unnamed_clients_total", None, "Clicks and opens by a trusted proxy that named no client"),
    ("mailtap_tracker_watch_forgotten_total", None, "Hits forgotten before their time"),
    ("mailtap_tracker_well_known_errors_total", None, "Times that the well-known files could not be read again"),
];

/// Counters that only ever have labels whose values appear as they occur.
const LABELLED: &[&str] = &[
    "mailtap_bounce_events_total",
    "mailtap_bounce_messages_total",
    "mailtap_milter_connections_total",
    "mailtap_milter_links_left_total",
    "mailtap_milter_messages_total",
    "mailtap_milter_parts_left_total",
    "mailtap_milter_timeouts_total",
    "mailtap_queue_news_missed_total",
    "mailtap_relay_sent_total",
    "mailtap_relay_switched_off_total",
    "mailtap_tap_attempts_not_counted_total",
    "mailtap_tap_events_total",
    "mailtap_tap_lines_total",
    "mailtap_tap_refs_total",
    "mailtap_tracker_anonymous_total",
    "mailtap_tracker_clicks_total",
    "mailtap_tracker_connections_cut_total",
    "mailtap_tracker_opens_total",
    "mailtap_tracker_refused_total",
];

#[rustfmt::skip]
const GAUGES: &[(&str, Unit, &str)] = &[
    ("mailtap_build_info", Unit::Count, "Always 1: the version that runs"),
    ("mailtap_config_restart_needed", Unit::Count, "1 when the file says other than what is in use, as seen at the last reload"),
    ("mailtap_milter_connections", Unit::Count, "Connections that are open"),
    ("mailtap_milter_default_action_differs", Unit::Count, "1 when main.cf does not say tempfail as mailtap.toml does, or can't be asked"),
    ("mailtap_milter_memory_bytes", Unit::Bytes, "What counts for max_memory now"),
    ("mailtap_milter_memory_limit_bytes", Unit::Bytes, "max_memory"),
    ("mailtap_queue_consumers", Unit::Count, "Consumers of each work queue in RabbitMQ, asked each minute by forwarders and relays"),
    ("mailtap_queue_messages_ready", Unit::Count, "Messages that wait in each work queue in RabbitMQ, asked each minute by forwarders and relays"),
    ("mailtap_relay_dead_letters", Unit::Count, "Dead letters in RabbitMQ, as of a minute ago at most"),
    ("mailtap_relay_paced", Unit::Count, "1 while a property waits for its hourly limit"),
    ("mailtap_relay_paused", Unit::Count, "1 while nothing gets through to a property, or out of the queue"),
    ("mailtap_relay_requests_in_flight", Unit::Count, "Requests under way"),
    ("mailtap_spool_bytes", Unit::Bytes, "What the spool takes of the disk, as of a minute ago at most"),
    ("mailtap_spool_events", Unit::Count, "Events in the spool, as of a minute ago at most"),
    ("mailtap_spool_events_not_due", Unit::Count, "Events in the spool that wait for their time"),
    ("mailtap_spool_lag_seconds", Unit::Seconds, "For how long the first event has waited that is due"),
    ("mailtap_tap_tracked_messages", Unit::Count, "Messages in Postfix's queue that are followed"),
    ("mailtap_tracker_connections", Unit::Count, "Connections that are open"),
    ("mailtap_tracker_waiting_events", Unit::Count, "Events that wait to be stored"),
];

#[rustfmt::skip]
const HISTOGRAMS: &[(&str, &str)] = &[
    ("mailtap_milter_message_seconds", "From a message's last byte to its answer; without those never worked on"),
    ("mailtap_relay_request_seconds", "From a request to its answer"),
    ("mailtap_tracker_answer_seconds", "From a request to its answer, by what was answered"),
];

/// Describes all.
pub(super) fn describe() {
    for (name, _, what) in COUNTERS {
        describe_counter!(*name, *what);
    }
    for (name, unit, what) in GAUGES {
        describe_gauge!(*name, *unit, *what);
    }
    for (name, what) in HISTOGRAMS {
        describe_histogram!(*name, Unit::Seconds, *what);
    }
}

/// Begins to count at zero what one part of mailtap counts: `milter`, `spool`, `config`.
pub fn count_from_zero(part: &str) {
    let prefix = format!("mailtap_{part}_");
    for (name, values, _) in COUNTERS.iter().filter(|(name, ..)| name.starts_with(&prefix)) {
        match values {
            Some((label, values)) => {
                for value in *values {
                    counter!(*name, *label => *value).increment(0);
                }
            }
            None if LABELLED.contains(name) => (),
            None => counter!(*name).increment(0),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use super::*;

    /// Names with what they are and whether they have labels, as the sources count them.
    fn in_sources(directory: &Path, found: &mut BTreeMap<String, (&'static str, bool)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                in_sources(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") && !path.ends_with("catalogue.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for (at, _) in text.match_indices("\"mailtap_") {
                    let (before, after) = text.split_at(at);
                    let (name, after) = after[1..].split_once('"').unwrap();
                    let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                    if !is_name || name.ends_with('_') {
                        continue;
                    }
                    let labelled = after.trim_start().starts_with(',');
                    for (call, kind) in
                        [("counter!(", "counter"), ("gauge!(", "gauge"), ("histogram!(", "histogram")]
                    {
                        if before.trim_end().ends_with(call) {
                            let labelled = labelled || found.get(name).is_some_and(|(_, label)| *label);
                            found.insert(name.to_owned(), (kind, labelled));
                        }
                    }
                    found.entry(name.to_owned()).or_insert(("?", true));
                }
            }
        }
    }

    #[test]
    fn all_that_the_sources_count_is_described_and_nothing_else() {
        let mut found = BTreeMap::new();
        in_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        assert!(found.len() > 90, "{found:?}");
        let counters = COUNTERS.iter().map(|(name, ..)| (*name, "counter"));
        let gauges = GAUGES.iter().map(|(name, ..)| (*name, "gauge"));
        let histograms = HISTOGRAMS.iter().map(|(name, _)| (*name, "histogram"));
        let described: BTreeMap<&str, &str> = counters.chain(gauges).chain(histograms).collect();
        let ours: BTreeSet<&str> = described.keys().copied().collect();
        let theirs: BTreeSet<&str> = found.keys().map(String::as_str).collect();
        let differ: Vec<_> = theirs.symmetric_difference(&ours).collect();
        assert!(differ.is_empty(), "src/telemetry/catalogue.rs says what each metric means: {differ:?}");
        for (name, (kind, labelled)) in &found {
            assert!(*kind == "?" || *kind == described[name.as_str()], "{name} is a {kind}");
            let (_, values, _) = COUNTERS.iter().find(|(one, ..)| one == name).unwrap_or(&("", None, ""));
            if described[name.as_str()] == "counter" {
                let listed = values.is_some() || LABELLED.contains(&name.as_str());
                assert_eq!(*labelled, listed, "{name}: is it counted with a label?");
            }
        }
    }

    #[test]
    fn names_are_as_prometheus_wants_them() {
        assert!(COUNTERS.iter().all(|(name, ..)| name.ends_with("_total")));
        assert!(HISTOGRAMS.iter().all(|(name, _)| name.ends_with("_seconds")));
        for (name, unit, _) in GAUGES {
            assert!(!name.ends_with("_total"), "{name}");
            assert_eq!(name.ends_with("_bytes"), *unit == Unit::Bytes, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
        }
    }

    #[test]
    fn each_role_counts_from_zero_and_says_what() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            for part in ["config", "spool", "relay"] {
                count_from_zero(part);
            }
        });
        let text = recorder.handle().render();
        for line in [
            "mailtap_config_failures_total 0",
            "mailtap_spool_taken_back_total 0",
            "mailtap_spool_expired_total{fate=\"dropped\"} 0",
            "mailtap_relay_uncertain_total 0",
            "mailtap_relay_dead_total{reason=\"refused\"} 0",
            "# HELP mailtap_relay_put_off_total Events above an hourly limit that went back to the queue",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
        assert!(!text.contains("mailtap_relay_sent_total ") && !text.contains("mailtap_tap_"), "{text}");
    }
}
