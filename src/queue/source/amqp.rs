//! RabbitMQ as a source: manual acks, a bounded prefetch, connecting again.
//!
//! - Layer: edge
//! - Takes: how to reach the broker.
//! - Gives: `Source`.
//! - On failure: a lost connection is made again, for as long as it takes; the broker hands out again what was not
//!   settled. A message leaves the work queue only after the broker has it elsewhere.
//! - Limits: `prefetch` messages at once. The broker takes back what is held for 30 minutes (its `consumer_timeout`).
//! - See: RabbitMQ, "Consumer Acknowledgements", "Alarms": a connection that publishes is blocked whole, so consuming has one of
//!   its own; quorum queues' `x-delivery-count`.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use lapin::message::Delivery as Handed;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::held::{Desk, Session};
use super::{BoxFuture, Delivery, Settle, Source, SourceError, Tag};
use crate::event::Event;
use crate::queue::amqp::headers::{self, ATTEMPTS, REPLAY};
use crate::queue::amqp::{self, AmqpError, Link, Publisher};
use crate::queue::backoff::Backoff;
use crate::queue::happenings::{BrokerLost, BrokerReached, Malformed};
use crate::service::{Component, Lifecycle};

/// The work queue of the broker, as the relay sees it.
#[derive(Debug)]
pub struct AmqpSource {
    settings: amqp::Settings,
    prefetch: u16,
    stop: CancellationToken,
    health: Component,
    backoff: Backoff,
    desk: Arc<Desk>,
    consumer: Option<Consumer>,
    connecting: Option<JoinHandle<Result<(Session, Consumer), AmqpError>>>,
    ready: VecDeque<Delivery>,
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
            desk: Arc::default(),
            consumer: None,
            connecting: None,
            ready: VecDeque::new(),
        }
    }

    async fn wait(&mut self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        let max = max.max(1);
        let (stop, desk) = (self.stop.clone(), self.desk.clone());
        loop {
            if stop.is_cancelled() {
                return Ok(Vec::new());
            }
            if !self.ready.is_empty() {
                let count = self.ready.len().min(max);
                return Ok(self.ready.drain(..count).collect());
            }
            let error = tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                error = desk.broken() => error,
                result = self.receive(max) => match result {
                    Ok(()) => continue,
                    Err(error) => error,
                },
            };
            self.lose(&error);
        }
    }

    async fn stay_connected(&mut self) {
        let desk = self.desk.clone();
        loop {
            let error = tokio::select! {
                error = desk.broken() => error,
                connected = self.connect() => match connected {
                    Ok(()) => desk.broken().await,
                    Err(error) => error,
                },
            };
            self.lose(&error);
        }
    }

    /// Waits for one message and takes what came with it. May be dropped while it waits.
    async fn receive(&mut self, max: usize) -> Result<(), AmqpError> {
        self.connect().await?;
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let mut came = vec![consumer.next().await];
        while came.len() < max {
            let Some(next) = consumer.next().now_or_never() else { break };
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
        let count = |name| headers::number(&handed.properties, name);
        let attempts = count(ATTEMPTS) + count("x-delivery-count") + 1;
        let replay = headers::text(&handed.properties, REPLAY).and_then(|key| key.parse().ok());
        let event = Event::from_json(&handed.data);
        let tag: Tag = self.desk.hold(handed, attempts);
        match event {
            Ok(event) => self.ready.push_back(Delivery { tag, event, attempts, replay }),
            Err(error) => {
                let why = error.to_string();
                Malformed { why: &why }.emit();
                // On a task of its own: a caller that stops waiting must not stop the burial.
                let desk = self.desk.clone();
                tokio::spawn(async move { desk.bury(tag, &why).await });
            }
        }
    }

    /// Connects, on a task of its own: a caller that stops waiting must not stop the connecting.
    async fn connect(&mut self) -> Result<(), AmqpError> {
        if self.consumer.is_some() {
            return Ok(());
        }
        let connecting = self.connecting.get_or_insert_with(|| {
            let (settings, prefetch) = (self.settings.clone(), self.prefetch);
            tokio::spawn(async move { open(&settings, prefetch).await })
        });
        let opened = connecting.await;
        self.connecting = None;
        let (session, consumer) = opened.map_err(|_| AmqpError::Client("connecting was ended".into()))??;
        self.desk.begin(session);
        self.consumer = Some(consumer);
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
        self.consumer = None;
        // What waits here comes again, over the next connection.
        self.desk.end(self.ready.drain(..).map(|delivery| delivery.tag));
        let wait = self.backoff.failed(rand::random());
        let (settings, prefetch) = (self.settings.clone(), self.prefetch);
        self.connecting = Some(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            open(&settings, prefetch).await
        }));
    }
}

async fn open(settings: &amqp::Settings, prefetch: u16) -> Result<(Session, Consumer), AmqpError> {
    let link = Link::open(settings, "mailtap relay").await?;
    let publishing = Link::open(settings, "mailtap relay, publishing").await?;
    let publisher = Publisher::open(&publishing, settings.confirm_timeout).await?;
    let consumer = link.consume(prefetch).await?;
    Ok((Session { link, publishing, publisher }, consumer))
}

impl Source for AmqpSource {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(self.wait(max))
    }

    fn tend(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.stay_connected())
    }

    fn settler(&self) -> Arc<dyn Settle> {
        self.desk.clone()
    }

    fn is_full(&self) -> bool {
        self.ready.is_empty() && self.desk.held() >= usize::from(self.prefetch)
    }
}

impl Drop for AmqpSource {
    fn drop(&mut self) {
        if let Some(connecting) = &self.connecting {
            connecting.abort();
        }
        self.desk.end(std::iter::empty());
    }
}
