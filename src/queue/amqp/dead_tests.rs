//! Tests with a real broker, named by `MAILTAP_TEST_AMQP`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::*;
use crate::event::Kind;
use crate::queue::source::{AmqpSource, Settlement, Source};
use crate::queue::testing::{Proxy, broker, event, publish, ready, remove, wait_for};
use crate::service::Lifecycle;

/// Publishes events and settles them as dead; every third one as uncertain.
async fn bury(settings: &Settings, numbers: std::ops::Range<u64>) {
    let count = numbers.end - numbers.start;
    publish(settings, numbers.map(event)).await;
    settle(settings, count, |id| {
        if (0..100).any(|number| number % 3 == 0 && event(number).id == id) {
            Settlement::Uncertain
        } else {
            Settlement::Dead { reason: "HTTP 400".into() }
        }
    })
    .await;
}

/// Takes events from the work queue; gives the key that each had.
async fn settle(
    settings: &Settings,
    count: u64,
    what: impl Fn(EventId) -> Settlement,
) -> Vec<(EventId, EventId)> {
    let mut source = AmqpSource::new(settings.clone(), 100, &Lifecycle::detached());
    let mut keys = Vec::new();
    while keys.len() < usize::try_from(count).unwrap() {
        let got = tokio::time::timeout(Duration::from_secs(20), source.next(100)).await;
        let got = got.expect("in time").unwrap();
        keys.extend(got.iter().map(|delivery| (delivery.event.id, delivery.key())));
        source.settle(got.iter().map(|got| (got.tag, what(got.event.id))).collect()).await.unwrap();
    }
    keys
}

async fn all(letters: &mut DeadLetters) -> Vec<DeadLetter> {
    let mut all = Vec::new();
    while let Some(letter) = letters.next().await.unwrap() {
        all.push(letter);
    }
    all
}

#[tokio::test]
async fn looking_takes_nothing_however_it_ends() {
    let Some(settings) = broker("dead_look") else { return };
    bury(&settings, 0..30).await;
    let link = Link::open(&settings, "test").await.unwrap();
    let dead = link.topology().dead_queue();
    for close in [true, false] {
        let mut letters = DeadLetters::open(&settings).await.unwrap();
        assert_eq!(letters.left(), 30);
        let found = all(&mut letters).await;
        assert_eq!(found.len(), 30);
        assert_eq!(ready(&link, &dead).await, 0, "held while somebody looks");
        let count = |filter: Filter| found.iter().filter(|letter| letter.is_meant_by(&filter)).count();
        assert_eq!(count(Filter::default()), 30);
        assert_eq!(count(Filter { states: vec![State::Uncertain], ..Filter::default() }), 10);
        assert_eq!(count(Filter { reason: Some("http 4".into()), ..Filter::default() }), 20);
        assert_eq!(count(Filter { id: Some(event(7).id), ..Filter::default() }), 1);
        assert_eq!(count(Filter { kind: Some(event(0).kind), ..Filter::default() }), 4);
        assert_eq!(count(Filter { campaign: Some("c1".parse().unwrap()), ..Filter::default() }), 10);
        assert_eq!(count(Filter { since: Some(event(20).time), ..Filter::default() }), 10);
        assert_eq!(count(Filter { until: Some(event(20).time), ..Filter::default() }), 20);
        let stored = &found[1].stored;
        assert!(stored.at > stored.added && stored.attempts == 1, "{stored:?}");
        if close {
            letters.close().await.unwrap();
        } else {
            drop(letters);
        }
        wait_for(&link, &dead, 30).await;
    }
    remove(&settings).await;
}

#[tokio::test]
async fn replayed_ones_are_in_the_work_queue_under_a_key_and_dropped_ones_are_gone() {
    let Some(settings) = broker("dead_change") else { return };
    bury(&settings, 0..12).await;
    let link = Link::open(&settings, "test").await.unwrap();
    let mut letters = DeadLetters::open(&settings).await.unwrap();
    let uncertain = Filter { states: vec![State::Uncertain], ..Filter::default() };
    for letter in all(&mut letters).await {
        if letter.is_meant_by(&uncertain) {
            letters.replay(letter).await.unwrap();
        } else if letter.stored.body.contains(Kind::Opened.as_str()) {
            letters.discard(letter).await;
        }
    }
    letters.close().await.unwrap();
    wait_for(&link, &link.topology().work_queue(), 4).await;
    let opened = (0..12).filter(|number| number % 3 != 0 && event(*number).kind == Kind::Opened).count();
    wait_for(&link, &link.topology().dead_queue(), 8 - u32::try_from(opened).unwrap()).await;

    // A retry keeps the key; a replay of what died again has another one.
    let retry = Settlement::Retry { after: Duration::ZERO, reason: "busy".into() };
    let first = settle(&settings, 4, |_| retry.clone()).await;
    assert!(first.iter().all(|(id, key)| id != key));
    let again = settle(&settings, 4, |_| Settlement::Uncertain).await;
    let sorted = |keys: Vec<_>| keys.into_iter().collect::<BTreeMap<_, _>>();
    assert_eq!(sorted(first.clone()), sorted(again));
    let mut letters = DeadLetters::open(&settings).await.unwrap();
    for letter in all(&mut letters).await {
        if letter.is_meant_by(&uncertain) {
            letters.replay(letter).await.unwrap();
        }
    }
    letters.close().await.unwrap();
    let second = settle(&settings, 4, |_| Settlement::Done).await;
    let keys: BTreeSet<_> = first.iter().chain(&second).map(|(_, key)| *key).collect();
    assert_eq!(keys.len(), 8);
    remove(&settings).await;
}

