//! Many connections at once, and connections that break off, against the milter as a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use harness::letters::{Dice, Fate, Kind, fate, letter};
use harness::session::Session;
use harness::{Options, SENDER, Site, http, wait_for};
use mailtap_milter::client::{Mail, Mailbox};
use mailtap_milter::driver::{Client, ClientError, Peer};
use mailtap_milter::wire::{Command, Offer};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

fn without_postfix() -> Site {
    Site::start(&Options { milter_only: true, without_postfix: true, ..Options::default() })
}

async fn client(socket: &Path) -> Client<UnixStream> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let mut client = Client::negotiate(stream, &Offer::POSTFIX).await.unwrap();
    client.open(&Peer::default()).await.unwrap();
    client
}

fn mail(letter: &str) -> Mail {
    let recipients = vec![Mailbox::new("<anna@example.net>")];
    Mail::parse(Mailbox::new(format!("<{SENDER}>")), recipients, letter.as_bytes())
}

/// Sends a letter and has it rewritten whole.
async fn send(client: &mut Client<UnixStream>, number: usize, kind: Kind, tracking_url: &str) {
    let original = letter(number, kind);
    let delivery = client.send(&mail(&original), &format!("Q{number}")).await.unwrap();
    let delivered = String::from_utf8(delivery.mail.to_bytes()).unwrap();
    assert_eq!(fate(&original, &delivered, tracking_url), Ok(Fate::Rewritten), "{:?}", delivery.outcome);
}

/// A number among the milter's metrics.
fn metric(site: &Site, name: &str) -> Option<f64> {
    let answer = http(site.admin, "GET", "/metrics", &[])?;
    let text = String::from_utf8(answer.body).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn all_connections_end(site: &Site) {
    wait_for("all connections to end", Duration::from_secs(10), || {
        metric(site, "mailtap_milter_connections ") == Some(0.0)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_connections_at_once() {
    let site = without_postfix();
    let mut clients = Vec::new();
    for _ in 0..500 {
        clients.push(client(&site.milter_socket()).await);
    }
    assert_eq!(metric(&site, "mailtap_milter_connections "), Some(500.0));
    let mut tasks = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let url = site.tracking_url();
        tasks.spawn(async move {
            for round in 0..2 {
                send(&mut client, number * 2 + round, Kind::Html(2_000 + number * 20), &url).await;
            }
            client.quit().await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let rewritten = "mailtap_milter_messages_total{outcome=\"rewritten\",reason=\"\"}";
    assert_eq!(metric(&site, rewritten), Some(1_000.0));
    all_connections_end(&site);
}

/// How far a session comes before it breaks off.
async fn break_off(socket: PathBuf, number: usize, stage: usize, cut: usize) -> Result<(), ClientError> {
    let stream = UnixStream::connect(&socket).await.unwrap();
    if stage == 0 {
        return Ok(());
    }
    let mut client = Client::negotiate(stream, &Offer::POSTFIX).await?;
    client.open(&Peer::default()).await?;
    let mail = mail(&letter(number, Kind::Html(2_000)));
    if stage >= 2 {
        client.envelope(&mail).await?;
    }
    if stage >= 3 {
        client.content(&mail).await?;
    }
    client.flush().await?;
    if stage >= 4 {
        let mut end = Vec::new();
        Command::EndOfMessage(&[]).encode(&mut end);
        // Whole, or within the command.
        client.stream().write_all(&end[..end.len() - cut]).await?;
        tokio::time::sleep(Duration::from_millis(number as u64 % 8)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_disconnects() {
    const WORKERS: usize = 16;
    let messages = 10_000;
    let site = without_postfix();
    let mut tasks = JoinSet::new();
    for worker in 0..WORKERS {
        let (socket, url) = (site.milter_socket(), Arc::new(site.tracking_url()));
        tasks.spawn(async move {
            let mut dice = Dice(worker as u64 + 1);
            let mut kept = client(&socket).await;
            let mut whole = 0;
            for number in (worker..messages).step_by(WORKERS) {
                if dice.below(3) == 0 {
                    let (stage, cut) = (dice.below(5), dice.below(5));
                    break_off(socket.clone(), number, stage, cut).await.unwrap();
                    continue;
                }
                if dice.below(4) == 0 {
                    kept = client(&socket).await;
                }
                send(&mut kept, number, Kind::Html(500 + dice.below(4_000)), &url).await;
                whole += 1;
            }
            whole
        });
    }
    let mut whole = 0;
    while let Some(done) = tasks.join_next().await {
        whole += done.unwrap();
    }
    assert!(whole > messages / 2, "{whole}");
    all_connections_end(&site);
    assert!(
        metric(&site, "mailtap_milter_messages_total{outcome=\"rewritten\"").unwrap()
            >= f64::from(whole as u32)
    );
}

#[test]
fn a_hundred_sessions_through_postfix() {
    const SESSIONS: usize = 100;
    let settings = vec!["default_process_limit = 120"];
    let site = Site::start(&Options { milter_only: true, settings, ..Options::default() });
    let mut sessions: Vec<Session> = (0..SESSIONS).map(|_| Session::open(site.smtp).unwrap()).collect();
    // All are in the middle of a message before the first ends.
    for session in &mut sessions {
        assert!(session.envelope(SENDER, &["anna@example.net"]).unwrap().starts_with("354 "));
    }
    assert_eq!(metric(&site, "mailtap_milter_connections "), Some(SESSIONS as f64));
    std::thread::scope(|scope| {
        for (number, session) in sessions.iter_mut().enumerate() {
            scope.spawn(move || {
                session.content(&letter(number, Kind::Html(10_000))).unwrap();
                assert!(session.answer().unwrap().starts_with("250 "));
                let again = letter(SESSIONS + number, Kind::Html(1_000));
                let answer = session.send(SENDER, &["anna@example.net"], &again).unwrap();
                assert!(answer.starts_with("250 "), "{answer}");
                session.command("QUIT").unwrap();
            });
        }
    });
    site.wait_for_empty_queues(Duration::from_secs(60));
    let files = site.mail_files("anna");
    assert_eq!(files.len(), 2 * SESSIONS);
    let mut seen = Vec::new();
    for file in files {
        let delivered = std::fs::read_to_string(file).unwrap();
        let number = harness::letters::number(&delivered).unwrap();
        let original = letter(number, Kind::Html(if number < SESSIONS { 10_000 } else { 1_000 }));
        assert_eq!(fate(&original, &delivered, &site.tracking_url()), Ok(Fate::Rewritten));
        seen.push(number);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..2 * SESSIONS), "each once");
}
