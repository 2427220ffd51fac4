//! The admin listener: `/metrics`, `/healthz`, `/readyz`.
//!
//! - Layer: edge
//! - Takes: HTTP requests, on loopback unless told otherwise.
//! - Gives: Prometheus text; `ok`; `ready`, or 503 with the parts that are not.
//! - On failure: an address that can't be bound is an error at start; nothing later ends the daemon.
//! - See: Prometheus text format 0.0.4.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Health;
use crate::telemetry::Metrics;

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

/// Listens until `stop`.
///
/// # Errors
/// `AdminError` when the address is taken.
pub async fn listen(
    address: SocketAddr,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), AdminError> {
    let listener = TcpListener::bind(address).await.map_err(|error| AdminError { address, error })?;
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(health)
        .route(
            "/metrics",
            get(async move || ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())),
        );
    tracing::info!(address = %address, "admin listener: /metrics /healthz /readyz");
    tokio::spawn(async move {
        let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "admin listener ended");
        }
    });
    Ok(())
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let troubles = health.troubles();
    if troubles.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = troubles.iter().map(|(part, why)| format!("{part}: {why}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}
