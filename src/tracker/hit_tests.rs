//! Tests of the decision on one request, without sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::consent::{Fixed, SiteConsent};
use crate::event::Machine;
use crate::keys::token::{Ref, sign};
use crate::tracker::request::Method;
use crate::tracker::rules::CATALOGUE;

const SENT_SECS: u64 = 1_795_453_080;
const BROWSER: &[u8] = b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

#[derive(Debug)]
struct Bench {
    ring: Keyring,
    rules: Rules,
    site: Site,
    consents: SiteConsent,
    /// Who follows no links, whatever the site says.
    withdrawn: Option<Pseudonym>,
    handoff: Option<Keyring>,
    hasher: RandomState,
    sequence: u64,
}

impl Consents for Bench {
    fn decide(&self, recipient: Option<&Pseudonym>, purpose: Purpose) -> Consent {
        if recipient.is_some() && recipient == self.withdrawn.as_ref() {
            return Consent::Denied;
        }
        self.consents.decide(recipient, purpose)
    }
}

impl Bench {
    fn new() -> Self {
        Self {
            ring: Keyring::new([7; 32], Timestamp::from_secs(1)),
            rules: Rules::parse(CATALOGUE).unwrap(),
            site: Site::default(),
            consents: fixed(Consent::Granted, Consent::Granted),
            withdrawn: None,
            handoff: None,
            hasher: RandomState::new(),
            sequence: 1,
        }
    }

    fn token(&self, token: &Token) -> String {
        sign(token, self.ring.signing(Timestamp::from_secs(SENT_SECS)).unwrap())
    }

    fn link(&self, target: &str) -> String {
        format!("/c/{}", self.token(&click_to(target)))
    }

    fn get(&self, path: &str, headers: &[(&str, &[u8])]) -> Outcome {
        self.ask(Method::Get, path, headers, 3_600)
    }

    fn ask(&self, method: Method, path: &str, headers: &[(&str, &[u8])], after_secs: u64) -> Outcome {
        let mut all = vec![("user-agent", BROWSER), ("host", b"T.example.org:443".as_slice())];
        all.extend_from_slice(headers);
        let client = IpAddr::from([203, 0, 113, 9]);
        let world = World {
            site: &self.site,
            pages: &Pages::new(&self.site),
            files: &Files::default(),
            utm: &[],
            rules: &self.rules,
            keys: &self.ring,
            consents: self,
            source: "mailtap/tracker/test",
            now: Timestamp::from_secs(SENT_SECS + after_secs),
            sequence: self.sequence,
            handoff: self.handoff.as_ref(),
            hasher: &self.hasher,
        };
        decide(&Request { method, path, headers: &all, client, is_client_named: true }, &world)
    }
}

fn fixed(opens: Consent, clicks: Consent) -> SiteConsent {
    SiteConsent { fixed: Fixed { opens, clicks }, identity: Consent::Denied }
}

fn message() -> MessageId {
    MessageId::new(Timestamp::from_secs(SENT_SECS), 0xdead_beef)
}

fn recipient() -> Pseudonym {
    Pseudonym::from([0x11; 12])
}

fn click_to(target: &str) -> Token {
    Token::Click(Click {
        message: message(),
        recipient: Some(recipient()),
        link: 3,
        campaign: Some("spring".parse().unwrap()),
        target: target.to_owned(),
    })
}

fn pixel() -> Token {
    Token::Open(Open { message: message(), recipient: Some(recipient()), campaign: None })
}

