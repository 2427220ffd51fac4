//! What the relay does with events: sort out, make requests, send them.
//!
//! - Layer: role
//! - Takes: deliveries.
//! - Gives: requests; for each delivery what became of it.
//! - On failure: without its memory the relay sends nothing. Each request is noted before its first byte, and not before it has its place
//!   on a connection: what a kill finds waiting for one was certainly not sent.
//! - See: `docs/decisions/0006-uncertain-is-kept.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::UnboundedSender;

use super::Settings;
use super::batch::{self, Request};
use super::breaker::{BLOCKED, Fate};
use super::happenings::{Duplicates, Failed, GivenBack, PutOff, Repaired, Retried, Sent, SwitchedOff};
use super::map::Mapping;
use super::memory::Memory;
use super::send::{Outcome, Sender};
use super::settle::{Noted, Settled, Settler};
use super::validate::{self, MAX_AGE};
use crate::event::{EventId, Kind};
use crate::identity::Timestamp;
use crate::queue::StoreError;
use crate::queue::dedupe::Known;
use crate::queue::source::{Delivery, Settlement, Tag};
use crate::service::clock;

/// Why events wait though GA4 would answer.
const PACED: &str = "relay.max_per_property_hour is reached; events wait";
/// Why events go back that waited here for long, for whatever reason.
const HELD: &str = "waited in the relay; back to the queue";
/// Why nothing becomes of a delivery that comes again by itself.
const LOST: &str = "the connection that it came over is gone";
/// Why events wait when nobody could remember that they were sent.
const NO_DEDUPE: &str = "the memory of what was sent can't be read or written";
const TWIN: &str = "the same event is being sent";
const EXPIRED: &str = validate::Reject::Expired.as_str();
const LONGEST_RETRY: Duration = Duration::from_secs(600);

/// A delivery within a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    tag: Tag,
    /// What it is remembered by.
    id: EventId,
    /// The event's own id: the same, but for a replay.
    event: EventId,
    kind: Kind,
    time: Timestamp,
    attempts: u32,
}

impl Item {
    /// What it is remembered by.
    pub(super) fn id(&self) -> EventId {
        self.id
    }

    /// Whether it came over this connection.
    pub(super) fn is_of(&self, epoch: u64) -> bool {
        self.tag.is_of(epoch)
    }

    /// Whether it came after this one.
    pub(super) fn is_after(&self, tag: Tag) -> bool {
        self.tag > tag
    }

    fn settled(&self, what: Settlement, fate: Fate) -> Settled {
        Settled { tag: self.tag, id: Some(self.id), event: self.event, note: Noted::Nothing, what, fate }
    }
}

/// What became of a request, and of which property it was.
pub(super) type Answered = (usize, Vec<Settled>);

#[derive(Debug)]
pub(super) struct Relay {
    pub(super) settings: Settings,
    pub(super) mapping: Mapping,
    pub(super) sender: Sender,
    pub(super) memory: Arc<Memory>,
    /// For each property, whether it was told that requests don't get through, and none has since.
    told: Vec<AtomicBool>,
}

impl Relay {
    pub(super) fn new(settings: Settings, mapping: Mapping, sender: Sender, memory: Arc<Memory>) -> Self {
        let told = settings.properties.iter().map(|_| AtomicBool::new(false)).collect();
        Self { settings, mapping, sender, memory, told }
    }

    /// Whether it was told before that requests to this property don't get through: many fail at once.
    fn told(&self, property: usize, outcome: &Outcome) -> bool {
        let Some(told) = self.told.get(property) else { return false };
        match outcome {
            Outcome::NotSent(_) | Outcome::NotTried | Outcome::Trouble(_) => {
                told.swap(true, Ordering::Relaxed)
            }
            Outcome::Sent | Outcome::Refused(_) => told.swap(false, Ordering::Relaxed),
            Outcome::Uncertain(_) => false,
        }
    }

