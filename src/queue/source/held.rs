//! The messages that the relay holds of RabbitMQ, and how each is settled.
//!
//! - Layer: edge
//! - Takes: messages, and what became of each.
//! - Gives: acks, several in one where nothing before them is open; messages in retry queues or among the dead letters.
//! - On failure: a message that could not be brought elsewhere is not acked: the connection counts as broken, and the broker
//!   hands it out again over the next one. What the broker refuses is given back to be tried again.
//! - Limits: 256 settlements of one call wait for the broker at once. Says what has been held for too long.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lapin::Acker;
use lapin::message::Delivery as Handed;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BoxFuture, Settle, Settlement, SourceError, Tag, Unsettled};
use crate::queue::amqp::headers::{self, ATTEMPTS, REASON, RECIPIENT, REPLAY, SINCE, STATE};
use crate::queue::amqp::{AmqpError, Link, Message, Publisher, Refused, Ways};
use crate::queue::happenings::{Buried, Unburied};
use crate::queue::outage::Outage;
use crate::service::clock;

/// How many settlements wait for the broker at once.
const SETTLING: usize = 256;
/// How long an ack waits for those of messages that came before.
const IN_ORDER: Duration = Duration::from_millis(20);
/// How long a message that is no event waits when the broker refuses its burial.
const BURY_AGAIN: Duration = Duration::from_secs(5);

/// Connections to the broker: what publishes is blocked whole while the broker is short of memory or disk, and acks must go on.
#[derive(Debug)]
pub(super) struct Session {
    /// What is consumed and acked over.
    pub(super) link: Link,
    /// What is published over.
    pub(super) publishing: Link,
    pub(super) publisher: Publisher,
}

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Desk {
    state: Mutex<State>,
    breaks: Notify,
    /// Held while acks are written.
    acking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Arc<Session>>,
    /// The number of the session.
    epoch: u64,
    held: BTreeMap<Tag, Arc<Held>>,
    /// Those of this session that only wait to be acked together with what came before them.
    done: BTreeMap<Tag, Acker>,
    /// Those that nobody settles any more; they come again with the next session.
    lost: Vec<Tag>,
    broken: Option<AmqpError>,
    /// Why messages that are no events can't be buried.
    unburied: Outage,
    /// Something was acked over the session that stands.
    has_worked: bool,
}

/// What became of a settlement.
enum Brought {
    /// It is where it belongs, and is to be acked.
    There,
    /// It is where it belongs, and comes again.
    Written,
    /// It was held over a connection that is gone, or goes: it comes again.
    Gone,
}

/// A message that is not settled yet.
#[derive(Debug)]
struct Held {
    handed: Handed,
    attempts: u32,
    since: Instant,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins.
    pub(super) fn begin(&self, session: Session) {
        let mut state = self.lock();
        state.session = Some(Arc::new(session));
        (state.broken, state.has_worked) = (None, false);
    }

    /// It ends; these were never given to anybody.
    pub(super) fn end(&self, unseen: impl Iterator<Item = Tag>) {
        let mut state = self.lock();
        (state.session, state.broken) = (None, None);
        state.epoch += 1;
        state.done.clear();
        let lost = std::mem::take(&mut state.lost);
        for tag in unseen.chain(lost) {
            state.held.remove(&tag);
        }
    }

    /// Waits until the session is no good any more.
    pub(super) async fn broken(&self) -> AmqpError {
        loop {
            if let Some(error) = self.lock().broken.take() {
                return error;
            }
            self.breaks.notified().await;
        }
    }

    /// Whether something was settled over the session that stands.
    pub(super) fn has_worked(&self) -> bool {
        self.lock().has_worked
    }

    /// How many messages are held.
    pub(super) fn held(&self) -> usize {
        let state = self.lock();
        state.held.len() + state.done.len()
    }

    /// Holds a message of this session.
    pub(super) fn hold(&self, handed: Handed, attempts: u32) -> Tag {
        let mut state = self.lock();
        let tag = Tag { epoch: state.epoch, number: handed.delivery_tag };
        state.held.insert(tag, Arc::new(Held { handed, attempts, since: Instant::now() }));
        tag
    }

    /// The number of the session that stands, or is to come.
    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// The last one that has been held for so long. None while the broker takes no messages: it could go nowhere.
    pub(super) fn overdue(&self, hold: Duration) -> Option<Tag> {
        let state = self.lock();
        let session = state.session.as_ref().filter(|session| !session.publishing.is_blocked())?;
        let own = state.held.range(first(state.epoch)..);
        let overdue = own.take_while(|(_, held)| held.since.elapsed() >= hold).last();
        overdue.map(|(tag, _)| *tag).filter(|_| session.link.is_connected())
    }