#[test]
fn a_click_says_what_it_knows() {
    let mut bench = Bench::new();
    bench.site.sender_domain = Some("example.org".into());
    let cookie: &[u8] = b"_ga=GA1.1.12.34; _ga_ABC=GS2.1.s56$o1";
    let outcome = bench.get(&bench.link("https://shop.example/a/b?c=d#e"), &[("cookie", cookie)]);
    assert_eq!(outcome.answer, Answer::Redirect("https://shop.example/a/b?c=d#e".into()));
    let event = outcome.event.unwrap();
    assert_eq!((event.kind, event.message), (Kind::Clicked, message()));
    let expected = Data {
        campaign: Some("spring".parse().unwrap()),
        recipient: Some(recipient()),
        sender_domain: Some("example.org".into()),
        link: Some(3),
        link_host: Some("shop.example".into()),
        link_path: Some("/a/b".into()),
        machine: Some(Machine::No),
        network: Some("other".into()),
        agent: Some("firefox".into()),
        late: Some(false),
        ga_client_id: Some("12.34".into()),
        ga_session_id: Some("56".into()),
        ..Data::default()
    };
    assert_eq!(event.data, expected);
}

#[test]
fn case_58_no_altered_character_redirects() {
    let bench = Bench::new();
    let good = bench.link("https://shop.example/");
    let first = "/c/".len();
    for at in first..good.len() {
        for other in ALPHABET.iter().chain(b"./%=+~ ?") {
            let mut altered = good.clone().into_bytes();
            if altered[at] == *other {
                continue;
            }
            altered[at] = *other;
            let outcome = bench.get(std::str::from_utf8(&altered).unwrap(), &[]);
            assert!(matches!(outcome.answer, Answer::NotFound(_)), "{at} {}", char::from(*other));
            assert!(outcome.event.is_none() && outcome.refused.is_some());
        }
    }
    for cut in first..good.len() {
        assert!(matches!(bench.get(&good[..cut], &[]).answer, Answer::NotFound(_)), "{cut}");
    }
    for extra in *ALPHABET {
        let longer = format!("{good}{}", char::from(extra));
        assert!(matches!(bench.get(&longer, &[]).answer, Answer::NotFound(_)), "{longer}");
    }
}

#[test]
fn tokens_of_other_kinds_and_other_keys_are_none() {
    let bench = Bench::new();
    let reference = bench.token(&Token::Ref(Ref { message: message() }));
    let strange = sign(&click_to("https://e.com/"), &Keyring::new([8; 32], Timestamp::default()).keys()[0]);
    let reason = |path: &str| {
        let outcome = bench.get(path, &[]);
        assert!(outcome.event.is_none() && !matches!(outcome.answer, Answer::Redirect(_)));
        outcome.refused.map(|refusal| (refusal.kind, refusal.reason))
    };
    assert_eq!(reason(&format!("/c/{}", bench.token(&pixel()))), Some(("click", "kind")));
    assert_eq!(reason(&format!("/c/{reference}")), Some(("click", "kind")));
    assert_eq!(reason(&format!("/o/{}", bench.token(&click_to("https://e.com/")))), Some(("open", "kind")));
    assert_eq!(reason(&format!("/c/{strange}")), Some(("click", "mac")));
    assert_eq!(reason("/c/"), Some(("click", "layout")));
}

#[test]
fn case_58_a_signed_target_that_could_do_harm_is_not_followed() {
    let bench = Bench::new();
    for target in [
        "https://e.com/\r\nSet-Cookie: a=b",
        "https://e.com/\nLocation: https://evil.example/",
        "https://e.com/\0",
        "https://:80/",
        "http://[::1",
    ] {
        let outcome = bench.get(&bench.link(target), &[]);
        assert!(matches!(outcome.answer, Answer::NotFound(_)), "{target:?}");
        assert_eq!(outcome.refused.unwrap().reason, "target");
    }
}

#[test]
fn case_60_an_old_link_works_and_is_late() {
    let bench = Bench::new();
    for (days, late) in [(89, false), (91, true), (3_650, true)] {
        for path in [bench.link("https://e.com/"), format!("/o/{}", bench.token(&pixel()))] {
            let outcome = bench.ask(Method::Get, &path, &[], days * 24 * 3_600);
            assert!(matches!(outcome.answer, Answer::Redirect(_) | Answer::Pixel));
            assert_eq!(outcome.event.unwrap().data.late, Some(late), "{days}");
        }
    }
}

