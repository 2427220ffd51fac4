//! The whole path, with the real Postfix, the real RabbitMQ and real HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::time::Duration;

use harness::{NEWSLETTER, Options, Site, http, smtp, wait_for};

fn delivered(site: &Site, count: usize) -> Vec<String> {
    wait_for("delivery", Duration::from_secs(30), || site.mailbox().len() >= count);
    site.mailbox()
}

/// The text of a quoted-printable message.
fn decoded(message: &str) -> String {
    let joined = message.replace("\r\n", "\n").replace("=\n", "");
    let mut text = String::new();
    let mut rest = joined.as_str();
    while let Some(at) = rest.find('=') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(byte) => {
                text.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            None => {
                text.push('=');
                rest = &rest[at + 1..];
            }
        }
    }
    text + rest
}

/// Paths of the tracking URLs in a message: clicks and pixel.
fn tracking_paths(site: &Site, message: &str) -> (Vec<String>, Vec<String>) {
    let text = decoded(message);
    let of = |kind: &str| {
        let start = format!("{}/{kind}/", site.tracking_url());
        let found = text.split(&start).skip(1);
        found.map(|rest| format!("/{kind}/{}", &rest[..rest.find(['"', '\'', '>']).unwrap()])).collect()
    };
    (of("c"), of("o"))
}

const BROWSER: (&str, &str) =
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0");

#[test]
fn from_smtp_to_ga4() {
    let site = Site::start(&Options::default());
    assert!(site.send("anna@example.net", NEWSLETTER).starts_with("250 "));
    assert!(site.send("nobody@example.net", NEWSLETTER).starts_with("250 "));
    let message = delivered(&site, 1).remove(0);
    assert!(
        message.contains("X-Mailtap-Campaign: spring") && message.contains("X-Mailtap-Ref: "),
        "{message}"
    );
    assert!(message.contains("Subject: =?utf-8?Q?Z=C3=A9ro?="));
    let (clicks, pixels) = tracking_paths(&site, &message);
    assert_eq!((clicks.len(), pixels.len()), (2, 1), "{message}");

    let click = http(site.tracker, "GET", &clicks[0], &[BROWSER]).unwrap();
    assert_eq!((click.status, click.header("location")), (302, Some("https://www.example.org/shop?a=1&b=2")));
    let second = http(site.tracker, "GET", &clicks[1], &[BROWSER]).unwrap();
    assert_eq!(second.header("location"), Some("https://www.example.org/two#part"));
    let pixel = http(site.tracker, "GET", &pixels[0], &[BROWSER]).unwrap();
    assert_eq!(pixel.status, 200);
    assert!(pixel.header("content-type").unwrap().starts_with("image/") && !pixel.body.is_empty());
    assert!(pixel.header("cache-control").unwrap().contains("no-store"));

    site.wait_for_events(&[
        ("email_sent", 2),
        ("email_delivered", 1),
        ("email_bounced", 1),
        ("email_click", 2),
        ("email_open", 1),
    ]);
    for (name, event) in site.collected() {
        assert_eq!(event["params"]["campaign_id"], "spring", "{name}: {event}");
        assert!(!event.to_string().contains('@'), "{event}");
    }
    assert_join(&site);
    let log = site.log("mailtap");
    assert!(!log.contains("example.net"), "an address in the log:\n{log}");
}

/// All events of anna's copy have one client; the bounced one another.
fn assert_join(site: &Site) {
    let text = std::fs::read_to_string(site.dir.join("collected.jsonl")).unwrap();
    let mut clients = std::collections::BTreeMap::<String, Vec<String>>::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let client = record["body"]["client_id"].as_str().unwrap().to_owned();
        for event in record["body"]["events"].as_array().unwrap() {
            clients.entry(client.clone()).or_default().push(event["name"].as_str().unwrap().to_owned());
        }
    }
    let mut groups: Vec<Vec<String>> = clients.into_values().collect();
    groups.iter_mut().for_each(|group| group.sort());
    groups.sort();
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let anna = names(&["email_click", "email_click", "email_delivered", "email_open", "email_sent"]);
    assert_eq!(groups, [names(&["email_bounced", "email_sent"]), anna]);
}

#[test]
fn an_altered_token_does_not_redirect() {
    let site = Site::start(&Options::default());
    site.send("anna@example.net", NEWSLETTER);
    let (clicks, _) = tracking_paths(&site, &delivered(&site, 1)[0]);
    let path = &clicks[0];
    for at in "/c/".len()..path.len() {
        let other = if path.as_bytes()[at] == b'A' { "B" } else { "A" };
        let mut altered = path.clone();
        altered.replace_range(at..=at, other);
        let answer = http(site.tracker, "GET", &altered, &[BROWSER]).unwrap();
        assert!(answer.header("location").is_none() && (400..500).contains(&answer.status), "position {at}");
    }
}