    /// Whether a message is held.
    pub(super) fn holds(&self, tag: Tag) -> bool {
        let state = self.lock();
        state.held.contains_key(&tag) || state.done.contains_key(&tag)
    }

    /// The session that stands.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.lock().session.clone()
    }

    /// Brings what is no event to the dead letters.
    pub(super) async fn bury(&self, tag: Tag, why: &str) {
        while let (Some(session), Some(held)) = (self.own_session(tag), self.get(tag)) {
            let message = session.dead_letter(&held, "malformed", why);
            match session.publisher.publish(&session.publishing, &message).await {
                Ok(()) => {
                    self.lock().unburied.over();
                    Buried.emit();
                    return self.acknowledge(&[tag]).await;
                }
                Err(Refused::Lost(error)) => return self.give_up(tag, error),
                Err(refused) => {
                    let why = refused.to_string();
                    Unburied { why: &why, is_news: self.lock().unburied.is_news(&why) }.emit();
                    tokio::time::sleep(BURY_AGAIN).await;
                }
            }
        }
        self.lock().held.remove(&tag);
    }

    fn get(&self, tag: Tag) -> Option<Arc<Held>> {
        self.lock().held.get(&tag).cloned()
    }

    /// The session that a message came over, if it still stands.
    fn own_session(&self, tag: Tag) -> Option<Arc<Session>> {
        let state = self.lock();
        state.session.clone().filter(|_| tag.epoch == state.epoch)
    }

    /// Leaves a message to the broker, which hands it out again when the session ends.
    fn give_up(&self, tag: Tag, error: AmqpError) {
        let mut state = self.lock();
        if state.session.is_some() && tag.epoch == state.epoch {
            state.lost.push(tag);
            state.broken = Some(error);
            drop(state);
            self.breaks.notify_one();
        } else {
            state.held.remove(&tag);
        }
    }

    /// Acks messages of the session that stands, with as few frames as can be: one for all before which nothing is open. What
    /// came after something that is open waits a moment for it: each ack is a command to every node of a quorum queue.
    async fn acknowledge(&self, tags: &[Tag]) {
        {
            let mut state = self.lock();
            for tag in tags {
                let held = state.held.remove(tag);
                // What came over another session comes again.
                let own = held.filter(|_| state.session.is_some() && tag.epoch == state.epoch);
                state.done.extend(own.map(|held| (*tag, acker(held))));
            }
        }
        self.write_acks(&[]).await;
        let waits = |state: &State| tags.iter().any(|tag| state.done.contains_key(tag));
        if waits(&self.lock()) {
            tokio::time::sleep(IN_ORDER).await;
            self.write_acks(tags).await;
        }
    }

    /// Acks what is done: all that nothing open came before, and of the rest these.
    /// One call after the other: an ack that comes after one which covers it would end the channel.
    async fn write_acks(&self, these: &[Tag]) {
        let _one = self.acking.lock().await;
        let (session, acks) = {
            let mut state = self.lock();
            let Some(session) = state.session.clone() else { return };
            let open = state.held.range(first(state.epoch)..).next().map(|(tag, _)| *tag);
            let later = open.map(|open| state.done.split_off(&open)).unwrap_or_default();
            let before = std::mem::replace(&mut state.done, later);
            let all = before.into_iter().next_back().map(|(_, acker)| (acker, true));
            let single = these.iter().filter_map(|tag| Some((state.done.remove(tag)?, false)));
            (session, all.into_iter().chain(single).collect::<Vec<_>>())
        };
        let link = &session.link;
        let acked: Vec<bool> = stream::iter(acks)
            .map(|(acker, all)| async move { link.acknowledge(&acker, all).await })
            .buffered(SETTLING)
            .collect()
            .await;
        if acked.contains(&false) {
            self.break_session(&session, AmqpError::Client("an ack could not be written".into()));
        } else if !acked.is_empty() {
            self.lock().has_worked = true;
        }
    }

    /// Publishes what is to be elsewhere.
    async fn bring(&self, tag: Tag, settlement: &Settlement) -> Result<Brought, SourceError> {
        let Some(held) = self.get(tag) else { return Ok(Brought::Gone) };
        let own = self.own_session(tag);
        let (session, message) = match (settlement, own.clone()) {
            // Nothing is to be brought anywhere.
            (Settlement::Done, Some(_)) => return Ok(Brought::There),
            (Settlement::Retry { after, reason }, Some(own)) => {
                let message = own.retry(&held, held.attempts, *after, reason);
                (own, message)
            }
            (Settlement::Later { after, reason }, Some(own)) => {
                let message = own.retry(&held, held.attempts.saturating_sub(1), *after, reason);
                (own, message)
            }
            (Settlement::Dead { reason }, Some(own)) => {
                let message = own.dead_letter(&held, "dead", reason);
                (own, message)
            }
            (Settlement::Uncertain, own) => {
                let any = own.or_else(|| self.lock().session.clone());
                let any = any.ok_or_else(|| SourceError::Broker("not connected".into()))?;
                let message = any.dead_letter(&held, "uncertain", "uncertain");
                (any, message)
            }
            // It was held over a connection that is gone: it comes again.
            (_, None) => return Ok(Brought::Gone),
        };
        match session.publisher.publish(&session.publishing, &message).await {
            Ok(()) if own.is_some() => Ok(Brought::There),
            Ok(()) => Ok(Brought::Written),
            Err(Refused::Lost(error)) if *settlement == Settlement::Uncertain => {
                let why = error.to_string();
                self.break_session(&session, error);
                Err(SourceError::Broker(why))
            }
            Err(Refused::Lost(error)) => {
                self.give_up(tag, error);
                Ok(Brought::Gone)
            }
            Err(refused) => Err(SourceError::Broker(refused.to_string())),
        }
    }

    fn break_session(&self, session: &Arc<Session>, error: AmqpError) {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|now| Arc::ptr_eq(now, session)) {
            state.broken = Some(error);
            drop(state);
            self.breaks.notify_one();
        }
    }

    async fn settle_all(&self, outcomes: Vec<(Tag, Settlement)>) -> Unsettled {
        let (to_ack, others): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(_, settlement)| *settlement == Settlement::Done);
        let mut done: Vec<Tag> = to_ack.into_iter().map(|(tag, _)| tag).collect();
        let brought: Vec<_> = stream::iter(others)
            .map(|(tag, settlement)| async move { (tag, self.bring(tag, &settlement).await) })
            .buffer_unordered(SETTLING)
            .collect()
            .await;
        let mut unsettled = Vec::new();
        {
            let mut state = self.lock();
            for (tag, result) in brought {
                match result {
                    Ok(Brought::There) => done.push(tag),
                    Ok(Brought::Written) => drop(state.held.remove(&tag)),
                    Ok(Brought::Gone) => {
                        if !state.lost.contains(&tag) {
                            state.held.remove(&tag);
                        }
                        unsettled.push((tag, SourceError::Gone));
                    }
                    Err(error) => unsettled.push((tag, error)),
                }
            }
        }
        self.acknowledge(&done).await;
        unsettled
    }
}

