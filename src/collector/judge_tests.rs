use super::*;

const NOW: u64 = 1_795_000_000_000_000;
const HOURS_72_MICROS: u64 = 72 * 3_600 * 1_000_000;

fn whole(request: Value, behaviour: Behaviour) -> Judgement {
    judge(request.to_string().as_bytes(), NOW, behaviour)
}

fn one(event: Value, behaviour: Behaviour) -> Judgement {
    whole(json!({ "client_id": "1.2", "events": [event] }), behaviour)
}

fn code(event: Value) -> Option<&'static str> {
    one(event, Behaviour::Enforce).messages.first().map(|message| message.code)
}

fn outcome(request: Value) -> &'static str {
    whole(request, Behaviour::Relaxed).verdicts[0].outcome
}

#[test]
fn googles_own_examples() {
    let good =
        json!({ "name": "tutorial_begin", "params": { "session_id": "123", "engagement_time_msec": 100 } });
    let judged = one(good, Behaviour::Enforce);
    assert_eq!((judged.messages, judged.verdicts[0].outcome), (vec![], "processed"));
    let bad = one(json!({ "name": "_badEventName" }), Behaviour::Relaxed);
    assert_eq!((bad.messages[0].code, bad.messages[0].field.as_str()), ("NAME_INVALID", "events"));
    assert_eq!(
        bad.messages[0].text,
        "Event at index: [0] has invalid name [_badEventName]. Names must start with an alphabetic character."
    );
    assert_eq!(code(json!({ "name": "campaign@details" })), Some("NAME_INVALID"));
    assert_eq!(code(json!({ "name": "session_start" })), Some("NAME_RESERVED"));
    let unknown = one(json!({ "names": "x" }), Behaviour::Relaxed);
    assert!(unknown.messages[0].text.contains("(events[0]) names: Cannot find field."));
    assert_eq!((unknown.messages[0].code, unknown.messages[0].field.as_str()), ("VALUE_INVALID", ""));
    let client = |client: &str, behaviour| {
        let judged = whole(json!({ "client_id": client, "events": [{ "name": "e" }] }), behaviour);
        judged.messages.first().map(|message| (message.code, message.field.clone()))
    };
    let invalid = Some(("VALUE_INVALID", "client_id".to_owned()));
    assert_eq!(client("not_a_number.at_all", Behaviour::Enforce), invalid);
    assert_eq!(client("not_a_number.at_all", Behaviour::Relaxed), None);
    assert_eq!(client("GA1.1.1234567890.1700000000", Behaviour::Enforce), None);
    assert_eq!(client("GA1.1-2.1234567890.1700000000", Behaviour::Enforce), None);
    assert_eq!(client("GA1.1.1234567890", Behaviour::Enforce), invalid);
}

