//! Each event once: over copies, kills and replays; what is not sent at all.
#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::testing::{Answer, Refuses, Site, event, nothing_waits};
use super::*;
use crate::event::{EventId, Kind};
use crate::queue::Publish;
use crate::queue::dedupe::Known;
use crate::queue::spool::{self, Admin};
use crate::service::clock;
use crate::service::secret::Secret;

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_an_event_go_out_once() {
    let mut site = Site { copies: 3, ..Site::new(Answer::Status(204)).await };
    site.spool().publish((0..40).map(event).collect()).await.unwrap();
    let relay = site.relay();
    site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (40, 40));
}

/// Whatever can't go out yet waits for more of the same client, also beyond the window.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_room_goes_in_one_request() {
    let timeout = Duration::from_secs(60);
    let mut site = Site { in_flight: 1, timeout, ..Site::new(Answer::Later).await };
    let of_one = |number| {
        let mut event = event(number);
        event.data.recipient = Some([1; 12].into());
        event
    };
    let relay = site.relay();
    let spool = site.spool();
    for number in 0..12 {
        spool.publish(vec![of_one(number)]).await.unwrap();
        site.until(|status| status.claimed == number + 1).await;
    }
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((*site.receiver.requests.lock().unwrap(), site.receiver.counts()), (2, (12, 12)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_and_never_settled_is_not_sent_by_the_next_life() {
    let mut site = Site::new(Answer::Status(204)).await;
    site.spool().publish((0..40).map(event).collect()).await.unwrap();
    *site.refuses.lock().unwrap() = Refuses::Everything;
    let relay = site.relay();
    while site.receiver.counts().0 < 40 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    relay.abort();
    let _ = relay.await;
    *site.refuses.lock().unwrap() = Refuses::Nothing;
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (40, 40));
    assert_eq!((status.dead, status.uncertain), (0, 0));
}

/// The other evil: what may have arrived is sent again, over a kill too, so it may count twice and is never lost.
#[tokio::test(flavor = "multi_thread")]
async fn with_retry_what_may_have_arrived_is_sent_again() {
    let mut site = Site { retry_uncertain: true, ..Site::new(Answer::Close).await };
    site.spool().publish(vec![event(1)]).await.unwrap();
    let relay = site.relay();
    while *site.receiver.requests.lock().unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    *site.receiver.answer.lock().unwrap() = Answer::Never;
    site.until(|status| status.pending == 1).await;
    while *site.receiver.requests.lock().unwrap() == 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    relay.abort();
    let _ = relay.await;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((status.uncertain, status.dead), (0, 0));
    let (events, times) = site.receiver.counts();
    assert!(events == 1 && times >= 3, "{times}");
}

/// What another relay had in hand is set aside, but for what this one knows was sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_relay_had_in_hand_is_uncertain() {
    let mut site = Site { suspects: true, ..Site::new(Answer::Status(204)).await };
    let dedupe = Dedupe::open(&site.directory.path().join("relay")).unwrap();
    dedupe.remember(&[event(1).id], clock::now()).await.unwrap();
    drop(dedupe);
    site.spool().publish((0..10).map(event).collect()).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((0, 0), 9));
    // Should the source hand out one of them again: its letter is written.
    let dedupe = Dedupe::open(&site.directory.path().join("relay")).unwrap();
    let ids: Vec<EventId> = (0..10).map(|number| event(number).id).collect();
    assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Sent; 10]);
}

/// Killed between the missing answer and the settlement: the event is still listed as uncertain, not taken for sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_uncertain_and_never_settled_is_uncertain_in_the_next_life() {
    let mut site = Site::new(Answer::Never).await;
    site.spool().publish(vec![event(1)]).await.unwrap();
    *site.refuses.lock().unwrap() = Refuses::Everything;
    let relay = site.relay();
    while site.receiver.counts().0 < 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    relay.abort();
    let _ = relay.await;
    *site.refuses.lock().unwrap() = Refuses::Nothing;
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.uncertain), ((1, 1), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_switched_off_is_done_without_being_sent() {
    let mut site = Site::new(Answer::Status(204)).await;
    site.mapping.switch_off(Kind::Delivered);
    site.spool().publish((0..16).map(event).collect()).await.unwrap();
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((site.receiver.counts(), status.dead), ((14, 14), 0));
}

/// As RabbitMQ delivers replays: what is remembered of the event does not count, what is remembered of the replay does.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_out_once_whatever_is_known_of_its_event() {
    let mut site = Site::new(Answer::Close).await;
    site.spool().publish(vec![event(1)]).await.unwrap();
    let replay = |site: &Site| {
        let mut admin = Admin::open(&site.directory.path().join("spool")).unwrap();
        admin.replay(&spool::Filter::default(), clock::now()).unwrap()
    };
    let mut arrived = Vec::new();
    for (replays, copies) in [(false, 1), (true, 3), (true, 3)] {
        (site.replays, site.copies) = (replays, copies);
        let relay = site.relay();
        site.until(nothing_waits).await;
        site.life.stop.cancel();
        relay.await.unwrap().unwrap();
        arrived.push(site.receiver.counts().1);
        replay(&site);
    }
    assert_eq!(arrived, [1, 2, 2], "the same replay again is a duplicate, as the same event is");
}

