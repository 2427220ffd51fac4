//! `[spool]` and `[relay]`: how long events wait, and for what.
//!
//! - Layer: edge
//! - Takes: `Raw`.
//! - Gives: `RelayConfig`, the spool's bounds.
//! - On failure: problems; a value by which events would be lost or uncertain is one.
//! - See: GA4 takes events for 72 hours.

use std::time::Duration;

use super::Checker;
use crate::config::raw::Raw;
use crate::config::{RelayConfig, units};

const SHORTEST_AGE: Duration = Duration::from_secs(3_600);
/// The relay makes dead letters of older ones: GA4 would not take them, and says nothing.
const LONGEST_AGE: Duration = Duration::from_secs(71 * 3_600);
/// Longer than an event may wait, retries and a relay's outage included.
const SHORTEST_DEDUPE: Duration = Duration::from_secs(96 * 3_600);
/// Some ten thousand events: a short outage of the relay or the broker.
const SMALLEST_SPOOL: u64 = 16 * 1024 * 1024;
const TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(300);
/// An event that waits here longer is neither sent nor back in its queue should the relay die.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

pub(super) fn spool_max_bytes(at: &mut Checker<'_>, text: &str) -> u64 {
    let bytes = at.some("spool.max_bytes", units::bytes(text));
    if bytes.is_some_and(|bytes| bytes < SMALLEST_SPOOL) {
        at.note("spool.max_bytes", "is below 16MiB: a short outage would fill it, and cost events");
    }
    bytes.unwrap_or_default()
}

pub(super) fn max_age(at: &mut Checker<'_>, text: &str) -> Duration {
    let age = at.some("spool.max_age", units::duration(text));
    if age.is_some_and(|age| age < SHORTEST_AGE) {
        at.note("spool.max_age", "is below 1h: a short outage would cost events");
    }
    if age.is_some_and(|age| age > LONGEST_AGE) {
        at.note(
            "spool.max_age",
            "is above 71h: GA4 takes nothing older than 72 hours, and would say nothing",
        );
    }
    age.unwrap_or(SHORTEST_AGE)
}

pub(super) fn dedupe(at: &mut Checker<'_>, text: &str) -> Duration {
    let window = at.some("spool.dedupe", units::duration(text));
    if window.is_some_and(|window| window < SHORTEST_DEDUPE) {
        at.note("spool.dedupe", "is below 96h: an event that waited through an outage could count twice");
    }
    window.unwrap_or(SHORTEST_DEDUPE)
}

pub(super) fn relay(at: &mut Checker<'_>, raw: &Raw) -> RelayConfig {
    let relay = &raw.relay;
    let timeout = at.some("relay.timeout", units::duration(&relay.timeout));
    if timeout.is_some_and(|timeout| !TIMEOUT.contains(&timeout)) {
        at.note(
            "relay.timeout",
            "must be from 500ms to 5m: what is not answered by then may have arrived, and is uncertain",
        );
    }
    let window = at.ok("relay.batch_window", units::duration(&relay.batch_window));
    if window > LONGEST_WINDOW {
        at.note("relay.batch_window", "must be at most 1m: every event waits as long for more of its client");
    }
    RelayConfig {
        max_in_flight: at.count("relay.max_in_flight", relay.max_in_flight),
        streams: at.count("relay.streams_per_connection", relay.streams_per_connection),
        h2c: relay.h2c,
        per_property: usize::try_from(relay.max_per_property).unwrap_or(usize::MAX),
        per_property_hour: relay.max_per_property_hour,
        queues: relay.queues.iter().filter_map(|number| u16::try_from(*number).ok()).collect(),
        batch_window: window,
        timeout: timeout.unwrap_or(*TIMEOUT.start()),
        retry_uncertain: at.one_of("relay.uncertain", &relay.uncertain, &[("keep", false), ("retry", true)]),
    }
}
