//! Tests of the verdicts, with the catalogue that comes with mailtap.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;
use crate::tracker::rules::CATALOGUE;

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
const GMAIL_PREFETCH: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                              Chrome/42.0.2311.135 Safari/537.36 Edge/12.246 Mozilla/5.0";
const SENT: u64 = 1_795_453_080_000;

struct Case<'a> {
    scope: Scope,
    method: Method,
    headers: Vec<(&'a str, &'a [u8])>,
    client: &'a str,
    is_client_named: bool,
    after_ms: i64,
}

impl<'a> Case<'a> {
    fn new(scope: Scope, user_agent: &'a str) -> Self {
        let headers = vec![("user-agent", user_agent.as_bytes())];
        Self {
            scope,
            method: Method::Get,
            headers,
            client: "203.0.113.9",
            is_client_named: true,
            after_ms: 60_000,
        }
    }

    fn verdict(&self) -> (Machine, Option<String>) {
        let rules = Rules::parse(CATALOGUE).unwrap();
        let client = self.client.parse().unwrap();
        let (method, is_client_named) = (self.method, self.is_client_named);
        let request = Request { method, path: "/", headers: &self.headers, client, is_client_named };
        let message = MessageId::new(Timestamp::from_millis(SENT), 7);
        let now = Timestamp::from_millis(SENT.checked_add_signed(self.after_ms).unwrap());
        let verdict = judge(&Evidence::new(request, self.scope, Some(&message), now, &rules), &rules);
        (verdict.machine, verdict.rule.map(str::to_owned))
    }
}

fn agent(scope: Scope, user_agent: &str) -> (Machine, Option<String>) {
    Case::new(scope, user_agent).verdict()
}

fn certain(rule: &str) -> (Machine, Option<String>) {
    (Machine::Certain, Some(rule.to_owned()))
}

fn probable(rule: &str) -> (Machine, Option<String>) {
    (Machine::Probable, Some(rule.to_owned()))
}

const NOBODY: (Machine, Option<String>) = (Machine::No, None);

#[test]
fn people_are_people() {
    for person in [
        FIREFOX,
        "Mozilla/5.0 (Linux; Android 10; CUBOT NOTE 20) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 \
         Mobile Safari/537.36",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Safari/537.36",
        "Mozilla/5.0 (Linux; Android 11; CUBOT/P40) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Mobile Safari/537.36",
        "Mozilla/5.0 (Linux; Android 9; Cubot; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/129.0.0.0 \
         Mobile Safari/537.36",
        // Telegram's own browser, with a person before it; its previews come from TelegramBot.
        "Mozilla/5.0 (Linux; Android 14; SM-G991B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 Mobile \
         Safari/537.36 Telegram-Android/11.2.3 (Samsung SM-G991B; Android 14; SDK 34; HIGH)",
        // Gmail shows images through its proxy when a person looks.
        "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
        "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html",
    ] {
        assert_eq!(agent(Scope::Open, person), NOBODY, "{person}");
        assert_eq!(agent(Scope::Click, person), NOBODY, "{person}");
    }
}

#[test]
fn machines_are_known_by_their_names() {
    for (user_agent, rule) in [
        ("curl/8.5.0", "http-library"),
        ("python-requests/2.32", "http-library"),
        ("Python/3.12 aiohttp/3.9", "http-library"),
        ("Go-http-client/2.0", "http-library"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "crawler"),
        (
            "Mozilla/5.0 (X11) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/129.0.0.0 Safari/537.36",
            "headless-browser",
        ),
        ("WhatsApp/2.23.20.0", "link-preview"),
        ("TelegramBot (like TwitterBot)", "link-preview"),
        ("Slack-ImgProxy 1.00 (+https://api.slack.com/robots)", "link-preview"),
        (
            "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
            "crawler",
        ),
        (
            "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
            "crawler",
        ),
        ("AdsBot-Google (+http://www.google.com/adsbot.html)", "crawler"),
        (
            "Mozilla/5.0 (compatible; DotBot/1.2; +https://opensiteexplorer.org/dotbot; help@moz.com)",
            "crawler",
        ),
        ("Mozilla/5.0 (compatible; Google-InspectionTool/1.0;)", "crawler"),
        ("Mozilla/5.0 (compatible; SomethingNewBot/0.1)", "names-itself-robot"),
        ("Checker/3 (+https://checker.example/)", "names-itself-robot"),
        ("Mozilla/5.0 (compatible; CensysInspect/1.1; +https://about.censys.io/)", "network-scanner"),
        ("Mozilla/5.0 zgrab/0.x", "network-scanner"),
        ("check_http/v2.3.3 (monitoring-plugins 2.3.3)", "uptime-monitor"),
        ("PostmanRuntime/7.42.0", "http-library"),
        ("HTTPie/3.2.2", "http-library"),
        ("Ruby", "http-library"),
        ("Faraday v2.12.0", "http-library"),
        ("Microsoft Office Existence Discovery", "office-existence-discovery"),
        ("Barracuda Sentinel (EE)", "mail-scanner"),
    ] {
        assert_eq!(agent(Scope::Click, user_agent), certain(rule), "{user_agent}");
        assert_eq!(agent(Scope::Open, user_agent), certain(rule), "{user_agent}");
    }
    assert_eq!(agent(Scope::Click, "Mozilla/5.0 Zscaler/3.1"), probable("security-product"));
    assert_eq!(agent(Scope::Click, ""), probable("no-user-agent"));
    assert_eq!(Case { headers: vec![], ..Case::new(Scope::Open, "") }.verdict(), probable("no-user-agent"));
}

