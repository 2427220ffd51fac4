//! The documented JSON Schema and the code say the same.
#![allow(clippy::unwrap_used)]

use mailtap::event::{BounceClass, Data, Event, EventId, Kind, Machine};
use mailtap::identity::{MessageId, PseudonymKey, Timestamp};
use serde_json::Value;

fn schema() -> Value {
    serde_json::from_str(include_str!("../docs/event.schema.json")).unwrap()
}

/// An event with every member that exists.
fn full(kind: Kind) -> Event {
    let data = Data {
        campaign: Some("spring-2026".parse().unwrap()),
        recipient: Some(PseudonymKey::new(&[1; 32]).pseudonym("ann@example.net")),
        sender_domain: Some("example.org".into()),
        queue_id: Some("4jYB9z5tGnz1TRYx".into()),
        links: Some(3),
        pixel: Some(true),
        recipients: Some(1),
        dsn: Some("5.1.1".into()),
        class: Some(BounceClass::RateLimit),
        reason: Some("the receiver asks to send slower".into()),
        reply: Some("450 4.7.1 slower".into()),
        attempt: Some(2),
        delay_ms: Some(90),
        smtp_code: Some(550),
        provider: Some("gmail".into()),
        tls: Some("may:none".into()),
        link: Some(1),
        link_host: Some("www.example.org".into()),
        link_path: Some("/shop".into()),
        machine: Some(Machine::Probable),
        machine_rule: Some("scanner".into()),
        network: Some("exchange-online-protection".into()),
        agent: Some("firefox".into()),
        upgrade: Some(true),
        implied: Some(true),
        late: Some(false),
        unique: Some(true),
        ga_client_id: Some("1.2".into()),
        ga_session_id: Some("1700000000".into()),
    };
    Event {
        id: EventId::of("test").part(kind.as_str()).finish(),
        source: "mailtap/tap/mx1.example.org".into(),
        kind,
        time: Timestamp::from_micros(1_795_453_092_917_912),
        message: MessageId::new(Timestamp::from_secs(1_795_453_080), 7),
        data,
    }
}

#[test]
fn every_kind_of_event_is_valid() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for kind in Kind::ALL {
        for event in [full(kind), Event { data: Data::default(), ..full(kind) }] {
            let json: Value = serde_json::from_str(&event.to_json()).unwrap();
            let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{json}: {errors:?}");
        }
    }
}

#[test]
fn schema_and_code_have_the_same_members_and_words() {
    let schema = schema();
    let json: Value = serde_json::from_str(&full(Kind::Clicked).to_json()).unwrap();
    for (pointer, value) in [("/properties", &json), ("/properties/data/properties", &json["data"])] {
        let known: Vec<&String> = schema.pointer(pointer).unwrap().as_object().unwrap().keys().collect();
        let used: Vec<&String> = value.as_object().unwrap().keys().collect();
        let (mut known, mut used) = (known, used);
        known.sort();
        used.sort();
        assert_eq!(known, used, "{pointer}");
    }
    let words = |pointer: &str| -> Vec<String> {
        let list = schema.pointer(pointer).unwrap().as_array().unwrap();
        list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(words("/properties/type/enum"), Kind::ALL.map(|kind| kind.as_str().to_owned()));
    for class in words("/properties/data/properties/class/enum") {
        let read: BounceClass = serde_json::from_value(Value::String(class.clone())).unwrap();
        assert_eq!(read.as_str(), class);
    }
    for machine in words("/properties/data/properties/machine/enum") {
        let read: Machine = serde_json::from_value(Value::String(machine.clone())).unwrap();
        assert_eq!(read.as_str(), machine);
    }
}

#[test]
fn the_schema_refuses_what_it_should() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good: Value = serde_json::from_str(&full(Kind::Bounced).to_json()).unwrap();
    for (pointer, bad) in [
        ("/type", Value::from("mailtap.message.eaten")),
        ("/subject", Value::from("ann@example.net")),
        ("/data/sender_domain", Value::from("ann@example.net")),
        ("/data/recipient", Value::from("ann@example.net")),
        ("/data/dsn", Value::from("9.9.9")),
        ("/data/network", Value::from("2001:db8::1")),
        ("/data/network", Value::from("192.0.2.0/24")),
        ("/data/agent", Value::from("Mozilla/5.0 (X11; Linux x86_64)")),
    ] {
        let mut event = good.clone();
        *event.pointer_mut(pointer).unwrap() = bad;
        assert!(!validator.is_valid(&event), "{pointer}");
    }
}
