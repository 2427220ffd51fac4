//! What tests of the relay share: a receiver that misbehaves, a source that does, and a relay between them.
//!
//! - Layer: role
//! - Takes: how each is to behave.
//! - Gives: a site with a spool and a memory of its own; what the receiver got.
//! - On failure: a test fails.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::event::EventId;
use crate::queue::source::{
    BoxFuture, Delivery, Settle, Settlement, SourceError, SpoolSource, Tag, Unsettled,
};
use crate::queue::spool::{self, Admin, Spool, Status};
use crate::queue::testing;
use crate::service::clock;
use crate::service::secret::Secret;

/// The body of the next request on a connection over HTTP/1.1; none when it ends.
pub(super) async fn next_body(stream: &mut TcpStream) -> Option<Value> {
    let mut read = Vec::new();
    loop {
        let mut buffer = [0; 16_384];
        let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        read.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&read);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str(body));
        if let Some(Ok(body)) = body {
            return Some(body);
        }
    }
}

/// Answers it.
pub(super) async fn say(stream: &mut TcpStream, status: u16) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).await
}

/// A property that takes what no other does.
pub(super) fn property(id: &str, base_url: &str) -> Property {
    Property {
        takes: Takes::default(),
        measurement_id: id.into(),
        api_secret: Some(Secret::new("SECRET-MARKER".into())),
        base_url: base_url.into(),
        path: "/mp/collect".into(),
        preview: None,
    }
}

/// Without limits but those that there must be.
pub(super) fn settings(properties: Vec<Property>) -> Settings {
    Settings {
        properties,
        max_in_flight: 4,
        per_property: 0,
        per_property_hour: 0,
        streams: 100,
        h2c: false,
        batch_window: Duration::from_millis(200),
        timeout: Duration::from_secs(60),
        retry_uncertain: false,
    }
}

/// What the receiver does with a request, after it has read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Status(u16),
    Close,
    Never,
    /// None before it is to be another one.
    Later,
}

/// A receiver that counts, by event id, what it said 204 to or left without an answer.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    pub(super) base_url: String,
    pub(super) answer: Arc<Mutex<Answer>>,
    pub(super) got: Arc<Mutex<BTreeMap<String, usize>>>,
    pub(super) requests: Arc<Mutex<usize>>,
}

impl Receiver {
    pub(super) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            base_url: format!("http://{}", listener.local_addr().unwrap()),
            answer: Arc::new(Mutex::new(answer)),
            got: Arc::default(),
            requests: Arc::default(),
        };
        let serving = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        receiver
    }

    async fn serve(self, mut stream: TcpStream) {
        while let Some(body) = next_body(&mut stream).await {
            *self.requests.lock().unwrap() += 1;
            let answer = loop {
                match *self.answer.lock().unwrap() {
                    Answer::Later => {}
                    answer => break answer,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            if !matches!(answer, Answer::Status(300..)) {
                for event in body["events"].as_array().unwrap() {
                    let id = event["params"]["event_id"].as_str().unwrap().to_owned();
                    *self.got.lock().unwrap().entry(id).or_default() += 1;
                }
            }
            match answer {
                Answer::Status(status) => say(&mut stream, status).await.unwrap(),
                Answer::Close => return,
                Answer::Never | Answer::Later => std::future::pending::<()>().await,
            }
        }
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        let got = self.got.lock().unwrap();
        (got.len(), got.values().sum())
    }
}

/// A source that gives its first deliveries several times, or does not settle when told.
#[derive(Debug)]
pub(super) struct Odd {
    spool: SpoolSource,
    pub(super) copies: usize,
    pub(super) replays: bool,
    pub(super) suspects: bool,
    pub(super) refuses: Arc<Mutex<Refuses>>,
    pub(super) epoch: Arc<AtomicU64>,
}

impl Source for Odd {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(async move {
            let mut first = self.spool.next(max).await?;
            for delivery in first.iter_mut().filter(|_| self.replays) {
                delivery.replay = Some(EventId::of("replay").part(delivery.event.id.as_bytes()).finish());
            }
            first.iter_mut().for_each(|delivery| delivery.suspect = self.suspects);
            Ok(std::iter::repeat_n(first, std::mem::replace(&mut self.copies, 1)).flatten().collect())
        })
    }

    fn tend(&mut self) -> BoxFuture<'_, Vec<Delivery>> {
        let refuses = self.refuses.clone();
        Box::pin(async move {
            {
                let mut refuses = refuses.lock().unwrap();
                if *refuses == Refuses::UntilTended {
                    *refuses = Refuses::Nothing;
                }
            }
            std::future::pending().await
        })
    }

    fn settler(&self) -> Arc<dyn Settle> {
        let (spool, refuses) = (self.spool.settler(), self.refuses.clone());
        Arc::new(OddSettler { spool, refuses })
    }

    fn most(&self) -> usize {
        self.spool.most()
    }

    fn is_full(&self) -> bool {
        self.spool.is_full()
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }
}