#[test]
fn without_the_milter_mail_goes_on_as_it_came() {
    let mut site = Site::start(&Options { default_action: "accept", ..Options::default() });
    assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
    assert!(site.send("anna@example.net", NEWSLETTER).starts_with("250 "));
    let message = delivered(&site, 1).remove(0);
    let body = NEWSLETTER.split_once("\r\n\r\n").unwrap().1.replace("\r\n", "\n");
    assert_eq!(message.replace("\r\n", "\n").split_once("\n\n").unwrap().1.trim_end(), body.trim_end());
    assert!(!message.contains("X-Mailtap-Ref"));
    site.start_mailtap();
    site.send("anna@example.net", NEWSLETTER);
    assert!(delivered(&site, 2)[1].contains("X-Mailtap-Ref"));
}

#[test]
fn a_killed_process_loses_and_doubles_nothing() {
    let mut site = Site::start(&Options::default());
    for round in 0..3 {
        for _ in 0..5 {
            assert!(site.send("anna@example.net", NEWSLETTER).starts_with("250 "));
        }
        if round < 2 {
            site.mailtap.as_mut().unwrap().kill();
            site.start_mailtap();
        }
    }
    delivered(&site, 15);
    // What the killed processes held comes again when its lease ends.
    wait_for("an empty spool", Duration::from_secs(90), || {
        let status = spool_status(&site);
        let seen = status["known_ids"].as_u64().unwrap() >= 30;
        seen && status["pending"] == 0 && status["claimed"] == 0
    });
    let mut ids: Vec<String> = site
        .collected()
        .iter()
        .map(|(_, event)| event["params"]["event_id"].as_str().unwrap().to_owned())
        .collect();
    let collected = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), collected, "an event was sent twice");
    let uncertain = spool_status(&site)["uncertain"].as_u64().unwrap();
    assert_eq!(spool_status(&site)["dead"], 0);
    // An event that was under way when its process died may have arrived: it is in both places or in one.
    assert!((30..=30 + uncertain).contains(&(collected as u64 + uncertain)), "{collected} and {uncertain}");
}

fn spool_status(site: &Site) -> serde_json::Value {
    serde_json::from_str(&harness::run(site.command().args(["spool", "status", "--json"]))).unwrap()
}

#[test]
fn a_broker_that_goes_away_loses_nothing() {
    let site = Site::start(&Options { rabbitmq: true, ..Options::default() });
    for _ in 0..5 {
        assert!(site.send("anna@example.net", NEWSLETTER).starts_with("250 "));
    }
    site.rabbitmq("kill");
    for _ in 0..5 {
        assert!(site.send("anna@example.net", NEWSLETTER).starts_with("250 "), "mail goes on");
    }
    delivered(&site, 10);
    site.rabbitmq("restart");
    site.wait_for_events(&[("email_sent", 10), ("email_delivered", 10)]);
}

#[test]
fn what_waits_can_be_looked_at_without_sending_it() {
    let change = ("[relay]\n#enabled = true", "[relay]\nenabled = false".to_owned());
    let site = Site::start(&Options { changes: vec![change], ..Options::default() });
    site.send("anna@example.net", NEWSLETTER);
    delivered(&site, 1);
    wait_for("two events", Duration::from_secs(20), || spool_status(&site)["pending"] == 2);
    let lines = harness::run(site.command().args(["relay", "--dry-run"]));
    assert!(lines.contains("email_sent") && lines.contains("email_delivered"), "{lines}");
    assert!(!lines.contains("test-secret") && !lines.contains('@'), "{lines}");
    let listed = harness::run(site.command().args(["events", "list", "--json"]));
    assert_eq!(listed.lines().count(), 2);
    assert!(site.collected().is_empty());
    assert_eq!(spool_status(&site)["pending"], 2);
}

#[test]
fn uncertain_events_are_sent_when_an_administrator_says_so() {
    let change = ("#timeout = \"10s\"", "timeout = \"500ms\"".to_owned());
    let mut site = Site::start(&Options { changes: vec![change], ..Options::default() });
    site.start_collector(&["--fail", "hang-before"]);
    site.send("anna@example.net", NEWSLETTER);
    wait_for("two uncertain events", Duration::from_secs(40), || spool_status(&site)["uncertain"] == 2);
    site.start_collector(&[]);
    let replayed = harness::run(site.command().args(["dead", "replay", "--all"]));
    assert_eq!(replayed, "replayed 2\n");
    site.wait_for_events(&[("email_sent", 1), ("email_delivered", 1)]);
}

