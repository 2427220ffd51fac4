//! Tests over real sockets: a tracker, a spool in memory, and a client that writes its bytes itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "abuse_tests.rs"]
pub(in crate::tracker) mod abuse;
#[path = "answer_tests.rs"]
mod answers;
#[path = "hold_tests.rs"]
mod hold;
#[path = "host_tests.rs"]
mod hosts;
#[path = "life_tests.rs"]
mod life;
#[path = "wire_tests.rs"]
mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Deps, Settings, TrackerError, run_on};
use crate::consent::{Consent, Fixed};
use crate::event::Event;
use crate::identity::{MessageId, Pseudonym, Timestamp};
use crate::keys::Keys;
use crate::keys::ring::Keyring;
use crate::keys::token::{Click, Open, Token, sign};
use crate::queue::{Amendment, Hold, Publication, PublishError};
use crate::service::{Lifecycle, clock};

const BROWSER: &str =
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n";

/// Keeps events in memory, or takes none while it stalls.
#[derive(Debug, Default)]
struct Spool {
    events: Mutex<Vec<Event>>,
    stalls: AtomicBool,
}

impl Hold for Spool {
    fn publish_all<'a>(
        &'a self,
        publications: &'a [Publication],
        stored: crate::queue::OnStored,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>> {
        Box::pin(async move {
            while self.stalls.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let events = publications.iter().map(|publication| Event::clone(&publication.event));
            self.events.lock().unwrap().extend(events);
            stored.call();
            Ok(())
        })
    }

    fn amend<'a>(
        &'a self,
        amendments: &'a [Amendment],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<bool>, PublishError>> + Send + 'a>> {
        Box::pin(async move {
            let mut stored = self.events.lock().unwrap();
            let amend = |Amendment { event, .. }: &Amendment| {
                let held = stored.iter_mut().find(|held| held.id == event.id);
                held.map(|held| *held = Event::clone(event)).is_some()
            };
            Ok(amendments.iter().map(amend).collect())
        })
    }
}

/// A running tracker.
struct Tracker {
    address: SocketAddr,
    spool: Arc<Spool>,
    ring: Keyring,
    life: Lifecycle,
    reload: watch::Sender<u64>,
    task: JoinHandle<Result<(), TrackerError>>,
}

impl Tracker {
    async fn start(settings: Settings) -> Self {
        Self::with(settings, Keyring::new([7; 32], Timestamp::from_secs(1))).await
    }

    /// `ring` signs the links of the test, too.
    async fn with(settings: Settings, ring: Keyring) -> Self {
        Self::by(settings, Keys::fixed(ring)).await
    }

    async fn by(settings: Settings, keys: Keys) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let spool = Arc::new(Spool::default());
        let ring = Keyring::clone(&keys.current());
        let deps = Deps {
            keys,
            publisher: spool.clone(),
            consents: Arc::new(Fixed { opens: Consent::Granted, clicks: Consent::Granted }),
            handoff: None,
            deliveries: None,
            host: "test".into(),
        };
        let (reload, reloads) = watch::channel(0);
        let life = Lifecycle { reload: reloads, ..Lifecycle::detached() };
        let task = tokio::spawn(run_on(listener, settings, deps, life.clone()));
        Self { address, spool, ring, life, reload, task }
    }

    /// The path of a link in a message that was sent an hour ago.
    fn link(&self, target: &str) -> String {
        let token = click(target, hour_ago());
        format!("/c/{}", sign(&token, self.ring.signing(clock::now()).unwrap()))
    }

    fn pixel(&self) -> String {
        let recipient = Some(Pseudonym::from([0x11; 12]));
        let token = Token::Open(Open { message: hour_ago(), recipient, campaign: None });
        format!("/o/{}", sign(&token, self.ring.signing(clock::now()).unwrap()))
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, BROWSER).await
    }

    /// One request on a connection of its own; `headers` end with CRLF each.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Reply {
        self.ask_at("t.example.org", method, path, headers).await
    }

    async fn ask_at(&self, host: &str, method: &str, path: &str, headers: &str) -> Reply {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        Reply::parse(&self.send(request.as_bytes()).await)
    }

    /// Writes bytes and reads until the tracker closes, within 10 seconds.
    async fn send(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        read_all(&mut stream).await
    }

    fn events(&self) -> Vec<Event> {
        self.spool.events.lock().unwrap().clone()
    }

    fn take_event(&self) -> Event {
        let mut events = self.spool.events.lock().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }
}

/// What is read until the other side closes or resets.
async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "the connection stays open");
    bytes
}

fn hour_ago() -> MessageId {
    MessageId::new(clock::now().minus(Duration::from_secs(3_600)), 7)
}

fn click(target: &str, message: MessageId) -> Token {
    Token::Click(Click {
        message,
        recipient: Some(Pseudonym::from([0x11; 12])),
        link: 1,
        campaign: Some("spring".parse().unwrap()),
        target: target.to_owned(),
    })
}

/// An answer as it came.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a complete head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().skip(1).filter_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        });
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }

    fn html(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn is_redirect(&self) -> bool {
        (300..400).contains(&self.status)
            || self.header("location").is_some()
            || self.header("refresh").is_some()
    }
}