/// Refuses to settle, or takes long for it.
#[derive(Debug)]
pub(super) struct OddSettler {
    spool: Arc<dyn Settle>,
    pub(super) refuses: Arc<Mutex<Refuses>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refuses {
    Nothing,
    Everything,
    /// All but what is done.
    Others,
    /// All but what is done, until somebody sees to the source.
    UntilTended,
    /// Takes so long for all but what is done.
    Stalls(Duration),
}

impl Settle for OddSettler {
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Unsettled> {
        Box::pin(async move {
            let refuses = *self.refuses.lock().unwrap();
            let (refused, taken): (Vec<_>, Vec<_>) =
                outcomes.into_iter().partition(|(_, what)| match refuses {
                    Refuses::Nothing | Refuses::Stalls(_) => false,
                    Refuses::Everything => true,
                    Refuses::Others | Refuses::UntilTended => *what != Settlement::Done,
                });
            if let Refuses::Stalls(time) = refuses {
                tokio::time::sleep(time).await;
            }
            let mut unsettled = self.spool.settle(taken).await;
            unsettled.extend(refused.into_iter().map(|(tag, _)| (tag, SourceError::Broker("away".into()))));
            unsettled
        })
    }
}

pub(super) struct Site {
    pub(super) directory: tempfile::TempDir,
    pub(super) receiver: Receiver,
    /// Of the property for `shop.example`, if there is one.
    pub(super) other: Option<Receiver>,
    pub(super) life: Lifecycle,
    pub(super) refuses: Arc<Mutex<Refuses>>,
    /// Of the connection that the source has.
    pub(super) epoch: Arc<AtomicU64>,
    pub(super) copies: usize,
    pub(super) replays: bool,
    pub(super) suspects: bool,
    pub(super) in_flight: usize,
    pub(super) per_property: usize,
    pub(super) per_property_hour: u64,
    pub(super) retry_uncertain: bool,
    pub(super) timeout: Duration,
    pub(super) mapping: Mapping,
}

impl Site {
    pub(super) async fn new(answer: Answer) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            directory: tempfile::tempdir().unwrap(),
            receiver: Receiver::start(answer).await,
            other: None,
            life: Lifecycle::detached(),
            refuses: Arc::new(Mutex::new(Refuses::Nothing)),
            epoch: Arc::default(),
            copies: 1,
            replays: false,
            suspects: false,
            in_flight: 4,
            per_property: 0,
            per_property_hour: 0,
            retry_uncertain: false,
            timeout: Duration::from_millis(400),
            mapping: Mapping::default(),
        }
    }

    pub(super) fn spool(&self) -> Spool {
        let directory = self.directory.path().join("spool");
        Spool::open(spool::Settings { directory, ..spool::Settings::default() }).unwrap()
    }

    pub(super) fn settings(&self) -> Settings {
        let mut properties = vec![property("G-TEST", &self.receiver.base_url)];
        properties.extend(self.other.iter().map(|other| Property {
            takes: Takes { domains: vec!["shop.example".into()], ..Takes::default() },
            ..property("G-SHOP", &other.base_url)
        }));
        Settings {
            max_in_flight: self.in_flight,
            per_property: self.per_property,
            per_property_hour: self.per_property_hour,
            batch_window: Duration::from_millis(20),
            timeout: self.timeout,
            retry_uncertain: self.retry_uncertain,
            ..settings(properties)
        }
    }

    /// A new life of the relay over the same spool and memory.
    pub(super) fn relay(&mut self) -> JoinHandle<Result<(), SenderError>> {
        self.life = Lifecycle::detached();
        let source = Odd {
            spool: SpoolSource::new(self.spool(), 10_000, self.life.stop.clone()),
            copies: self.copies,
            replays: self.replays,
            suspects: self.suspects,
            refuses: self.refuses.clone(),
            epoch: self.epoch.clone(),
        };
        let dedupe = Dedupe::open(&self.directory.path().join("relay")).unwrap();
        let (settings, mapping) = (self.settings(), self.mapping.clone());
        tokio::spawn(run_with(settings, mapping, Box::new(source), dedupe, self.life.clone()))
    }

    pub(super) fn status(&self) -> Status {
        Admin::open(&self.directory.path().join("spool")).unwrap().status().unwrap()
    }

    pub(super) async fn until(&self, what: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..1_200 {
            let status = self.status();
            if what(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?}", self.status());
    }
}

pub(super) fn event(number: u64) -> Event {
    Event { time: clock::now().minus(Duration::from_secs(60)), ..testing::event(number) }
}

pub(super) fn nothing_waits(status: &Status) -> bool {
    status.pending == 0 && status.claimed == 0
}
