//! Tests with a real broker, named by `MAILTAP_TEST_AMQP`: whose a queue is, over races and kills.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::QueueDeleteOptions;

use super::super::{Link, Publisher, Settings};
use super::*;
use crate::event::EventId;
use crate::queue::source::{AmqpSource, Delivery, Settlement, Source, Taking};
use crate::queue::testing::{broker, delete_queue, event, publish, receive, remove, wait_for};
use crate::service::Lifecycle;

struct Asking {
    link: Link,
    publishing: Link,
    publisher: Publisher,
    owner: Owner,
}

impl Asking {
    async fn new(settings: &Settings, memory: &str) -> Self {
        let link = Link::open(settings, "test").await.unwrap();
        let publishing = Link::open(settings, "test").await.unwrap();
        let publisher = Publisher::open(&publishing, settings.confirm_timeout).await.unwrap();
        Self { link, publishing, publisher, owner: owner(memory, false) }
    }

    async fn claim(&self) -> Result<bool, AmqpError> {
        let ways = Ways { link: &self.link, publishing: &self.publishing, publisher: &self.publisher };
        self.owner.claim(ways, &self.link.topology().work_queue()).await.map(|claimed| claimed.suspect)
    }
}

fn owner(memory: &str, takes_over: bool) -> Owner {
    Owner { memory: memory.into(), host: "mx1".into(), takes_over }
}

async fn settle(source: &AmqpSource, deliveries: &[Delivery]) {
    let done = deliveries.iter().map(|delivery| (delivery.tag, Settlement::Done)).collect();
    assert!(source.settler().settle(done).await.is_empty());
}

fn relay(settings: &Settings, prefetch: u16, owner: Owner) -> AmqpSource {
    let taking = Taking { prefetch, owner: Some(owner), ..Taking::default() };
    AmqpSource::taking(settings.clone(), taking, &Lifecycle::detached())
}

fn suspects(deliveries: &[Delivery]) -> BTreeSet<EventId> {
    let suspects = deliveries.iter().filter(|delivery| delivery.suspect);
    suspects.map(|delivery| delivery.event.id).collect()
}

/// At once on a queue that nobody has yet, and at once on one that has its owner.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_relays_that_claim_at_once_one_gets_the_queue() {
    for round in 0..8 {
        let Some(settings) = broker(&format!("race{round}")) else { return };
        let (a, b) = tokio::join!(Asking::new(&settings, "a"), Asking::new(&settings, "b"));
        let (first, second) = tokio::join!(a.claim(), b.claim());
        let (owner, other) = if first.is_ok() { (a, b) } else { (b, a) };
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        for _ in 0..8 {
            let (own, others) = tokio::join!(owner.claim(), other.claim());
            assert!(matches!(own, Ok(false) | Err(AmqpError::Claimed { .. })), "{own:?}");
            let refused = matches!(others, Err(AmqpError::Owned { .. } | AmqpError::Claimed { .. }));
            assert!(refused, "{others:?}");
        }
        remove(&settings).await;
    }
}

/// The heir is killed before it worked off what the one before had in hand; its next life knows of it from the broker, until
/// all of that is settled.
#[tokio::test]
async fn what_another_relay_had_in_hand_is_suspect_after_a_kill_of_the_heir_too() {
    let Some(settings) = broker("heir") else { return };
    let link = Link::open(&settings, "test").await.unwrap();
    let (work, note) = (link.topology().work_queue(), owner_queue(&link.topology().work_queue()));
    publish(&settings, (0..5).map(event)).await;
    let mut first = relay(&settings, 3, owner("a", false));
    assert_eq!(suspects(&receive(&mut first, 3).await), BTreeSet::new());
    drop(first);
    wait_for(&link, &work, 5).await;
    let had: BTreeSet<EventId> = (0..3).map(|number| event(number).id).collect();
    // All five came, the suspicion of this life is over, and nothing is settled.
    let mut heir = relay(&settings, 5, owner("b", true));
    assert_eq!(suspects(&receive(&mut heir, 5).await), had);
    drop(heir);
    wait_for(&link, &work, 5).await;
    wait_for(&link, &note, 1).await;

    let mut heir = relay(&settings, 5, owner("b", false));
    let came = receive(&mut heir, 5).await;
    assert!(suspects(&came).is_superset(&had), "{came:?}");
    settle(&heir, &came).await;
    publish(&settings, (5..6).map(event)).await;
    let new = receive(&mut heir, 1).await;
    assert_eq!(suspects(&new), BTreeSet::new());
    let asking = Asking::new(&settings, "b").await;
    while asking.claim().await != Ok(false) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(heir);
    wait_for(&link, &work, 1).await;
    let mut heir = relay(&settings, 5, owner("b", false));
    assert_eq!(suspects(&receive(&mut heir, 1).await), BTreeSet::new(), "its own, of its former life");
    drop(heir);
    remove(&settings).await;
}

