//! Golden cases of bursts, sweeps and deliveries, with the catalogue that comes with mailtap.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::tracker::rules::CATALOGUE;

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";

/// The last words on each hit, like `no`, or `certain burst-of-links`.
fn last_words(lines: &[String]) -> Vec<String> {
    let rules = Rules::parse(CATALOGUE).unwrap();
    let rows = replay(&lines.join("\n"), &rules).unwrap();
    let words = rows.into_iter().map(|row| match row.last {
        (machine, Some(rule)) => format!("{} {rule}", machine.as_str()),
        (machine, None) => machine.as_str().to_owned(),
    });
    words.collect()
}

fn hit(at_ms: u64, rest: &str) -> String {
    let link = if rest.contains("\"hit\"") { "" } else { "\"hit\":\"click\"," };
    let message = if rest.contains("\"message\"") { "" } else { "\"message\":\"m\",\"recipient\":\"ann\"," };
    let agent = if rest.contains("user_agent") { "" } else { &format!("\"user_agent\":\"{FIREFOX}\",") };
    format!("{{\"at_ms\":{at_ms},{link}{message}{agent}{rest}}}")
}

#[test]
fn a_scanner_that_follows_every_link_is_one_and_a_reader_is_none() {
    let scanner: Vec<_> = (1..=6).map(|link| hit(link * 900, &format!("\"link\":{link}"))).collect();
    assert_eq!(last_words(&scanner), ["certain burst-of-links"; 6]);
    let reader: Vec<_> = (1..=6).map(|link| hit(link * 9_000, &format!("\"link\":{link}"))).collect();
    assert_eq!(last_words(&reader), ["no"; 6]);
    let tabs: Vec<_> = (1..=3).map(|link| hit(link * 900, &format!("\"link\":{link}"))).collect();
    assert_eq!(last_words(&tabs), ["probable few-links-at-once"; 3]);
}

#[test]
fn one_message_asked_for_from_everywhere_is_a_scanners() {
    let lines: Vec<_> = (1..=4).map(|net| hit(net * 5_000, &format!("\"ip\":\"198.51.{net}.1\""))).collect();
    assert_eq!(last_words(&lines), ["probable many-networks"; 4]);
    let two: Vec<_> =
        (0..4).map(|net| hit(net * 5_000, &format!("\"ip\":\"198.51.{}.1\"", net % 2))).collect();
    assert_eq!(last_words(&two), ["no"; 4], "at home and on the way");
}

#[test]
fn a_gateway_that_follows_a_mailing_is_one_and_an_office_is_none() {
    let sweep = |pause: u64, after: u64| -> Vec<String> {
        let mail = |number: u64| {
            let accepted = format!("{{\"at_ms\":{},\"accepted\":\"m{number}\"}}", number * pause);
            let who = format!("\"message\":\"m{number}\",\"recipient\":\"r{number}\"");
            [accepted, hit(number * pause + after, &who)]
        };
        let mut lines: Vec<String> = (0..10).flat_map(mail).collect();
        lines.sort_by_key(|line| line.contains("\"hit\""));
        lines
    };
    assert_eq!(last_words(&sweep(500, 3_000)), ["probable sweep-of-recipients"; 10]);
    assert_eq!(last_words(&sweep(500, 600_000)), ["no"; 10], "everybody comes to work at nine");
    assert_eq!(last_words(&sweep(30_000, 60_000)), ["no"; 10]);
}

#[test]
fn the_delivery_tells_even_when_it_is_known_later() {
    let accepted = "{\"at_ms\":0,\"accepted\":\"m\"}".to_owned();
    let delivered = |at: u64| format!("{{\"at_ms\":{at},\"delivered\":\"m\",\"recipient\":\"ann\"}}");
    let lines = [accepted.clone(), hit(5_000, "\"link\":1"), delivered(6_000), hit(7_000, "\"link\":1")];
    assert_eq!(last_words(&lines), ["certain before-delivery", "certain click-just-delivered"]);
    let lines = [accepted, delivered(6_000), hit(9_000, "\"link\":1"), hit(9_500, "\"hit\":\"open\"")];
    assert_eq!(last_words(&lines), ["no", "no"]);
}

#[test]
fn case_76_bursts_of_webmails_proxies_are_no_scanners() {
    let proxy = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)";
    let open =
        |at, ip: &str| hit(at, &format!("\"hit\":\"open\",\"ip\":\"{ip}\",\"user_agent\":\"{proxy}\""));
    let lines = [open(0, "66.249.84.1"), open(5_000, "66.249.84.9"), open(9_000, "66.102.6.1")];
    assert_eq!(last_words(&lines), ["no"; 3]);
}

#[test]
fn a_wrong_line_is_named() {
    let rules = Rules::parse(CATALOGUE).unwrap();
    for (text, what) in [
        ("{\"at_ms\":0,\"accepted\":\"m\"}\n{}", "line 2: missing field `at_ms`"),
        ("{\"at_ms\":0}", "line 1: expected one of"),
        ("{\"at_ms\":0,\"hit\":\"click\"}", "line 1: expected one of"),
        ("{\"at_ms\":0,\"colour\":1}", "line 1: unknown field"),
    ] {
        let error = replay(text, &rules).err().unwrap();
        assert!(error.message.contains(what), "{}", error.message);
    }
}
