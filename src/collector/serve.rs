//! HTTP as the collector speaks it: like any server, but it can also leave a request without an answer.
//!
//! - Layer: edge
//! - Takes: a listener, the application.
//! - Gives: answers; a response marked as broken off closes its connection instead.
//! - On failure: a connection that can't be accepted is passed over after a moment.
//! - Limits: when stopping, connections get two seconds.

use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
const DRAIN: Duration = Duration::from_secs(2);

/// Marks a response that is not to be written.
#[derive(Debug, Clone, Copy)]
struct BreakOff;

/// A response that closes the connection.
pub(super) fn broken_off() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(BreakOff);
    response
}

/// Serves until `stop`.
pub(super) async fn serve(listener: TcpListener, app: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
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
        tokio::spawn(graceful.watch(connection));
    }
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}
