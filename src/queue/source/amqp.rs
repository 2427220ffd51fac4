//! RabbitMQ as a source: manual acks, a bounded prefetch, retry tiers, dead letters, connecting again.
//!
//! - Layer: edge
//! - Takes: how to reach the broker.
//! - Gives: `Source`.
//! - On failure: a lost connection is made again, for as long as it takes; the broker hands out again what was not
//!   settled. A message leaves the work queue only after the broker has it elsewhere.
//! - Limits: `prefetch` messages at once. The broker takes back what is held for 30 minutes (its `consumer_timeout`).
//! - See: RabbitMQ, "Consumer Acknowledgements"; quorum queues' `x-delivery-count`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use lapin::Consumer;
use lapin::message::Delivery as Handed;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BoxFuture, Delivery, Settlement, Source, SourceError, Tag};
use crate::event::Event;
use crate::queue::amqp::headers::{self, ATTEMPTS, REASON, REPLAY, SINCE, STATE};
use crate::queue::amqp::{self, AmqpError, Link, Message, Publisher, Refused};
use crate::queue::backoff::Backoff;
use crate::queue::happenings::{BrokerLost, BrokerReached, Malformed};
use crate::service::{Component, Lifecycle, clock};

/// How many settlements wait for the broker at once.
const SETTLING: usize = 256;

/// The work queue of the broker, as the relay sees it.
#[derive(Debug)]
pub struct AmqpSource {
    settings: amqp::Settings,
    prefetch: u16,
    stop: CancellationToken,
    health: Component,
    backoff: Backoff,
    session: Option<Session>,
    connecting: Option<JoinHandle<Result<Session, AmqpError>>>,
    epoch: u64,
    held: BTreeMap<Tag, Held>,
    ready: VecDeque<Delivery>,
    malformed: VecDeque<(Tag, String)>,
}

#[derive(Debug)]
struct Session {
    link: Link,
    publisher: Publisher,
    consumer: Consumer,
}

/// A message that is not settled yet.
#[derive(Debug)]
struct Held {
    handed: Handed,
    attempts: u32,
}

impl AmqpSource {
    /// Takes events from the broker, at most `prefetch` at once, until the life ends. Reports to health as `rabbitmq`.
    #[must_use]
    pub fn new(settings: amqp::Settings, prefetch: u16, life: &Lifecycle) -> Self {
        Self {
            settings,
            prefetch: prefetch.max(1),
            stop: life.stop.clone(),
            health: life.health.component("rabbitmq"),
            backoff: Backoff::default(),
            session: None,
            connecting: None,
            epoch: 0,
            held: BTreeMap::new(),
            ready: VecDeque::new(),
            malformed: VecDeque::new(),
        }
    }

    async fn wait(&mut self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        let max = max.max(1);
        let stop = self.stop.clone();
        loop {
            if stop.is_cancelled() {
                return Ok(Vec::new());
            }
            if !self.ready.is_empty() {
                let count = self.ready.len().min(max);
                return Ok(self.ready.drain(..count).collect());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                result = self.receive(max) => {
                    if let Err(error) = result {
                        self.lose(&error);
                    }
                }
            }
        }
    }

    /// Waits for one message and takes what came with it. May be dropped while it waits.
    async fn receive(&mut self, max: usize) -> Result<(), AmqpError> {
        self.connect().await?;
        self.bury().await;
        let Some(session) = &mut self.session else { return Ok(()) };
        let mut came = vec![session.consumer.next().await];
        while came.len() < max {
            let Some(next) = session.consumer.next().now_or_never() else { break };
            came.push(next);
        }
        for handed in came {
            match handed {
                Some(handed) => self.take(handed?),
                None => return Err(AmqpError::Client("the broker cancelled the consumer".into())),
            }
        }
        Ok(())
    }

    fn take(&mut self, handed: Handed) {
        let tag = Tag { epoch: self.epoch, number: handed.delivery_tag };
        let count = |name| headers::number(&handed.properties, name);
        let attempts = count(ATTEMPTS) + count("x-delivery-count") + 1;
        match Event::from_json(&handed.data) {
            Ok(event) => {
                let replay = headers::text(&handed.properties, REPLAY).and_then(|key| key.parse().ok());
                self.ready.push_back(Delivery { tag, event, attempts, replay });
            }
            Err(error) => {
                let why = error.to_string();
                Malformed { why: &why }.emit();
                self.malformed.push_back((tag, why));
            }
        }
        self.held.insert(tag, Held { handed, attempts });
    }

    /// Connects, on a task of its own: a caller that stops waiting must not stop the connecting.
    async fn connect(&mut self) -> Result<(), AmqpError> {
        if self.session.is_some() {
            return Ok(());
        }
        let connecting = self.connecting.get_or_insert_with(|| {
            let (settings, prefetch) = (self.settings.clone(), self.prefetch);
            tokio::spawn(async move { Session::open(&settings, prefetch).await })
        });
        let session = connecting.await;
        self.connecting = None;
        self.session = Some(session.map_err(|_| AmqpError::Client("connecting was ended".into()))??);
        self.epoch += 1;
        self.backoff.worked();
        self.health.ready();
        BrokerReached.emit();
        Ok(())
    }

