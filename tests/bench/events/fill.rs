//! Fills a spool with events for `tests/bench/events/broker`: `--dir SPOOL --events N --clients M`.
#![allow(clippy::unwrap_used, missing_docs)]

use mailtap::event::{Data, Event, EventId, Kind, Machine};
use mailtap::identity::{MessageId, PseudonymKey};
use mailtap::queue::Publish;
use mailtap::queue::spool::{Settings, Spool, Sync};
use mailtap::service::clock;

const BATCH: u32 = 1_000;

fn main() {
    let (mut directory, mut events, mut clients) = (None, 0, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut number = || arguments.next().unwrap().parse::<u32>().unwrap();
        match name.as_str() {
            "--events" => events = number(),
            "--clients" => clients = number(),
            "--dir" => directory = arguments.next(),
            // What cargo adds.
            _ => {}
        }
    }
    let Some(directory) = directory else { return };
    let settings = Settings { directory: directory.into(), sync: Sync::Normal, ..Settings::default() };
    let key = PseudonymKey::new(&[1; 32]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let spool = Spool::open(settings).unwrap();
        for first in (0..events).step_by(BATCH as usize) {
            let batch = (first..events.min(first + BATCH)).map(|number| event(number, clients, &key));
            spool.publish(batch.collect()).await.unwrap();
        }
    });
}

/// A click, as the tracker writes it.
fn event(number: u32, clients: u32, key: &PseudonymKey) -> Event {
    let now = clock::now();
    Event {
        id: EventId::of("benchmark").part(now.as_micros().to_be_bytes()).part(number.to_be_bytes()).finish(),
        source: "mailtap/tracker/www1.example.org".into(),
        kind: Kind::Clicked,
        time: now,
        message: MessageId::new(now, number),
        data: Data {
            campaign: Some("spring-2026".parse().unwrap()),
            recipient: Some(key.pseudonym(&format!("user{}@example.net", number % clients.max(1)))),
            sender_domain: Some("example.org".into()),
            link: Some(3),
            link_host: Some("www.example.org".into()),
            link_path: Some("/shop/shoes".into()),
            machine: Some(Machine::No),
            ..Data::default()
        },
    }
}
