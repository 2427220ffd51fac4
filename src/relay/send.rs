//! One request to GA4, and what became of it.
//!
//! - Layer: edge
//! - Takes: a property and a body; what is to be done between a request's place on a connection and its first byte.
//! - Gives: `Outcome`: sent, certainly not sent, refused, or nobody knows.
//! - On failure: every failure is an outcome. URLs hold the API secret: they are in no log and no error.
//! - Limits: `timeout` a request, at most half of it (and 5 seconds) for the connection, so that a receiver that
//!   can't be reached is never taken for one that did not answer. Connections are reused; over HTTP/2 one carries `streams`
//!   requests at once, and the next is opened only when it is full. 64 KiB of an answer are read.
//! - See: `docs/ga4.md`, "What an answer means": no idempotency key, so that a retry after an ambiguous
//!   time-out can count twice.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::sync::{MutexGuard, Semaphore};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::body::Touched;
use super::dial::{Dial, Means};
use super::pool::{Head, LONGEST_IDLE, Pool};
use super::property::Takes;
use crate::service::secret::Secret;

const LONGEST_CONNECT: Duration = Duration::from_secs(5);

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
    /// A request before it found no connection: it was not tried.
    NotTried,
    /// 5xx, 408 or 429: it arrived and was not taken.
    Trouble(u16),
    /// Another 4xx or a redirect: the same request would never be taken.
    Refused(u16),
    /// The connection broke or the answer never came: it may have arrived.
    Uncertain(String),
}

impl Outcome {
    /// What it met with on its way, if that is known.
    pub(super) fn cause(&self) -> Option<Arc<str>> {
        match self {
            Self::Sent | Self::NotTried | Self::Refused(_) => None,
            Self::NotSent(why) => Some(why.as_str().into()),
            Self::Trouble(status) => Some(format!("HTTP {status}").into()),
            Self::Uncertain(why) => Some(why.as_str().into()),
        }
    }
}

/// Sends to the properties.
#[derive(Debug)]
pub struct Sender {
    lines: Vec<Line>,
    endpoints: Vec<Endpoint>,
    timeout: Duration,
}

/// Connections of its own: over HTTP/2 one to each receiver.
#[derive(Debug)]
struct Line {
    room: Semaphore,
    /// For each receiver.
    pools: Vec<Pool>,
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
    head: Head,
    /// Its place among the pools.
    receiver: usize,
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
    /// A property's preview token can't be a header's value.
    #[error("{measurement_id}: its preview token has characters that it can't have")]
    Preview {
        /// The property.
        measurement_id: String,
    },
    /// Nothing can be sent over TLS.
    #[error("no connections can be made: {0}")]
    Client(String),
}

impl Sender {
    /// Makes a sender.
    ///
    /// # Errors
    /// See [`SenderError`].
    pub fn new(properties: &[Property], travel: Travel) -> Result<Self, SenderError> {
        let connect = (travel.timeout / 2).min(LONGEST_CONNECT);
        let means = Means::new(travel.h2c, connect, Matcher::from_env());
        Self::by(properties, travel, &means.map_err(|error| SenderError::Client(error.to_string()))?)
    }

    fn by(properties: &[Property], travel: Travel, means: &Means) -> Result<Self, SenderError> {
        let mut dials: Vec<Arc<Dial>> = Vec::new();
        let endpoints = properties.iter().map(|property| {
            let wrong = || SenderError::Url { measurement_id: property.measurement_id.clone() };
            let url: Uri = endpoint(property)?.expose().parse().map_err(|_| wrong())?;
            let dial = means.dial(&url).ok_or_else(wrong)?;
            let head = Head::new(url, headers(property)?, &dial).ok_or_else(wrong)?;
            let known = dials.iter().position(|known| known.origin() == dial.origin());
            let receiver = known.unwrap_or(dials.len());
            if known.is_none() {
                dials.push(Arc::new(dial));
            }
            Ok(Endpoint { head, receiver })
        });
        let endpoints = endpoints.collect::<Result<_, SenderError>>()?;
        let streams = travel.streams.clamp(1, travel.most.max(1));
        let line = |_| Line {
            room: Semaphore::new(streams),
            pools: dials.iter().cloned().map(Pool::new).collect(),
            ways: properties.iter().map(|_| Way::default()).collect(),
        };
        let lines = (0..travel.most.div_ceil(streams).max(1)).map(line).collect();
        Ok(Self { lines, endpoints, timeout: travel.timeout })
    }

