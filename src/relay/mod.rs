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
pub mod map;
pub mod validate;

// Edges.
mod happenings;
pub mod send;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::event::EventId;
use crate::queue::StoreError;
use crate::queue::dedupe::Dedupe;
use crate::queue::source::{BoxFuture, Delivery, Settlement, Source, Tag};
use crate::service::{Component, Lifecycle, clock};
use batch::Request;
use happenings::{Dead, Duplicates, Failed, Paused, QueueTrouble, Repaired, Resumed, Sent};
use send::{Outcome, Property, Sender, SenderError};

/// Failures in a row after which the relay pauses.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Why events wait when nobody could remember that they were sent.
const NO_DEDUPE: &str = "the memory of what was sent can't be read or written";
const SETTLE_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(600);

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

/// Runs the relay until `life.stop`.
///
/// # Errors
/// `SenderError`; once it runs, nothing ends it but `life.stop`.
pub async fn run(
    settings: Settings,
    mut source: Box<dyn Source>,
    dedupe: Dedupe,
    life: Lifecycle,
) -> Result<(), SenderError> {
    let health = life.health.component("relay");
    let sender = Sender::new(&settings.properties, settings.timeout, settings.max_in_flight)?;
    let domains = settings.properties.iter().map(|property| property.domains.clone()).collect();
    let relay = Relay { settings, domains, sender, dedupe };
    let mut breaker = Breaker { failures: 0, queue_troubled: false, pause: FIRST_PAUSE, until: None, health };
    breaker.health.ready();
    let mut under_way: FuturesUnordered<BoxFuture<'_, Vec<Settled>>> = FuturesUnordered::new();
    let mut gathered = Gathered::default();
    let mut ready: VecDeque<Request<Item>> = VecDeque::new();
    let mut settler = Settler::default();
    let most = relay.settings.max_in_flight.saturating_mul(validate::MAX_EVENTS).max(1);
    loop {
        let stopping = life.stop.is_cancelled();
        let paused = stopping || breaker.until.is_some();
        while !paused && under_way.len() < relay.settings.max_in_flight {
            let Some(request) = ready.pop_front() else { break };
            under_way.push(relay.send(request));
        }
        let room = most.saturating_sub(gathered.deliveries.len());
        let may_take = !paused && ready.is_empty() && room > 0;
        tokio::select! {
            Some(settled) = under_way.next(), if !under_way.is_empty() => {
                settler.settle(&mut source, settled, &mut breaker).await;
            }
            taken = source.next(room), if may_take => match taken {
                Ok(taken) => {
                    breaker.queue_works();
                    gathered.add(taken, relay.settings.batch_window);
                }
                Err(error) => breaker.queue_trouble(error.to_string()),
            },
            () = at(gathered.until), if gathered.until.is_some() && !stopping => gathered.until = None,
            () = at(breaker.until), if breaker.until.is_some() && !stopping => breaker.until = None,
            () = at(settler.again), if settler.again.is_some() && !stopping => {
                settler.settle(&mut source, Vec::new(), &mut breaker).await;
            }
            () = life.stop.cancelled(), if !stopping => {}
            // What was taken and not begun goes back with the source.
            else => return Ok(()),
        }
        let due = gathered.until.is_none() || gathered.deliveries.len() >= most;
        if due && !gathered.deliveries.is_empty() && !life.stop.is_cancelled() {
            let (requests, settled) = relay.prepare(std::mem::take(&mut gathered.deliveries)).await;
            ready.extend(requests);
            settler.settle(&mut source, settled, &mut breaker).await;
        }
    }
}

/// Deliveries that wait a little for more of the same clients.
#[derive(Default)]
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

/// A delivery, what became of it, and what that says of the way to GA4.
type Settled = (Tag, Settlement, Fate);

/// What a settlement says about the way to GA4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Through,
    Blocked,
    Neither,
}

/// A delivery within a request.
#[derive(Debug, Clone, Copy)]
struct Item {
    tag: Tag,
    id: EventId,
    attempts: u32,
}

struct Relay {
    settings: Settings,
    domains: Vec<Vec<String>>,
    sender: Sender,
    dedupe: Dedupe,
}

