//! One connection: whom it comes from, TLS, and then requests until somebody ends it.
//!
//! - Layer: edge
//! - Takes: an accepted socket.
//! - Gives: answers, by HTTP/1.1 and HTTP/2.
//! - On failure: an error ends this connection and no other; it is counted by its reason.
//! - Limits: those of `Limits`; 64 requests at once on a connection of HTTP/2.
//! - See: RFC 9112, RFC 9113.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::client::is_trusted;
use super::connections::{Crowd, PerClient, Watch, Watched};
use super::happenings::{ConnectionCut, HandshakeFailed};
use super::proxy;
use super::respond;
use super::serve::State;
use super::settings::Limits;

/// Requests at once on a connection of HTTP/2.
const MAX_STREAMS: u32 = 64;
/// Requests of HTTP/2 that the client took back before they were looked at; more end the connection (CVE-2023-44487).
const MAX_RESETS: usize = 20;
/// The same for those that were answered already.
const MAX_LOCAL_RESETS: usize = 256;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Arc<State>,
    pub(super) clients: Arc<PerClient>,
    pub(super) crowd: Arc<Crowd>,
    pub(super) http: auto::Builder<TokioExecutor>,
    pub(super) stop: CancellationToken,
}

/// How HTTP is spoken.
pub(super) fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().max_buf_size(limits.head_bytes).max_headers(limits.headers).header_read_timeout(None);
    http.http2()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS);
    http
}

/// Serves a connection to its end.
pub(super) async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    permit: OwnedSemaphorePermit,
) {
    let watch = Watch::new();
    let member = shared.crowd.join(&watch);
    if let Err(reason) = serve(stream, peer.ip().to_canonical(), &shared, tls, &watch).await {
        ConnectionCut { reason }.emit();
    }
    // In this order: a place that is free is no longer counted.
    drop(member);
    drop(permit);
}

async fn serve(
    mut stream: TcpStream,
    peer: IpAddr,
    shared: &Arc<Shared>,
    tls: Option<TlsAcceptor>,
    watch: &Arc<Watch>,
) -> Result<(), &'static str> {
    // An answer is one small write: waiting to fill a segment would only delay it.
    let _ = stream.set_nodelay(true);
    let settings = shared.state.settings();
    let mut client = peer;
    if settings.proxy_protocol {
        if !is_trusted(peer, &settings.trusted_proxies) {
            return Err("proxy-untrusted");
        }
        client = begin(shared, watch, read_proxy(&mut stream)).await??.unwrap_or(peer);
    }
    let is_proxy = is_trusted(client, &settings.trusted_proxies);
    let limit = if is_proxy { usize::MAX } else { settings.limits.connections_per_client };
    let _place = shared.clients.place(client, limit).ok_or("client-limit")?;
    let Some(tls) = tls else { return requests(stream, client, shared, watch).await };
    match begin(shared, watch, tls.accept(stream)).await? {
        Ok(stream) => requests(stream, client, shared, watch).await,
        Err(error) => {
            HandshakeFailed { error: &error }.emit();
            Err("handshake")
        }
    }
}

/// Something that comes before the first request, within the time for a head.
async fn begin<T>(
    shared: &Shared,
    watch: &Watch,
    future: impl Future<Output = T>,
) -> Result<T, &'static str> {
    tokio::select! {
        done = tokio::time::timeout(shared.state.settings().limits.head_timeout, future) => {
            done.map_err(|_| "head-timeout")
        }
        () = watch.evicted() => Err("full"),
        () = shared.stop.cancelled() => Err("stopping"),
    }
}

/// The client that a PROXY header names; not one byte behind the header is read.
async fn read_proxy(stream: &mut TcpStream) -> Result<Option<IpAddr>, &'static str> {
    let mut bytes = [0; proxy::MAX_BYTES];
    let mut filled = 0;
    loop {
        let read = bytes.get(..filled).unwrap_or_default();
        if let Some(header) = proxy::parse(read).map_err(proxy::ProxyError::as_str)? {
            return Ok(header.client);
        }
        let end = filled + proxy::missing(read);
        let room = bytes.get_mut(filled..end).ok_or("proxy-length")?;
        match stream.read(room).await {
            Ok(more) if more > 0 => filled += more,
            _ => return Err("proxy-signature"),
        }
    }
}

async fn requests<S>(
    stream: S,
    client: IpAddr,
    shared: &Arc<Shared>,
    watch: &Arc<Watch>,
) -> Result<(), &'static str>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.state.settings().limits;
    let (of_service, watch_of_service) = (Arc::clone(shared), Arc::clone(watch));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        respond::answer(request, client, Arc::clone(&of_service), Arc::clone(&watch_of_service))
    });
    let io = TokioIo::new(Watched { stream, watch: Arc::clone(watch) });
    let mut serving = std::pin::pin!(shared.http.serve_connection(io, service));
    let mut stopping = false;
    let mut look = Instant::now() + limits.head_timeout;
    loop {
        tokio::select! {
            served = serving.as_mut() => {
                return if served.is_err_and(|error| is_protocol(&*error)) { Err("protocol") } else { Ok(()) };
            }
            () = shared.stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            () = watch.evicted() => return Err("full"),
            () = tokio::time::sleep_until(look) => look = watch.check(limits.head_timeout, limits.idle_timeout)?,
        }
    }
}

/// Whether the client spoke no HTTP, and did not just go away.
fn is_protocol(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return false };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return false;
        }
        source = cause.source();
    }
    error.is_parse() || !(error.is_incomplete_message() || error.is_canceled() || error.is_closed())
}
