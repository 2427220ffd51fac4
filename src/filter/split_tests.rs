//! Tests of splitting that is cut off after the first copy, through the driver, with a port for copies of the test's own.
//!
//! - Layer: role
//! - Takes: a message for three, a handler that panics, hangs, or is at work when the daemon ends; a port that refuses or breaks.
//! - Gives: proof that who has a copy does not get the original too, and that the others do.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use mailtap_milter::client::{Delivery, Mail, Mailbox, Outcome};
use mailtap_milter::driver::{self, Client, Listener};
use mailtap_milter::wire::{Actions, Offer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use super::*;
use crate::consent::{Consent, Consents, Purpose};
use crate::filter::Deps;
use crate::filter::agreement::Agreement;
use crate::filter::decide::Policy;
use crate::filter::hosts::TrackingHost;
use crate::identity::{Pseudonym, PseudonymKey};
use crate::keys::Keys;
use crate::queue::Publish;
use crate::queue::PublishError;
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
    /// Nor does it here, but the patience for copies is over before that for the message.
    Memory,
    /// The second copy is not made before that patience is over.
    Slow,
    /// The port goes away instead of answering to the end of the second copy.
    Uncertain,
    /// The port does not want the second copy's data.
    Refused,
    /// It ends well; the second recipient may not be followed.
    NoConsent,
    /// It ends well; the disk does not answer from then on.
    Stalls,
}

/// What was seen of a message beside Postfix.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// What the port was given, also if it did not take it.
    copies: Arc<Mutex<Vec<String>>>,
    events: Arc<AtomicUsize>,
    log: Arc<Mutex<Vec<u8>>>,
}

impl std::io::Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.log.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Agrees to everything, but from the second recipient's question on as the end wants it. The questions go in order, for each
/// recipient one about clicks and one about opens.
#[derive(Debug)]
struct Agrees {
    asked: AtomicUsize,
    end: End,
    /// Closed when the message is through.
    gate: Mutex<mpsc::Receiver<()>>,
}

impl Consents for Agrees {
    fn decide(&self, _: Option<&Pseudonym>, _: Purpose) -> Consent {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(asked < 2 || self.end != End::Panic, "as told");
        match (self.end, asked) {
            (End::Slow, 2) => drop(self.gate.lock().unwrap().recv()),
            (End::NoConsent, 2 | 3) => return Consent::Denied,
            _ => (),
        }
        Consent::Granted
    }
}

#[derive(Debug)]
struct Takes(Arc<AtomicUsize>);

