//! Tests with a real broker, named by `MAILTAP_TEST_AMQP`, and a proxy that cuts connections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::queue::Publish;
use crate::queue::amqp::Watch;
use crate::queue::source::AmqpSource;
use crate::queue::spool::{self, Admin};
use crate::queue::testing::{Proxy, broker, delete_exchange, delete_queue, event, remove, wait_for};

const EVENTS: u64 = 3_000;

fn open(directory: &Path) -> Spool {
    Spool::open(spool::Settings { directory: directory.to_owned(), ..spool::Settings::default() }).unwrap()
}

async fn collect(source: &mut AmqpSource, count: usize) -> BTreeSet<crate::event::EventId> {
    let mut ids = BTreeSet::new();
    while ids.len() < count {
        let deliveries =
            tokio::time::timeout(Duration::from_secs(60), source.next(500)).await.expect("in time").unwrap();
        ids.extend(deliveries.iter().map(|delivery| delivery.event.id));
        source
            .settle(deliveries.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect())
            .await
            .unwrap();
    }
    ids
}

#[tokio::test]
async fn everything_arrives_over_a_connection_that_is_cut_again_and_again() {
    let Some(broker) = broker("forward") else { return };
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    let proxy = Proxy::start(&broker).await;
    let life = Lifecycle::detached();
    let settings = Settings { broker: proxy.through(&broker), window: 100, ..Settings::default() };
    let forwarder = tokio::spawn(run(settings, spool.clone(), life.clone()));
    let publishing = tokio::spawn(async move {
        for number in 0..EVENTS / 100 {
            spool.publish((number * 100..(number + 1) * 100).map(event).collect()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            if number % 7 == 3 {
                proxy.cut();
            }
        }
        proxy
    });
    let other = Lifecycle::detached();
    let mut source = AmqpSource::new(broker.clone(), 1_000, &other);
    let ids = collect(&mut source, usize::try_from(EVENTS).unwrap()).await;
    assert_eq!(ids, (0..EVENTS).map(|number| event(number).id).collect());
    publishing.await.unwrap();
    let admin = Admin::open(directory.path()).unwrap();
    // What was under way at the last cut goes again after the pause before the next connection.
    for _ in 0..600 {
        if admin.status().unwrap().bytes == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    life.stop.cancel();
    forwarder.await.unwrap().unwrap();
    let status = admin.status().unwrap();
    assert_eq!((status.bytes, status.seen), (0, EVENTS), "all left the spool, and are remembered");
    drop(source);
    remove(&broker).await;
}

#[tokio::test]
async fn a_wrong_configuration_ends_it_and_a_missing_broker_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(directory.path());
    let life = Lifecycle::detached();
    let none = amqp::Settings { uris: Vec::new(), ..amqp::Settings::default() };
    let ended = run(Settings { broker: none, ..Settings::default() }, spool.clone(), life.clone()).await;
    assert_eq!(ended, Err(ForwardError::Broker(AmqpError::NoUri)));

    let away = amqp::Settings {
        uris: vec![crate::service::secret::Secret::new("amqp://127.0.0.1:1/%2f".into())],
        ..amqp::Settings::default()
    };
    spool.publish(vec![event(1)]).await.unwrap();
    let forwarder = tokio::spawn(run(Settings { broker: away, ..Settings::default() }, spool, life.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(life.health.troubles().len(), 1);
    life.stop.cancel();
    forwarder.await.unwrap().unwrap();
    assert_eq!(Admin::open(directory.path()).unwrap().status().unwrap().pending, 1);
}

/// Who watches is no work queue: while that is missing, events wait, though a copy of each would find somebody.
#[tokio::test]
async fn events_wait_for_their_work_queue_whoever_watches() {
    let Some(declares) = broker("forward-watched") else { return };
    let link = Link::open(&declares, "test").await.unwrap();
    let work = link.topology().work_queue();
    let check = amqp::Settings { topology: amqp::Mode::Check, ..declares.clone() };
    let directory = tempfile::tempdir().unwrap();
    let (spool, life) = (open(directory.path()), Lifecycle::detached());
    let forwarder =
        tokio::spawn(run(Settings { broker: check, ..Settings::default() }, spool.clone(), life.clone()));
    let mut watch = Watch::open(&declares, None).await.unwrap();
    // It is seen that somebody watches within a second or so; the first event asks.
    let mut numbers = 0..;
    let mut seen = None;
    while seen.is_none() {
        spool.publish(vec![event(numbers.next().unwrap())]).await.unwrap();
        seen = tokio::time::timeout(Duration::from_millis(200), watch.next()).await.ok();
    }
    let first = numbers.start;
    spool.publish((first..first + 500).map(event).collect()).await.unwrap();
    let all: BTreeSet<_> = (first..first + 500).map(|number| event(number).id).collect();
    let mut copies = Vec::new();
    while !all.iter().all(|id| copies.contains(id)) {
        let copy = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("in time");
        copies.push(copy.unwrap().unwrap().id);
    }
    assert_eq!(copies.iter().collect::<BTreeSet<_>>().len(), copies.len(), "each once");

    delete_queue(&link, &work).await;
    let lost = first + 500;
    spool.publish((lost..lost + 10).map(event).collect()).await.unwrap();
    while life.health.troubles().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let why = life.health.troubles().remove(0).1;
    assert!(why.contains(&format!("there is no queue {work}")), "{why}");
    let admin = Admin::open(directory.path()).unwrap();
    assert_eq!(
        admin.status().unwrap().pending + admin.status().unwrap().claimed,
        10,
        "nothing left the spool"
    );
    Link::open(&declares, "test").await.unwrap().close().await;
    wait_for(&link, &work, 10).await;
    life.stop.cancel();
    forwarder.await.unwrap().unwrap();
    watch.close().await;
    remove(&declares).await;
}

/// Nobody may write copies: events pass all the same.
#[tokio::test]
async fn copies_that_have_no_way_hold_up_nothing() {
    let Some(broker) = broker("forward-denied") else { return };
    let link = Link::open(&broker, "test").await.unwrap();
    let check = amqp::Settings { topology: amqp::Mode::Check, ..broker.clone() };
    let directory = tempfile::tempdir().unwrap();
    let (spool, life) = (open(directory.path()), Lifecycle::detached());
    let forwarder =
        tokio::spawn(run(Settings { broker: check, ..Settings::default() }, spool.clone(), life.clone()));
    spool.publish(vec![event(0)]).await.unwrap();
    wait_for(&link, &link.topology().work_queue(), 1).await;
    delete_exchange(&link, &link.topology().events_exchange()).await;
    for number in 1..30 {
        spool.publish(vec![event(number)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    wait_for(&link, &link.topology().work_queue(), 30).await;
    assert_eq!(life.health.troubles(), []);
    life.stop.cancel();
    forwarder.await.unwrap().unwrap();
    remove(&broker).await;
}
