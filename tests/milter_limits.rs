//! The milter's limits, each set in the configuration and met over the socket: mail passes, and it is told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::time::{Duration, Instant};

use harness::letters::{Kind, letter};
use harness::{Options, SENDER, Site, http, wait_for};
use mailtap_milter::client::{Mail, Mailbox, Outcome};
use mailtap_milter::driver::Client;
use mailtap_milter::wire::{Actions, Command, Offer};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// A milter alone, with these lines in place of the defaults of mailtap.toml. There is no Postfix that it could ask.
fn site(changes: &[(&'static str, &str)]) -> Site {
    let trusts = ("#trust_default_action = false", "trust_default_action = true");
    let takes_all = ("#message_size_limit = \"\"", "message_size_limit = \"0B\"");
    let changes =
        changes.iter().chain([&trusts, &takes_all]).map(|(from, to)| (*from, (*to).to_owned())).collect();
    Site::start(&Options { milter_only: true, without_postfix: true, changes, ..Options::default() })
}

fn metrics(site: &Site) -> String {
    String::from_utf8(http(site.admin, "GET", "/metrics", &[]).unwrap().body).unwrap()
}

/// Waits until a metric has a value.
fn counts(site: &Site, metric: &str, value: usize) {
    let line = format!("{metric} {value}");
    let end = Instant::now() + Duration::from_secs(20);
    while !metrics(site).lines().any(|found| found == line) {
        assert!(Instant::now() < end, "{line} never comes: {}", metrics(site));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn failed(reason: &str) -> String {
    format!("mailtap_milter_messages_total{{outcome=\"failed\",reason=\"{reason}\"}}")
}

fn timed_out(limit: &str, stage: &str) -> String {
    format!("mailtap_milter_timeouts_total{{limit=\"{limit}\",stage=\"{stage}\"}}")
}

fn mail(text: &str) -> Mail {
    let recipients = vec![Mailbox::new("<anna@example.net>")];
    Mail::parse(Mailbox::new(format!("<{SENDER}>")), recipients, text.as_bytes())
}

async fn connect(site: &Site) -> UnixStream {
    UnixStream::connect(site.milter_socket()).await.unwrap()
}

async fn client(site: &Site) -> Client<UnixStream> {
    Client::negotiate(connect(site).await, &Offer::POSTFIX).await.unwrap()
}

/// Whether the milter changed the mail.
async fn is_edited(client: &mut Client<UnixStream>, mail: &Mail) -> bool {
    let delivery = client.send(mail, "4jY8").await.unwrap();
    assert_eq!(delivery.outcome, Outcome::Accepted);
    delivery.mail != *mail
}

/// The first line of the log with this text.
fn line(site: &Site, text: &str) -> String {
    let log = site.log("mailtap");
    log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text} in {log}")).to_owned()
}

#[tokio::test]
async fn beyond_size_and_memory_messages_pass() {
    let site = site(&[
        ("#max_message = \"40MiB\"", "max_message = \"256KiB\""),
        ("#max_memory = \"1GiB\"", "max_memory = \"1100KiB\""),
    ]);
    let mut first = client(&site).await;
    let (small, large) = (mail(&letter(1, Kind::Html(20_000))), mail(&letter(2, Kind::Attachment(300_000))));
    assert!(is_edited(&mut first, &small).await);
    assert!(!is_edited(&mut first, &large).await);
    counts(&site, &failed("message_bytes"), 1);
    let passed = line(&site, "message_bytes");
    assert!(passed.contains("\"queue_id\":\"4jY8\"") && passed.contains("\"micros\":0"), "{passed}");
    // Halves of messages that fit one by one, but not all of them.
    let middle = mail(&letter(3, Kind::Attachment(220_000)));
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut client = client(&site).await;
        client.envelope(&middle).await.unwrap();
        client.content(&middle).await.unwrap();
        client.flush().await.unwrap();
        held.push(client);
    }
    for client in &mut held {
        client.end(&middle).await.unwrap();
    }
    let count = metrics(&site);
    let count = count
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{} ", failed("memory")))?.parse::<usize>().ok());
    assert!(count.unwrap() >= 1, "five times 240 KB are more than 1100 KiB");
    assert!(is_edited(&mut first, &small).await, "the memory is back");
    // Two were worked on at least, and none of those that were let through.
    let worked = metrics(&site)
        .lines()
        .find_map(|line| line.strip_prefix("mailtap_milter_message_seconds_count ")?.parse::<usize>().ok());
    let lines = site.log("mailtap").lines().filter(|line| line.contains("\"outcome\":\"rewritten\"")).count();
    assert_eq!(worked, Some(lines));
    drop(held);
    first.quit().await.unwrap();
    counts(&site, "mailtap_milter_memory_bytes", 0);
    counts(&site, "mailtap_milter_memory_limit_bytes", 1100 << 10);
}

#[tokio::test]
async fn beyond_the_connections_mail_passes_and_then_waits() {
    let site = site(&[("#max_connections = 1000", "max_connections = 1")]);
    let small = mail(&letter(1, Kind::Html(20_000)));
    let mut clients = Vec::new();
    for number in 0..5 {
        let mut client = client(&site).await;
        assert_eq!(is_edited(&mut client, &small).await, number == 0);
        clients.push(client);
    }
    counts(&site, "mailtap_milter_connections_over_limit_total", 4);
    counts(&site, &failed("connections"), 4);
    let waits = connect(&site).await;
    counts(&site, "mailtap_milter_connections_waiting_total", 1);
    assert!(line(&site, "five times milter.max_connections").contains("WARN"));
    clients.clear();
    let mut client = Client::negotiate(waits, &Offer::POSTFIX).await.unwrap();
    client.send(&small, "4jY8").await.unwrap();
}

#[tokio::test]
async fn an_mta_that_falls_silent_is_told_of_with_stage_and_default_action() {
    let site = site(&[
        ("#first_timeout = \"30s\"", "first_timeout = \"1s\""),
        ("#content_timeout = \"300s\"", "content_timeout = \"1s\""),
    ]);
    let silent = connect(&site).await;
    let small = mail(&letter(1, Kind::Html(20_000)));
    let mut begun = client(&site).await;
    let mut cut = client(&site).await;
    begun.envelope(&small).await.unwrap();
    begun.flush().await.unwrap();
    cut.envelope(&small).await.unwrap();
    cut.content(&small).await.unwrap();
    cut.flush().await.unwrap();
    counts(&site, &timed_out("first_timeout", "negotiation"), 1);
    counts(&site, &timed_out("content_timeout", "content"), 1);
    counts(&site, &failed("content_timeout"), 1);
    let told = line(&site, "milter.content_timeout");
    assert!(
        told.contains("\"stage\":\"content\"") && told.contains("\"default_action\":\"tempfail\""),
        "{told}"
    );
    // An envelope takes as long as the MTA's client.
    let delivery = begun.send_content(&small, "4jY8").await.unwrap();
    assert!(delivery.mail != small);
    drop(silent);
}

#[tokio::test]
async fn an_mta_that_reads_nothing_is_told_of() {
    let site = site(&[("#write_timeout = \"60s\"", "write_timeout = \"1s\"")]);
    // More than any send buffer takes, so that it goes out in pieces.
    let large = mail(&letter(1, Kind::Attachment(35_000_000)));
    let mut stuck = client(&site).await;
    stuck.envelope(&large).await.unwrap();
    stuck.content(&large).await.unwrap();
    stuck.flush().await.unwrap();
    let mut end = Vec::new();
    Command::EndOfMessage(b"").encode(&mut end);
    stuck.stream().write_all(&end).await.unwrap();
    counts(&site, &timed_out("write_timeout", "answer"), 1);
    counts(&site, "mailtap_milter_answers_lost_total", 1);
    counts(&site, &failed("answer_lost"), 1);
}

#[tokio::test]
async fn sessions_that_idle_end_after_their_time() {
    let site = site(&[("#idle_timeout = \"7210s\"", "idle_timeout = \"1s\"")]);
    let small = mail(&letter(1, Kind::Html(20_000)));
    let mut idle = client(&site).await;
    assert!(is_edited(&mut idle, &small).await);
    counts(&site, &timed_out("idle_timeout", "idle"), 1);
    let mut begun = client(&site).await;
    begun.envelope(&small).await.unwrap();
    begun.flush().await.unwrap();
    counts(&site, &timed_out("idle_timeout", "envelope"), 1);
    counts(&site, &failed("idle_timeout"), 1);
}

/// An MTA that can't replace bodies, one that speaks something else, one that goes before its answer.
#[tokio::test]
async fn what_an_mta_lacks_or_breaks_is_counted_and_told_in_words() {
    let site = site(&[]);
    let small = mail(&letter(1, Kind::Html(20_000)));
    let offer = Offer { actions: Actions::ADD_HEADERS, ..Offer::POSTFIX };
    let mut poor = Client::negotiate(connect(&site).await, &offer).await.unwrap();
    assert_eq!(poor.send(&small, "4jY8").await.unwrap().mail, small);
    counts(&site, "mailtap_milter_negotiation_failures_total", 1);
    counts(&site, &failed("negotiation"), 1);
    assert!(line(&site, "does not offer what rewriting needs").contains("ERROR"));

    let mut odd = client(&site).await;
    odd.stream().write_all(b"\0\0\0\x01Z").await.unwrap();
    counts(&site, "mailtap_milter_connections_total{end=\"protocol\"}", 1);
    let told = line(&site, "unknown command 0x5a");
    assert!(told.contains("WARN") && !told.contains("Protocol("), "{told}");

    let mut gone = client(&site).await;
    gone.envelope(&small).await.unwrap();
    gone.content(&small).await.unwrap();
    gone.flush().await.unwrap();
    let mut bytes = Vec::new();
    Command::EndOfMessage(b"").encode(&mut bytes);
    Command::Abort.encode(&mut bytes);
    gone.stream().write_all(&bytes).await.unwrap();
    counts(&site, "mailtap_milter_answers_lost_total", 1);
    counts(&site, &failed("answer_lost"), 1);
}

/// One word finds a message in the milter's log, in its headers and in Postfix's log.
#[tokio::test]
async fn the_line_of_a_message_holds_what_its_header_says() {
    let site = site(&[]);
    let mut client = client(&site).await;
    let delivery = client.send(&mail(&letter(1, Kind::Html(20_000))), "4jY8").await.unwrap();
    let header = delivery.mail.headers.iter().find(|field| field.name == b"X-Mailtap-Ref").unwrap();
    let reference = String::from_utf8(header.value.trim_ascii().to_vec()).unwrap();
    assert_eq!(reference.len(), 34);
    wait_for("the line", Duration::from_secs(10), || site.log("mailtap").contains(&reference));
    let told = line(&site, &reference);
    assert!(
        told.contains(&format!("\"ref\":\"{reference}\"")) && told.contains("\"outcome\":\"rewritten\""),
        "{told}"
    );
}
