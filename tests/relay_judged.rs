//! Whatever an event holds, what the relay makes of it is what GA4 takes as it is: its validator and the collector's rules,
//! written apart, agree.
#![allow(clippy::unwrap_used)]

use mailtap::collector::judge::{Behaviour, judge};
use mailtap::event::{BounceClass, Data, Event, EventId, Kind, Machine};
use mailtap::identity::{MessageId, Pseudonym, Timestamp};
use mailtap::relay::batch::batch;
use mailtap::relay::map::{Mapped, Mapping, PARAMS, client_id, map};
use mailtap::relay::property::Takes;
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
            let mapped = map(&event, &[Takes::default()]).unwrap();
            match validate(mapped, now) {
                Ok((mapped, _)) => valid.push((mapped, number)),
                Err(reject) => prop_assert!(age_s > 71 * 3_600, "{}", reject.as_str()),
            }
        }
        let expected = valid.len();
        let requests = batch(valid);
        prop_assert_eq!(requests.iter().map(|request| request.tags.len()).sum::<usize>(), expected);
        for request in requests {
            let body = request.body();
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

/// Texts at the limits, with at signs of all sorts, encoded once and more often.
fn hostile() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(
        "\\PC{0,130}|[a-z/]{90,120}|.{0,5}[@\u{ff20}\u{fe6b}].{0,5}|(%|25|40|@|&#64;){1,8}|\u{1f600}{45,60}|",
    )
}

/// What cookies may hold: sessions and clients, true and false ones.
fn cookie() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(
        "[0-9]{1,25}|17949[0-9]{5}|1795000000|[0-9]{1,12}\\.[0-9]{1,12}|GA1\\.1\\.[0-9]{3}\\.[0-9]{3}|\\PC{0,20}",
    )
}

prop_compose! {
    fn every_member()(
        texts in (hostile(), hostile(), hostile(), hostile(), hostile(), hostile(), hostile()),
        cookies in (cookie(), cookie()),
        numbers in (any::<Option<u32>>(), any::<Option<u64>>(), any::<Option<u16>>(), any::<Option<bool>>()),
        one_of in 0..4_usize,
        recipient in proptest::option::of(0..3_u8),
        campaign in proptest::option::of("[A-Za-z0-9]{1,40}"),
    ) -> Data {
        Data {
            campaign: campaign.map(|id| id.parse().unwrap()),
            recipient: recipient.map(|byte| [byte; 12].into()),
            queue_id: texts.0,
            dsn: texts.1,
            provider: texts.2,
            tls: texts.3,
            link_host: texts.4,
            link_path: texts.5,
            machine_rule: texts.6,
            ga_client_id: cookies.0,
            ga_session_id: cookies.1,
            attempt: numbers.0,
            delay_ms: numbers.1,
            link: numbers.2,
            late: numbers.3,
            machine: [None, Some(Machine::No), Some(Machine::Probable), Some(Machine::Certain)][one_of],
            class: [None, Some(BounceClass::MailboxFull), Some(BounceClass::Hard), Some(BounceClass::RateLimit)]
                [one_of],
            ..Data::default()
        }
    }
}