#[test]
fn several_recipients_get_shared_tokens() {
    let site = Site::start(&Options::default());
    let answer = smtp(site.smtp, harness::SENDER, &["anna@example.net", "nobody@example.net"], NEWSLETTER);
    assert!(answer.starts_with("250 "), "{answer}");
    let message = delivered(&site, 1).remove(0);
    let (clicks, _) = tracking_paths(&site, &message);
    let token = clicks[0].rsplit('/').next().unwrap();
    let shown = harness::run(site.command().args(["token", "inspect", "--json", token]));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["valid"], &shown["recipient"]), (&true.into(), &serde_json::Value::Null));
    site.wait_for_events(&[("email_sent", 1), ("email_delivered", 1), ("email_bounced", 1)]);
}

#[test]
fn a_new_key_signs_without_a_restart_and_old_links_work() {
    let site = Site::start(&Options::default());
    site.send("anna@example.net", NEWSLETTER);
    let (old, _) = tracking_paths(&site, &delivered(&site, 1)[0]);
    harness::run(site.command().args(["keys", "rotate"]));
    wait_for("the new key", Duration::from_secs(10), || {
        let before = site.mailbox().len();
        site.send("anna@example.net", NEWSLETTER);
        let message = delivered(&site, before + 1).pop().unwrap();
        let (clicks, _) = tracking_paths(&site, &message);
        let shown = harness::run(site.command().args(["token", "inspect", "--json", &clicks[0][3..]]));
        shown.contains("\"key_id\":2")
    });
    let answer = http(site.tracker, "GET", &old[0], &[BROWSER]).unwrap();
    assert_eq!(answer.status, 302);
    harness::run(site.command().args(["keys", "revoke", "1"]));
    wait_for("the revocation", Duration::from_secs(10), || {
        http(site.tracker, "GET", &old[0], &[BROWSER]).unwrap().header("location").is_none()
    });
    let page = http(site.tracker, "GET", &old[0], &[BROWSER]).unwrap();
    assert!(String::from_utf8_lossy(&page.body).contains("www.example.org/shop"));
}

#[test]
fn mail_from_the_sendmail_command_is_tracked_too() {
    let site = Site::start(&Options::default());
    let mut command = std::process::Command::new("/usr/sbin/sendmail");
    command.args(["-C"]).arg(site.dir.join("relay/config")).args([
        "-i",
        "-f",
        harness::SENDER,
        "anna@example.net",
    ]);
    let output = harness::run_with_input(&mut command, NEWSLETTER.replace("\r\n", "\n").as_bytes());
    assert!(output.status.success(), "{}", harness::said(&output));
    assert!(delivered(&site, 1)[0].contains("X-Mailtap-Ref"));
}

#[test]
fn a_message_can_be_sent_through_the_running_milter() {
    let site = Site::start(&Options::default());
    let socket = format!("unix:{}", site.dir.join("relay/queue/mailtap/milter.sock").display());
    let via = |address: &str, sender: &str, message: &str| {
        let mut command = harness::mailtap();
        command.args(["rewrite", "--sender", sender, "--recipient", "anna@example.net"]);
        harness::run_with_input(command.args(["--via-milter", address]), message.as_bytes())
    };
    let output = via(&socket, harness::SENDER, NEWSLETTER);
    assert!(output.status.success(), "{}", harness::said(&output));
    let message = String::from_utf8(output.stdout).unwrap();
    let (links, pixels) = tracking_paths(&site, &message);
    assert_eq!((links.len(), pixels.len()), (2, 1), "{message}");
    assert!(message.contains("X-Mailtap-Ref: ") && message.contains("\r\n"), "{message}");

    let foreign = NEWSLETTER.replace("\r\n", "\n");
    let output = via(&socket, "news@elsewhere.example", &foreign);
    assert_eq!(output.stdout, foreign.as_bytes(), "not a line end differs");

    let output = via("unix:/nowhere/milter.sock", harness::SENDER, NEWSLETTER);
    assert_eq!(output.status.code(), Some(69));
    assert!(output.stdout.is_empty() && harness::said(&output).contains("/nowhere/milter.sock"));
}

#[test]
fn a_default_action_that_differs_from_that_of_postfix_is_noticed() {
    let mut site = Site::start(&Options { default_action: "accept", ..Options::default() });
    let config = std::fs::read_to_string(site.config()).unwrap();
    let config = config.replace("default_action = \"accept\"", "default_action = \"tempfail\"");
    std::fs::write(site.config(), config).unwrap();
    site.mailtap.take().unwrap().stop();
    site.start_mailtap();
    assert!(site.log("mailtap").contains("says default_action=accept"), "{}", site.log("mailtap"));
}
