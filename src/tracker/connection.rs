//! One connection: whom it comes from, TLS, and then `http` until somebody ends it.
//!
//! - Layer: edge
//! - Takes: an accepted socket.
//! - Gives: answers, by HTTP/1.1 and HTTP/2.
//! - On failure: an error ends this connection and no other; it is counted by its reason.
//! - Limits: those of `Limits`.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;

use super::client::is_trusted;
use super::connections::{Crowd, PerClient, Told, Watch};
use super::happenings::{ConnectionCut, HandshakeFailed, ProxyUntrusted};
use super::http::{self, Http};
use super::proxy;
use super::serve::State;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Arc<State>,
    pub(super) clients: Arc<PerClient>,
    pub(super) crowd: Arc<Crowd>,
    pub(super) http: Http,
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
            if State::is_first(&shared.state.untrusted) {
                ProxyUntrusted.emit();
            }
            return Err("proxy-untrusted");
        }
        client = Box::pin(begin(shared, watch, read_proxy(&mut stream))).await??.unwrap_or(peer);
    }
    let is_proxy = is_trusted(client, &settings.trusted_proxies);
    let limit = if is_proxy { usize::MAX } else { settings.limits.connections_per_client };
    let _place = shared.clients.place(client, limit).ok_or("client-limit")?;
    let Some(tls) = tls else { return http::requests(stream, client, shared, watch).await };
    // Boxed: connections without TLS would need the room, too.
    match Box::pin(begin(shared, watch, tls.accept(stream))).await? {
        Ok(stream) => Box::pin(http::requests(stream, client, shared, watch)).await,
        Err(error) => {
            HandshakeFailed { error: &error }.emit();
            Err("handshake")
        }
    }
}

/// Something that comes before the first request, within the time for a head.
pub(super) async fn begin<T>(
    shared: &Shared,
    watch: &Watch,
    future: impl Future<Output = T>,
) -> Result<T, &'static str> {
    tokio::select! {
        done = tokio::time::timeout(shared.state.settings().limits.head_timeout, future) => {
            done.map_err(|_| "head-timeout")
        }
        told = watch.told() => Err(match told {
            Told::Evicted => "full",
            Told::Stopping => "stopping",
        }),
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