#[test]
fn a_dry_run_shows_requests_without_the_secret_and_what_is_dead() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::new(Answer::Status(204)));
    let mut mapping = Mapping::default();
    mapping.rename_event(Kind::Opened, "newsletter_read").unwrap();
    let mut opened = event(1);
    (opened.kind, opened.data.link_path) = (Kind::Opened, Some("/a@b".into()));
    let old = Event { time: clock::now().minus(Duration::from_secs(80 * 3_600)), ..event(2) };
    mapping.switch_off(Kind::Expired);
    let off = Event { kind: Kind::Expired, ..event(3) };
    let mut settings = site.settings();
    let events = [opened, old, off];
    let header = |settings: &Settings| {
        let lines = dry_run(settings, &mapping, &events, clock::now()).unwrap();
        serde_json::from_str::<Value>(&lines[0]).unwrap()["headers"]["X-Gtm-Server-Preview"].is_string()
    };
    assert!(!header(&settings));
    settings.properties[0].preview = Some(Secret::new("PREVIEW-MARKER".into()));
    assert!(header(&settings));
    let lines = dry_run(&settings, &mapping, &events, clock::now()).unwrap();
    let lines: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3]["off"], true);
    assert_eq!(lines[0]["body"]["events"][0]["name"], "newsletter_read");
    assert!(lines[0]["url"].as_str().unwrap().ends_with("/mp/collect?measurement_id=G-TEST"));
    assert_eq!((&lines[1]["repair"], &lines[2]["dead"]), (&json!("address"), &json!("expired")));
    assert!(lines.iter().all(|line| !line.to_string().contains("MARKER")));
    assert!(site.receiver.requests.lock().unwrap().eq(&0));
}

/// Over HTTP/1.1 one request tries the way to a receiver while the others wait: what waits for a connection when the relay is
/// killed was certainly not sent, and is not uncertain.
#[tokio::test(flavor = "multi_thread")]
async fn what_had_no_place_on_a_connection_when_the_relay_was_killed_is_not_uncertain() {
    let mut site =
        Site { in_flight: 100, timeout: Duration::from_secs(60), ..Site::new(Answer::Never).await };
    site.spool().publish((0..100).map(event).collect()).await.unwrap();
    let relay = site.relay();
    while *site.receiver.requests.lock().unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Time for the others to be noted, were they.
    tokio::time::sleep(Duration::from_millis(500)).await;
    relay.abort();
    let _ = relay.await;
    let seen = *site.receiver.requests.lock().unwrap();
    *site.receiver.answer.lock().unwrap() = Answer::Status(204);
    let relay = site.relay();
    let status = site.until(nothing_waits).await;
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!((seen, status.uncertain), (1, 1));
    assert_eq!(site.receiver.counts(), (100, 100), "the one that hung arrived too");
}

/// What was not begun with comes again by itself, and is not sent from here too.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_let_go_when_its_connection_is_gone() {
    let mut site = Site { per_property_hour: 60, ..Site::new(Answer::Status(204)).await };
    site.spool().publish((0..6).map(event).collect()).await.unwrap();
    let relay = site.relay();
    site.until(|status| status.claimed == 5 && status.pending == 0).await;
    let waiting = || {
        let admin = Admin::open(&site.directory.path().join("spool")).unwrap();
        admin.list(&spool::Filter::default(), None, 10).unwrap()
    };
    assert!(waiting().iter().all(|row| row.attempts == 1));
    site.epoch.store(1, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if waiting().iter().all(|row| row.attempts > 1) {
            break;
        }
    }
    assert_eq!((waiting().len(), waiting().iter().all(|row| row.attempts == 2)), (5, true));
    site.life.stop.cancel();
    relay.await.unwrap().unwrap();
    assert_eq!(site.receiver.counts(), (1, 1));
}
