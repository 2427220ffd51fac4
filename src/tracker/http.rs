//! HTTP on one connection: which version it is, and requests until somebody ends it.
//!
//! - Layer: edge
//! - Takes: a stream of bytes, from the first one on.
//! - Gives: answers. A connection of HTTP/1.1 that rests gives its buffers back, and gets new ones with the next request.
//! - On failure: the reason for which the connection is cut.
//! - Limits: those of `Limits`; 64 requests at once on a connection of HTTP/2.
//! - See: RFC 9112, RFC 9113 section 3.4.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::connection::{Shared, begin};
use super::connections::{Told, Watch};
use super::mend::Mender;
use super::respond::{self, Whole};
use super::settings::Limits;

/// What a connection of HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests at once on a connection of HTTP/2.
const MAX_STREAMS: u32 = 64;
/// Requests of HTTP/2 that the client took back before they were looked at; more end the connection (CVE-2023-44487).
const MAX_RESETS: usize = 20;
/// The same for those that were answered already.
const MAX_LOCAL_RESETS: usize = 256;
/// How long a connection keeps its buffers between two requests. One that soon has no more is the most usual.
const REST_AFTER: Duration = Duration::from_millis(20);
/// How often one that is busy is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How HTTP is spoken.
#[derive(Debug)]
pub(super) struct Http {
    one: http1::Builder,
    two: http2::Builder<TokioExecutor>,
}

impl Http {
    pub(super) fn new(limits: &Limits) -> Self {
        let mut one = http1::Builder::new();
        // Who sends no more may still be waiting for an answer (RFC 9112 section 9.6): many programs close their half at once.
        one.max_buf_size(limits.head_bytes)
            .max_headers(limits.headers)
            .header_read_timeout(None)
            .half_close(true);
        let mut two = http2::Builder::new(TokioExecutor::new());
        two.max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS);
        Self { one, two }
    }
}

/// What requests come over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket that becomes readable when there is something to read.
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Answers requests until the connection ends.
pub(super) async fn requests<S: Stream>(
    mut stream: S,
    client: IpAddr,
    shared: &Arc<Shared>,
    watch: &Arc<Watch>,
) -> Result<(), &'static str> {
    // Who goes without having asked is none to count.
    let Ok((is_two, begun)) = begin(shared, watch, version(&mut stream)).await? else { return Ok(()) };
    let mut mender = if is_two { Mender::off() } else { Mender::new() };
    let begun = mender.mend(&begun).map_or(begun, Bytes::from);
    let io = Watched { stream, begun, mender, watch: Arc::clone(watch) };
    if !is_two {
        return one(io, client, shared, watch).await;
    }
    let service = service(client, Arc::clone(shared), Arc::clone(watch));
    let mut serving = Box::pin(shared.http.two.serve_connection(TokioIo::new(io), service));
    let shutdown = http2::Connection::graceful_shutdown;
    drive(serving.as_mut(), shutdown, Duration::MAX, shared, watch).await.map(drop)
}

/// Whether a connection begins as HTTP/2 does, and the bytes that it begins with.
async fn version(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(bool, Bytes)> {
    let mut bytes = [0; PREFACE.len()];
    let mut filled = 0;
    loop {
        let read = stream.read(bytes.get_mut(filled..).unwrap_or_default()).await?;
        filled += read;
        let begun = bytes.get(..filled).unwrap_or_default();
        if read == 0 || filled == PREFACE.len() || !PREFACE.starts_with(begun) {
            return Ok((begun == PREFACE, Bytes::copy_from_slice(begun)));
        }
    }
}

/// HTTP/1.1, resting in between.
async fn one<S: Stream>(
    mut io: Watched<S>,
    client: IpAddr,
    shared: &Arc<Shared>,
    watch: &Arc<Watch>,
) -> Result<(), &'static str> {
    loop {
        let service = service(client, Arc::clone(shared), Arc::clone(watch));
        let mut serving = Box::new(shared.http.one.serve_connection(TokioIo::new(io), service));
        let shutdown = http1::Connection::graceful_shutdown;
        if drive(Pin::new(&mut *serving), shutdown, REST_AFTER, shared, watch).await? == Driven::Ended {
            return Ok(());
        }
        let parts = serving.into_parts();
        io = parts.io.into_inner();
        if !(parts.read_buf.is_empty() && io.begun.is_empty()) {
            // The beginning of a head came together with the last request.
            io.begun = match io.begun.is_empty() {
                true => parts.read_buf,
                false => [parts.read_buf, io.begun].concat().into(),
            };
            watch.heard();
            continue;
        }
        // Empty, but the whole buffer behind it.
        drop(parts.read_buf);
        if rest(&io, shared, watch).await? == Driven::Ended {
            return Ok(());
        }
    }
}

