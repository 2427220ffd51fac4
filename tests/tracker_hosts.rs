//! Two tracking hosts on one machine: whose URL the milter writes, and where it works, through the real Postfix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::time::Duration;

use harness::{NEWSLETTER, Options, SENDER, Site, http, run, smtp, wait_for};

const SECOND: &str = "news@second.example";
const TARGET: &str = "https://www.example.org/shop?a=1&b=2";

fn site() -> Site {
    let second = "[[tracking.hosts]]\nurl = \"http://t.second.example/m\"\naliases = [\"old.second.example\"]\n\
                  sender_domains = [\"second.example\"]\nclick_paths = [\"go\"]\nsite = \"second\"";
    Site::start(&Options {
        changes: vec![
            ("#[[tracking.hosts]]", second.into()),
            (
                "sender_domains = [\"shop.example\"]",
                "sender_domains = [\"shop.example\", \"second.example\"]".into(),
            ),
        ],
        ..Options::default()
    })
}

/// Sends a newsletter and gives the first token in it, which stands behind `start`.
fn token(site: &Site, sender: &str, start: &str) -> String {
    let before = site.mailbox().len();
    let answer = smtp(site.smtp, sender, &["anna@example.net"], NEWSLETTER);
    assert!(answer.starts_with("250 "), "{answer}");
    wait_for("delivery", Duration::from_secs(30), || site.mailbox().len() > before);
    let mail = site.mailbox().pop().unwrap();
    let mail = mail.replace("\r\n", "\n").replace("=\n", "").replace("=2D", "-").replace("=3D", "=");
    let (_, rest) = mail.split_once(start).unwrap_or_else(|| panic!("no {start} in {mail}"));
    rest[..rest.find(['"', '\'']).unwrap()].to_owned()
}

/// Status, and where it leads.
fn follow(site: &Site, host: &str, path: &str) -> (u16, Option<String>) {
    let answer = http(site.tracker, "GET", path, &[("Host", host)]).unwrap();
    (answer.status, answer.header("location").map(str::to_owned))
}

#[test]
fn the_mail_of_a_domain_carries_the_links_of_its_host_and_they_work_there() {
    let site = site();
    let second = token(&site, SECOND, "\"http://t.second.example/m/go/");
    let first = token(&site, SENDER, &format!("\"{}/c/", site.tracking_url()));
    let (there, gone) = ((302, Some(TARGET.to_owned())), (404, None));
    for host in ["t.second.example", "T.Second.Example:80", "old.second.example"] {
        assert_eq!(follow(&site, host, &format!("/m/go/{second}")), there, "{host}");
        assert_eq!(follow(&site, host, &format!("/m/c/{second}")), there, "{host}");
        assert_eq!(follow(&site, host, &format!("/c/{second}")), gone, "{host}: its links are below /m");
    }
    assert_eq!(follow(&site, "127.0.0.1", &format!("/c/{first}")), there);
    assert_eq!(follow(&site, "127.0.0.1", &format!("/m/go/{first}")), gone);
    // Keys of none are for all: these are one company's hosts.
    assert_eq!(follow(&site, "127.0.0.1", &format!("/c/{second}")), there);

    run(site.command().args(["keys", "rotate", "--site", "second"]));
    let mut own = String::new();
    wait_for("links signed by the host's own key", Duration::from_secs(30), || {
        own = token(&site, SECOND, "\"http://t.second.example/m/go/");
        follow(&site, "127.0.0.1", &format!("/c/{own}")) == gone
            && follow(&site, "t.second.example", &format!("/m/go/{own}")) == there
    });
    assert_eq!(follow(&site, "t.second.example", &format!("/m/go/{second}")), there, "an old link");
    assert_eq!(follow(&site, "127.0.0.1", &format!("/c/{first}")), there, "the other host's");
    for event in site.events().iter().filter(|event| event["type"] == "mailtap.link.clicked") {
        assert!(!event.to_string().contains("anna@"), "{event}");
    }
}
