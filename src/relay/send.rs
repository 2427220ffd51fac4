//! One request to GA4, and what became of it.
//!
//! - Layer: edge
//! - Takes: a property and a body.
//! - Gives: `Outcome`: sent, certainly not sent, refused, or nobody knows.
//! - On failure: every failure is an outcome. URLs hold the API secret: they are in no log and no error.
//! - Limits: `timeout` a request, at most half of it (and 5 seconds) for the connection, so that a receiver that
//!   can't be reached is never taken for one that did not answer. Connections are reused; over HTTP/2 one carries `streams`
//!   requests at once, and the next is opened only when it is full. 64 KiB of an answer are read.
//! - See: `docs/ga4.md`, "What an answer means": no idempotency key, so that a retry after an ambiguous
//!   time-out can count twice.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use reqwest::{Client, Response, Url};
use tokio::sync::{MutexGuard, Semaphore};

use super::property::Takes;
use crate::service::secret::Secret;

const LONGEST_CONNECT: Duration = Duration::from_secs(5);
/// Shorter than receivers and what stands before them usually wait: who closes first never cuts a request.
const LONGEST_IDLE: Duration = Duration::from_secs(40);
/// What is read of an answer, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A GA4 property, or a server-side GTM that stands for one.
#[derive(Debug, Clone)]
pub struct Property {
    /// What goes there.
    pub takes: Takes,
    /// G-…
    pub measurement_id: String,
    /// The API secret, where one is needed.
    pub api_secret: Option<Secret<String>>,
    /// Base URL, without a slash at its end.
    pub base_url: String,
    /// The path after it: where GA4, or the client of a server-side GTM, takes requests.
    pub path: String,
    /// The value of `X-Gtm-Server-Preview`, which shows requests in the preview of a server-side GTM.
    pub preview: Option<Secret<String>>,
}

/// How requests travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Travel {
    /// How long one may take.
    pub timeout: Duration,
    /// How many travel at once, over all connections.
    pub most: usize,
    /// How many of them over one HTTP/2 connection.
    pub streams: usize,
    /// HTTP/2 without TLS, to a receiver that is known to speak it.
    pub h2c: bool,
}

impl Property {
    /// Its URL, for people: without the secret.
    ///
    /// # Errors
    /// `SenderError::Url`.
    pub fn shown(&self) -> Result<String, SenderError> {
        endpoint(&Self { api_secret: None, ..self.clone() }).map(|url| url.expose().clone())
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Sent,
    /// No connection: certainly nothing arrived.
    NotSent(String),
    /// 5xx, 408 or 429: it arrived and was not taken.
    Trouble(u16),
    /// Another 4xx or a redirect: the same request would never be taken.
    Refused(u16),
    /// The connection broke or the answer never came: it may have arrived.
    Uncertain(String),
}

/// Sends to the properties.
#[derive(Debug)]
pub struct Sender {
    lines: Vec<Line>,
    endpoints: Vec<Endpoint>,
}

/// A client with connections of its own: over HTTP/2 one to each receiver.
#[derive(Debug)]
struct Line {
    client: Client,
    room: Semaphore,
    /// For each property.
    ways: Vec<Way>,
}

/// Whether a property was reached lately over a line. Where it was not, one request goes first: many at once would open a
/// connection each, before any of them knows that the receiver speaks HTTP/2.
#[derive(Debug, Default)]
struct Way {
    first: tokio::sync::Mutex<()>,
    answered: Mutex<Option<Instant>>,
    failures: AtomicU64,
}

impl Way {
    fn is_open(&self) -> bool {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.is_some_and(|at| at.elapsed() < LONGEST_IDLE)
    }

    fn note(&self, answered: bool) {
        if !answered {
            self.failures.fetch_add(1, Ordering::AcqRel);
        }
        let now = answered.then(Instant::now);
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Waits until the way is open; with a guard, the one who has it is to open it. `Err`: nobody could, meanwhile.
    async fn enter(&self) -> Result<Option<MutexGuard<'_, ()>>, ()> {
        if self.is_open() {
            return Ok(None);
        }
        let before = self.failures.load(Ordering::Acquire);
        let first = self.first.lock().await;
        match (self.is_open(), self.failures.load(Ordering::Acquire) == before) {
            (true, _) => Ok(None),
            (false, true) => Ok(Some(first)),
            (false, false) => Err(()),
        }
    }
}

#[derive(Debug)]
struct Endpoint {
    url: Secret<String>,
    preview: Option<Secret<String>>,
}

/// Why a sender can't be made.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// A property's base URL is none.
    #[error("{measurement_id}: its URL is not valid")]
    Url {
        /// The property.
        measurement_id: String,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client can't be made: {0}")]
    Client(String),
}

impl Sender {
    /// Makes a sender.
    ///
    /// # Errors
    /// See [`SenderError`].
    pub fn new(properties: &[Property], travel: Travel) -> Result<Self, SenderError> {
        let streams = travel.streams.clamp(1, travel.most.max(1));
        let line = |_| {
            let ways = properties.iter().map(|_| Way::default()).collect();
            Ok(Line { client: client(travel, streams)?, room: Semaphore::new(streams), ways })
        };
        let lines =
            (0..travel.most.div_ceil(streams).max(1)).map(line).collect::<Result<_, SenderError>>()?;
        let endpoint =
            |property| Ok(Endpoint { url: endpoint(property)?, preview: property.preview.clone() });
        let endpoints = properties.iter().map(endpoint).collect::<Result<_, SenderError>>()?;
        Ok(Self { lines, endpoints })
    }