    /// Sorts out what is in hand, was sent before, or can't be sent; makes requests of the rest.
    pub(super) async fn prepare(
        &self,
        deliveries: Vec<Delivery>,
        settler: &mut Settler,
    ) -> (Vec<Request<Item>>, Vec<Settled>) {
        let (first, twins): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|delivery| settler.take(delivery.key()));
        let items: Vec<(Item, bool)> =
            first.iter().map(|delivery| (item(delivery), self.sets_aside(delivery))).collect();
        let (requests, mut settled) = match self.sort_out(first).await {
            Ok(sorted) => sorted,
            Err(error) => {
                self.memory.failed(&error);
                (Vec::new(), items.iter().map(|(item, suspect)| unknown(item, *suspect)).collect())
            }
        };
        settled.extend(twins.into_iter().map(|twin| Settled {
            tag: twin.tag,
            id: None,
            event: twin.event.id,
            note: Noted::Nothing,
            what: retry(twin.attempts.max(2), TWIN),
            fate: Fate::Neither,
        }));
        (requests, settled)
    }

    /// Whether another relay may have sent it, and nobody wants it twice.
    fn sets_aside(&self, delivery: &Delivery) -> bool {
        delivery.suspect && !self.settings.retry_uncertain
    }

    async fn sort_out(
        &self,
        deliveries: Vec<Delivery>,
    ) -> Result<(Vec<Request<Item>>, Vec<Settled>), StoreError> {
        let ids: Vec<EventId> = deliveries.iter().map(Delivery::key).collect();
        let known = self.memory.dedupe.look(&ids).await?;
        // So that they are remembered even where their letters are written and the source hands them out once more.
        let suspects = deliveries.iter().zip(&known);
        let suspects: Vec<EventId> = suspects
            .filter(|(delivery, known)| **known == Known::Nothing && self.sets_aside(delivery))
            .map(|(delivery, _)| delivery.key())
            .collect();
        self.memory.dedupe.begin(&suspects).await?;
        let takes = self.settings.takes();
        let now = clock::now();
        let (mut good, mut settled, mut duplicates) = (Vec::new(), Vec::new(), 0);
        for (delivery, known) in deliveries.iter().zip(known) {
            let item = item(delivery);
            if known == Known::Sent {
                duplicates += 1;
                settled.push(item.settled(Settlement::Done, Fate::Neither));
                continue;
            }
            let interrupted = known == Known::Interrupted && !self.settings.retry_uncertain;
            if interrupted || self.sets_aside(delivery) {
                let outcome = Outcome::Uncertain("ended in the middle".into());
                Failed { ids: &[item.event], outcome: &outcome, is_known: false }.emit();
                settled.push(item.settled(Settlement::Uncertain, Fate::Neither));
                continue;
            }
            if !self.mapping.is_sent(item.kind) {
                SwitchedOff { kind: item.kind }.emit();
                settled.push(item.settled(Settlement::Done, Fate::Neither));
                continue;
            }
            let Some(mapped) = self.mapping.map(&delivery.event, &takes) else {
                settled.push(dead(&item, "no_property"));
                continue;
            };
            match validate::validate(mapped, now) {
                Ok((mapped, repairs)) => {
                    repairs.into_iter().for_each(|repair| Repaired { repair }.emit());
                    good.push((mapped, item));
                }
                Err(reject) => settled.push(dead(&item, reject.as_str())),
            }
        }
        if duplicates > 0 {
            Duplicates { events: duplicates }.emit();
        }
        Ok((batch::batch(good), settled))
    }

    /// Sends requests that begin together: those that have their places at once are noted in one go, so that they share a sync of
    /// the disk; each is answered for by itself, as soon as it can be, with its property.
    pub(super) async fn send(&self, requests: Vec<Request<Item>>, answers: &UnboundedSender<Answered>) {
        let mut under_way: FuturesUnordered<_> =
            requests.into_iter().map(|request| self.send_one(request)).collect();
        while let Some(answered) = under_way.next().await {
            // Nobody reads answers any more where the relay has ended: the next life finds what was begun.
            drop(answers.send(answered));
        }
    }

    /// Sends one request. What nobody knows of stays noted as begun until it is settled.
    async fn send_one(&self, request: Request<Item>) -> Answered {
        let started = Instant::now();
        let property = request.property;
        let (body, items) = request.into_parts();
        let items = &items[..];
        let ids: Vec<EventId> = items.iter().map(|item| item.id).collect();
        let outcome =
            match self.sender.send_after(property, body.into(), self.memory.dedupe.begin(&ids)).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.memory.failed(&error);
                    let again = |item: &Item| retry(item.attempts, NO_DEDUPE);
                    return (property, each(items, Fate::Stuck(NO_DEDUPE), Noted::Nothing, again));
                }
            };
        if outcome == Outcome::Sent {
            let kinds = items.iter().map(|item| item.kind).collect();
            Sent { kinds, took: started.elapsed() }.emit();
            self.told(property, &outcome);
            self.memory.works();
        } else {
            let events: Vec<EventId> = items.iter().map(|item| item.event).collect();
            Failed { ids: &events, outcome: &outcome, is_known: self.told(property, &outcome) }.emit();
        }
        let (through, blocked) = (Fate::Through(property), Fate::Blocked(property, outcome.cause()));
        let again =
            |reason: &str| each(items, blocked.clone(), Noted::Unsent, |item| retry(item.attempts, reason));
        let settled = match outcome {
            Outcome::Sent => each(items, through, Noted::Sent, |_| Settlement::Done),
            Outcome::Uncertain(_) if !self.settings.retry_uncertain => {
                each(items, blocked.clone(), Noted::Nothing, |_| Settlement::Uncertain)
            }
            Outcome::Refused(status) => {
                let reason = format!("HTTP {status}");
                each(items, through, Noted::Unsent, |_| Settlement::Dead { reason: reason.clone() })
            }
            Outcome::NotTried => {
                each(items, blocked.clone(), Noted::Nothing, |item| retry(item.attempts, "no connection"))
            }
            Outcome::NotSent(_) => again("no connection"),
            Outcome::Trouble(status) => again(&format!("HTTP {status}")),
            Outcome::Uncertain(_) => again("no answer"),
        };
        (property, settled)
    }
}

