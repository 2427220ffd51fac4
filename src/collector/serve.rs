//! HTTP as the collector speaks it: like any server, but it can also leave a request without an answer.
//!
//! - Layer: edge
//! - Takes: a listener, the application; a certificate and its key, if it is to speak TLS.
//! - Gives: answers over HTTP/1.1 and HTTP/2, by ALPN or by prior knowledge; a response marked as broken off closes its
//!   connection instead, or resets its stream.
//! - On failure: a connection that can't be accepted is passed over after a moment.
//! - Limits: when stopping, connections get two seconds. A connection carries 100 requests at once over HTTP/2.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
const HANDSHAKE: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(2);
/// As many as other servers let run at once.
const STREAMS: u32 = 100;

/// Marks a response that is not to be written.
#[derive(Debug, Clone, Copy)]
struct BreakOff;

/// A response that closes the connection.
pub(super) fn broken_off() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(BreakOff);
    response
}

/// A certificate chain and its key, both in PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Tls {
    /// What speaks TLS with it, HTTP/2 preferred.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let failed = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| failed(&self.certificate, &error))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| failed(&self.key, &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| failed(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Serves until `stop`; `opened` is called for each connection.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Router,
    stop: CancellationToken,
    opened: impl Fn(),
) {
    let graceful = Arc::new(GracefulShutdown::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        opened();
        let _ = stream.set_nodelay(true);
        let (app, stop) = (app.clone(), stop.clone());
        match tls.clone() {
            None => converse(stream, app, &graceful),
            Some(tls) => {
                let graceful = graceful.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => {
                            if let Ok(Ok(stream)) = shaken {
                                converse(stream, app, &graceful);
                            }
                        }
                        () = stop.cancelled() => {}
                    }
                });
            }
        }
    }
    if let Some(graceful) = Arc::into_inner(graceful) {
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }
}

fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    graceful: &GracefulShutdown,
) {
    let inner = TowerToHyperService::new(app);
    let service = service_fn(move |request| {
        let response = inner.call(request);
        async move {
            match response.await {
                Ok(response) if response.extensions().get::<BreakOff>().is_none() => Ok(response),
                _ => Err(std::io::Error::other("told to break off")),
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(STREAMS);
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    tokio::spawn(graceful.watch(connection));
}