#[test]
fn limits_of_an_event_have_two_sides() {
    let with = |key: &str, value: Value| code(json!({ "name": "e", "params": { key: value } }));
    for (key, limit) in [("p", 100), ("page_title", 300), ("page_referrer", 420), ("page_location", 1_000)] {
        assert_eq!(with(key, json!("ż".repeat(limit))), None, "{key}");
        assert_eq!(with(key, json!("ż".repeat(limit + 1))), Some("VALUE_OUT_OF_BOUNDS"), "{key}");
    }
    assert_eq!(with(&"n".repeat(40), json!(1)), None);
    assert_eq!(with(&"n".repeat(41), json!(1)), Some("NAME_INVALID"));
    assert_eq!(code(json!({ "name": "n".repeat(40) })), None);
    assert_eq!(code(json!({ "name": "n".repeat(41) })), Some("NAME_INVALID"));
    let many = |count: usize| {
        let params: Map<String, Value> = (0..count).map(|n| (format!("p{n}"), json!(n))).collect();
        code(json!({ "name": "e", "params": params }))
    };
    assert_eq!((many(25), many(26)), (None, Some("EXCEEDED_MAX_ENTITIES")));
    let at = |micros: u64| code(json!({ "name": "e", "timestamp_micros": micros }));
    assert_eq!((at(NOW), at(NOW + 1)), (None, Some("VALUE_INVALID")));
    assert_eq!((at(NOW - HOURS_72_MICROS), at(NOW - HOURS_72_MICROS - 1)), (None, Some("VALUE_INVALID")));
    for bad in ["_x", "ga_x", "google_x", "firebase_x", "1x", "a-b", "ä", ""] {
        assert_eq!(with(bad, json!(1)), Some("NAME_INVALID"), "{bad}");
    }
    assert_eq!(with("firebase_conversion", json!(1)), Some("NAME_RESERVED"));
    for (key, good, bad) in [
        ("session_id", json!("170"), json!("s170")),
        ("session_id", json!(170), json!("")),
        ("engagement_time_msec", json!(1), json!("1")),
        ("items", json!([{}]), json!(null)),
        ("p", json!(true), json!([1])),
        ("p", json!(1.5), json!({})),
    ] {
        assert_eq!((with(key, good), with(key, bad)), (None, Some("VALUE_INVALID")), "{key}");
    }
    for app_only in ["ad_impression", "in_app_purchase", "screen_view"] {
        assert_eq!(code(json!({ "name": app_only })), Some("NAME_RESERVED"));
    }
}

#[test]
fn limits_of_a_user_have_two_sides() {
    let with = |key: &str, value: Value| {
        let request = json!({ "client_id": "1.2", "events": [{ "name": "e" }], key: value });
        let judged = whole(request.clone(), Behaviour::Enforce);
        let relaxed = whole(request, Behaviour::Relaxed);
        assert_eq!(judged.verdicts[0].outcome == "dropped", relaxed.verdicts[0].outcome == "modified");
        judged.messages.first().map(|message| message.code)
    };
    assert_eq!(with("user_id", json!("u".repeat(256))), None);
    assert_eq!(with("user_id", json!("u".repeat(257))), Some("VALUE_OUT_OF_BOUNDS"));
    assert_eq!(with("user_id", json!(" ")), Some("VALUE_INVALID"));
    let property = |name: &str, value: Value| with("user_properties", json!({ name: { "value": value } }));
    assert_eq!(property(&"n".repeat(24), json!("v".repeat(36))), None);
    assert_eq!(property(&"n".repeat(25), json!("v")), Some("NAME_INVALID"));
    assert_eq!(property("n", json!("v".repeat(37))), Some("VALUE_OUT_OF_BOUNDS"));
    assert_eq!(property("first_visit_time", json!("v")), Some("NAME_RESERVED"));
    let many = |count: usize| {
        let properties: Map<String, Value> =
            (0..count).map(|n| (format!("p{n}"), json!({ "value": n }))).collect();
        with("user_properties", json!(properties))
    };
    assert_eq!((many(25), many(26)), (None, Some("EXCEEDED_MAX_ENTITIES")));
}

#[test]
fn consent_is_granted_or_denied() {
    let with = |value: &str| {
        let request =
            json!({ "client_id": "1.2", "events": [{ "name": "e" }], "consent": { "ad_user_data": value } });
        outcome(request)
    };
    assert_eq!((with("GRANTED"), with("DENIED"), with("granted")), ("processed", "processed", "modified"));
}

#[test]
fn relaxed_changes_what_enforced_refuses() {
    let event = json!({ "name": "e", "timestamp_micros": NOW - HOURS_72_MICROS - 1, "params": { "p": "x".repeat(101) } });
    let judged = one(event.clone(), Behaviour::Relaxed);
    assert_eq!(judged.messages, []);
    assert_eq!((judged.verdicts[0].outcome, judged.verdicts[0].why.len()), ("modified", 2));
    let judged = one(event.clone(), Behaviour::Enforce);
    assert_eq!((judged.verdicts[0].outcome, judged.messages.len()), ("dropped", 2));
    let say = |word: &str, otherwise| {
        let request = json!({ "client_id": "1.2", "validation_behavior": word, "events": [event.clone()] });
        whole(request, otherwise).messages.len()
    };
    assert_eq!(say("ENFORCE_RECOMMENDATIONS", Behaviour::Relaxed), 2);
    assert_eq!(say("RELAXED", Behaviour::Enforce), 0);
}