/// Puts off what a property's hourly limit holds back.
pub(super) fn put_off(requests: &[Request<Item>], after: Duration) -> Vec<Settled> {
    let events = requests.iter().map(|request| request.tags.len()).sum();
    PutOff { events }.emit();
    let later = |_: &Item| Settlement::Later { after, reason: PACED.to_owned() };
    requests.iter().flat_map(|request| each(&request.tags, Fate::Neither, Noted::Nothing, later)).collect()
}

/// Gives back what waits for a property that is blocked: later, and not before its pause ends.
pub(super) fn turn_back(requests: &[Request<Item>], pause: Duration) -> Vec<Settled> {
    let later = |item: &Item| match retry(item.attempts, BLOCKED) {
        Settlement::Retry { after, reason } => Settlement::Retry { after: after.max(pause), reason },
        other => other,
    };
    requests.iter().flat_map(|request| each(&request.tags, Fate::Neither, Noted::Nothing, later)).collect()
}

/// Gives back events that were held for long: soon again, so that there is always something at hand for a way that opens.
pub(super) fn give_back(items: &[Item]) -> Vec<Settled> {
    GivenBack { events: items.len() }.emit();
    let soon = || Settlement::Later { after: Duration::ZERO, reason: HELD.to_owned() };
    items.iter().map(|item| item.settled(soon(), Fate::Neither)).collect()
}

/// The same, of deliveries that were never taken in hand.
pub(super) fn give_back_unseen(deliveries: &[Delivery]) -> Vec<Settled> {
    let items: Vec<Item> = deliveries.iter().map(item).collect();
    give_back(&items).into_iter().map(|settled| Settled { id: None, ..settled }).collect()
}

/// Lets go what comes again, whatever is said of it.
pub(super) fn let_go(items: &[Item]) -> Vec<Settled> {
    let what = || Settlement::Retry { after: Duration::ZERO, reason: LOST.to_owned() };
    items.iter().map(|item| Settled { id: None, ..item.settled(what(), Fate::Neither) }).collect()
}

/// A request that waited, without the events that grew too old meanwhile.
pub(super) fn fresh(mut request: Request<Item>, now: Timestamp) -> (Option<Request<Item>>, Vec<Settled>) {
    let old = request.leave_out(|item| now.since(item.time) <= MAX_AGE);
    let settled = old.iter().map(|item| dead(item, EXPIRED)).collect();
    ((!request.tags.is_empty()).then_some(request), settled)
}

pub(super) fn item(delivery: &Delivery) -> Item {
    let Delivery { tag, event, attempts, .. } = delivery;
    let (id, kind, time) = (delivery.key(), event.kind, event.time);
    Item { tag: *tag, id, event: event.id, kind, time, attempts: *attempts }
}

/// What became of an event while the memory is out of order. What another relay may have sent would be like any other after a
/// retry.
fn unknown(item: &Item, suspect: bool) -> Settled {
    let what = if suspect { Settlement::Uncertain } else { retry(item.attempts, NO_DEDUPE) };
    item.settled(what, Fate::Stuck(NO_DEDUPE))
}

fn dead(item: &Item, reason: &'static str) -> Settled {
    item.settled(Settlement::Dead { reason: reason.to_owned() }, Fate::Neither)
}

fn each(items: &[Item], fate: Fate, note: Noted, what: impl Fn(&Item) -> Settlement) -> Vec<Settled> {
    items.iter().map(|item| Settled { note, ..item.settled(what(item), fate.clone()) }).collect()
}

/// Again, each time later, and not all at once.
fn retry(attempts: u32, reason: &str) -> Settlement {
    Retried.emit();
    let seconds = 1_u64 << attempts.min(10);
    let after = Duration::from_secs(seconds).min(LONGEST_RETRY).mul_f64(rand::random_range(0.5..1.0));
    Settlement::Retry { after, reason: reason.to_owned() }
}
