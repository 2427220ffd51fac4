//! The admin listener: `/metrics`, `/healthz`, `/readyz`.
//!
//! - Layer: edge
//! - Takes: HTTP requests, on loopback unless told otherwise.
//! - Gives: Prometheus text; `ok`; `ready`, or 503 with the parts that are not.
//! - On failure: an address that can't be bound is an error at start; in a takeover, one that is in use is waited for. Nothing
//!   later ends the daemon.
//! - See: Prometheus text format 0.0.4.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Health;
use crate::telemetry::Metrics;

/// How often an address in use is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Why there is no admin listener.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't listen on {address} for /metrics, /healthz and /readyz: {error} (see [admin] in the configuration)"
)]
pub struct AdminError {
    address: SocketAddr,
    #[source]
    error: std::io::Error,
}

/// What is shown, and until when.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Whether the process is ready.
    pub health: Health,
    /// What it counted.
    pub metrics: Metrics,
    /// Its end.
    pub stop: CancellationToken,
}

/// Listens until the stop. In a takeover (`waits`) the instance before may have the address until it ends, which is no reason to
/// take none of its mail: we listen as soon as it is free.
///
/// # Errors
/// `AdminError` when there is no such address, or it is in use and we don't wait.
pub async fn listen(address: SocketAddr, waits: bool, shown: Shown) -> Result<(), AdminError> {
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tokio::spawn(serve(listener, address, shown));
        }
        Err(error) if waits && error.kind() == ErrorKind::AddrInUse => {
            let error = AdminError { address, error };
            tracing::warn!(%error, "no metrics until the address is free: does the instance before still finish its work?");
            let admin = shown.health.component("admin");
            admin.not_ready(error.to_string());
            tokio::spawn(async move {
                let listener = tokio::select! {
                    listener = freed(address) => listener,
                    () = shown.stop.cancelled() => return,
                };
                admin.ready();
                serve(listener, address, shown).await;
            });
        }
        Err(error) => return Err(AdminError { address, error }),
    }
    Ok(())
}

async fn freed(address: SocketAddr) -> TcpListener {
    loop {
        tokio::time::sleep(AGAIN).await;
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
    }
}

async fn serve(listener: TcpListener, address: SocketAddr, shown: Shown) {
    let Shown { health, metrics, stop } = shown;
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(health)
        .route(
            "/metrics",
            get(async move || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())),
        );
    tracing::info!(address = %address, "admin listener: /metrics /healthz /readyz");
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "admin listener ended");
    }
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let troubles = health.troubles();
    if troubles.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = troubles.iter().map(|(part, why)| format!("{part}: {why}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}