/// The broker ends one of two consumers: the other one does not hide it.
#[tokio::test]
async fn a_queue_that_is_deleted_under_the_relay_is_consumed_again() {
    let Some(mut settings) = broker("deleted") else { return };
    settings.shape.partitions = 2;
    let whose = |number: u64| {
        let mut event = event(number);
        event.data.recipient = Some([u8::try_from(number).unwrap(); 12].into());
        event
    };
    let mut source = relay(&settings, 100, owner("a", false));
    publish(&settings, (0..40).map(whose)).await;
    let came = receive(&mut source, 40).await;
    settle(&source, &came).await;
    let link = Link::open(&settings, "test").await.unwrap();
    let queue = link.topology().work_queues().remove(0);
    let channel = link.channel().await.unwrap();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    // Declares the queue again, unknown to the relay.
    publish(&settings, (40..80).map(whose)).await;
    let mut ids = BTreeSet::new();
    while ids.len() < 40 {
        ids.extend(receive(&mut source, 1).await.iter().map(|delivery| delivery.event.id));
    }
    assert_eq!(ids, (40..80).map(|number| whose(number).id).collect());
    drop(source);
    remove(&settings).await;
}

/// A retry queue forgets that another relay may have sent it: what is suspect stays until it is taken.
#[tokio::test]
async fn suspects_are_not_given_back_though_they_wait() {
    let Some(settings) = broker("suspects") else { return };
    publish(&settings, (0..5).map(event)).await;
    let mut first = relay(&settings, 3, owner("a", false));
    let had: BTreeSet<_> = receive(&mut first, 3).await.iter().map(|delivery| delivery.event.id).collect();
    drop(first);
    let taking = Taking {
        owner: Some(owner("b", true)),
        prefetch: 10,
        hold: Duration::from_millis(300),
        ..Taking::default()
    };
    let mut heir = AmqpSource::taking(settings.clone(), taking, &Lifecycle::detached());
    let mut overdue = BTreeSet::new();
    while overdue.len() < 2 {
        let unseen = tokio::time::timeout(Duration::from_secs(20), heir.tend()).await.unwrap();
        assert_eq!(suspects(&unseen), BTreeSet::new());
        overdue.extend(unseen.iter().map(|delivery| delivery.event.id));
    }
    let taken = receive(&mut heir, 3).await;
    assert_eq!((suspects(&taken), overdue.is_disjoint(&had)), (had, true));
    drop(heir);
    remove(&settings).await;
}

/// A copied `state_dir` has the same name: the second relay takes nothing, says so, and goes on when the first is gone.
#[tokio::test]
async fn of_two_relays_with_one_memory_the_second_waits() {
    let Some(settings) = broker("copied") else { return };
    publish(&settings, (0..6).map(event)).await;
    let mut first = relay(&settings, 3, owner("a", false));
    receive(&mut first, 3).await;
    let life = Lifecycle::detached();
    let taking = Taking { prefetch: 3, owner: Some(owner("a", false)), ..Taking::default() };
    let mut copy = AmqpSource::taking(settings.clone(), taking, &life);
    assert!(tokio::time::timeout(Duration::from_secs(3), copy.next(1)).await.is_err());
    let why = life.health.troubles().remove(0).1;
    assert!(why.contains("is taken already by a relay with this memory (claimed on mx1)"), "{why}");
    drop(first);
    let came = receive(&mut copy, 3).await;
    assert!(came.iter().all(|delivery| (0..3).any(|number| event(number).id == delivery.event.id)));
    assert_eq!(life.health.troubles(), []);
    drop(copy);
    remove(&settings).await;
}

/// What was in it is gone: that is said, though the relay makes the queue again at once.
#[tokio::test]
async fn a_queue_that_is_deleted_under_the_relay_is_told() {
    let Some(settings) = broker("deleted-told") else { return };
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let mut source = relay(&settings, 100, owner("a", false));
    publish(&settings, (0..1).map(event)).await;
    let came = receive(&mut source, 1).await;
    settle(&source, &came).await;
    let link = Link::open(&settings, "test").await.unwrap();
    let work = link.topology().work_queue();
    delete_queue(&link, &work).await;
    let counted = || {
        let text = recorder.handle().render();
        ["mailtap_queue_deleted_total 1", "mailtap_queue_declared_again_total 1"]
            .iter()
            .all(|line| text.contains(line))
    };
    let again = async {
        while !counted() {
            let _ = tokio::time::timeout(Duration::from_millis(100), source.next(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("in time");
    publish(&settings, (1..2).map(event)).await;
    assert_eq!(receive(&mut source, 1).await[0].event.id, event(1).id);
    drop(source);
    remove(&settings).await;
}
