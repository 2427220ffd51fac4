//! Whatever an event holds, what the relay makes of it is what GA4 takes as it is: its validator and the collector's rules,
//! written apart, agree.
#![allow(clippy::unwrap_used)]

use mailtap::collector::judge::{Behaviour, judge};
use mailtap::event::{Data, Event, EventId, Kind, Machine};
use mailtap::identity::{MessageId, Pseudonym, Timestamp};
use mailtap::relay::batch::batch;
use mailtap::relay::map::{client_id, map};
use mailtap::relay::validate::{MAX_BODY_BYTES, validate};
use proptest::prelude::*;

const NOW: u64 = 1_795_000_000;

fn data() -> impl Strategy<Value = Data> {
    let text = || proptest::option::of("\\PC{0,130}|[a-z/]{90,120}|.{0,5}@.{0,5}|%40");
    let ids = (proptest::option::of(any::<[u8; 12]>()), proptest::option::of("[A-Za-z0-9]{1,40}"));
    (ids, text(), text(), text(), any::<Option<u16>>(), any::<Option<u64>>(), 0..4_u8).prop_map(
        |((recipient, campaign), host, path, rule, link, delay_ms, machine)| Data {
            recipient: recipient.map(Pseudonym::from),
            campaign: campaign.map(|id| id.parse().unwrap()),
            link_host: host,
            link_path: path,
            machine_rule: rule,
            link,
            delay_ms,
            machine: [None, Some(Machine::No), Some(Machine::Probable), Some(Machine::Certain)]
                [usize::from(machine)],
            ..Data::default()
        },
    )
}

fn event(kind: usize, number: u32, age_s: u64, data: Data) -> Event {
    let now = Timestamp::from_secs(NOW);
    Event {
        id: EventId::of("test").part(number.to_be_bytes()).finish(),
        source: "mailtap/test/host".into(),
        kind: Kind::ALL[kind],
        time: Timestamp::from_secs(NOW - age_s),
        message: MessageId::new(now, number),
        data,
    }
}

proptest! {
    #[test]
    fn what_is_sent_is_processed(
        events in proptest::collection::vec((0..8_usize, any::<u32>(), 0..80 * 3_600_u64, data()), 1..60)
    ) {
        let now = Timestamp::from_secs(NOW);
        let mut valid = Vec::new();
        for (number, (kind, random, age_s, data)) in events.into_iter().enumerate() {
            let event = event(kind, random, age_s, data);
            let mapped = map(&event, &[Vec::new()]).unwrap();
            match validate(mapped, now) {
                Ok((mapped, _)) => valid.push((mapped, number)),
                Err(reject) => prop_assert!(age_s > 71 * 3_600, "{}", reject.as_str()),
            }
        }
        let expected = valid.len();
        let requests = batch(valid);
        prop_assert_eq!(requests.iter().map(|request| request.tags.len()).sum::<usize>(), expected);
        for request in requests {
            let body = request.body.to_string();
            prop_assert!(body.len() <= MAX_BODY_BYTES && request.tags.len() <= 25);
            prop_assert!(!body.contains('@') && !body.contains("%40"), "{}", body);
            for behaviour in [Behaviour::Relaxed, Behaviour::Enforce] {
                let judged = judge(body.as_bytes(), NOW * 1_000_000, behaviour);
                prop_assert!(judged.messages.is_empty(), "{:?}", judged.messages);
                prop_assert!(judged.verdicts.iter().all(|verdict| verdict.outcome == "processed"), "{:?}", judged);
            }
        }
    }
}

#[test]
fn a_client_is_one_person() {
    let of = |number, recipient: Option<[u8; 12]>| {
        let data = Data { recipient: recipient.map(Pseudonym::from), ..Data::default() };
        client_id(&event(0, number, 0, data))
    };
    assert_eq!(of(1, Some([1; 12])), of(2, Some([1; 12])), "the same recipient, another message");
    assert_ne!(of(1, Some([1; 12])), of(1, Some([2; 12])));
    assert_ne!(of(1, None), of(2, None), "who it was is not known: never the same client");
    let cookie =
        Data { recipient: Some([1; 12].into()), ga_client_id: Some("123.456".into()), ..Data::default() };
    assert_eq!(client_id(&event(0, 1, 0, cookie)), "123.456");
}

#[test]
fn only_people_engage_and_properties_are_chosen_by_domain() {
    let with = |machine| Data {
        machine: Some(machine),
        sender_domain: Some("shop.example.org".into()),
        ..Data::default()
    };
    let domains = [vec!["example.org".into()], vec!["*.example.org".into()], Vec::new()];
    let human = map(&event(6, 1, 0, with(Machine::No)), &domains).unwrap();
    assert_eq!((human.name, human.property), ("email_open", 1));
    assert!(human.params.contains_key("engagement_time_msec"));
    let machine = map(&event(6, 1, 0, with(Machine::Probable)), &domains).unwrap();
    assert!(!machine.params.contains_key("engagement_time_msec"));
    assert_eq!(map(&event(0, 1, 0, Data::default()), &domains).unwrap().property, 2);
    assert_eq!(map(&event(0, 1, 0, Data::default()), &domains[..2]), None);
}
