//! Tests of what is told of visitors: cookie, hand-off, implied opens, and nothing where they want that.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::tracker::terms::{CookieTerms, HandoffTerms};

fn knowing() -> Bench {
    let mut bench = Bench::new();
    bench.consents.identity = Consent::Granted;
    bench.site.cookie = Some(CookieTerms::default());
    bench.site.handoff = Some(HandoffTerms {
        hosts: vec!["shop.example".into()],
        parameter: "mt".into(),
        issuer: "https://t.example.org".into(),
        lifetime: Duration::from_secs(120),
    });
    bench.site.click_implies_open = true;
    bench.handoff = Some(Keyring::new_for(crate::keys::ring::Use::Handoff, [9; 32], Timestamp::from_secs(1)));
    bench
}

fn shared(target: &str) -> Token {
    let Token::Click(click) = click_to(target) else { unreachable!() };
    Token::Click(Click { recipient: None, ..click })
}

fn cookie_of(outcome: &Outcome) -> Option<String> {
    let set = outcome.headers.iter().find(|(name, _)| *name == "set-cookie")?;
    Some(set.1.split(';').next().unwrap().to_owned())
}

/// What has a browser forget the cookie that it came with.
const FORGET: &str = "__Secure-mt=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax";

fn location(outcome: &Outcome) -> &str {
    outcome.answer.location().unwrap()
}

#[test]
fn a_consented_click_gives_cookie_and_hand_off_and_an_implied_open() {
    let bench = knowing();
    let outcome = bench.get(&bench.link("https://shop.example/a?b=1#c"), &[]);
    let target = location(&outcome);
    assert!(target.starts_with("https://shop.example/a?b=1&mt=ey") && target.ends_with("#c"), "{target}");
    assert!(cookie_of(&outcome).unwrap().starts_with("__Secure-mt="));
    let (open, key) = &**outcome.track.as_ref().unwrap().implied.as_ref().unwrap();
    assert_eq!(
        (open.kind, open.data.implied, open.data.recipient),
        (Kind::Opened, Some(true), Some(recipient()))
    );
    assert_eq!((open.data.link, &open.data.link_host, &open.data.link_path), (None, &None, &None));
    // The pixel's own event has the same key: whichever comes first is the unique one.
    let pixel = bench.get(&format!("/o/{}", bench.token(&pixel())), &[]);
    assert_eq!(pixel.track.unwrap().first.as_ref(), Some(key));
    assert!(cookie_of(&bench.get(&bench.link("https://other.example/"), &[])).is_some());
    assert_eq!(location(&bench.get(&bench.link("https://other.example/"), &[])), "https://other.example/");
}

#[test]
fn the_answer_is_the_same_for_machines() {
    let bench = knowing();
    let scanner = bench.ask(Method::Head, &bench.link("https://shop.example/"), &[], 1);
    assert_eq!(scanner.event.as_ref().unwrap().data.machine, Some(Machine::Certain));
    assert!(location(&scanner).contains("mt=ey") && cookie_of(&scanner).is_some());
}

#[test]
fn a_cookie_names_the_reader_of_a_shared_copy_and_is_given_by_ones_own_only() {
    let bench = knowing();
    let cookie = cookie_of(&bench.get(&bench.link("https://shop.example/"), &[])).unwrap();
    let path = format!("/c/{}", bench.token(&shared("https://shop.example/")));
    let with = |cookie: &str| bench.get(&path, &[("cookie", cookie.as_bytes())]);
    let known = with(&cookie);
    assert_eq!(known.event.as_ref().unwrap().data.recipient, Some(recipient()));
    assert!(cookie_of(&known).is_none() && location(&known).contains("mt=ey"));
    assert!(known.track.unwrap().first.is_some());
    let unknown = with("a=b");
    assert_eq!(unknown.event.as_ref().unwrap().data.recipient, None);
    assert!(unknown.track.as_ref().unwrap().first.is_none(), "a copy of several has no first reader");
    assert_eq!(location(&unknown), "https://shop.example/");
    for at in 0..cookie.len() {
        let mut altered = cookie.clone().into_bytes();
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        let outcome = with(std::str::from_utf8(&altered).unwrap());
        assert_eq!(outcome.event.unwrap().data.recipient, None, "byte {at}");
    }
    let mut other = knowing();
    other.consents.identity = Consent::Denied;
    let outcome = other.get(&path, &[("cookie", cookie.as_bytes())]);
    assert_eq!(outcome.event.unwrap().data.recipient, None, "consent is asked when a cookie is read, too");
}

