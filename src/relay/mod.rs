//! The relay: takes events from spool or RabbitMQ to GA4.
//!
//! - Layer: role
//! - Takes: a source of events, the memory of what was sent, the properties.
//! - Gives: requests to the Measurement Protocol; every event is settled once: sent, tried again, dead or uncertain.
//! - On failure: without a connection events wait. An event is never sent again when it may have arrived, unless
//!   `retry_uncertain` says so: GA4 knows no idempotency, so one has to choose between never twice and never lost.
//! - Limits: `max_in_flight` requests; 25 events and 129,000 bytes a request; 71 hours.
//! - See: `docs/ga4.md`.

// Decisions.
pub mod batch;
pub mod client;
pub mod dry_run;
mod lanes;
mod later;
pub mod map;
mod pace;
pub mod params;
pub mod property;
pub mod validate;

// Edges.
mod body;
mod dial;
mod happenings;
mod pool;
pub mod send;

// The role.
mod breaker;
mod memory;
mod settle;
mod turn;
mod work;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::event::Event;
use crate::identity::Timestamp;
use crate::queue::dedupe::Dedupe;
use crate::queue::source::Source;
use crate::service::Lifecycle;
use map::Mapping;
use memory::Memory;
use property::Takes;
use send::{Property, Sender, SenderError, Travel};
use turn::Turns;
use work::Relay;

/// What the relay is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where events go. One that names nothing takes what no other does.
    pub properties: Vec<Property>,
    /// Requests under way at once.
    pub max_in_flight: usize,
    /// Of them to one property; 0: all.
    pub per_property: usize,
    /// To one property within an hour; 0: no limit.
    pub per_property_hour: u64,
    /// Of them over one HTTP/2 connection.
    pub streams: usize,
    /// HTTP/2 without TLS.
    pub h2c: bool,
    /// How long to wait for more events of one client.
    pub batch_window: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// Send again what may have arrived.
    pub retry_uncertain: bool,
}

impl Settings {
    fn travel(&self) -> Travel {
        Travel { timeout: self.timeout, most: self.max_in_flight, streams: self.streams, h2c: self.h2c }
    }

    fn takes(&self) -> Vec<Takes> {
        self.properties.iter().map(|property| property.takes.clone()).collect()
    }
}

/// Runs the relay until `life.stop`, with the names of events and parameters that we give.
///
/// # Errors
/// See [`run_with`].
pub async fn run(
    settings: Settings,
    source: Box<dyn Source>,
    dedupe: Dedupe,
    life: Lifecycle,
) -> Result<(), SenderError> {
    run_with(settings, Mapping::default(), source, dedupe, life).await
}

/// Runs the relay until `life.stop`.
///
/// # Errors
/// `SenderError`; once it runs, nothing ends it but `life.stop`.
pub async fn run_with(
    settings: Settings,
    mapping: Mapping,
    source: Box<dyn Source>,
    dedupe: Dedupe,
    life: Lifecycle,
) -> Result<(), SenderError> {
    let sender = Sender::new(&settings.properties, settings.travel())?;
    let relay = Relay::new(settings, mapping, sender, Arc::new(Memory::new(dedupe)));
    Turns::new(relay, source, life).run().await;
    Ok(())
}

/// What the relay would send of these events, as JSON lines: requests, without the API secret; then what would be a dead
/// letter, and why; then what is switched off. Nothing is sent and nothing is remembered.
///
/// # Errors
/// `SenderError` if a property's URL is none.
pub fn dry_run(
    settings: &Settings,
    mapping: &Mapping,
    events: &[Event],
    now: Timestamp,
) -> Result<Vec<String>, SenderError> {
    let urls: Vec<String> = settings.properties.iter().map(Property::shown).collect::<Result<_, _>>()?;
    let dry = dry_run::dry_run(events, mapping, &settings.takes(), now);
    let requests = dry.requests.iter().map(|request| {
        let body = request.body();
        let json: Value = serde_json::from_str(&body).unwrap_or_default();
        let mut line = json!({ "url": urls.get(request.property), "bytes": body.len(), "body": json });
        // The token is a secret, as the one of the URL is; that it goes along is none.
        if settings.properties.get(request.property).is_some_and(|property| property.preview.is_some()) {
            line["headers"] = json!({ "X-Gtm-Server-Preview": "(the token of ga4.preview_file)" });
        }
        line
    });
    let repairs =
        dry.repairs.iter().map(|(id, repair)| json!({ "event": id.to_string(), "repair": repair.as_str() }));
    let dead = dry.dead.iter().map(|(id, reason)| json!({ "event": id.to_string(), "dead": reason }));
    let off = dry.off.iter().map(|id| json!({ "event": id.to_string(), "off": true }));
    Ok(requests.chain(repairs).chain(dead).chain(off).map(|line| line.to_string()).collect())
}

#[cfg(test)]
mod outage_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble_tests;
