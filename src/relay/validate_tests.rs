#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::relay::params::Params;

const NOW: u64 = 1_795_000_000;

fn event() -> Mapped<'static> {
    Mapped {
        name: "email_click",
        params: Params::default(),
        timestamp_micros: NOW * 1_000_000,
        client_id: "1.2".into(),
        property: 0,
    }
}

fn checked(event: Mapped<'_>) -> Result<(Mapped<'_>, Vec<Repair>), Reject> {
    validate(event, Timestamp::from_secs(NOW))
}

fn with(name: &str, value: Value) -> (Mapped<'static>, Vec<Repair>) {
    let mut event = event();
    event.params.insert(name.to_owned(), value);
    checked(event).unwrap()
}

#[test]
fn time_has_a_limit_on_each_side() {
    let at = |micros: u64| checked(Mapped { timestamp_micros: micros, ..event() });
    let oldest = (NOW - 71 * 3_600) * 1_000_000;
    assert!(at(oldest).is_ok());
    assert_eq!(at(oldest - 1), Err(Reject::Expired));
    assert_eq!(at(NOW * 1_000_000).unwrap().1, []);
    let (mended, repairs) = at(NOW * 1_000_000 + 1).unwrap();
    assert_eq!((mended.timestamp_micros, repairs), (NOW * 1_000_000, vec![Repair::Future]));
}

#[test]
fn values_have_100_characters() {
    let (kept, repairs) = with("p", json!("ż".repeat(100)));
    assert_eq!((kept.params["p"].as_str().unwrap().chars().count(), repairs), (100, vec![]));
    let (cut, repairs) = with("p", json!("ż".repeat(101)));
    assert_eq!((cut.params["p"].as_str().unwrap().chars().count(), repairs), (100, vec![Repair::Cut]));
}

#[test]
fn a_value_is_cut_between_characters_by_the_strictest_count() {
    let (kept, repairs) = with("p", json!("😀".repeat(50)));
    assert_eq!((kept.params["p"].as_str().unwrap().chars().count(), repairs), (50, vec![]));
    let (cut, repairs) = with("p", json!("x".to_owned() + &"😀".repeat(50)));
    assert_eq!((cut.params["p"].as_str().unwrap().chars().count(), repairs), (50, vec![Repair::Cut]));
}

#[test]
fn a_session_is_of_the_last_24_hours_and_began_before_the_event() {
    let session = |value: Value| {
        let (event, repairs) = with("session_id", value);
        (event.params.contains_key("session_id"), repairs)
    };
    let day = 24 * 3_600;
    assert_eq!(session(json!(NOW)), (true, vec![]));
    assert_eq!(session(json!((NOW - day).to_string())), (true, vec![]));
    for bad in [
        json!((NOW - day - 1).to_string()),
        json!(NOW + 1),
        json!("+1"),
        json!(""),
        json!("s1"),
        json!(null),
        json!(1.5),
    ] {
        assert_eq!(session(bad.clone()), (false, vec![Repair::Session]), "{bad}");
    }
}

#[test]
fn reserved_names_are_refused_and_their_neighbours_are_not() {
    for bad in RESERVED_EVENTS.iter().chain(APP_EVENTS).chain(&["_x", "ga_x", "google_x", "firebase_x"]) {
        assert_eq!(checked(Mapped { name: bad, ..event() }), Err(Reject::EventName), "{bad}");
    }
    for good in
        ["errors", "first_opened", "Session_start", "gax", "googlex", "firebase", "click", &"n".repeat(40)]
    {
        assert!(checked(Mapped { name: good, ..event() }).is_ok(), "{good}");
    }
    assert_eq!(checked(Mapped { name: &"n".repeat(41), ..event() }), Err(Reject::EventName));
    for bad in RESERVED_PARAMS {
        assert_eq!(with(bad, json!(1)).1, [Repair::Param], "{bad}");
    }
    assert_eq!(with("engagement_time_msec", json!(1)).1, []);
    assert_eq!(with("engagement_time_msec", json!(true)).1, [Repair::Param]);
}