    /// Sends one body.
    pub async fn send(&self, property: usize, body: String) -> Outcome {
        let Some(endpoint) = self.endpoints.get(property) else { return Outcome::Refused(0) };
        // The first with room: as few connections as can be. The wait for it is not part of the request's time.
        let free = self.lines.iter().find_map(|line| Some((line, line.room.try_acquire().ok()?)));
        let (line, _room) = match (free, self.lines.first()) {
            (Some(free), _) => free,
            (None, Some(line)) => match line.room.acquire().await {
                Ok(room) => (line, room),
                Err(_) => return Outcome::NotSent("closed".into()),
            },
            (None, None) => return Outcome::Refused(0),
        };
        let Some(way) = line.ways.get(property) else { return Outcome::Refused(0) };
        let Ok(_first) = way.enter().await else {
            return Outcome::NotSent("a request before it found no way".into());
        };
        let (body, touched) = Body::new(body);
        let request = line.client.post(endpoint.url.expose()).header("content-type", "application/json");
        let request = match &endpoint.preview {
            Some(token) => request.header("x-gtm-server-preview", token.expose()),
            None => request,
        };
        let sent = request.body(reqwest::Body::wrap(body)).send().await;
        way.note(sent.is_ok());
        match sent {
            Ok(answer) => {
                let status = answer.status().as_u16();
                drain(answer).await;
                match status {
                    200..=299 => Outcome::Sent,
                    408 | 429 | 500..=599 => Outcome::Trouble(status),
                    _ => Outcome::Refused(status),
                }
            }
            Err(error) if error.is_connect() => Outcome::NotSent(cause(error)),
            // It waited for its turn on the connection: nobody has seen the body.
            Err(error) if !touched.load(Ordering::Acquire) => Outcome::NotSent(cause(error)),
            Err(error) => Outcome::Uncertain(cause(error)),
        }
    }
}

fn client(travel: Travel, streams: usize) -> Result<Client, SenderError> {
    let builder = Client::builder()
        .timeout(travel.timeout)
        .connect_timeout((travel.timeout / 2).min(LONGEST_CONNECT))
        .pool_max_idle_per_host(streams)
        .pool_idle_timeout(LONGEST_IDLE)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("mailtap/", env!("CARGO_PKG_VERSION")));
    let builder = if travel.h2c { builder.http2_prior_knowledge() } else { builder };
    builder.build().map_err(|error| SenderError::Client(error.without_url().to_string()))
}

/// Reads the answer to its end, so that the connection is used again. What it says changes nothing.
async fn drain(mut answer: Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = answer.chunk().await {
        read += chunk.len();
        if read > MAX_ANSWER_BYTES {
            return;
        }
    }
}

/// A body that tells whether the connection has asked for it. Before that not one byte of it can have arrived.
#[derive(Debug)]
struct Body {
    rest: Option<Bytes>,
    touched: Arc<AtomicBool>,
}

impl Body {
    fn new(text: String) -> (Self, Arc<AtomicBool>) {
        let touched = Arc::new(AtomicBool::new(false));
        (Self { rest: Some(text.into()), touched: touched.clone() }, touched)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.touched.store(true, Ordering::Release);
        Poll::Ready(self.rest.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// What went wrong at the bottom, without the URL.
fn cause(error: reqwest::Error) -> String {
    let timeout = error.is_timeout();
    let error = error.without_url();
    let mut source: &dyn std::error::Error = &error;
    while let Some(next) = source.source() {
        source = next;
    }
    if timeout { "no answer in time".to_owned() } else { source.to_string() }
}

fn endpoint(property: &Property) -> Result<Secret<String>, SenderError> {
    let wrong = || SenderError::Url { measurement_id: property.measurement_id.clone() };
    let base = property.base_url.trim_end_matches('/');
    let path = if base.ends_with("/collect") { "" } else { property.path.as_str() };
    let mut url = Url::parse(&format!("{base}{path}")).map_err(|_| wrong())?;
    url.query_pairs_mut().append_pair("measurement_id", &property.measurement_id);
    if let Some(secret) = &property.api_secret {
        url.query_pairs_mut().append_pair("api_secret", secret.expose());
    }
    Ok(Secret::new(url.into()))
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