#[test]
fn who_withdrew_and_is_known_by_a_cookie_is_nobody_in_a_shared_copy_too() {
    let mut bench = knowing();
    let cookie = cookie_of(&bench.get(&bench.link("https://shop.example/"), &[])).unwrap();
    let cookies = [cookie.as_str(), "_ga=GA1.1.12.34"].join("; ");
    let path = format!("/c/{}", bench.token(&shared("https://shop.example/account")));
    bench.withdrawn = Some(recipient());
    let outcome = bench.get(&path, &[("cookie", cookies.as_bytes())]);
    assert_eq!(outcome.anonymous, Some(Anonymous::Consent));
    let event = outcome.event.unwrap();
    assert_eq!((event.data.recipient, &event.data.ga_client_id, &event.data.link_path), (None, &None, &None));
    assert!(outcome.headers == [("set-cookie", FORGET.to_owned())] && outcome.track.is_none());
    let other = bench.get(&path, &[("cookie", b"_ga=GA1.1.12.34")]);
    assert_eq!(other.headers, []);
    assert_eq!(other.anonymous, None, "somebody else reads the same copy");
}

#[test]
fn gpc_and_denied_consent_get_no_cookie_no_hand_off_and_are_not_watched() {
    let granted = knowing();
    let cookie = cookie_of(&granted.get(&granted.link("https://shop.example/"), &[])).unwrap();
    let mut no_clicks = knowing();
    no_clicks.consents.fixed.clicks = Consent::Denied;
    let mut no_identity = knowing();
    no_identity.consents.identity = Consent::Denied;
    let gpc = [("sec-gpc", b"1".as_slice()), ("cookie", cookie.as_bytes())];
    for (bench, headers) in [(&granted, &gpc[..]), (&no_clicks, &gpc[1..]), (&no_identity, &gpc[1..])] {
        for token in [click_to("https://shop.example/"), shared("https://shop.example/")] {
            let outcome = bench.get(&format!("/c/{}", bench.token(&token)), headers);
            assert_eq!(location(&outcome), "https://shop.example/");
            assert_eq!(outcome.headers, [("set-cookie", FORGET.to_owned())]);
            assert_eq!(
                bench.get(&format!("/c/{}", bench.token(&token)), &headers[..headers.len() - 1]).headers,
                []
            );
            if outcome.anonymous.is_some() {
                assert!(outcome.track.is_none(), "nothing is watched or counted");
                assert_eq!(outcome.event.unwrap().data.recipient, None);
            }
        }
    }
    let mut no_opens = knowing();
    no_opens.consents.fixed.opens = Consent::Denied;
    let outcome = no_opens.get(&no_opens.link("https://shop.example/"), &[]);
    assert!(outcome.track.unwrap().implied.is_none(), "a click is no way around");
}

#[test]
fn nobody_who_has_the_mail_can_tell_an_anonymous_event() {
    let mut bench = Bench::new();
    let gpc = [("sec-gpc", b"1".as_slice())];
    let id = |bench: &Bench, target: &str| bench.get(&bench.link(target), &gpc).event.unwrap().id;
    assert_eq!(id(&bench, "https://e.com/1"), id(&bench, "https://e.com/2"), "made of no token");
    let one = id(&bench, "https://e.com/1");
    bench.sequence += 1;
    assert_ne!(id(&bench, "https://e.com/1"), one);
}

#[test]
fn public_keys_are_there_with_a_tag_and_only_where_there_is_a_hand_off() {
    let bench = knowing();
    let Answer::WellKnown(set) = bench.get("/.well-known/jwks.json", &[]).answer else { panic!("no keys") };
    let text = std::str::from_utf8(&set.bytes).unwrap();
    assert!(text.contains("\"Ed25519\"") && !text.contains("\"d\""), "{text}");
    assert!(set.etag.starts_with('"'));
    assert!(matches!(Bench::new().get("/.well-known/jwks.json", &[]).answer, Answer::NotFound(_)));
}
