//! How a receiver is reached, and what is spoken there.
//!
//! - Layer: edge
//! - Takes: a receiver's URL.
//! - Gives: HTTP/2 or HTTP/1.1 over a new connection: by ALPN over TLS, by `h2c` without it.
//! - On failure: the cause in words, without the URL's path and query: nothing was sent.
//! - Limits: `timeout` for name, connection and TLS together.
//! - See: RFC 9113 section 3; `docs/ga4.md`, "Connections".

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::client::conn::http1;
use hyper::service::Service;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::body::Body;

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// So that a receiver that is gone is noticed while it is waited for.
const KEEPALIVE: Duration = Duration::from_secs(15);
const UNHEARD: Duration = Duration::from_secs(30);

/// A connection on which requests can be made.
pub(super) enum Channel {
    Http1(http1::SendRequest<Body>),
    Http2(h2::client::SendRequest<Body>),
}

/// The way to a receiver.
pub(super) struct Dial {
    /// Its scheme, name and port.
    origin: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    h2c: bool,
    /// What stands between, by `HTTPS_PROXY` and its like.
    proxy: Option<Intercept>,
    http: HttpConnector,
    timeout: Duration,
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// What all ways share.
pub(super) struct Means {
    tls: TlsConnector,
    proxies: Matcher,
    h2c: bool,
    timeout: Duration,
}

impl Means {
    /// With the system's authorities, or those that `SSL_CERT_FILE` names.
    pub(super) fn new(h2c: bool, timeout: Duration, proxies: Matcher) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_platform_verifier()?.with_no_client_auth();
        config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), proxies, h2c, timeout })
    }

    /// The way to the receiver of a URL; none to one that is not of HTTP, or has a user.
    pub(super) fn dial(&self, url: &Uri) -> Option<Dial> {
        let (scheme, authority) = (url.scheme_str()?, url.authority()?);
        if authority.as_str().contains('@') {
            return None;
        }
        let origin = Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query("/");
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match scheme {
            "https" => Some((self.tls.clone(), ServerName::try_from(name).ok()?)),
            "http" => None,
            _ => return None,
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(self.timeout));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_tcp_user_timeout(Some(UNHEARD));
        let origin = origin.build().ok()?;
        Some(Dial {
            proxy: self.proxies.intercept(&origin),
            origin,
            tls,
            h2c: self.h2c,
            http,
            timeout: self.timeout,
        })
    }
}

impl Dial {
    /// Its scheme, name and port.
    pub(super) fn origin(&self) -> &Uri {
        &self.origin
    }

    /// The proxy that requests themselves go to: one without TLS, which has to be told where they are for.
    pub(super) fn forwarder(&self) -> Option<&Intercept> {
        self.proxy.as_ref().filter(|_| self.tls.is_none())
    }

    /// Connects.
    pub(super) async fn open(&self) -> Result<Channel, String> {
        match tokio::time::timeout(self.timeout, self.connect()).await {
            Ok(opened) => opened,
            Err(_) => Err("no connection in time".into()),
        }
    }

    async fn connect(&self) -> Result<Channel, String> {
        let stream = self.stream().await?;
        let Some((tls, name)) = &self.tls else {
            return speak(stream, self.h2c && self.proxy.is_none()).await;
        };
        let stream = tls.connect(name.clone(), stream).await.map_err(|error| cause(&error))?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        speak(stream, http2).await
    }

    async fn stream(&self) -> Result<TcpStream, String> {
        let http = self.http.clone();
        let Some(proxy) = &self.proxy else {
            return reach(TowerToHyperService::new(http), &self.origin).await;
        };
        if proxy.uri().scheme_str() != Some("http") {
            return Err("the proxy's URL in the environment must begin with http://".into());
        }
        if self.tls.is_none() {
            return reach(TowerToHyperService::new(http), proxy.uri()).await;
        }
        let tunnel = Tunnel::new(proxy.uri().clone(), http);
        let tunnel = match proxy.basic_auth() {
            Some(auth) => tunnel.with_auth(auth.clone()),
            None => tunnel,
        };
        reach(TowerToHyperService::new(tunnel), &self.origin).await
    }
}

async fn reach<S>(service: S, to: &Uri) -> Result<TcpStream, String>
where
    S: Service<Uri, Response = TokioIo<TcpStream>, Error: Error + 'static>,
{
    service.call(to.clone()).await.map(TokioIo::into_inner).map_err(|error| cause(&error))
}

/// Begins to speak. What happens on the connection is told to those who wait for answers.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
) -> Result<Channel, String> {
    if http2 {
        let builder = h2::client::Builder::new().enable_push(false).handshake(stream);
        let (sender, connection) = builder.await.map_err(|error| cause(&error))?;
        tokio::spawn(connection);
        return Ok(Channel::Http2(sender));
    }
    let opened = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = opened.map_err(|error| cause(&error))?;
    tokio::spawn(connection);
    Ok(Channel::Http1(sender))
}

/// What went wrong at the bottom.
pub(super) fn cause(error: &(dyn Error + 'static)) -> String {
    let mut bottom = error;
    while let Some(next) = bottom.source() {
        bottom = next;
    }
    bottom.to_string()
}