impl Publish for Takes {
    fn publish(
        &self,
        events: Vec<crate::event::Event>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        self.0.fetch_add(events.len(), Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

/// Takes the first copy; what it does with the second is the end's. `locks` is a database to lock before the first is taken.
async fn port(
    stream: TcpStream,
    end: End,
    seen: Seen,
    second: Arc<Notify>,
    locks: Option<rusqlite::Connection>,
) {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 here\r\n").await.unwrap();
    let (mut line, mut in_data, mut copies, mut copy) = (String::new(), false, 0, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            if end == End::Stalls {
                second.notified().await;
            }
            return;
        }
        let answer = match line.trim_end() {
            "." if in_data => {
                in_data = false;
                seen.copies.lock().unwrap().push(std::mem::take(&mut copy));
                if let Some(database) = locks.as_ref().filter(|_| end != End::Stalls) {
                    database.execute_batch("BEGIN IMMEDIATE").unwrap();
                }
                match end {
                    End::Uncertain if copies == 2 => return,
                    End::Panic | End::Late | End::Stop | End::Forgetful if copies == 2 => {
                        second.notify_one();
                        std::future::pending::<()>().await;
                    }
                    _ => (),
                }
                "250 2.0.0 taken"
            }
            _ if in_data => {
                copy.push_str(&line);
                continue;
            }
            "DATA" => {
                copies += 1;
                in_data = !(end == End::Refused && copies == 2);
                if in_data { "354 go on" } else { "554 5.7.1 not this one" }
            }
            "QUIT" => {
                if let Some(database) = locks.as_ref().filter(|_| end == End::Stalls) {
                    database.execute_batch("BEGIN IMMEDIATE").unwrap();
                }
                "221 bye"
            }
            _ => "250 fine",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
    }
}

fn filter(directory: &std::path::Path, address: SocketAddr, agrees: Agrees, seen: &Seen) -> Filter {
    let patience = if matches!(agrees.end, End::Memory | End::Slow) { 2 } else { 60 };
    let ring = directory.join("keyring.json");
    crate::keys::create_ring(&ring).unwrap();
    let served = Served::open(directory).unwrap();
    let deps = Deps {
        keys: Keys::open(&ring).unwrap(),
        pseudonyms: PseudonymKey::new(&[9; 32]),
        consents: Arc::new(agrees),
        publisher: Arc::new(Takes(Arc::clone(&seen.events))),
        copies: None,
        served: Some(served.clone()),
        host: "test".into(),
    };
    let policy = Policy::new(vec!["example.org".into()], TrackingHost::at("https://t.example.org/"));
    let settings = Settings { address, max_recipients: 50, timeout: Duration::from_secs(patience) };
    let component = Health::default().component("milter");
    let port = Port::new(settings.timeout, Health::default().component("split"));
    let splitter = Some(Splitter { settings, served, port });
    Filter::new(policy, Duration::from_secs(5), splitter, Agreement::proven(), component, deps)
}

/// One message for three through the driver; what Postfix would make of the original.
async fn deliver(end: End, seen: &Seen) -> Delivery {
    let directory = tempfile::tempdir().unwrap();
    let copies = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (open, gate) = mpsc::channel();
    let agrees = Agrees { asked: AtomicUsize::new(0), end, gate: Mutex::new(gate) };
    let filter = Arc::new(filter(directory.path(), copies.local_addr().unwrap(), agrees, seen));
    let second = Arc::new(Notify::new());
    let (asked, answers) = (Arc::clone(&second), Arc::clone(&second));
    let database = rusqlite::Connection::open(directory.path().join("split.db")).unwrap();
    let locks = matches!(end, End::Forgetful | End::Memory | End::Stalls).then_some(database);
    let watched = seen.clone();
    tokio::spawn(async move { port(copies.accept().await.unwrap().0, end, watched, asked, locks).await });
    let handler = if matches!(end, End::Late | End::Forgetful) { 500 } else { 60_000 };
    let mut settings = driver::Settings::default();
    settings.timeouts.handler = Duration::from_millis(handler);
    settings.timeouts.drain = Duration::from_millis(50);
    settings.wanted.required |= Actions::DELETE_RECIPIENTS;
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.tcp_address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let daemon = tokio::spawn(driver::serve(listener, Arc::clone(&filter), settings, stopped));
    let stopping = tokio::spawn(async move {
        if end == End::Stop {
            second.notified().await;
            stop.send(()).unwrap();
            return None;
        }
        Some(stop)
    });
    let recipients = RECIPIENTS.map(Mailbox::new).to_vec();
    // Only the work on large messages can be given up.
    let filling = if end == End::Slow { "<p>filling</p>\r\n".repeat(20_000) } else { String::new() };
    let text = TEXT.replace("</body>", &format!("{filling}</body>"));
    let mail = Mail::parse(Mailbox::new("<news@example.org>"), recipients, text.as_bytes());
    let stream = TcpStream::connect(address).await.unwrap();
    let mut client = Client::negotiate(stream, &Offer::POSTFIX).await.unwrap();
    let delivery = client.send(&mail, "Q1").await.unwrap();
    drop(open);
    drop(stopping.await.unwrap());
    let _ = client.quit().await;
    daemon.await.unwrap();
    if end == End::Stalls {
        let forgotten = tokio::time::timeout(Duration::from_millis(20), filter.forgotten()).await;
        assert!(forgotten.is_err(), "what was not forgotten is waited for");
        answers.notify_one();
    }
    filter.forgotten().await;
    let notes = rusqlite::Connection::open(directory.path().join("split.db")).unwrap();
    let notes: i64 = notes.query_row("SELECT count(*) FROM served", [], |row| row.get(0)).unwrap();
    match end {
        // A client that is told to try again by another milter must not bring copies again.
        End::Refused => assert_eq!(notes, 2, "those of the copies"),
        End::NoConsent | End::Stalls => assert_eq!(notes, 0),
        _ => (),
    }
    delivery
}

/// Who gets the original.
fn left(delivery: &Delivery) -> Vec<&[u8]> {
    delivery.mail.recipients.iter().map(|mailbox| mailbox.address.as_slice()).collect()
}

fn is_tracked(text: &[u8]) -> bool {
    text.windows(24).any(|text| text == b"https://t.example.org/c/")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_copy_gets_no_original_however_the_work_ends() {
    for end in [End::Panic, End::Late, End::Stop, End::Forgetful] {
        let delivery = deliver(end, &Seen::default()).await;
        assert_eq!(delivery.outcome, Outcome::Accepted, "{end:?}");
        let left = left(&delivery);
        let expected: Vec<_> = RECIPIENTS.iter().skip(1).map(|address| address.as_bytes()).collect();
        assert_eq!(left, expected, "{end:?}");
        assert!(delivery.mail.body.windows(20).any(|text| text == b"//www.example.org/?a"), "as it came");
    }
}

/// On one thread, so that the log is this test's.
#[tokio::test]
async fn whoever_has_no_copy_when_splitting_stops_shares_the_original() {
    for (end, reason) in [(End::Memory, "memory"), (End::Slow, "late"), (End::Uncertain, "connection_broke")]
    {
        crate::telemetry::somebody_listens();
        let seen = Seen::default();
        let writer = seen.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let delivery = deliver(end, &seen).await;
        assert_eq!(delivery.outcome, Outcome::Accepted, "{end:?}");
        assert_eq!(left(&delivery), [RECIPIENTS[1].as_bytes(), RECIPIENTS[2].as_bytes()], "{end:?}");
        assert!(is_tracked(&delivery.mail.body), "{end:?}");
        let log = String::from_utf8(seen.log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("not split:").count(), 1, "{end:?}: {log}");
        assert!(log.contains(&format!("reason=\"{reason}\"")), "{end:?}: {log}");
    }
}

#[tokio::test]
async fn a_copy_whose_data_is_refused_is_counted_nowhere() {
    let seen = Seen::default();
    let delivery = deliver(End::Refused, &seen).await;
    assert_eq!(left(&delivery), [RECIPIENTS[1].as_bytes()]);
    assert!(is_tracked(&delivery.mail.body));
    assert_eq!(seen.copies.lock().unwrap().len(), 2, "the others have theirs");
    assert_eq!(seen.events.load(Ordering::Relaxed), 3, "one for each copy, one for the original");
}

#[tokio::test]
async fn who_may_not_be_followed_gets_a_copy_as_it_came() {
    let seen = Seen::default();
    let delivery = deliver(End::NoConsent, &seen).await;
    assert_eq!(delivery.outcome, Outcome::Discarded);
    let copies = seen.copies.lock().unwrap().clone();
    assert_eq!(copies.len(), 3);
    assert_eq!(copies[1], TEXT);
    assert!(is_tracked(copies[0].as_bytes()) && is_tracked(copies[2].as_bytes()));
    assert_eq!(seen.events.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_no_memory_of_copies_that_postfix_has_taken() {
    let seen = Seen::default();
    assert_eq!(deliver(End::Stalls, &seen).await.outcome, Outcome::Discarded);
    assert_eq!(seen.copies.lock().unwrap().len(), 3);
}

#[test]
fn what_postfix_delivers_once_is_one_recipient() {
    let message = |recipients: &[&str]| {
        recipients.iter().fold(Message::new(Path::new("<news@example.org>")), |message, recipient| {
            message.with_recipient(Path::new(*recipient))
        })
    };
    let several = message(&["<bob@example.net>", "<ann@example.net>", "<Bob@EXAMPLE.net>"]);
    assert_eq!(recipients(&several, 50).unwrap().len(), 2);
    let mut copies = Copies::default();
    copies.took(&several, &Path::new("<bob@example.net>"), [0; 32]);
    assert_eq!(copies.addresses.len(), 2, "both are taken off");
    assert!(recipients(&message(&["<bob@example.net>", "<bob@EXAMPLE.net>"]), 50).is_none());
}

#[test]
fn only_plain_addresses_from_smtp_can_be_taken_off() {
    let of =
        |address: &str| can_be_taken_off(&Message::new(Path::new("<>")).with_recipient(Path::new(address)));
    for plain in ["<bob@example.net>", "<b.o-b+x@example.net>", "<änne@exämple.net>"] {
        assert!(of(plain), "{plain}");
    }
    for other in [
        "bob@example.net",
        "<bob>",
        "<user%dom@example.net>",
        "<user%dom>",
        "<dot@example.net.>",
        "<@hop:rt@example.net>",
        "<bob@>",
        "<a!b@example.net>",
        "<\"a b\"@example.net>",
        "<a@b@example.net>",
    ] {
        assert!(!of(other), "{other}");
    }
}
