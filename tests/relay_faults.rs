//! Spool, relay and collector over real HTTP, with everything that a receiver can do wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mailtap::collector::judge::Behaviour;
use mailtap::collector::{self, report};
use mailtap::event::{Data, Event, EventId, Kind};
use mailtap::identity::{MessageId, PseudonymKey};
use mailtap::queue::Publish;
use mailtap::queue::dedupe::Dedupe;
use mailtap::queue::source::SpoolSource;
use mailtap::queue::spool::{self, Admin, Spool, Status};
use mailtap::relay;
use mailtap::relay::send::Property;
use mailtap::service::secret::Secret;
use mailtap::service::{Lifecycle, clock};
use tokio::sync::oneshot;

const EVENTS: usize = 200;

fn events() -> Vec<Event> {
    let now = clock::now();
    let key = PseudonymKey::new(&[1; 32]);
    let event = |number: usize| Event {
        id: EventId::of("test").part(number.to_string()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::ALL[number % Kind::ALL.len()],
        time: now.minus(Duration::from_secs(60)),
        message: MessageId::new(now, u32::try_from(number).unwrap()),
        data: Data {
            campaign: Some("spring".parse().unwrap()),
            recipient: Some(key.pseudonym(&format!("user{}@example.net", number % 20))),
            link_path: Some("/a".repeat(80)),
            ..Data::default()
        },
    };
    (0..EVENTS).map(event).collect()
}

/// Runs collector and relay until nothing waits any more; after two seconds the fault ends if `recovers`.
async fn play(fault: &str, recovers: bool) -> (BTreeMap<String, usize>, Status) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record.jsonl");
    let life = Lifecycle::detached();
    let (ready, address) = oneshot::channel();
    let settings = collector::Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        record: Some(record.clone()),
        fault: fault.parse().unwrap(),
        behaviour: Behaviour::Relaxed,
        tls: None,
    };
    let collecting = tokio::spawn(collector::run(settings, life.clone(), |address| {
        let _ = ready.send(address);
    }));
    let base_url = format!("http://{}", address.await.unwrap());

    let spool = Spool::open(spool::Settings {
        directory: directory.path().join("spool"),
        ..spool::Settings::default()
    });
    let spool = spool.unwrap();
    spool.publish(events()).await.unwrap();
    let source = Box::new(SpoolSource::new(spool.clone(), 500, life.stop.clone()));
    let dedupe = Dedupe::open(&directory.path().join("relay")).unwrap();
    let property = Property {
        takes: mailtap::relay::property::Takes::default(),
        measurement_id: "G-TEST".into(),
        api_secret: Some(Secret::new("MARKER".into())),
        base_url: base_url.clone(),
        path: "/mp/collect".into(),
        preview: None,
    };
    let settings = relay::Settings {
        properties: vec![property],
        max_in_flight: 8,
        per_property: 0,
        per_property_hour: 0,
        streams: 100,
        h2c: false,
        batch_window: Duration::from_millis(50),
        timeout: Duration::from_millis(700),
        retry_uncertain: false,
    };
    let relaying = tokio::spawn(relay::run(settings, source, dedupe, life.clone()));
    if recovers {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let client = reqwest::Client::new();
        client.post(format!("{base_url}/collector/fail")).body("none").send().await.unwrap();
    }
    let status = settled(&directory.path().join("spool")).await;
    life.stop.cancel();
    relaying.await.unwrap().unwrap();
    collecting.await.unwrap().unwrap();
    let text = std::fs::read_to_string(&record).unwrap();
    assert!(!text.contains("MARKER"), "the API secret is recorded");
    let mut counts = BTreeMap::new();
    for row in report::report(&text).rows {
        assert_eq!(row.outcome, "processed", "{row:?}");
        *counts.entry(row.event_id).or_default() += 1;
    }
    (counts, status)
}

async fn settled(spool: &Path) -> Status {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let status = Admin::open(spool).unwrap().status().unwrap();
        if status.pending == 0 && status.claimed == 0 {
            return status;
        }
        assert!(std::time::Instant::now() < end, "{status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_each_event_arrives_once() {
    let (counts, status) = play("none", false).await;
    assert_eq!((counts.len(), counts.values().sum()), (EVENTS, EVENTS));
    assert_eq!((status.dead, status.uncertain), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_in_trouble_loses_and_doubles_nothing() {
    for fault in ["500", "503:0.4"] {
        let (counts, status) = play(fault, true).await;
        assert_eq!((counts.len(), counts.values().sum()), (EVENTS, EVENTS), "{fault}");
        assert_eq!((status.dead, status.uncertain), (0, 0), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_arrived_is_kept_apart_and_never_sent_twice() {
    for fault in ["reset:0.3", "hang-after:every=4", "hang-before:every=4"] {
        let (counts, status) = play(fault, true).await;
        assert!(counts.values().all(|times| *times == 1), "{fault}: {counts:?}");
        assert_eq!(status.dead, 0, "{fault}");
        let (arrived, uncertain) = (counts.len() as u64, status.uncertain);
        let events = EVENTS as u64;
        assert!(uncertain > 0 && (events..=events + uncertain).contains(&(arrived + uncertain)), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_a_dead_letter() {
    let (counts, status) = play("400", false).await;
    assert_eq!((counts.len(), status.dead, status.uncertain), (0, EVENTS as u64, 0));
}