#[tokio::test]
async fn a_connection_that_broke_this_very_moment_is_said_at_the_end() {
    let Some(settings) = broker("dead_end") else { return };
    bury(&settings, 0..1).await;
    let proxy = Proxy::start(&settings).await;
    let mut letters = DeadLetters::open(&proxy.through(&settings)).await.unwrap();
    let letter = letters.next().await.unwrap().unwrap();
    letters.discard(letter).await;
    // Nothing else runs in between: the client can't know it yet.
    proxy.cut();
    assert!(letters.close().await.is_err());
    remove(&settings).await;
}

#[tokio::test]
async fn a_replay_that_is_cut_loses_nothing_and_the_next_one_has_the_same_keys() {
    let Some(settings) = broker("dead_cut") else { return };
    bury(&settings, 0..60).await;
    let link = Link::open(&settings, "test").await.unwrap();
    for at in [5_u32, 9] {
        let proxy = Proxy::start(&settings).await;
        let mut letters = DeadLetters::open(&proxy.through(&settings)).await.unwrap();
        for number in 0.. {
            let Ok(Some(letter)) = letters.next().await else { break };
            if number == at {
                proxy.cut();
            }
            if letters.replay(letter).await.is_err() {
                break;
            }
        }
        assert!(letters.close().await.is_err(), "it is said");
    }
    // The broker hands them out again once it has noticed that the connection is gone.
    let (dead, work) = (link.topology().dead_queue(), link.topology().work_queue());
    for _ in 0..600 {
        if ready(&link, &dead).await + ready(&link, &work).await >= 60 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut letters = DeadLetters::open(&settings).await.unwrap();
    let dead_ones = all(&mut letters).await;
    let replays = stream::iter(dead_ones.into_iter().map(|letter| letters.replay(letter)));
    let replayed: Vec<_> = replays.buffer_unordered(DeadLetters::REPLAYS).collect().await;
    assert!(replayed.iter().all(Result::is_ok), "several at once");
    letters.close().await.unwrap();
    wait_for(&link, &dead, 0).await;
    let count = ready(&link, &work).await;
    let keys: BTreeSet<_> = settle(&settings, count.into(), |_| Settlement::Done).await.into_iter().collect();
    let ids: BTreeSet<_> = keys.iter().map(|(id, _)| *id).collect();
    assert_eq!((keys.len(), ids.len()), (60, 60), "each event, and one key for each");
    remove(&settings).await;
}

/// A message that was tried again says why it was; what the broker buries it for comes later.
#[tokio::test]
async fn what_the_broker_buries_says_the_brokers_reason_first() {
    let Some(mut settings) = broker("dead_limit") else { return };
    settings.shape.delivery_limit = 2;
    publish(&settings, (0..1).map(event)).await;
    settle(&settings, 1, |_| Settlement::Retry { after: Duration::ZERO, reason: "HTTP 503".into() }).await;
    let link = Link::open(&settings, "test").await.unwrap();
    let dead = link.topology().dead_queue();
    while ready(&link, &dead).await == 0 {
        // Taken, and given back by a connection that ends.
        let mut source = AmqpSource::new(settings.clone(), 1, &Lifecycle::detached());
        let _ = tokio::time::timeout(Duration::from_millis(500), source.next(1)).await;
    }
    let mut letters = DeadLetters::open(&settings).await.unwrap();
    let letter = letters.next().await.unwrap().unwrap();
    let expected = "handed out too often: delivery_limit (before: HTTP 503)";
    assert_eq!(letter.stored.reason.as_deref(), Some(expected));
    for reason in ["delivery_limit", "HTTP 503"] {
        assert!(letter.is_meant_by(&Filter { reason: Some(reason.into()), ..Filter::default() }));
    }
    letters.close().await.unwrap();
    remove(&settings).await;
}
