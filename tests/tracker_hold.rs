//! Clicks that wait for late evidence, at a real tracker with its real spool: amended while they wait, and not lost with
//! the process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{
    Daemon, NEWSLETTER, Options, SENDER, Site, free_ports, http, mailtap, run, run_with_input, wait_for,
};
use mailtap::identity::{MessageId, Pseudonym};
use mailtap::keys::Keys;
use mailtap::keys::token::{self, Click, Open, Token};
use mailtap::service::clock;
use serde_json::Value;

struct Tracker {
    dir: tempfile::TempDir,
    port: u16,
    admin: u16,
    daemon: Daemon,
}

impl Tracker {
    fn start(changes: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [port, admin] = free_ports::<2>();
        run(mailtap()
            .args(["init", "--domain", "example.org", "--tracking-url", "http://t.example.org", "--dir"])
            .arg(dir.path())
            .args(["--tracker-listen", &format!("127.0.0.1:{port}")]));
        let config = dir.path().join("mailtap.toml");
        let mut text = fs::read_to_string(&config).unwrap();
        let admin_line = format!("tracker = \"127.0.0.1:{admin}\"");
        for (from, to) in changes.iter().copied().chain([("#tracker = \"127.0.0.1:9743\"", &*admin_line)]) {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        fs::write(&config, text).unwrap();
        let daemon = begin(&config, admin);
        Self { dir, port, admin, daemon }
    }

    fn kill_and_start(&mut self) {
        self.daemon.kill();
        self.daemon = begin(&self.config(), self.admin);
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("mailtap.toml")
    }

    fn token(&self, token: &Token) -> String {
        let keys = Keys::open(&self.dir.path().join("keyring.json")).unwrap().current();
        token::sign(token, keys.signing(clock::now()).unwrap())
    }

    fn click(&self, message: MessageId, link: u16, agent: &str) {
        let token = Token::Click(Click {
            message,
            recipient: Some(Pseudonym::from([0x11; 12])),
            link,
            campaign: None,
            target: format!("https://shop.example/{link}"),
        });
        let answer =
            http(self.port, "GET", &format!("/c/{}", self.token(&token)), &[("User-Agent", agent)]).unwrap();
        assert_eq!(answer.status, 302);
    }

    fn open(&self, message: MessageId, agent: &str) {
        let recipient = Some(Pseudonym::from([0x11; 12]));
        let token = Token::Open(Open { message, recipient, campaign: None });
        let answer =
            http(self.port, "GET", &format!("/o/{}", self.token(&token)), &[("User-Agent", agent)]).unwrap();
        assert_eq!(answer.status, 200);
    }

    fn events(&self) -> Vec<Value> {
        let mut command: Command = mailtap();
        let text = run(command.arg("--config").arg(self.config()).args(["spool", "export"]));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the events say this: machine, rule, unique, upgrade, of each in any order.
    fn wait_for(&self, expected: &[Said<'_>]) {
        let mut expected: Vec<String> = expected.iter().map(|said| format!("{said:?}")).collect();
        expected.sort();
        let mut found = Vec::new();
        wait_for("the events", Duration::from_secs(15), || {
            found = self.events().iter().map(|event| said(&event["data"])).collect();
            found.sort();
            found == expected || {
                eprintln!("{found:#?}");
                false
            }
        });
    }
}

/// Machine, rule, unique, upgrade.
type Said<'a> = (&'a str, Option<&'a str>, Option<bool>, Option<bool>);

fn said(data: &Value) -> String {
    let (machine, rule) = (data["machine"].as_str().unwrap(), data["machine_rule"].as_str());
    format!("{:?}", (machine, rule, data["unique"].as_bool(), data["upgrade"].as_bool()))
}

fn begin(config: &PathBuf, admin: u16) -> Daemon {
    let mut command = mailtap();
    command.arg("--config").arg(config).arg("tracker").stdout(Stdio::null()).stderr(Stdio::null());
    let daemon = Daemon::start(&mut command);
    wait_for("the tracker", Duration::from_secs(20), || {
        http(admin, "GET", "/readyz", &[]).is_some_and(|answer| answer.status == 200)
    });
    daemon
}

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
const APPLE: &str = "Mozilla/5.0";

/// A message accepted now, and long enough ago that no rule on its age speaks.
fn message(number: u32, ago: u64) -> MessageId {
    MessageId::new(clock::now().minus(Duration::from_secs(ago)), number)
}

#[test]
fn the_rest_of_a_burst_corrects_what_is_on_disk_and_a_kill_loses_none() {
    let mut tracker = Tracker::start(&[("#hold = \"30s\"", "hold = \"10m\"")]);
    let message = message(1, 3_600);
    for link in 1..=5 {
        tracker.click(message, link, FIREFOX);
    }
    let all = [("certain", Some("burst-of-links"), Some(true), None); 5];
    tracker.wait_for(&all);
    tracker.kill_and_start();
    tracker.wait_for(&all);
    // Another process knows nothing of them, but the spool does: the first person counts, and no other.
    tracker.click(message, 1, FIREFOX);
    tracker.kill_and_start();
    tracker.click(message, 1, FIREFOX);
    let mut more = all.to_vec();
    more.extend([("no", None, Some(false), Some(true)), ("no", None, Some(false), None)]);
    tracker.wait_for(&more);
}

#[test]
fn case_77_a_person_after_a_machine_is_counted_once() {
    let mut tracker = Tracker::start(&[("#hold = \"30s\"", "hold = \"10m\"")]);
    // Accepted after the tracker began, so that nothing was before it; and old enough for every rule on time.
    let fresh = MessageId::new(clock::now(), 1);
    wait_for("the first seconds", Duration::from_secs(10), || {
        clock::now().since(fresh.time()) > Duration::from_millis(2_100)
    });
    tracker.open(fresh, APPLE);
    tracker.open(fresh, FIREFOX);
    tracker.open(fresh, FIREFOX);
    tracker.wait_for(&[
        ("probable", Some("apple-mail-privacy"), Some(false), None),
        ("no", None, Some(true), None),
        ("no", None, Some(false), None),
    ]);
    tracker.kill_and_start();
    assert_eq!(tracker.events().len(), 3);
}

#[test]
fn case_77_without_holding_the_person_says_so() {
    let tracker = Tracker::start(&[
        ("#hold = \"30s\"", "hold = \"0s\""),
        ("#click_implies_open = false", "click_implies_open = true"),
    ]);
    let fresh = MessageId::new(clock::now(), 1);
    wait_for("the first seconds", Duration::from_secs(10), || {
        clock::now().since(fresh.time()) > Duration::from_millis(2_100)
    });
    tracker.open(fresh, APPLE);
    // Implies an open by a person, after that of a machine.
    tracker.click(fresh, 1, FIREFOX);
    tracker.click(fresh, 2, FIREFOX);
    tracker.wait_for(&[
        ("probable", Some("apple-mail-privacy"), Some(true), None),
        ("no", None, Some(false), Some(true)),
        ("no", None, Some(true), None),
        ("no", None, Some(true), None),
    ]);
    let opens = tracker.events().into_iter().filter(|event| event["data"]["implied"] == true);
    assert_eq!(opens.count(), 1, "a second click implies nothing new");
}

/// The log is written by this test, so that the delivery comes after the click, and the news of it later still.
#[test]
fn a_delivery_that_the_log_tells_of_late_corrects_a_click_that_waits() {
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("maillog");
    fs::write(&log, "").unwrap();
    let site = Site::start(&Options {
        without_postfix: true,
        changes: vec![
            ("hold = \"1s\"", "hold = \"10m\"".into()),
            ("{dir}/relay/log/maillog", log.display().to_string()),
        ],
        ..Options::default()
    });
    let rewrite = ["rewrite", "--sender", SENDER, "--recipient", "anna@example.net"];
    let output = run_with_input(site.command().args(rewrite), NEWSLETTER.as_bytes());
    let mail = String::from_utf8(output.stdout)
        .unwrap()
        .replace("\r\n", "\n")
        .replace("=\n", "")
        .replace("=2D", "-");
    let (_, reference) = mail.split_once("X-Mailtap-Ref: ").unwrap();
    let reference = reference.lines().next().unwrap().trim();
    let (_, token) = mail.split_once(&format!("{}/c/", site.tracking_url())).unwrap();
    let token = &token[..token.find(['"', '\'']).unwrap()];
    let inspected = run(site.command().args(["token", "inspect", "--json", token]));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["recipient"], site.pseudonym("anna@example.net"), "{inspected}");
    let accepted: MessageId = inspected["message_id"].as_str().unwrap().parse().unwrap();
    wait_for("the first seconds", Duration::from_secs(10), || {
        clock::now().since(accepted.time()) > Duration::from_millis(2_100)
    });
    let click = http(site.tracker, "GET", &format!("/c/{token}"), &[("User-Agent", FIREFOX)]).unwrap();
    assert_eq!(click.status, 302);
    let clicks = || -> Vec<String> {
        let events = site.events().into_iter();
        events
            .filter(|event| event["type"] == "mailtap.link.clicked")
            .map(|event| said(&event["data"]))
            .collect()
    };
    let expect = |verdict: Said<'_>| {
        wait_for("the verdict", Duration::from_secs(20), || clicks() == [format!("{verdict:?}")]);
    };
    expect(("no", None, Some(true), None));
    let now = clock::now();
    let header = format!(
        "cleanup[7]: A0000001: milter-header-info: header X-Mailtap-Ref: {reference} from x[192.0.2.1]; \
         from=<{SENDER}> to=<anna@example.net> proto=ESMTP helo=<x>:"
    );
    let sent = "smtp[7]: A0000001: to=<anna@example.net>, relay=mx.example.net[192.0.2.1]:25, delay=1, \
                delays=1/0/0/0, dsn=2.0.0, status=sent (250 2.0.0 ok)";
    let mut log = fs::OpenOptions::new().append(true).open(log).unwrap();
    writeln!(log, "{now} mx postfix/{header}\n{now} mx postfix/{sent}").unwrap();
    expect(("certain", Some("before-delivery"), Some(true), None));
}
