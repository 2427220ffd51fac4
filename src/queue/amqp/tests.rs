//! Tests with a real broker, named by `MAILTAP_TEST_AMQP`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::event::{Event, EventId};
use crate::queue::source::{AmqpSource, Delivery, Settlement, Source, Taking};
use crate::queue::testing::{Proxy, broker, event, publish, receive, remove, wait_for};
use crate::service::Lifecycle;

#[tokio::test]
async fn the_topology_is_declared_once_and_found_by_a_check() {
    let Some(settings) = broker("topology") else { return };
    let check = Settings { topology: Mode::Check, ..settings.clone() };
    let missing = Link::open(&check, "test").await.unwrap_err();
    assert!(matches!(missing.cause(), AmqpError::Topology(faults) if faults.len() > 3), "{missing}");
    for settings in [&settings, &settings, &check] {
        Link::open(settings, "test").await.unwrap().close().await;
    }
    let mut other = settings.clone();
    other.shape.delivery_limit += 1;
    let error = Link::open(&other, "test").await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}.ga4", settings.shape.prefix)), "{error}");
    remove(&settings).await;
}

#[tokio::test]
async fn a_message_without_a_queue_is_not_taken() {
    let Some(settings) = broker("unroutable") else { return };
    Link::open(&settings, "test").await.unwrap().close().await;
    let check = Settings { topology: Mode::Check, ..settings.clone() };
    let link = Link::open(&check, "test").await.unwrap();
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    let message = Message::to_work(&event(1), link.topology());
    publisher.publish(&link, &message).await.unwrap();
    let queue = link.topology().work_queue();
    let channel = link.channel().await.unwrap();
    let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap().unwrap();
    // A queue of somebody who watches does not count.
    let watch = Watch::open(&settings, None).await.unwrap();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let refused = publisher.publish(&link, &message).await.unwrap_err();
    assert!(matches!(refused, Refused::Unroutable { .. }), "{refused}");
    let said = refused.to_string();
    assert!(said.starts_with(&format!("there is no queue {queue}: ")), "{said}");
    watch.close().await;
    let properties = &got.delivery.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.message_id().as_ref().unwrap().to_string(), event(1).id.to_string());
    assert_eq!(properties.content_type().as_ref().unwrap().to_string(), "application/cloudevents+json");
    assert_eq!(properties.kind().as_ref().unwrap().to_string(), event(1).kind.as_str());
    remove(&settings).await;
}

/// An exchange that can't be written to costs a channel, and none of the messages that are on their way over it; nor does what can't
/// be settled for it come again.
#[tokio::test]
async fn an_exchange_that_is_denied_costs_nobody_else_anything() {
    let Some(settings) = broker("denied") else { return };
    publish(&settings, (0..2).map(event)).await;
    let check = Settings { topology: Mode::Check, ..settings.clone() };
    let link = Link::open(&check, "test").await.unwrap();
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    let mut source = AmqpSource::new(check, 10, &Lifecycle::detached());
    let held = receive(&mut source, 2).await;
    let dead = link.topology().dead_exchange();
    let channel = link.channel().await.unwrap();
    channel.exchange_delete(dead.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    for _ in 0..3 {
        let messages: Vec<_> = (10..40)
            .map(|number| match number % 3 {
                0 => Message::of(&event(number), dead.clone()),
                _ => Message::to_work(&event(number), link.topology()),
            })
            .collect();
        let published = messages.iter().map(|message| publisher.publish(&link, message));
        let published = futures_util::future::join_all(published).await;
        for (message, published) in messages.iter().zip(published) {
            let denied = matches!(&published, Err(Refused::Denied(said)) if said.contains(&dead));
            assert_eq!((denied, published.is_ok()), (message.exchange == dead, message.exchange.is_empty()));
        }
    }
    assert!(link.is_connected());

    let (epoch, what) = (source.epoch(), Settlement::Dead { reason: "odd".into() });
    let refused = source.settle(vec![(held[0].tag, what.clone())]).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("no exchange '{dead}'")), "{refused}");
    source.settle(vec![(held[1].tag, Settlement::Done)]).await.unwrap();
    Link::open(&settings, "test").await.unwrap().close().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    source.settle(vec![(held[0].tag, what)]).await.unwrap();
    wait_for(&link, &link.topology().dead_queue(), 1).await;
    assert_eq!(source.epoch(), epoch, "the connection stood all the time");
    remove(&settings).await;
}