    /// Sends one body. Before its first byte leaves, and as late as can be, `begin` is waited for.
    ///
    /// # Errors
    /// What `begin` says: then nothing was sent.
    pub async fn send_after<E>(
        &self,
        property: usize,
        body: Bytes,
        begin: impl Future<Output = Result<(), E>>,
    ) -> Result<Outcome, E> {
        let Some(endpoint) = self.endpoints.get(property) else { return Ok(Outcome::Refused(0)) };
        // The first with room: as few connections as can be. The wait for it is not part of the request's time.
        let free = self.lines.iter().find_map(|line| Some((line, line.room.try_acquire().ok()?)));
        let (line, _room) = match (free, self.lines.first()) {
            (Some(free), _) => free,
            (None, Some(line)) => match line.room.acquire().await {
                Ok(room) => (line, room),
                Err(_) => return Ok(Outcome::NotSent("closed".into())),
            },
            (None, None) => return Ok(Outcome::Refused(0)),
        };
        let (Some(way), Some(pool)) = (line.ways.get(property), line.pools.get(endpoint.receiver)) else {
            return Ok(Outcome::Refused(0));
        };
        let Ok(_first) = way.enter().await else { return Ok(Outcome::NotTried) };
        let end = Instant::now() + self.timeout;
        let place = match timeout_at(end, pool.place()).await {
            Ok(Ok(place)) => place,
            failed => {
                way.note(false);
                let late = "no connection in time".to_owned();
                return Ok(Outcome::NotSent(failed.map_or(late, |failed| failed.err().unwrap_or_default())));
            }
        };
        let (began, touched) = (Instant::now(), Touched::default());
        begin.await?;
        // A slow disk is not the receiver's.
        let end = end + began.elapsed();
        let sent = timeout_at(end, pool.send(place, &endpoint.head, &body, &touched)).await;
        way.note(matches!(sent, Ok(Ok(_))));
        Ok(match sent {
            Ok(Ok(answer)) => {
                let status = answer.status;
                if !answer.is_over() {
                    // What it was is known, whether it comes to its end or not.
                    let _ = timeout_at(end, pool.read(answer)).await;
                }
                match status {
                    200..=299 => Outcome::Sent,
                    408 | 429 | 500..=599 => Outcome::Trouble(status),
                    _ => Outcome::Refused(status),
                }
            }
            Ok(Err(failure)) if failure.is_unseen => Outcome::NotSent(failure.why),
            Ok(Err(failure)) => Outcome::Uncertain(failure.why),
            Err(_) => {
                pool.leave_silent(began);
                let why = "no answer in time".to_owned();
                // What waited for its turn on the connection: nobody has seen the body.
                if touched.is_so() { Outcome::Uncertain(why) } else { Outcome::NotSent(why) }
            }
        })
    }
}

#[cfg(test)]
impl Sender {
    async fn send(&self, property: usize, body: Bytes) -> Outcome {
        self.send_after(property, body, std::future::ready(Ok::<(), ()>(())))
            .await
            .unwrap_or(Outcome::NotTried)
    }
}

fn headers(property: &Property) -> Result<HeaderMap, SenderError> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("mailtap/", env!("CARGO_PKG_VERSION"))));
    if let Some(token) = &property.preview {
        let wrong = |_| SenderError::Preview { measurement_id: property.measurement_id.clone() };
        let mut token = HeaderValue::try_from(token.expose()).map_err(wrong)?;
        token.set_sensitive(true);
        headers.insert("x-gtm-server-preview", token);
    }
    Ok(headers)
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