impl Settle for Desk {
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Unsettled> {
        Box::pin(self.settle_all(outcomes))
    }
}

impl Session {
    /// What the owner of queues asks and writes over.
    pub(super) fn ways(&self) -> Ways<'_> {
        Ways { link: &self.link, publishing: &self.publishing, publisher: &self.publisher }
    }

    fn dead_letter(&self, held: &Held, state: &str, reason: &str) -> Message {
        let mut message = held.message(held.attempts, reason);
        message.exchange = self.link.topology().dead_exchange();
        message.headers.push((STATE, state.into()));
        message.headers.push((SINCE, clock::now().as_millis().to_string()));
        message
    }

    fn retry(&self, held: &Held, attempts: u32, after: Duration, reason: &str) -> Message {
        let mut message = held.message(attempts, reason);
        message.key = self.link.topology().retry_queue(after);
        message
    }
}

impl Held {
    /// The message again, to the default exchange, after so many attempts.
    fn message(&self, attempts: u32, reason: &str) -> Message {
        let properties = &self.handed.properties;
        let text = |value: &Option<lapin::types::ShortString>| {
            value.as_ref().map(ToString::to_string).unwrap_or_default()
        };
        let kind = text(properties.kind());
        let mut kept = vec![(ATTEMPTS, attempts.to_string()), (REASON, reason.into())];
        for name in [REPLAY, RECIPIENT] {
            kept.extend(headers::text(properties, name).map(|text| (name, text)));
        }
        Message {
            exchange: String::new(),
            key: if kind.is_empty() { self.handed.routing_key.to_string() } else { kind.clone() },
            id: text(properties.message_id()),
            kind,
            time_s: properties.timestamp().unwrap_or_default(),
            body: self.handed.data.clone(),
            headers: kept,
        }
    }
}

/// What a message is acked by; nobody else has it in hand as a rule.
fn acker(held: Arc<Held>) -> Acker {
    Arc::try_unwrap(held).map_or_else(|held| held.handed.acker.clone(), |held| held.handed.acker)
}

const fn first(epoch: u64) -> Tag {
    Tag { epoch, number: 0 }
}