#[test]
fn names_have_40_characters_and_a_form() {
    for good in [&"n".repeat(40)[..], "a", "a_1", "gax", "google", "firebase", "gtag"] {
        assert_eq!(with(good, json!(1)).1, [], "{good}");
    }
    for bad in [&"n".repeat(41)[..], "", "1a", "a-b", "ä", "_x", "ga_x", "google_x", "firebase_x", "gtag.x"]
    {
        let (event, repairs) = with(bad, json!(1));
        assert_eq!((event.params.len(), repairs), (0, vec![Repair::Param]), "{bad}");
    }
}

#[test]
fn there_are_25_parameters_at_the_most() {
    let mut event = event();
    (0..25).for_each(|n| event.params.insert(format!("p{n}"), json!(n)));
    assert_eq!(checked(event.clone()).unwrap().1, []);
    event.params.insert("p25", json!(25));
    let (cut, repairs) = checked(event).unwrap();
    assert_eq!((cut.params.len(), repairs), (25, vec![Repair::TooMany]));
}

#[test]
fn addresses_never_leave() {
    for bad in [
        "ann@example.org",
        "x=ann%40example.org",
        "ann＠example.org",
        "ann﹫example.org",
        "ann%EF%BC%A0example.org",
        "a%2540b",
        "A%252540B",
        "A%25252525252540B",
        "ann%ef%bc%a0example.org",
        "ann%eF%Bc%a0example.org",
        "ann%EF%B9%ABexample.org",
        "ann%25EF%25BC%25A0example.org",
        "%%34%30",
        "ann&#64;example.org",
        "ann&#X40;example.org",
        "ann&#0064;example.org",
        "ann&#64 example.org",
        "ann&#x00040;example.org",
        "ann&commat;example.org",
        "ann&CommAt;example.org",
        "ann%26%2364%3Bexample.org",
        "a&amp;b&#64;",
        &("x".repeat(150) + "@example.org"),
    ] {
        let (event, repairs) = with("link_path", json!(bad));
        assert_eq!((event.params.len(), repairs), (0, vec![Repair::Address]), "{bad}");
    }
    let entities =
        ["a&#65;b", "a&#164;b", "a&#640;b", "a&#x401;b", "a&#x140;b", "a&comma;b", "a&b#64;", "&#", "&"];
    let good = ["/a%4b", "/100%", "%4", "/%zz", "/a%41", "/a%2541", "/at", "%25%25%25", "%%%", "%ef%bc%a1"];
    for good in good.into_iter().chain(entities) {
        assert_eq!(with("link_path", json!(good)).1, [], "{good}");
    }
}

#[test]
fn nulls_and_lists_are_left_out() {
    for bad in [json!(null), json!([1]), json!({})] {
        assert_eq!(with("p", bad).1, [Repair::Param]);
    }
    for good in [json!(true), json!(0), json!(-1.5), json!("")] {
        assert_eq!(with("p", good).1, []);
    }
}

#[test]
fn a_client_has_20_digits_on_each_side_and_not_21() {
    let digits = |count: usize| "9".repeat(count);
    for (random, time) in [(20, 20), (1, 20), (20, 1)] {
        let client_id = format!("{}.{}", digits(random), digits(time));
        assert!(checked(Mapped { client_id, ..event() }).is_ok());
    }
    for (random, time) in [(21, 1), (1, 21)] {
        let client_id = format!("{}.{}", digits(random), digits(time));
        assert_eq!(checked(Mapped { client_id, ..event() }), Err(Reject::ClientId));
    }
}

#[test]
fn clients_are_two_numbers() {
    let digits = "9".repeat(20);
    for good in ["1.2", "0.0", &format!("{digits}.{digits}")] {
        assert!(checked(Mapped { client_id: good.into(), ..event() }).is_ok(), "{good}");
    }
    let longer = [format!("{digits}9.1"), format!("1.{digits}9"), "1.2 ".into(), "-1.2".into()];
    for bad in longer {
        assert_eq!(checked(Mapped { client_id: bad.clone(), ..event() }), Err(Reject::ClientId), "{bad}");
    }
    for bad in ["", "1", "1.", ".2", "a.b", "1.2.3", "GA1.1.1.2"] {
        assert_eq!(checked(Mapped { client_id: bad.into(), ..event() }), Err(Reject::ClientId), "{bad}");
    }
}