/// How far a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driven {
    /// It is over.
    Ended,
    /// It waits for a request, or one has come.
    Goes,
}

/// Serves until the end, or until there was nothing to do for `rest_after`.
async fn drive<F: Future<Output = hyper::Result<()>>>(
    mut serving: Pin<&mut F>,
    shutdown: impl Fn(Pin<&mut F>),
    rest_after: Duration,
    shared: &Shared,
    watch: &Watch,
) -> Result<Driven, &'static str> {
    let limits = &shared.state.settings().limits;
    let mut stopping = false;
    let mut look = Instant::now() + limits.head_timeout.min(rest_after);
    loop {
        tokio::select! {
            biased;
            served = serving.as_mut() => {
                let cut = served.is_err_and(|error| is_protocol(&error));
                return if cut { Err("protocol") } else { Ok(Driven::Ended) };
            }
            told = watch.told() => match told {
                Told::Evicted => return Err("full"),
                Told::Stopping => {
                    stopping = true;
                    shutdown(serving.as_mut());
                }
            },
            () = tokio::time::sleep_until(look) => {
                look = watch.check(limits.head_timeout, limits.idle_timeout)?;
                if !stopping && watch.rests(rest_after) {
                    return Ok(Driven::Goes);
                }
                look = look.min(Instant::now() + rest_after.max(LOOK_EVERY).min(limits.head_timeout));
            }
        }
    }
}

/// Waits for the next request without anything to read it into.
async fn rest<S: Stream>(io: &Watched<S>, shared: &Shared, watch: &Watch) -> Result<Driven, &'static str> {
    let limits = &shared.state.settings().limits;
    loop {
        let look = watch.check(limits.head_timeout, limits.idle_timeout)?;
        tokio::select! {
            biased;
            ready = io.stream.socket().readable() => {
                return Ok(if ready.is_ok() { Driven::Goes } else { Driven::Ended });
            }
            told = watch.told() => return match told {
                Told::Evicted => Err("full"),
                Told::Stopping => Ok(Driven::Ended),
            },
            () = tokio::time::sleep_until(look) => {}
        }
    }
}

fn service(
    client: IpAddr,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
) -> impl Service<Request<Incoming>, Response = Response<Whole>, Error = Infallible, Future: Send> + Unpin {
    service_fn(move |request| respond::answer(request, client, Arc::clone(&shared), &watch))
}

/// Whether the client spoke no HTTP, and did not just go away.
fn is_protocol(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<io::Error>() {
            return false;
        }
        source = cause.source();
    }
    error.is_parse() || !(error.is_incomplete_message() || error.is_canceled() || error.is_closed())
}

/// A connection that tells its watch when bytes come, and whether they go.
#[derive(Debug)]
struct Watched<S> {
    stream: S,
    /// What was read already, and mended.
    begun: Bytes,
    mender: Mender,
    watch: Arc<Watch>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.begun.is_empty() {
            let bytes = self.begun.len().min(buf.remaining());
            buf.put_slice(self.begun.get(..bytes).unwrap_or_default());
            self.begun.advance(bytes);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().get(before..).unwrap_or_default();
        if !read.is_empty() {
            self.watch.heard();
            if let Some(mended) = self.mender.mend(read) {
                // There may be more now than there is room for.
                buf.set_filled(before);
                self.begun = mended.into();
                return self.poll_read(cx, buf);
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch.blocked(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A redirect has no body: `send` is cheaper than `writev`.
        if let [one] = bufs {
            return self.poll_write(cx, one);
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch.blocked(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if polled.is_pending() {
            self.watch.blocked(true);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection;

    fn bytes<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_rests_takes_little_room() {
        let bytes = bytes(connection::run);
        assert!(bytes <= 3_072, "{bytes} bytes for the task of a connection");
    }
}