impl Relay {
    /// Sorts out what was sent before or can't be sent; makes requests of the rest.
    async fn prepare(&self, deliveries: Vec<Delivery>) -> (Vec<Request<Item>>, Vec<Settled>) {
        let tags: Vec<(Tag, u32)> =
            deliveries.iter().map(|delivery| (delivery.tag, delivery.attempts)).collect();
        match self.sort_out(deliveries).await {
            Ok(sorted) => sorted,
            Err(error) => {
                QueueTrouble { why: error.to_string() }.emit();
                let again = |(tag, attempts)| (tag, retry(attempts, NO_DEDUPE), Fate::Blocked);
                (Vec::new(), tags.into_iter().map(again).collect())
            }
        }
    }

    async fn sort_out(
        &self,
        deliveries: Vec<Delivery>,
    ) -> Result<(Vec<Request<Item>>, Vec<Settled>), StoreError> {
        let ids: Vec<EventId> = deliveries.iter().map(|delivery| delivery.event.id).collect();
        let already = self.dedupe.already(&ids).await?;
        let interrupted = self.dedupe.interrupted(&ids).await?;
        let now = clock::now();
        let (mut good, mut settled, mut duplicates) = (Vec::new(), Vec::new(), 0);
        for ((delivery, already), interrupted) in deliveries.into_iter().zip(already).zip(interrupted) {
            let Delivery { tag, event, attempts } = delivery;
            if already {
                duplicates += 1;
                settled.push((tag, Settlement::Done, Fate::Neither));
                continue;
            }
            if interrupted && !self.settings.retry_uncertain {
                self.dedupe.remember(&[event.id], now).await?;
                Failed { events: 1, outcome: &Outcome::Uncertain("ended in the middle".into()) }.emit();
                settled.push((tag, Settlement::Uncertain, Fate::Neither));
                continue;
            }
            let item = Item { tag, id: event.id, attempts };
            let Some(mapped) = map::map(&event, &self.domains) else {
                settled.push(dead(tag, "no_property"));
                continue;
            };
            match validate::validate(mapped, now) {
                Ok((mapped, repairs)) => {
                    repairs.into_iter().for_each(|repair| Repaired { repair }.emit());
                    good.push((mapped, item));
                }
                Err(reject) => settled.push(dead(tag, reject.as_str())),
            }
        }
        if duplicates > 0 {
            Duplicates { events: duplicates }.emit();
        }
        Ok((batch::batch(good), settled))
    }

    /// Writes down that events are not to be sent again, or that they may be. Goes on until it is written: settled
    /// before, they could be sent twice.
    async fn note(&self, ids: &[EventId], over: bool) {
        loop {
            let noted = if over {
                self.dedupe.remember(ids, clock::now()).await
            } else {
                self.dedupe.abandon(ids).await
            };
            let Err(error) = noted else { return };
            QueueTrouble { why: error.to_string() }.emit();
            tokio::time::sleep(SETTLE_AGAIN).await;
        }
    }

    /// Sends one request: noted before the first byte, remembered before it is settled.
    fn send(&self, request: Request<Item>) -> BoxFuture<'_, Vec<Settled>> {
        Box::pin(async move {
            let ids: Vec<EventId> = request.tags.iter().map(|item| item.id).collect();
            if let Err(error) = self.dedupe.begin(&ids).await {
                QueueTrouble { why: error.to_string() }.emit();
                return each(&request.tags, Fate::Blocked, |item| retry(item.attempts, NO_DEDUPE));
            }
            let started = Instant::now();
            let outcome = self.sender.send(request.property, request.body.to_string()).await;
            if outcome == Outcome::Sent {
                Sent { events: ids.len(), took: started.elapsed() }.emit();
            } else {
                Failed { events: ids.len(), outcome: &outcome }.emit();
            }
            let keep_uncertain = !self.settings.retry_uncertain;
            let over =
                outcome == Outcome::Sent || (keep_uncertain && matches!(outcome, Outcome::Uncertain(_)));
            self.note(&ids, over).await;
            match outcome {
                Outcome::Sent => each(&request.tags, Fate::Through, |_| Settlement::Done),
                Outcome::NotSent(_) => {
                    each(&request.tags, Fate::Blocked, |item| retry(item.attempts, "no connection"))
                }
                Outcome::Trouble(status) => {
                    each(&request.tags, Fate::Blocked, |item| retry(item.attempts, &format!("HTTP {status}")))
                }
                Outcome::Refused(status) => each(&request.tags, Fate::Through, |_| {
                    metrics::counter!("mailtap_relay_dead_total", "reason" => "refused").increment(1);
                    Settlement::Dead { reason: format!("HTTP {status}") }
                }),
                Outcome::Uncertain(_) if keep_uncertain => {
                    each(&request.tags, Fate::Blocked, |_| Settlement::Uncertain)
                }
                Outcome::Uncertain(_) => {
                    each(&request.tags, Fate::Blocked, |item| retry(item.attempts, "no answer"))
                }
            }
        })
    }
}

