//! Tests of splitting that is cut off after the first copy, through the driver, with a port for copies of the test's own.
//!
//! - Layer: role
//! - Takes: a message for three, a handler that panics, hangs, or is at work when the daemon ends.
//! - Gives: proof that who has a copy does not get the original too.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use mailtap_milter::client::{Delivery, Mail, Mailbox, Outcome};
use mailtap_milter::driver::{self, Client, Listener, Timeouts};
use mailtap_milter::wire::{Actions, Offer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use super::*;
use crate::consent::{Consent, Consents, Purpose};
use crate::filter::Deps;
use crate::filter::decide::Policy;
use crate::filter::hosts::TrackingHost;
use crate::identity::{Pseudonym, PseudonymKey};
use crate::keys::Keys;
use crate::queue::Publish;
use crate::queue::PublishError;
use crate::rewrite::Plan;
use crate::service::Health;

const RECIPIENTS: [&str; 3] = ["<ann@example.net>", "<ben@example.net>", "<cat@example.net>"];
const TEXT: &str = "From: news@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n\
                    <html><body><a href=\"https://www.example.org/?a=1\">x</a></body></html>\r\n";

/// How the work ends after the first copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Panic,
    Late,
    Stop,
    /// The disk that remembers copies does not answer.
    Forgetful,
}

/// Agrees to everything, and panics from the second recipient on where it shall.
#[derive(Debug)]
struct Agrees {
    asked: AtomicUsize,
    panics: bool,
}

impl Consents for Agrees {
    fn decide(&self, _: Option<&Pseudonym>, _: Purpose) -> Consent {
        assert!(self.asked.fetch_add(1, Ordering::Relaxed) < 2 || !self.panics, "as told");
        Consent::Granted
    }
}

#[derive(Debug)]
struct Takes;

impl Publish for Takes {
    fn publish(
        &self,
        _: Vec<crate::event::Event>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }
}

/// Takes the first copy, and never says anything to the end of the second. `locks` is a database to lock before the first
/// is taken.
async fn port(stream: TcpStream, second: Arc<Notify>, locks: Option<rusqlite::Connection>) {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 here\r\n").await.unwrap();
    let (mut line, mut in_data, mut copies) = (String::new(), false, 0);
    loop {
        line.clear();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let answer = match line.trim_end() {
            "." if in_data => {
                copies += 1;
                in_data = false;
                if let Some(database) = &locks {
                    database.execute_batch("BEGIN IMMEDIATE").unwrap();
                }
                if copies == 2 {
                    second.notify_one();
                    std::future::pending::<()>().await;
                }
                "250 2.0.0 taken"
            }
            _ if in_data => continue,
            "DATA" => {
                in_data = true;
                "354 go on"
            }
            _ => "250 fine",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
    }
}

fn filter(directory: &std::path::Path, address: SocketAddr, panics: bool) -> Filter {
    let ring = directory.join("keyring.json");
    crate::keys::create_ring(&ring).unwrap();
    let served = Served::open(directory).unwrap();
    let deps = Deps {
        keys: Keys::open(&ring).unwrap(),
        pseudonyms: PseudonymKey::new(&[9; 32]),
        consents: Arc::new(Agrees { asked: AtomicUsize::new(0), panics }),
        publisher: Arc::new(Takes),
        served: Some(served.clone()),
        host: "test".into(),
    };
    let policy = Policy {
        sender_domains: vec!["example.org".into()],
        share: true,
        campaign_headers: Vec::new(),
        campaign_rules: Vec::new(),
        rules: Vec::new(),
        hosts: vec![TrackingHost::at("https://t.example.org/")],
        max_url_bytes: 2_000,
        plan: Plan::default(),
    };
    let settings = Settings { address, max_recipients: 50, timeout: Duration::from_secs(60) };
    let component = Health::default().component("milter");
    Filter::new(policy, Duration::from_secs(5), Some(Splitter { settings, served }), component, deps)
}

/// One message for three through the driver; what Postfix would make of the original.
async fn deliver(end: End) -> Delivery {
    let directory = tempfile::tempdir().unwrap();
    let copies = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let filter = filter(directory.path(), copies.local_addr().unwrap(), end == End::Panic);
    let second = Arc::new(Notify::new());
    let asked = Arc::clone(&second);
    let database = rusqlite::Connection::open(directory.path().join("split.db")).unwrap();
    let locks = (end == End::Forgetful).then_some(database);
    tokio::spawn(async move { port(copies.accept().await.unwrap().0, asked, locks).await });
    let handler = if matches!(end, End::Late | End::Forgetful) { 500 } else { 60_000 };
    let timeouts = Timeouts {
        handler: Duration::from_millis(handler),
        drain: Duration::from_millis(50),
        ..Timeouts::default()
    };
    let mut settings = driver::Settings { timeouts, ..driver::Settings::default() };
    settings.wanted.required |= Actions::DELETE_RECIPIENTS;
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.tcp_address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let daemon = tokio::spawn(driver::serve(listener, Arc::new(filter), settings, stopped));
    let stopping = tokio::spawn(async move {
        if end == End::Stop {
            second.notified().await;
            stop.send(()).unwrap();
            return None;
        }
        Some(stop)
    });
    let recipients = RECIPIENTS.map(Mailbox::new).to_vec();
    let mail = Mail::parse(Mailbox::new("<news@example.org>"), recipients, TEXT.as_bytes());
    let stream = TcpStream::connect(address).await.unwrap();
    let mut client = Client::negotiate(stream, &Offer::POSTFIX).await.unwrap();
    let delivery = client.send(&mail, "Q1").await.unwrap();
    drop(stopping.await.unwrap());
    drop(client);
    daemon.await.unwrap();
    delivery
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_copy_gets_no_original_however_the_work_ends() {
    for end in [End::Panic, End::Late, End::Stop, End::Forgetful] {
        let delivery = deliver(end).await;
        assert_eq!(delivery.outcome, Outcome::Accepted, "{end:?}");
        let left: Vec<_> =
            delivery.mail.recipients.iter().map(|mailbox| mailbox.address.as_slice()).collect();
        let expected: Vec<_> = RECIPIENTS.iter().skip(1).map(|address| address.as_bytes()).collect();
        assert_eq!(left, expected, "{end:?}");
        assert!(delivery.mail.body.windows(20).any(|text| text == b"//www.example.org/?a"), "as it came");
    }
}