#[test]
fn without_consent_the_link_works_and_nothing_personal_is_recorded() {
    let cookie: &[u8] = b"_ga=GA1.1.12.34; _ga_ABC=GS2.1.s56$o1";
    let with_gpc = [("cookie", cookie), ("sec-gpc", b"1".as_slice())];
    let granted = Bench::new();
    let denied = Bench { consents: fixed(Consent::Denied, Consent::Denied), ..Bench::new() };
    for (bench, headers, why) in
        [(&granted, &with_gpc[..], Anonymous::Gpc), (&denied, &with_gpc[..1], Anonymous::Consent)]
    {
        let click = bench.get(&bench.link("https://e.com/for/ann?x=1"), headers);
        assert_eq!(click.answer, Answer::Redirect("https://e.com/for/ann?x=1".into()));
        let open = bench.get(&format!("/o/{}", bench.token(&pixel())), headers);
        for outcome in [click, open] {
            assert_eq!(outcome.anonymous, Some(why));
            let event = outcome.event.unwrap();
            assert_ne!(event.message, message(), "the message id leads to the recipient");
            assert_eq!(event.message.time().as_secs() / 86_400, SENT_SECS / 86_400, "its day is kept");
            let data = event.data;
            assert_eq!((data.recipient, data.ga_client_id, data.ga_session_id), (None, None, None));
            assert_eq!(data.link_path, None);
        }
    }
    for no in [b"0".as_slice(), b"", b"11"] {
        assert_eq!(granted.get(&granted.link("https://e.com/"), &[("sec-gpc", no)]).anonymous, None);
    }
}

#[test]
fn consent_is_asked_for_each_purpose() {
    let bench = Bench { consents: fixed(Consent::Denied, Consent::Granted), ..Bench::new() };
    assert_eq!(bench.get(&bench.link("https://e.com/"), &[]).anonymous, None);
    let open = bench.get(&format!("/o/{}", bench.token(&pixel())), &[]);
    assert_eq!(open.anonymous, Some(Anonymous::Consent));
}

#[test]
fn utm_is_for_the_hosts_that_want_it() {
    let hosts = ["example.org".to_owned()];
    for (host, wanted) in
        [("example.org", true), ("www.example.org", true), ("badexample.org", false), ("org", false)]
    {
        assert_eq!(is_tagged(host, &hosts), wanted, "{host}");
    }
    assert!(is_tagged("anything.example", &[]));
}

#[test]
fn the_same_request_at_the_same_time_is_the_same_event_and_no_other() {
    let bench = Bench::new();
    let path = bench.link("https://e.com/");
    let id = |path: &str, after| bench.ask(Method::Get, path, &[], after).event.unwrap().id;
    assert_eq!(id(&path, 10), id(&path, 10));
    assert_ne!(id(&path, 10), id(&path, 11));
    assert_ne!(id(&path, 10), id(&bench.link("https://e.com/2"), 10));
    assert_eq!(id(&path, 10), id(&format!("{path}."), 10), "what a client adds makes no other link");
}

proptest! {
    #[test]
    fn case_68_no_request_panics(
        path in "/(c/|o/|)\\PC{0,60}",
        value in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let bench = Bench::new();
        let headers: Vec<(&str, &[u8])> = ["host", "cookie", "sec-gpc", "user-agent", "x-forwarded-for"]
            .map(|name| (name, value.as_slice()))
            .into();
        prop_assert!(!matches!(bench.get(&path, &headers).answer, Answer::Redirect(_)));
        let good = bench.get(&bench.link("https://e.com/"), &headers);
        prop_assert!(matches!(good.answer, Answer::Redirect(_)));
        prop_assert!(good.event.unwrap().to_json().len() < Event::MAX_BYTES);
    }
}

#[path = "identity_tests.rs"]
mod identity;