/// Where the topology is ours to declare, what is deleted meanwhile is made again by the first message that needs it.
#[tokio::test]
async fn what_was_deleted_is_declared_again() {
    let Some(settings) = broker("mended") else { return };
    let link = Link::open(&settings, "test").await.unwrap();
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    let topology = link.topology().clone();
    let retry =
        Message { key: topology.retry_queue(Duration::ZERO), ..Message::of(&event(1), String::new()) };
    let dead = Message::of(&event(2), topology.dead_exchange());
    let channel = link.channel().await.unwrap();
    let options = QueueDeleteOptions::default();
    channel.queue_delete(retry.key.as_str().into(), options).await.unwrap();
    channel.queue_delete(topology.dead_queue().into(), options).await.unwrap();
    let (one, two) = tokio::join!(publisher.publish(&link, &retry), publisher.publish(&link, &dead));
    assert_eq!((one, two), (Ok(()), Ok(())));
    wait_for(&link, &topology.dead_queue(), 1).await;
    channel.queue_delete(retry.key.as_str().into(), options).await.unwrap();
    let again = publisher.publish(&link, &retry).await.unwrap_err().to_string();
    assert!(again.starts_with(&format!("there is no queue {}: ", retry.key)), "not at each message: {again}");
    link.close().await;
    Link::open(&settings, "test").await.unwrap().close().await;
    remove(&settings).await;
}

#[tokio::test]
async fn every_settlement_brings_the_message_where_it_belongs() {
    let Some(settings) = broker("settle") else { return };
    publish(&settings, (0..5).map(event)).await;
    let link = Link::open(&settings, "test").await.unwrap();
    let (work, dead) = (link.topology().work_queue(), link.topology().dead_queue());
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    let nonsense =
        Message { body: b"ann@example.org".to_vec(), ..Message::to_work(&event(9), link.topology()) };
    publisher.publish(&link, &nonsense).await.unwrap();

    let life = Lifecycle::detached();
    let mut source = AmqpSource::new(settings.clone(), 100, &life);
    let deliveries = receive(&mut source, 5).await;
    assert!(deliveries.iter().all(|delivery| delivery.attempts == 1));
    assert_eq!((source.most(), source.waits()), (100, settings.shape.retry_tiers.clone()));
    assert_eq!(life.health.troubles(), []);
    let settlements = BTreeMap::from([
        (event(0).id, Settlement::Done),
        (event(1).id, Settlement::Retry { after: Duration::ZERO, reason: "busy".into() }),
        (event(2).id, Settlement::Dead { reason: "refused".into() }),
        (event(3).id, Settlement::Uncertain),
        (event(4).id, Settlement::Later { after: Duration::ZERO, reason: "waited".into() }),
    ]);
    let outcomes: Vec<_> =
        deliveries.iter().map(|delivery| (delivery.tag, settlements[&delivery.event.id].clone())).collect();
    source.settle(outcomes.clone()).await.unwrap();
    source.settle(outcomes).await.expect("settling twice is safe");

    let again = receive(&mut source, 2).await;
    let attempts: BTreeMap<_, _> = again.iter().map(|again| (again.event.id, again.attempts)).collect();
    assert_eq!(attempts, BTreeMap::from([(event(1).id, 2), (event(4).id, 1)]), "the retry alone counts");
    source.settle(again.iter().map(|again| (again.tag, Settlement::Done)).collect()).await.unwrap();
    wait_for(&link, &dead, 3).await;
    drop(source);
    wait_for(&link, &work, 0).await;

    let channel = link.channel().await.unwrap();
    let mut states = BTreeMap::new();
    while let Some(got) = channel.basic_get(dead.as_str().into(), BasicGetOptions::default()).await.unwrap() {
        let headers = got.delivery.properties.headers().clone().unwrap();
        let text = |name: &str| headers.inner().get(name).unwrap().as_long_string().unwrap().to_string();
        states.insert(text("x-mailtap-state"), text("x-mailtap-reason"));
    }
    assert_eq!(states["dead"], "refused");
    assert!(states.contains_key("uncertain"));
    assert!(states["malformed"].starts_with("not an event"), "{states:?}");
    link.close().await;
    remove(&settings).await;
}

