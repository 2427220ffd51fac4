//! What tests of the event path share: events, a broker, a proxy that cuts connections.
//!
//! - Layer: edge
//! - Takes: `MAILTAP_TEST_AMQP`, the URL of a broker that tests may fill; without it, tests of the broker do nothing, or
//!   fail where `MAILTAP_TEST_REQUIRED` is set.
//! - Gives: events by number; settings with names of the test's own.
//! - On failure: a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::amqp::topology::{Shape, Topology};
use super::amqp::{Link, Message, Publisher, Settings};
use super::source::{AmqpSource, Delivery, Source};
use crate::event::{Data, Event, EventId, Kind};
use crate::identity::{MessageId, Timestamp};
use crate::service::secret::Secret;

/// The event of this number: always the same.
pub(crate) fn event(number: u64) -> Event {
    Event {
        id: EventId::of("queue test").part(number.to_be_bytes()).finish(),
        source: "mailtap/tap/mx1".into(),
        kind: Kind::ALL[usize::try_from(number).unwrap() % Kind::ALL.len()],
        time: Timestamp::from_secs(1_795_453_000 + number),
        message: MessageId::new(Timestamp::from_secs(1_795_453_000), 7),
        data: Data { campaign: Some(format!("c{}", number % 3).parse().unwrap()), ..Data::default() },
    }
}

/// The broker for tests, with names that only this test has and one retry tier of a second.
pub(crate) fn broker(test: &str) -> Option<Settings> {
    let Ok(uri) = std::env::var("MAILTAP_TEST_AMQP") else {
        assert!(std::env::var_os("MAILTAP_TEST_REQUIRED").is_none(), "MAILTAP_TEST_AMQP names no broker");
        eprintln!("skipped: MAILTAP_TEST_AMQP names no broker");
        return None;
    };
    let shape = Shape {
        prefix: format!("test{}.{test}", std::process::id()),
        retry_tiers: vec![Duration::from_secs(1)],
        delivery_limit: 1_000,
        partitions: 1,
    };
    Some(Settings { uris: vec![Secret::new(uri)], shape, ..Settings::default() })
}

/// Publishes events over a connection of its own, until the broker has them.
pub(crate) async fn publish(settings: &Settings, events: impl IntoIterator<Item = Event>) {
    let link = Link::open(settings, "test").await.unwrap();
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    for event in events {
        let message = Message::to_work(&event, link.topology());
        publisher.publish(&link, &message).await.unwrap();
    }
    link.close().await;
}

/// Takes deliveries until there are so many, or somewhat more.
pub(crate) async fn receive(source: &mut AmqpSource, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let wait = Duration::from_secs(20);
        deliveries.extend(tokio::time::timeout(wait, source.next(count)).await.expect("in time").unwrap());
    }
    deliveries
}

/// How many messages are ready in a queue.
pub(crate) async fn ready(link: &Link, queue: &str) -> u32 {
    let channel = link.channel().await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap().message_count()
}

/// Waits until a queue has this many messages ready.
pub(crate) async fn wait_for(link: &Link, queue: &str, count: u32) {
    for _ in 0..200 {
        if ready(link, queue).await == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{queue} has {} messages, not {count}", ready(link, queue).await);
}

/// Deletes a queue, as an administrator might.
pub(crate) async fn delete_queue(link: &Link, queue: &str) {
    let channel = link.channel().await.unwrap();
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

/// Deletes an exchange, as an administrator might.
pub(crate) async fn delete_exchange(link: &Link, exchange: &str) {
    let channel = link.channel().await.unwrap();
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
}

/// Removes what a test declared.
pub(crate) async fn remove(settings: &Settings) {
    let link = Link::open(settings, "test").await.unwrap();
    let topology = Topology::new(settings.shape.clone());
    let channel = link.channel().await.unwrap();
    for queue in &topology.queues {
        channel.queue_delete(queue.name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
    for exchange in topology.exchanges.iter().chain(&topology.spread) {
        channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
    link.close().await;
}

/// A way to the broker that can be cut, or stand still.
#[derive(Debug)]
pub(crate) struct Proxy {
    cut: std::sync::Arc<std::sync::Mutex<CancellationToken>>,
    frozen: std::sync::Arc<std::sync::Mutex<Vec<CancellationToken>>>,
    port: u16,
}

impl Proxy {
    /// Listens on loopback and passes everything on to the broker of `settings`.
    pub(crate) async fn start(settings: &Settings) -> Self {
        let uri: url::Url = settings.uris[0].expose().parse().unwrap();
        let target = format!("{}:{}", uri.host_str().unwrap(), uri.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = std::sync::Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        let shared = cut.clone();
        let frozen: std::sync::Arc<std::sync::Mutex<Vec<CancellationToken>>> = std::sync::Arc::default();
        let freezing = frozen.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, cut) = (target.clone(), shared.lock().unwrap().clone());
                let freeze = CancellationToken::new();
                freezing.lock().unwrap().push(freeze.clone());
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = freeze.cancelled() => cut.cancelled().await,
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    }
                });
            }
        });
        Self { cut, frozen, port }
    }

    /// The same settings, through the proxy.
    pub(crate) fn through(&self, settings: &Settings) -> Settings {
        let mut uri: url::Url = settings.uris[0].expose().parse().unwrap();
        uri.set_port(Some(self.port)).unwrap();
        Settings { uris: vec![Secret::new(uri.to_string())], ..settings.clone() }
    }

    /// Lets nothing more through on the connection of this number, and leaves it open.
    pub(crate) fn freeze(&self, number: usize) {
        self.frozen.lock().unwrap()[number].cancel();
    }

    /// Cuts all connections; new ones pass.
    pub(crate) fn cut(&self) {
        std::mem::replace(&mut *self.cut.lock().unwrap(), CancellationToken::new()).cancel();
    }
}
