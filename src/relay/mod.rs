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
pub mod map;
pub mod validate;

// Edges.
mod happenings;
pub mod send;

// The role.
mod breaker;
mod settle;
mod work;

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

use crate::event::Event;
use crate::identity::Timestamp;
use crate::queue::dedupe::Dedupe;
use crate::queue::source::{BoxFuture, Delivery, Source};
use crate::service::{Lifecycle, clock};
use breaker::Breakers;
use happenings::InFlight;
use lanes::Lanes;
use map::Mapping;
use send::{Property, Sender, SenderError};
use settle::{Settled, Settler};
use work::{Item, Relay};

/// What the relay is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where events go. One without domains takes what no other does.
    pub properties: Vec<Property>,
    /// Requests under way at once.
    pub max_in_flight: usize,
    /// How long to wait for more events of one client.
    pub batch_window: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// Send again what may have arrived.
    pub retry_uncertain: bool,
}

impl Settings {
    fn domains(&self) -> Vec<Vec<String>> {
        self.properties.iter().map(|property| property.domains.clone()).collect()
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
    mut source: Box<dyn Source>,
    dedupe: Dedupe,
    life: Lifecycle,
) -> Result<(), SenderError> {
    let health = life.health.component("relay");
    let sender = Sender::new(&settings.properties, settings.timeout, settings.max_in_flight)?;
    let names = settings.properties.iter().map(|property| property.measurement_id.clone()).collect();
    let mut breakers = Breakers::new(health, names);
    let mut lanes: Lanes<Item> = Lanes::new(settings.properties.len(), settings.max_in_flight);
    let most = settings.max_in_flight.saturating_mul(validate::MAX_EVENTS).max(1);
    let relay = Relay { settings, mapping, sender, dedupe };
    let mut under_way: FuturesUnordered<BoxFuture<'_, (usize, Vec<Settled>)>> = FuturesUnordered::new();
    let mut gathered = Gathered::default();
    let mut settler = Settler::default();
    loop {
        let stopping = life.stop.is_cancelled();
        let paused = stopping || breakers.is_paused();
        let mut settled = turned_back(&mut lanes, &breakers);
        while let Some(request) =
            if paused { None } else { lanes.start(|property| breakers.allowed(property)) }
        {
            let property = request.property;
            let (request, expired) = work::fresh(request, clock::now());
            settled.extend(expired);
            match request {
                Some(request) => under_way.push(relay.send(request)),
                None => lanes.ended(property),
            }
        }
        InFlight { requests: lanes.under_way() }.emit();
        let room = most.saturating_sub(gathered.deliveries.len() + lanes.waiting_events());
        let may_take = !paused && room > 0 && lanes.wants_more(|property| breakers.allowed(property));
        if settled.is_empty() {
            tokio::select! {
                Some((property, sent)) = under_way.next(), if !under_way.is_empty() => {
                    lanes.ended(property);
                    settled = sent;
                }
                taken = source.next(room), if may_take => match taken {
                    Ok(taken) => {
                        breakers.queue_works();
                        gathered.add(taken, relay.settings.batch_window);
                    }
                    Err(error) => breakers.queue_trouble(error.to_string()),
                },
                () = at(gathered.until), if gathered.until.is_some() && !stopping => gathered.until = None,
                () = at(breakers.next_end()), if breakers.next_end().is_some() && !stopping => breakers.end_pauses(),
                () = at(settler.again), if settler.again.is_some() && !stopping => {}
                () = life.stop.cancelled(), if !stopping => {}
                // What was taken and not begun goes back with the source.
                else => return Ok(()),
            }
        }
        let due = gathered.until.is_none() || gathered.deliveries.len() >= most;
        if due && !gathered.deliveries.is_empty() && !life.stop.is_cancelled() {
            let (requests, sorted_out) =
                relay.prepare(std::mem::take(&mut gathered.deliveries), &mut settler).await;
            lanes.put(requests);
            settler.settle(&mut source, &relay.dedupe, &mut breakers, sorted_out).await;
        }
        if !settled.is_empty() || settler.is_due() {
            settler.settle(&mut source, &relay.dedupe, &mut breakers, settled).await;
        }
    }
}

/// What waits for a blocked property while others work: back to the queue, so that it takes nobody's room. One request of
/// it tries the way after each pause.
fn turned_back(lanes: &mut Lanes<Item>, breakers: &Breakers) -> Vec<Settled> {
    let mut settled = Vec::new();
    for (property, pause) in breakers.to_turn_back() {
        settled.extend(work::turn_back(&lanes.turn_back(property, breakers.allowed(property)), pause));
    }
    settled
}

/// Deliveries that wait a little for more of the same clients.
#[derive(Debug, Default)]
struct Gathered {
    deliveries: Vec<Delivery>,
    until: Option<tokio::time::Instant>,
}

impl Gathered {
    fn add(&mut self, taken: Vec<Delivery>, window: Duration) {
        if self.deliveries.is_empty() && !taken.is_empty() {
            self.until = Some(tokio::time::Instant::now() + window);
        }
        self.deliveries.extend(taken);
    }
}

async fn at(moment: Option<tokio::time::Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
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
    let dry = dry_run::dry_run(events, mapping, &settings.domains(), now);
    let requests = dry.requests.iter().map(|request| {
        json!({ "url": urls.get(request.property), "bytes": request.body.to_string().len(), "body": request.body })
    });
    let repairs =
        dry.repairs.iter().map(|(id, repair)| json!({ "event": id.to_string(), "repair": repair.as_str() }));
    let dead = dry.dead.iter().map(|(id, reason)| json!({ "event": id.to_string(), "dead": reason }));
    let off = dry.off.iter().map(|id| json!({ "event": id.to_string(), "off": true }));
    Ok(requests.chain(repairs).chain(dead).chain(off).map(|line| line.to_string()).collect())
}

#[cfg(test)]
mod tests;