#[tokio::test]
async fn a_cut_connection_loses_nothing_and_stale_settlements_are_harmless() {
    let Some(settings) = broker("cut") else { return };
    publish(&settings, (0..300).map(event)).await;
    let proxy = Proxy::start(&settings).await;
    let mut source = AmqpSource::new(proxy.through(&settings), 50, &Lifecycle::detached());
    let mut seen: BTreeMap<EventId, u32> = BTreeMap::new();
    let mut rounds = 0;
    while seen.len() < 300 {
        let deliveries = receive(&mut source, 1).await;
        rounds += 1;
        if rounds % 40 == 0 {
            proxy.cut();
        }
        for delivery in &deliveries {
            *seen.entry(delivery.event.id).or_default() += 1;
        }
        let done = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect();
        source.settle(done).await.unwrap();
    }
    // What was acked over a connection that was cut comes once more.
    let link = Link::open(&settings, "test").await.unwrap();
    while let Ok(deliveries) = tokio::time::timeout(Duration::from_secs(2), source.next(50)).await {
        let deliveries = deliveries.unwrap();
        assert!(deliveries.iter().all(|delivery| seen.contains_key(&delivery.event.id)));
        source
            .settle(deliveries.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect())
            .await
            .unwrap();
    }
    drop(source);
    wait_for(&link, &link.topology().work_queue(), 0).await;
    assert_eq!(seen.len(), 300);
    remove(&settings).await;
}

/// The connection that publishes stands still: what could not be brought elsewhere comes again over a new one, and holds no
/// place of the prefetch for ever.
#[tokio::test]
async fn what_could_not_be_brought_elsewhere_comes_again_over_a_new_connection() {
    let Some(settings) = broker("lost") else { return };
    publish(&settings, (0..6).map(event)).await;
    let proxy = Proxy::start(&settings).await;
    let through = Settings { confirm_timeout: Duration::from_secs(1), ..proxy.through(&settings) };
    let mut source = AmqpSource::new(through, 3, &Lifecycle::detached());
    let held = receive(&mut source, 3).await;
    proxy.freeze(1);
    let retry = Settlement::Retry { after: Duration::ZERO, reason: "busy".into() };
    source.settle(held.iter().map(|held| (held.tag, retry.clone())).collect()).await.unwrap();
    let again = receive(&mut source, 3).await;
    let ids = |list: &[Delivery]| list.iter().map(|delivery| delivery.event.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(&held), ids(&again));
    source.settle(again.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect()).await.unwrap();
    let last = receive(&mut source, 3).await;
    source.settle(last.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect()).await.unwrap();
    let link = Link::open(&settings, "test").await.unwrap();
    wait_for(&link, &link.topology().work_queue(), 0).await;
    remove(&settings).await;
}

/// Settled in any order and many at once, every message is acked exactly once: one ack too many would end the channel.
#[tokio::test(flavor = "multi_thread")]
async fn acks_in_any_order_and_at_once_cover_every_message_once() {
    let Some(settings) = broker("acks") else { return };
    publish(&settings, (0..400).map(event)).await;
    let life = Lifecycle::detached();
    let mut source = AmqpSource::new(settings.clone(), 100, &life);
    let (mut seen, mut open) = (0, Vec::new());
    let mut settling = tokio::task::JoinSet::new();
    while seen < 400 {
        let came = receive(&mut source, 1).await;
        assert!(came.iter().all(|delivery| delivery.attempts == 1), "the channel ended");
        seen += came.len();
        open.extend(came);
        while open.len() > 20 || (seen == 400 && !open.is_empty()) {
            let picked = open.swap_remove(rand::random_range(0..open.len()));
            let settler = source.settler();
            settling.spawn(async move { settler.settle(vec![(picked.tag, Settlement::Done)]).await });
        }
    }
    assert!(settling.join_all().await.iter().all(Vec::is_empty));
    drop(source);
    let link = Link::open(&settings, "test").await.unwrap();
    wait_for(&link, &link.topology().work_queue(), 0).await;
    assert_eq!(life.health.troubles(), []);
    remove(&settings).await;
}

/// Acks wait for those of what came before, but no longer than a moment.
#[tokio::test]
async fn what_came_after_an_open_one_is_acked_all_the_same() {
    let Some(settings) = broker("open") else { return };
    publish(&settings, (0..30).map(event)).await;
    let mut source = AmqpSource::new(settings.clone(), 100, &Lifecycle::detached());
    let came = receive(&mut source, 30).await;
    let (open, others) = came.split_first().unwrap();
    let done = others.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect();
    source.settle(done).await.unwrap();
    drop(source);
    let link = Link::open(&settings, "test").await.unwrap();
    wait_for(&link, &link.topology().work_queue(), 1).await;
    let mut source = AmqpSource::new(settings.clone(), 100, &Lifecycle::detached());
    assert_eq!(receive(&mut source, 1).await[0].event.id, open.event.id);
    drop(source);
    remove(&settings).await;
}