#[test]
fn the_nearest_time_counts() {
    let (old, young) = (NOW - HOURS_72_MICROS - 1, NOW - 1);
    let judged = |request: u64, event: Value| {
        outcome(json!({ "client_id": "1.2", "timestamp_micros": request, "events": [event] }))
    };
    assert_eq!(judged(old, json!({ "name": "e" })), "modified");
    assert_eq!(judged(old, json!({ "name": "e", "timestamp_micros": young })), "processed");
    assert_eq!(judged(old, json!({ "name": "e", "timestamp_micros": young.to_string() })), "processed");
    assert_eq!(judged(young, json!({ "name": "e", "timestamp_micros": old })), "modified");
    assert_eq!(judged(old, json!({ "name": "e", "params": { "timestamp_micros": young } })), "processed");
    assert_eq!(judged(young, json!({ "name": "e", "params": { "timestamp_micros": old } })), "modified");
    let both = json!({ "name": "e", "timestamp_micros": young, "params": { "timestamp_micros": old } });
    assert_eq!(judged(old, both), "processed");
}

#[test]
fn whole_requests_fail() {
    let event = json!({ "name": "e" });
    assert_eq!(outcome(json!({ "clientId": "1.2", "events": [event] })), "processed", "camelCase is taken");
    assert_eq!(outcome(json!({ "events": [event] })), "dropped");
    assert_eq!(outcome(json!({ "client_id": "1.2" })), "dropped");
    assert_eq!(outcome(json!({ "client_id": "1.2", "events": [] })), "dropped");
    assert_eq!(outcome(json!({ "client_id": "1.2", "events": [event], "unknown": 1 })), "dropped");
    let judged =
        whole(json!({ "client_id": "1.2", "events": [event, { "names": "e" }] }), Behaviour::Relaxed);
    assert_eq!(judged.verdicts.len(), 1, "one unknown key fails the good event too");
    assert_eq!(judged.verdicts[0].outcome, "dropped");
    assert_eq!(outcome(json!({ "client_id": "1.2", "events": vec![event.clone(); 25] })), "processed");
    assert_eq!(outcome(json!({ "client_id": "1.2", "events": vec![event; 26] })), "dropped");
    assert_eq!(judge(b"{", NOW, Behaviour::Relaxed).messages[0].code, "VALUE_INVALID");
    let body = |bytes: usize| {
        let mut body = json!({ "client_id": "1.2", "events": [{ "name": "e" }] }).to_string().into_bytes();
        body.resize(bytes, b' ');
        judge(&body, NOW, Behaviour::Relaxed).messages.first().map(|message| message.code)
    };
    assert_eq!((body(129_999), body(130_000)), (None, Some("EXCEEDED_MAX_ENTITIES")));
}

#[test]
fn what_is_taken_and_should_not_be_is_noted() {
    let notes = |event: Value| {
        let judged = one(event, Behaviour::Enforce);
        assert_eq!((judged.messages.len(), judged.verdicts[0].outcome), (0, "processed"));
        judged.verdicts[0].why.len()
    };
    assert_eq!(notes(json!({ "name": "e", "params": { "p": "/a%41" } })), 0);
    for address in ["ann@example.org", "ann%40example.org", "ann＠example.org"] {
        assert_eq!(notes(json!({ "name": "e", "params": { "p": address } })), 1, "{address}");
    }
    assert_eq!(notes(json!({ "name": "page_view" })), 1);
    assert_eq!(notes(json!({ "name": "e", "params": { "debug_mode": false } })), 1);
}
