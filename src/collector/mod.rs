//! The collector: a strict stand-in for GA4, for demos, tests and staging.
//!
//! - Layer: role
//! - Takes: requests of the Measurement Protocol.
//! - Gives: the answers that Google documents; a record of every request with what GA4 would make of it.
//! - On failure: a record that can't be written ends the process with an error: a test must not trust a gap.
//! - Limits: bodies of 4 MiB; more is not read, and recorded as dropped.
//! - See: `docs/collector.md`.

// Decisions.
pub mod fault;
pub mod judge;
pub mod report;
mod rules;
mod shape;

// Edges.
mod record;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::service::{Lifecycle, clock};
use fault::{Fault, FaultMode};
use judge::{Behaviour, Judgement};
use record::{Record, Target};
pub use serve::Tls;
use serve::broken_off;

/// Far more than GA4 takes, so that what is too large is judged.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
const HANG: Duration = Duration::from_secs(600);
const SLOW: Duration = Duration::from_secs(2);

/// What the collector is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where requests are recorded, as JSON lines; appended.
    pub record: Option<PathBuf>,
    /// How it misbehaves.
    pub fault: FaultMode,
    /// How strict the debug endpoint is where the request does not say.
    pub behaviour: Behaviour,
    /// To speak TLS.
    pub tls: Option<Tls>,
}

/// Why there is no collector.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The address can't be listened on.
    #[error("can't listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// Certificate or key can't be used.
    #[error("{0}")]
    Tls(String),
    /// The record file can't be written.
    #[error("{}: {error}", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
}

#[derive(Debug)]
struct Shared {
    record: Record,
    fault: Mutex<FaultMode>,
    behaviour: Behaviour,
    /// Ends with the life, or with the record.
    stop: CancellationToken,
    failure: Mutex<Option<std::io::Error>>,
}

/// Runs the collector until `life.stop`; `ready` is called with the address it listens on.
///
/// # Errors
/// See [`CollectorError`].
pub async fn run(
    settings: Settings,
    life: Lifecycle,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), CollectorError> {
    let address = settings.listen;
    let listen = |error| CollectorError::Listen { address, error };
    let path = settings.record.clone().unwrap_or_default();
    let record = Record::open(settings.record.as_deref())
        .map_err(|error| CollectorError::Record { path: path.clone(), error })?;
    let shared = Arc::new(Shared {
        record,
        fault: Mutex::new(settings.fault),
        behaviour: settings.behaviour,
        stop: life.stop.child_token(),
        failure: Mutex::new(None),
    });
    let app = Router::new()
        .route("/mp/collect", post(collect))
        .route("/debug/mp/collect", post(debug))
        .route("/collector/summary", get(async |State(shared): Shares| axum::Json(shared.record.summary())))
        .route("/collector/events", get(async |State(shared): Shares| axum::Json(shared.record.events())))
        .route("/collector/fail", post(fail))
        .with_state(shared.clone());
    let tls = settings.tls.as_ref().map(Tls::acceptor).transpose().map_err(CollectorError::Tls)?;
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    ready(listener.local_addr().map_err(listen)?);
    life.health.component("collector").ready();
    serve::serve(listener, tls, app, shared.stop.clone(), || shared.record.connection()).await;
    let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
    failure.map_or(Ok(()), |error| Err(CollectorError::Record { path, error }))
}

type Shares = State<Arc<Shared>>;

async fn collect(State(shared): Shares, request: Request) -> Response {
    let number = shared.record.request();
    let mode = *shared.fault.lock().unwrap_or_else(PoisonError::into_inner);
    let fault = mode.fault(number, rand::random());
    if fault.is_some() {
        shared.record.fault();
    }
    if fault == Some(Fault::HangBefore) {
        return shared.hang().await;
    }
    let target = target(request.uri());
    let body = match body(request).await {
        Ok(body) => body,
        Err(Unread::Broken) => return broken_off(),
        Err(Unread::TooLarge) => {
            let judgement = Judgement::whole("", "The body has 130 kB or more.", "EXCEEDED_MAX_ENTITIES");
            return shared.kept(shared.record.collected(&target, b"", &judgement));
        }
    };
    if let Some(Fault::Status(status)) = fault {
        return StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
    }
    let judgement = judge::judge(&body, clock::now().as_micros(), Behaviour::Relaxed);
    let answer = shared.kept(shared.record.collected(&target, &body, &judgement));
    match fault {
        Some(Fault::HangAfter) => shared.hang().await,
        Some(Fault::Reset) => broken_off(),
        Some(Fault::Slow) => {
            tokio::time::sleep(SLOW).await;
            answer
        }
        _ => answer,
    }
}

async fn debug(State(shared): Shares, request: Request) -> Response {
    let target = target(request.uri());
    let Ok(body) = body(request).await else { return broken_off() };
    let judgement = judge::judge(&body, clock::now().as_micros(), shared.behaviour);
    let kept = shared.kept(shared.record.checked(&target, &body, &judgement));
    if !kept.status().is_success() {
        return kept;
    }
    let messages: Vec<Value> = judgement.messages.iter().map(judge::Message::to_json).collect();
    axum::Json(json!({ "validationMessages": messages })).into_response()
}

async fn fail(State(shared): Shares, body: String) -> Response {
    match body.trim().parse() {
        Ok(mode) => {
            *shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = mode;
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// Why there is no body.
enum Unread {
    TooLarge,
    Broken,
}

async fn body(request: Request) -> Result<Bytes, Unread> {
    let length =
        request.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MAX_BODY_BYTES as u64) {
        return Err(Unread::TooLarge);
    }
    to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|_| Unread::Broken)
}

/// Any query is taken, as by GA4.
fn target(uri: &Uri) -> Target {
    let mut target = Target::default();
    for (key, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*key {
            "measurement_id" => target.measurement_id = Some(value.into_owned()),
            "api_secret" => target.has_api_secret = true,
            _ => {}
        }
    }
    target
}

impl Shared {
    async fn hang(&self) -> Response {
        tokio::select! {
            () = tokio::time::sleep(HANG) => {}
            () = self.stop.cancelled() => {}
        }
        broken_off()
    }

    /// 204 for what is kept; what can't be kept ends the collector.
    fn kept(&self, result: std::io::Result<()>) -> Response {
        let Err(error) = result else { return StatusCode::NO_CONTENT.into_response() };
        tracing::error!(%error, "the record can't be written");
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.cancel();
        StatusCode::INSUFFICIENT_STORAGE.into_response()
    }
}

#[cfg(test)]
mod tests;