#[tokio::test]
async fn the_next_broker_is_tried_where_one_is_dead_or_not_fit() {
    let Some(settings) = broker("failover") else { return };
    let good = settings.uris[0].clone();
    let mut other_vhost: url::Url = good.expose().parse().unwrap();
    other_vhost.set_path("no-such-vhost");
    for bad in ["amqp://127.0.0.1:1/%2f", other_vhost.as_str()] {
        for uris in [[Secret::new(bad.into()), good.clone()], [good.clone(), Secret::new(bad.into())]] {
            let settings = Settings { uris: uris.to_vec(), ..settings.clone() };
            for _ in 0..4 {
                Link::open(&settings, "test").await.unwrap().close().await;
            }
        }
    }
    remove(&settings).await;
}

#[tokio::test]
async fn of_what_came_over_a_cut_connection_only_the_uncertain_is_written_down() {
    let Some(settings) = broker("stale") else { return };
    publish(&settings, (0..3).map(event)).await;
    let proxy = Proxy::start(&settings).await;
    let mut source = AmqpSource::new(proxy.through(&settings), 50, &Lifecycle::detached());
    let stale = receive(&mut source, 3).await;
    proxy.cut();
    let again = receive(&mut source, 3).await;
    assert!(again.iter().all(|delivery| delivery.attempts == 2));
    let outcomes = [
        Settlement::Dead { reason: "refused".into() },
        Settlement::Retry { after: Duration::ZERO, reason: "busy".into() },
        Settlement::Uncertain,
    ];
    source.settle(stale.iter().map(|delivery| delivery.tag).zip(outcomes).collect()).await.unwrap();
    source.settle(again.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect()).await.unwrap();
    let link = Link::open(&settings, "test").await.unwrap();
    wait_for(&link, &link.topology().dead_queue(), 1).await;
    drop(source);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    wait_for(&link, &link.topology().work_queue(), 0).await;
    remove(&settings).await;
}

fn whose(number: u64) -> Event {
    let mut event = event(number);
    event.data.recipient = Some([u8::try_from(number % 12).unwrap(); 12].into());
    event
}

#[tokio::test]
async fn events_are_spread_by_recipient_and_come_back_to_the_same_relay() {
    let Some(mut settings) = broker("spread") else { return };
    settings.shape.partitions = 3;
    publish(&settings, (0..120).map(whose)).await;
    let check = Settings { topology: Mode::Check, ..settings.clone() };
    let mut seen: BTreeMap<EventId, (u16, usize)> = BTreeMap::new();
    let mut owners: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for round in 1..=2 {
        for queue in 1..=3 {
            let taking = Taking { prefetch: 200, queues: vec![queue], ..Taking::default() };
            let mut source = AmqpSource::taking(check.clone(), taking, &Lifecycle::detached());
            while let Ok(came) = tokio::time::timeout(Duration::from_secs(2), source.next(200)).await {
                let came = came.unwrap();
                for delivery in &came {
                    let place = seen.entry(delivery.event.id).or_insert((queue, 0));
                    assert_eq!(place.0, queue, "a retry comes back to the same queue");
                    place.1 += 1;
                    let recipient = delivery.event.data.recipient.as_ref().unwrap().to_string();
                    owners.entry(recipient).or_default().insert(queue);
                }
                let what = match round {
                    1 => Settlement::Retry { after: Duration::ZERO, reason: "busy".into() },
                    _ => Settlement::Done,
                };
                if round == 1 {
                    // The retry is back after a second: this round is over before that.
                    let first = came.iter().filter(|delivery| delivery.attempts == 1);
                    source
                        .settle(first.map(|delivery| (delivery.tag, what.clone())).collect())
                        .await
                        .unwrap();
                    break;
                }
                source
                    .settle(came.iter().map(|delivery| (delivery.tag, what.clone())).collect())
                    .await
                    .unwrap();
            }
        }
    }
    assert_eq!(seen.len(), 120);
    assert!(owners.values().all(|queues| queues.len() == 1), "{owners:?}");
    assert!(owners.values().flatten().collect::<BTreeSet<_>>().len() > 1, "more than one queue has work");
    remove(&settings).await;
}

