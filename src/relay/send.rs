//! One request to GA4, and what became of it.
//!
//! - Layer: edge
//! - Takes: a property and a body.
//! - Gives: `Outcome`: sent, certainly not sent, refused, or nobody knows.
//! - On failure: every failure is an outcome. URLs hold the API secret: they are in no log and no error.
//! - Limits: `Settings::timeout` a request, at most half of it (and 5 seconds) for the connection, so that a receiver that
//!   can't be reached is never taken for one that did not answer; connections are reused.
//! - See: `docs/ga4.md`, "What an answer means": no idempotency key, so that a retry after an ambiguous
//!   time-out can count twice.

use std::time::Duration;

use reqwest::{Client, Url};

use crate::service::secret::Secret;

const LONGEST_CONNECT: Duration = Duration::from_secs(5);

/// A GA4 property, or a server-side GTM that stands for one.
#[derive(Debug, Clone)]
pub struct Property {
    /// Sender domains that belong to it, `*.` patterns too; none: all others.
    pub domains: Vec<String>,
    /// G-…
    pub measurement_id: String,
    /// The API secret, where one is needed.
    pub api_secret: Option<Secret<String>>,
    /// Base URL, without a slash at its end.
    pub base_url: String,
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
#[derive(Debug, Clone)]
pub struct Sender {
    client: Client,
    endpoints: Vec<Secret<String>>,
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
    pub fn new(properties: &[Property], timeout: Duration, connections: usize) -> Result<Self, SenderError> {
        let client = Client::builder()
            .timeout(timeout)
            .connect_timeout((timeout / 2).min(LONGEST_CONNECT))
            .pool_max_idle_per_host(connections)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("mailtap/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SenderError::Client(error.without_url().to_string()))?;
        let endpoints = properties.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(Self { client, endpoints })
    }

    /// Sends one body.
    pub async fn send(&self, property: usize, body: String) -> Outcome {
        let Some(endpoint) = self.endpoints.get(property) else { return Outcome::Refused(0) };
        let request =
            self.client.post(endpoint.expose()).header("content-type", "application/json").body(body);
        match request.send().await {
            Ok(answer) => match answer.status().as_u16() {
                200..=299 => Outcome::Sent,
                status @ (408 | 429 | 500..=599) => Outcome::Trouble(status),
                status => Outcome::Refused(status),
            },
            Err(error) if error.is_connect() => Outcome::NotSent(cause(error)),
            Err(error) => Outcome::Uncertain(cause(error)),
        }
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
    let path = if base.ends_with("/collect") { "" } else { "/mp/collect" };
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
