//! The collector: a strict stand-in for GA4, for demos, tests and staging.
//!
//! - Layer: role
//! - Takes: requests of the Measurement Protocol.
//! - Gives: the answers that Google documents; a record of every request with what GA4 would make of it.
//! - On failure: a record that can't be written is an error of the process: a test must not trust a gap.
//! - Limits: bodies of 1 MiB; more is cut off with 413.
//! - See: `docs/collector.md`.

// Decisions.
pub mod fault;
pub mod judge;
pub mod report;
mod rules;
mod shape;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::service::{Lifecycle, clock};
use fault::{Fault, FaultMode};
use judge::{Behaviour, Judgement};

const MAX_BODY_BYTES: usize = 1024 * 1024;
const HANG: Duration = Duration::from_secs(600);

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
    record: Option<Mutex<File>>,
    fault: Mutex<FaultMode>,
    behaviour: Behaviour,
    requests: AtomicU64,
    processed: AtomicU64,
    modified: AtomicU64,
    dropped: AtomicU64,
    stop: CancellationToken,
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
    let record = match &settings.record {
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            Some(Mutex::new(file.map_err(|error| CollectorError::Record { path: path.clone(), error })?))
        }
        None => None,
    };
    let shared = Arc::new(Shared {
        record,
        fault: Mutex::new(settings.fault),
        behaviour: settings.behaviour,
        requests: AtomicU64::new(0),
        processed: AtomicU64::new(0),
        modified: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        stop: life.stop.clone(),
    });
    let app = Router::new()
        .route("/mp/collect", post(collect))
        .route("/debug/mp/collect", post(debug))
        .route("/collector/summary", get(summary))
        .route("/collector/fail", post(fail))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared);
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    ready(listener.local_addr().map_err(listen)?);
    serve(listener, app, life.stop).await;
    Ok(())
}

/// Serves until `stop`. A response marked [`BreakOff`] is never written: its connection closes instead.
async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let inner = TowerToHyperService::new(app.clone());
        let service = service_fn(move |request| {
            let response = inner.call(request);
            async move {
                match response.await {
                    Ok(response) if response.extensions().get::<BreakOff>().is_none() => Ok(response),
                    _ => Err(std::io::Error::other("told to break off")),
                }
            }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(connection);
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), graceful.shutdown()).await;
}

/// Marks a response that is not to be written.
#[derive(Debug, Clone, Copy)]
struct BreakOff;

/// What of the query is kept: not the secret.
#[derive(Debug, Deserialize)]
struct Target {
    measurement_id: Option<String>,
    api_secret: Option<String>,
}

async fn collect(State(shared): State<Arc<Shared>>, Query(target): Query<Target>, body: Bytes) -> Response {
    let number = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let mode = *shared.fault.lock().unwrap_or_else(PoisonError::into_inner);
    let fault = mode.fault(number, rand::random());
    match fault {
        Some(Fault::HangBefore) => return hang(&shared).await,
        Some(Fault::Status(status)) => {
            return StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        }
        _ => {}
    }
    let judgement = judge::judge(&body, clock::now().as_micros(), Behaviour::Relaxed);
    if let Err(error) = shared.keep("/mp/collect", &target, &body, &judgement) {
        tracing::error!(%error, "the record can't be written");
        return StatusCode::INSUFFICIENT_STORAGE.into_response();
    }
    match fault {
        Some(Fault::HangAfter) => hang(&shared).await,
        Some(Fault::Reset) => broken(),
        Some(Fault::Slow) => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            StatusCode::NO_CONTENT.into_response()
        }
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn hang(shared: &Shared) -> Response {
    tokio::select! {
        () = tokio::time::sleep(HANG) => {}
        () = shared.stop.cancelled() => {}
    }
    broken()
}

fn broken() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(BreakOff);
    response
}

async fn debug(State(shared): State<Arc<Shared>>, Query(target): Query<Target>, body: Bytes) -> Response {
    let judgement = judge::judge(&body, clock::now().as_micros(), shared.behaviour);
    if let Err(error) = shared.keep("/debug/mp/collect", &target, &body, &judgement) {
        tracing::error!(%error, "the record can't be written");
    }
    let messages: Vec<Value> = judgement.messages.iter().map(judge::Message::to_json).collect();
    axum::Json(json!({ "validationMessages": messages })).into_response()
}

async fn summary(State(shared): State<Arc<Shared>>) -> Response {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let summary = json!({
        "requests": count(&shared.requests),
        "processed": count(&shared.processed),
        "modified": count(&shared.modified),
        "dropped": count(&shared.dropped),
    });
    axum::Json(summary).into_response()
}

async fn fail(State(shared): State<Arc<Shared>>, body: String) -> Response {
    match body.trim().parse() {
        Ok(mode) => {
            *shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = mode;
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

impl Shared {
    fn keep(
        &self,
        endpoint: &str,
        target: &Target,
        body: &Bytes,
        judgement: &Judgement,
    ) -> std::io::Result<()> {
        if endpoint == "/mp/collect" {
            for verdict in &judgement.verdicts {
                let counter = match verdict.outcome {
                    "processed" => &self.processed,
                    "modified" => &self.modified,
                    _ => &self.dropped,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
        let Some(record) = &self.record else { return Ok(()) };
        let now = clock::now();
        let verdicts: Vec<Value> = judgement
            .verdicts
            .iter()
            .map(|verdict| json!({ "event": verdict.event, "outcome": verdict.outcome, "why": verdict.why }))
            .collect();
        let parsed = serde_json::from_slice(body).unwrap_or_else(|_| json!(String::from_utf8_lossy(body)));
        let line = json!({
            "received_at": now,
            "received_micros": now.as_micros(),
            "endpoint": endpoint,
            "measurement_id": target.measurement_id,
            "has_api_secret": target.api_secret.is_some(),
            "bytes": body.len(),
            "body": parsed,
            "verdicts": verdicts,
        });
        let mut file = record.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(format!("{line}\n").as_bytes())
    }
}