/// What the owner before had in hand is marked, up to the first message that it never had.
#[tokio::test]
async fn a_queue_is_taken_only_by_the_relay_that_remembers_its_events() {
    let Some(settings) = broker("owner") else { return };
    publish(&settings, (0..5).map(event)).await;
    let taking = |memory: &str, takes_over| Taking {
        prefetch: 3,
        owner: Some(Owner { memory: memory.into(), host: "mx1".into(), takes_over }),
        ..Taking::default()
    };
    let mut first = AmqpSource::taking(settings.clone(), taking("a", false), &Lifecycle::detached());
    assert!(receive(&mut first, 3).await.iter().all(|delivery| !delivery.suspect));
    let life = Lifecycle::detached();
    for (takes_over, word) in [(false, "(a on mx1)"), (true, "stop that one first")] {
        let mut other = AmqpSource::taking(settings.clone(), taking("b", takes_over), &life);
        assert!(tokio::time::timeout(Duration::from_secs(2), other.next(1)).await.is_err());
        let why = life.health.troubles().remove(0).1;
        assert!(why.contains(word), "{why}");
    }
    drop(first);
    let mut heir = AmqpSource::taking(settings.clone(), taking("b", true), &life);
    let mut came = Vec::new();
    while came.len() < 5 {
        let more = receive(&mut heir, 1).await;
        heir.settle(more.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect()).await.unwrap();
        came.extend(more);
    }
    let suspects: BTreeSet<EventId> =
        came.iter().filter(|delivery| delivery.suspect).map(|delivery| delivery.event.id).collect();
    assert_eq!(suspects, (0..3).map(|number| event(number).id).collect());
    drop(heir);
    let mut again = AmqpSource::taking(settings.clone(), taking("b", false), &life);
    publish(&settings, (5..6).map(event)).await;
    assert!(!receive(&mut again, 1).await[0].suspect);
    drop(again);
    remove(&settings).await;
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_said_so_and_stop_ends_the_wait() {
    let settings = Settings {
        uris: vec![Secret::new("amqp://secret-user:secret-word@127.0.0.1:1/%2f".into())],
        ..Settings::default()
    };
    let life = Lifecycle { stop: CancellationToken::new(), ..Lifecycle::detached() };
    let mut source = AmqpSource::new(settings.clone(), 10, &life);
    let waiting = tokio::spawn(async move { source.next(1).await.unwrap().len() });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let troubles = life.health.troubles();
    assert_eq!(troubles.len(), 1);
    assert!(!format!("{troubles:?} {settings:?}").contains("secret-"), "{troubles:?}");
    life.stop.cancel();
    assert_eq!(waiting.await.unwrap(), 0);
}

/// Earlier layouts bound work queues to the exchange of all events, where only copies for watchers come now.
#[tokio::test]
async fn what_an_earlier_layout_bound_is_unbound_and_what_it_left_is_told() {
    let Some(settings) = broker("layouts") else { return };
    let several = Settings { shape: Shape { partitions: 2, ..settings.shape.clone() }, ..settings.clone() };
    let link = Link::open(&settings, "test").await.unwrap();
    let (single, events) = (link.topology().work_queue(), link.topology().events_exchange());
    publish(&settings, (0..3).map(event)).await;
    let channel = link.channel().await.unwrap();
    let bind = |queue: &str| {
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.into(), events.as_str().into(), "mailtap.#".into(), options, none)
    };
    bind(&single).await.unwrap();
    assert_eq!(link.left_over().await, Ok(Vec::new()));
    let tier = link.topology().retry_queue(Duration::ZERO);
    channel.queue_delete(tier.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    let link = Link::open(&several, "test").await.unwrap();
    assert_eq!(link.left_over().await, Ok(vec![(single.clone(), 3)]));
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    let copy = Message::of(&event(9), events.clone());
    let refused = publisher.publish(&link, &copy).await;
    assert!(matches!(refused, Err(Refused::Unroutable { .. })), "still bound: {refused:?}");
    publish(&several, (0..40).map(whose)).await;
    let channel = link.channel().await.unwrap();
    channel.queue_delete(tier.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    let link = Link::open(&settings, "test").await.unwrap();
    let left = link.left_over().await.unwrap();
    let names: Vec<_> = left.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, several_works(&single));
    assert_eq!(left.iter().map(|(_, count)| count).sum::<u32>(), 40);
    // What only an administrator may change is looked at, and left as it is.
    let check = Settings { topology: Mode::Check, ..settings.clone() };
    bind(&single).await.unwrap();
    let checking = Link::open(&check, "test").await.unwrap();
    assert_eq!(checking.left_over().await.unwrap(), left);
    Publisher::open(&checking, settings.confirm_timeout)
        .await
        .unwrap()
        .publish(&checking, &copy)
        .await
        .unwrap();
    Link::open(&settings, "test").await.unwrap().close().await;
    let publisher = Publisher::open(&link, settings.confirm_timeout).await.unwrap();
    assert!(publisher.publish(&link, &copy).await.is_err());

    let channel = link.channel().await.unwrap();
    channel.queue_delete(tier.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    remove(&several).await;
    remove(&settings).await;
}

fn several_works(single: &str) -> [String; 2] {
    [format!("{single}.1"), format!("{single}.2")]
}