/// Tells the source what became of deliveries, until it has taken it.
#[derive(Default)]
struct Settler {
    open: Vec<(Tag, Settlement)>,
    again: Option<tokio::time::Instant>,
}

impl Settler {
    async fn settle(&mut self, source: &mut Box<dyn Source>, settled: Vec<Settled>, breaker: &mut Breaker) {
        // All deliveries of a request have one fate.
        if let Some((_, _, fate)) = settled.first() {
            breaker.note(*fate);
        }
        self.open.extend(settled.into_iter().map(|(tag, what, _)| (tag, what)));
        self.again = None;
        if self.open.is_empty() {
            return;
        }
        match source.settle(self.open.clone()).await {
            Ok(()) => self.open.clear(),
            Err(error) => {
                QueueTrouble { why: error.to_string() }.emit();
                self.again = Some(tokio::time::Instant::now() + SETTLE_AGAIN);
            }
        }
    }
}

fn dead(tag: Tag, reason: &'static str) -> Settled {
    Dead { reason }.emit();
    (tag, Settlement::Dead { reason: reason.to_owned() }, Fate::Neither)
}

fn each(items: &[Item], fate: Fate, settlement: impl Fn(&Item) -> Settlement) -> Vec<Settled> {
    items.iter().map(|item| (item.tag, settlement(item), fate)).collect()
}

/// Again, each time later, and not all at once.
fn retry(attempts: u32, reason: &str) -> Settlement {
    metrics::counter!("mailtap_relay_retried_total").increment(1);
    let seconds = 1_u64 << attempts.min(10);
    let after = Duration::from_secs(seconds).min(LONGEST_RETRY).mul_f64(rand::random_range(0.5..1.0));
    Settlement::Retry { after, reason: reason.to_owned() }
}

/// Stops taking events while nothing gets through.
struct Breaker {
    failures: u32,
    queue_troubled: bool,
    pause: Duration,
    until: Option<tokio::time::Instant>,
    health: Component,
}

impl Breaker {
    fn note(&mut self, fate: Fate) {
        match fate {
            Fate::Through => {
                if self.failures >= PATIENCE {
                    Resumed.emit();
                    self.health.ready();
                }
                (self.failures, self.pause) = (0, FIRST_PAUSE);
            }
            Fate::Blocked => {
                self.failures += 1;
                if self.failures >= PATIENCE {
                    self.health.not_ready("GA4 does not take requests; events wait");
                    self.wait();
                }
            }
            Fate::Neither => {}
        }
    }

    fn queue_trouble(&mut self, why: String) {
        self.health.not_ready(why.clone());
        QueueTrouble { why }.emit();
        self.queue_troubled = true;
        self.wait();
    }

    /// Pauses, unless it does already; each time longer.
    fn wait(&mut self) {
        if self.until.is_none() {
            let pause = self.pause.mul_f64(rand::random_range(0.75..1.0));
            Paused { pause }.emit();
            self.until = Some(tokio::time::Instant::now() + pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn queue_works(&mut self) {
        if std::mem::take(&mut self.queue_troubled) {
            self.failures = 0;
            self.health.ready();
        }
    }
}