    /// Drops the connection, and makes the next one after a while.
    fn lose(&mut self, error: &AmqpError) {
        let why = error.to_string();
        BrokerLost { why: &why }.emit();
        self.health.not_ready(why);
        self.session = None;
        // What waits here comes again, over the next connection.
        for delivery in self.ready.drain(..) {
            self.held.remove(&delivery.tag);
        }
        for (tag, _) in self.malformed.drain(..) {
            self.held.remove(&tag);
        }
        let wait = self.backoff.failed(rand::random());
        let (settings, prefetch) = (self.settings.clone(), self.prefetch);
        self.connecting = Some(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            Session::open(&settings, prefetch).await
        }));
    }

    /// Brings what is no event to the dead letters. What can't be brought there now stays with the broker.
    async fn bury(&mut self) {
        while let (Some(session), Some((tag, why))) = (&self.session, self.malformed.front()) {
            if let Some(held) = self.held.get(tag) {
                let message = session.dead_letter(held, "malformed", why);
                if session.publisher.publish(&session.link, &message).await.is_ok() {
                    session.link.acknowledge(&held.handed.acker).await;
                }
                self.held.remove(&tag.clone());
            }
            self.malformed.pop_front();
        }
    }

    async fn settle_all(&mut self, outcomes: Vec<(Tag, Settlement)>) -> Result<(), SourceError> {
        if self.session.is_none() && outcomes.iter().any(|(_, outcome)| *outcome == Settlement::Uncertain) {
            let limit = self.settings.connect_timeout;
            match tokio::time::timeout(limit, self.connect()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.lose(&error),
                Err(_) => {}
            }
        }
        let (held, session, epoch) = (&self.held, self.session.as_ref(), self.epoch);
        let settled: Vec<_> = stream::iter(outcomes)
            .map(|(tag, settlement)| async move {
                let result = match held.get(&tag) {
                    Some(held) => {
                        settle(session.filter(|_| tag.epoch == epoch), session, held, &settlement).await
                    }
                    None => Ok(()),
                };
                (tag, result)
            })
            .buffer_unordered(SETTLING)
            .collect()
            .await;
        let mut result = Ok(());
        for (tag, settled) in settled {
            match settled {
                Ok(()) => drop(self.held.remove(&tag)),
                Err(error) => result = Err(SourceError::Broker(error.to_string())),
            }
        }
        result
    }
}

impl Source for AmqpSource {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(self.wait(max))
    }

    fn settle(&mut self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(self.settle_all(outcomes))
    }
}

impl Drop for AmqpSource {
    fn drop(&mut self) {
        if let Some(connecting) = &self.connecting {
            connecting.abort();
        }
    }
}

impl Session {
    async fn open(settings: &amqp::Settings, prefetch: u16) -> Result<Self, AmqpError> {
        let link = Link::open(settings, "mailtap relay").await?;
        let publisher = Publisher::open(&link, settings.confirm_timeout).await?;
        let consumer = link.consume(prefetch).await?;
        Ok(Self { link, publisher, consumer })
    }

    fn dead_letter(&self, held: &Held, state: &str, reason: &str) -> Message {
        let mut message = held.message(reason);
        message.exchange = self.link.topology().dead_exchange();
        message.headers.push((STATE, state.into()));
        message.headers.push((SINCE, clock::now().as_millis().to_string()));
        message
    }

    fn retry(&self, held: &Held, after: Duration, reason: &str) -> Message {
        let mut message = held.message(reason);
        message.key = self.link.topology().retry_queue(after);
        message
    }
}

impl Held {
    /// The message again, to the default exchange, with its attempts counted.
    fn message(&self, reason: &str) -> Message {
        let properties = &self.handed.properties;
        let text = |value: &Option<lapin::types::ShortString>| {
            value.as_ref().map(ToString::to_string).unwrap_or_default()
        };
        let kind = text(properties.kind());
        let mut kept = vec![(ATTEMPTS, self.attempts.to_string()), (REASON, reason.into())];
        kept.extend(headers::text(properties, REPLAY).map(|key| (REPLAY, key)));
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

/// Settles one message. `own` is the session it came over, if that still stands; `any` the one there is.
async fn settle(
    own: Option<&Session>,
    any: Option<&Session>,
    held: &Held,
    settlement: &Settlement,
) -> Result<(), Refused> {
    let (session, message) = match (settlement, own, any) {
        (Settlement::Done, Some(own), _) => {
            own.link.acknowledge(&held.handed.acker).await;
            return Ok(());
        }
        (Settlement::Retry { after, reason }, Some(own), _) => (own, own.retry(held, *after, reason)),
        (Settlement::Dead { reason }, Some(own), _) => (own, own.dead_letter(held, "dead", reason)),
        (Settlement::Uncertain, _, Some(any)) => (any, any.dead_letter(held, "uncertain", "uncertain")),
        (Settlement::Uncertain, _, None) => {
            return Err(Refused::Lost(AmqpError::Client("not connected".into())));
        }
        // It was held over a connection that is gone: it comes again.
        (_, None, _) => return Ok(()),
    };
    match session.publisher.publish(&session.link, &message).await {
        Ok(()) => {}
        Err(Refused::Lost(_)) if *settlement != Settlement::Uncertain => return Ok(()),
        Err(error) => return Err(error),
    }
    if let Some(own) = own {
        own.link.acknowledge(&held.handed.acker).await;
    }
    Ok(())
}
