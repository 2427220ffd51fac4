//! Receivers and sources in trouble, and what waits meanwhile.
#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::settle::Settler;
use super::testing::{Answer, Receiver, Refuses, Site, event, nothing_waits};
use super::*;
use crate::queue::Publish;
use crate::queue::source::{Settlement, SpoolSource};
use crate::service::clock;

#[tokio::test(flavor = "multi_thread")]
async fn a_property_has_no_more_requests_under_way_than_it_may() {
    let mut site = Site { per_property: 1, ..Site::new(Answer::Status(204)).await };
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    site.until(nothing_waits).await;
    *site.receiver.answer.lock().unwrap() = Answer::Never;
    site.spool().publish((2..30).map(event).collect()).await.unwrap();
    while *site.receiver.requests.lock().unwrap() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(*site.receiver.requests.lock().unwrap(), 2);
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
}

/// While the source takes its time, answers are read all the same: none of them turns a request into an uncertain one.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stalls_makes_nothing_uncertain() {
    let mut site = Site::new(Answer::Status(204)).await;
    *site.refuses.lock().unwrap() = Refuses::Stalls(Duration::from_secs(2));
    site.spool().publish((0..200).map(event).collect()).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((200, 200), 0));
}

/// What the source refuses keeps nothing else in memory, and no more is taken before it is through.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_told_again_alone_and_pauses_the_taking() {
    let mut site = Site::new(Answer::Status(400)).await;
    *site.refuses.lock().unwrap() = Refuses::Others;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    while *site.receiver.requests.lock().unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    site.spool().publish((2..30).map(event).collect()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((site.receiver.counts().0, site.status().claimed), (0, 1), "nothing more is taken");
    let told = || site.life.health.troubles().iter().any(|(_, why)| why.contains("can't be settled"));
    assert!(told(), "{:?}", site.life.health.troubles());
    *site.refuses.lock().unwrap() = Refuses::Nothing;
    let status = site.until(nothing_waits).await;
    assert!(!told(), "{:?}", site.life.health.troubles());
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.dead), ((28, 28), 1));
}

/// As with a connection that broke under a settlement: nobody takes anything before it is made again.
#[tokio::test(flavor = "multi_thread")]
async fn while_nothing_is_taken_somebody_sees_to_the_source() {
    let mut site = Site::new(Answer::Close).await;
    *site.refuses.lock().unwrap() = Refuses::UntilTended;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(status.uncertain, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_makes_few_events_uncertain_and_shows_in_health() {
    let mut site = Site::new(Answer::Never).await;
    // Each event is of a client of its own, so a request of its own.
    site.spool().publish((0..200).map(event).collect()).await.unwrap();
    let relay = site.relay();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let troubles = site.life.health.troubles();
    assert!(troubles.iter().any(|(_, why)| why.contains("GA4")), "{troubles:?}");
    let tried = *site.receiver.requests.lock().unwrap();
    assert!(tried <= site.in_flight + 5, "{tried} requests hung");
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let status = site.until(nothing_waits).await;
    assert_eq!(site.life.health.troubles(), []);
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (200, 200), "those that hung arrived too, and were not sent again");
    assert_eq!(
        usize::try_from(status.uncertain).unwrap(),
        *site.receiver.requests.lock().unwrap() - (200 - tried)
    );
}

/// Whatever is wrong with one property, the other one's events go out at once, and its own wait in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_property_that_is_broken_pauses_no_other_one() {
    for broken in [Answer::Status(503), Answer::Never] {
        let mut site = Site::new(Answer::Status(204)).await;
        site.other = Some(Receiver::start(broken).await);
        let of_shop = |number| {
            let mut event = event(number);
            event.data.sender_domain = Some("shop.example".into());
            event
        };
        site.spool().publish((0..300).map(of_shop).collect()).await.unwrap();
        site.spool().publish((300..600).map(event).collect()).await.unwrap();
        let relay = site.relay();
        for _ in 0..60 {
            if site.receiver.counts().0 == 300 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(site.receiver.counts(), (300, 300), "{broken:?}");
        let status = site.until(|status| status.claimed <= 1).await;
        assert!(status.pending > 250, "{status:?}");
        let troubles = site.life.health.troubles();
        assert!(troubles.iter().any(|(_, why)| why.starts_with("G-SHOP: ")), "{troubles:?}");
        site.spool().publish((600..640).map(event).collect()).await.unwrap();
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if site.receiver.counts().0 == 340 {
                break;
            }
        }
        assert_eq!(site.receiver.counts(), (340, 340), "what comes during the trouble too");
        let other = site.other.clone().unwrap();
        *other.answer.lock().unwrap() = Answer::Status(204);
        let status = site.until(nothing_waits).await;
        assert_eq!(site.life.health.troubles(), []);
        site.life.stop.cancel();
        relay.await.unwrap().unwrap();
        let (events, times) = other.counts();
        assert_eq!((events, times), (300, 300), "each once; those that hung had arrived: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_uncertain_a_5xx_is_not() {
    let mut site = Site::new(Answer::Close).await;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    assert_eq!(site.until(nothing_waits).await.uncertain, 1);
    *site.receiver.answer.lock().unwrap() = Answer::Status(503);
    site.spool().publish(vec![event(2)]).await.unwrap();
    site.until(|status| status.pending == 1).await;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((2, 2), 1));
}

#[tokio::test]
async fn what_grows_too_old_while_it_waits_is_not_sent() {
    let now = clock::now();
    let site = Site::new(Answer::Status(204)).await;
    let limit = Duration::from_secs(71 * 3_600);
    let mut events: Vec<Event> = (0..3).map(event).collect();
    for (event, age) in events.iter_mut().zip([limit, limit / 2, limit]) {
        event.time = now.minus(age).plus(Duration::from_secs(5));
        event.data.recipient = Some([1; 12].into());
    }
    site.spool().publish(events.clone()).await.unwrap();
    let mut source = SpoolSource::new(site.spool(), 10, site.life.stop.clone());
    let deliveries = source.next(10).await.unwrap();
    let settings = site.settings();
    let dedupe = Arc::new(Memory::new(Dedupe::open(&site.directory.path().join("relay")).unwrap()));
    let sender = Sender::new(&settings.properties, settings.travel()).unwrap();
    let relay = Relay::new(settings, Mapping::default(), sender, dedupe.clone());
    let mut settler = Settler::new(source.settler(), dedupe);
    let (mut requests, settled) = relay.prepare(deliveries, &mut settler).await;
    assert_eq!((requests.len(), settled.len()), (1, 0));
    let request = requests.remove(0);
    let (all, expired) = work::fresh(request.clone(), now);
    assert_eq!((all.as_ref(), expired.len()), (Some(&request), 0));
    let (left, expired) = work::fresh(request.clone(), now.plus(Duration::from_secs(10)));
    let left = left.unwrap();
    let body: Value = serde_json::from_str(&left.body()).unwrap();
    assert_eq!((left.tags.len(), body["events"].as_array().unwrap().len()), (1, 1));
    assert_eq!(body["events"][0]["params"]["event_id"], json!(events[1].id.to_string()));
    assert!(expired.iter().all(|settled| settled.what == Settlement::Dead { reason: "expired".into() }));
    assert_eq!(work::fresh(request, now.plus(limit)).0, None);
}