/// A mapping of a site's own: what of these names is not possible stays as it is.
fn mapping() -> impl Strategy<Value = Mapping> {
    let renames = proptest::collection::vec(
        (0..PARAMS.len(), proptest::option::of("[A-Za-z_][A-Za-z0-9_]{0,42}")),
        0..6,
    );
    ("[A-Za-z_][A-Za-z0-9_.@-]{0,45}|ga_x|screen_view", renames, any::<[bool; 8]>()).prop_map(
        |(name, renames, engaged)| {
            let mut mapping = Mapping::default();
            let _ = mapping.rename_event(Kind::Opened, &name);
            for (at, name) in &renames {
                let _ = mapping.rename_param(PARAMS[*at], name.as_deref());
            }
            Kind::ALL.into_iter().zip(engaged).for_each(|(kind, engages)| mapping.engage(kind, engages));
            mapping
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]
    #[test]
    fn whatever_it_holds_and_is_named_it_is_processed(
        events in proptest::collection::vec(
            (0..8_usize, any::<u32>(), -100_i64..80 * 3_600, every_member()), 1..40),
        mapping in mapping(),
    ) {
        let now = Timestamp::from_secs(NOW);
        let mut valid = Vec::new();
        for (number, (kind, random, age_s, data)) in events.into_iter().enumerate() {
            let time = Timestamp::from_secs(NOW.saturating_add_signed(-age_s));
            let event = Event { time, ..event(kind, random, 0, data) };
            match validate(mapping.map(&event, &[Takes::default()]).unwrap(), now) {
                Ok((mapped, _)) => valid.push((mapped, number)),
                Err(reject) => prop_assert!(age_s > 71 * 3_600, "{}", reject.as_str()),
            }
        }
        let expected = valid.len();
        let requests = batch(valid);
        prop_assert_eq!(requests.iter().map(|request| request.tags.len()).sum::<usize>(), expected);
        for request in requests {
            let body = request.body();
            prop_assert!(body.len() <= MAX_BODY_BYTES && request.tags.len() <= 25);
            for behaviour in [Behaviour::Relaxed, Behaviour::Enforce] {
                let judged = judge(body.as_bytes(), NOW * 1_000_000, behaviour);
                prop_assert!(judged.messages.is_empty(), "{:?} {}", judged.messages, body);
                for verdict in judged.verdicts {
                    let has_address = verdict.why.iter().any(|why| why.contains("mail address"));
                    prop_assert!(verdict.outcome == "processed" && !has_address, "{:?}", verdict);
                }
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
        recipient: Some([1; 12].into()),
        sender_domain: Some("shop.example.org".into()),
        ..Data::default()
    };
    let domains = [vec!["example.org".into()], vec!["*.example.org".into()], Vec::new()]
        .map(|domains| Takes { domains, ..Takes::default() });
    let human = map(&event(6, 1, 0, with(Machine::No)), &domains).unwrap();
    assert_eq!((human.name, human.property), ("email_open", 1));
    assert!(human.params.contains_key("engagement_time_msec"));
    let machine = map(&event(6, 1, 0, with(Machine::Probable)), &domains).unwrap();
    assert!(!machine.params.contains_key("engagement_time_msec"));
    let nobody = Data { recipient: None, ..with(Machine::No) };
    assert!(!map(&event(6, 1, 0, nobody), &domains).unwrap().params.contains_key("engagement_time_msec"));
    assert_eq!(map(&event(0, 1, 0, Data::default()), &domains).unwrap().property, 2);
    assert_eq!(map(&event(0, 1, 0, Data::default()), &domains[..2]), None);
}

/// Google's own examples: the collector says of each what Google says, and the relay sends just those that it lets through.
#[test]
fn googles_examples_are_judged_alike() {
    let text = include_str!("data/ga4/examples.json");
    let examples: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    for example in &examples {
        let (request, code) = (&example["request"], example["code"].as_str());
        let relaxed = example["relaxed"] == true;
        let behaviour = if relaxed { Behaviour::Relaxed } else { Behaviour::Enforce };
        let judged = judge(request.to_string().as_bytes(), NOW * 1_000_000, behaviour);
        assert_eq!(judged.messages.first().map(|message| message.code), code, "{example}");
        let event = &request["events"][0];
        let mapped = Mapped {
            name: event["name"].as_str().unwrap(),
            params: event["params"].as_object().unwrap().clone().into_iter().collect(),
            timestamp_micros: NOW * 1_000_000,
            client_id: request["client_id"].as_str().unwrap().to_owned(),
            property: 0,
        };
        assert_eq!(validate(mapped, Timestamp::from_secs(NOW)).is_ok(), code.is_none(), "{example}");
    }
    assert!(examples.iter().any(|example| example["code"].is_null()));
}