#[test]
fn apple_mail_privacy_protection_opens_and_does_not_click() {
    assert_eq!(agent(Scope::Open, "Mozilla/5.0"), probable("apple-mail-privacy"));
    assert_eq!(agent(Scope::Click, "Mozilla/5.0"), NOBODY);
    let mut with_referer = Case::new(Scope::Open, "Mozilla/5.0");
    with_referer.headers.push(("referer", b"https://mail.example.org/"));
    assert_eq!(with_referer.verdict(), NOBODY);
}

#[test]
fn case_76_a_user_agent_of_people_needs_its_network() {
    assert_eq!(agent(Scope::Open, GMAIL_PREFETCH), NOBODY);
    let from_google = Case { client: "66.249.84.10", ..Case::new(Scope::Open, GMAIL_PREFETCH) };
    assert_eq!(from_google.verdict(), certain("gmail-prefetch"));
    let nobody_knows = Case { is_client_named: false, ..from_google };
    assert_eq!(nobody_knows.verdict(), NOBODY, "it may be the proxy's network");
    let person_in_network = Case { client: "66.249.84.10", ..Case::new(Scope::Open, FIREFOX) };
    assert_eq!(person_in_network.verdict(), NOBODY, "the network alone says nothing");
    // Networks of the clouds are off: webmail fetches images from there.
    for cloud in ["20.42.0.1", "34.64.0.1", "2603:1000::1"] {
        assert_eq!(Case { client: cloud, ..Case::new(Scope::Click, FIREFOX) }.verdict(), NOBODY, "{cloud}");
    }
}

#[test]
fn scanners_are_known_by_their_networks() {
    for (client, rule) in [
        ("40.92.0.1", "exchange-online-protection"),
        ("104.47.1.2", "exchange-online-protection"),
        ("2a01:111:f400::1", "exchange-online-protection"),
        ("209.222.82.9", "barracuda-gateway"),
    ] {
        assert_eq!(Case { client, ..Case::new(Scope::Click, FIREFOX) }.verdict(), certain(rule), "{client}");
    }
    assert_eq!(Case { client: "40.94.0.1", ..Case::new(Scope::Click, FIREFOX) }.verdict(), NOBODY);
}

#[test]
fn case_62_head_and_prefetch_are_machines() {
    let head = Case { method: Method::Head, ..Case::new(Scope::Click, FIREFOX) };
    assert_eq!(head.verdict(), certain(HEAD_RULE));
    for (name, value) in [
        ("sec-purpose", "prefetch;prerender"),
        ("purpose", "prefetch"),
        ("x-purpose", "preview"),
        ("x-moz", "Prefetch"),
    ] {
        let mut prefetch = Case::new(Scope::Click, FIREFOX);
        prefetch.headers.push((name, value.as_bytes()));
        assert_eq!(prefetch.verdict(), certain("prefetch"), "{name}");
    }
    let mut other = Case::new(Scope::Click, FIREFOX);
    other.headers.push(("sec-purpose", b"prefetched-by-nobody"));
    assert_eq!(other.verdict(), NOBODY);
}

#[test]
fn nobody_clicks_within_two_seconds() {
    let after = |scope, after_ms| Case { after_ms, ..Case::new(scope, FIREFOX) }.verdict();
    assert_eq!(after(Scope::Click, 1_999), certain("click-at-delivery"));
    assert_eq!(after(Scope::Open, 1_999), probable("open-at-delivery"));
    assert_eq!(after(Scope::Click, 2_000), NOBODY);
    assert_eq!(after(Scope::Click, -5_000), certain("click-at-delivery"), "clocks differ a little");
    assert_eq!(after(Scope::Click, -3_600_000), NOBODY, "a clock is wrong: its time says nothing");
}

#[test]
fn the_surest_rule_counts_and_the_first_of_several() {
    let both = Case { client: "40.92.0.1", ..Case::new(Scope::Click, "Zscaler") };
    assert_eq!(both.verdict(), certain("exchange-online-protection"), "not the probable one before it");
    assert_eq!(agent(Scope::Click, "curl/8 Googlebot"), certain("http-library"));
}

#[test]
fn every_rule_explains_itself() {
    let rules = Rules::parse(CATALOGUE).unwrap();
    let headers: [(&str, &[u8]); 1] = [("user-agent", b"curl/8")];
    let client = "203.0.113.9".parse().unwrap();
    let (method, is_client_named) = (Method::Get, true);
    let request = Request { method, path: "/", headers: &headers, client, is_client_named };
    let findings = explain(&Evidence::new(request, Scope::Click, None, Timestamp::default(), &rules), &rules);
    let of = |name: &str| findings.iter().find(|(rule, _)| rule.name == name).unwrap().1;
    assert_eq!(findings.len(), rules.rules().len());
    assert_eq!(of("http-library"), Finding::Matches);
    assert_eq!(of("cloud-network"), Finding::Off);
    assert_eq!(of("apple-mail-privacy"), Finding::OtherScope);
    assert_eq!(of("crawler"), Finding::Fails("user agent"));
    assert_eq!(of("click-at-delivery"), Finding::Fails("time since sending"));
}

proptest! {
    #[test]
    fn case_68_no_bytes_panic(
        user_agent in proptest::collection::vec(any::<u8>(), 0..300),
        other in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let rules = Rules::parse(CATALOGUE).unwrap();
        let headers = [("user-agent", user_agent.as_slice()), ("sec-purpose", other.as_slice())];
        let client = "203.0.113.9".parse().unwrap();
        let (method, is_client_named) = (Method::Get, true);
    let request = Request { method, path: "/", headers: &headers, client, is_client_named };
        let evidence = Evidence::new(request, Scope::Open, None, Timestamp::default(), &rules);
        let _ = (judge(&evidence, &rules), explain(&evidence, &rules));
    }
}
