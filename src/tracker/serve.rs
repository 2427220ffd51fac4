//! The tracker's sockets: HTTP/1.1 in, answers out.
//!
//! - Layer: edge
//! - Takes: a listening socket.
//! - Gives: the answers of `hit`, after their events are stored or the wait is over.
//! - On failure: an error of one connection ends that connection; an error of `accept` is counted, and the loop goes on.
//! - Limits: those of `Limits`: bytes, headers, time, connections. A body is never read.
//! - See: RFC 9112.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HeaderName, HeaderValue, LOCATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::client::{client_address, is_trusted};
use super::connections::{Doing, PerClient, Place, Watch, Watched};
use super::happenings::{
    AcceptFailed, Anonymised, Answered, ConnectionCut, Connections, ConnectionsFull, Listening, Refused,
};
use super::hit::{self, Outcome, World};
use super::hosts::Hosts;
use super::record::Recorder;
use super::request::{Method, Request};
use super::rules::Rules;
use super::settings::{Settings, Site};
use super::utm::UtmParameter;
use crate::consent::Consents;
use crate::keys::Keys;
use crate::service::clock;

/// After an error of `accept` that is ours, like too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub(super) struct State {
    settings: Settings,
    hosts: Hosts<Host>,
    rules: ArcSwap<Rules>,
    keys: Keys,
    consents: Arc<dyn Consents>,
    recorder: Recorder,
    source: String,
    sequence: AtomicU64,
}

/// A tracking host, ready to answer.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) site: Site,
    pub(super) utm: Vec<UtmParameter>,
}

impl State {
    pub(super) fn new(
        settings: Settings,
        hosts: Hosts<Host>,
        rules: Rules,
        keys: Keys,
        consents: Arc<dyn Consents>,
        recorder: Recorder,
        host: &str,
    ) -> Self {
        let rules = ArcSwap::from_pointee(rules);
        let source = format!("mailtap/tracker/{host}");
        // Another process of this host may have had the same moment.
        let sequence = AtomicU64::new(rand::random());
        Self { settings, hosts, rules, keys, consents, recorder, source, sequence }
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn replace_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    fn decide(&self, request: &Request<'_>) -> Outcome {
        let keys = self.keys.current();
        let rules = self.rules.load();
        let host = self.hosts.of(request.host());
        let world = World {
            site: &host.site,
            utm: &host.utm,
            rules: &rules,
            keys: &keys,
            consents: &*self.consents,
            source: &self.source,
            now: clock::now(),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
        };
        hit::decide(request, &world)
    }
}

/// Answers until `stop`, then lets the answers under way go out.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    Listening { address: listener.local_addr().ok() }.emit();
    let limits = state.settings.limits.clone();
    let connections = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let clients = Arc::new(PerClient::default());
    let tasks = TaskTracker::new();
    while let Some(permit) = tokio::select! {
        permit = permit(&connections) => permit,
        () = stop.cancelled() => None,
    } {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                AcceptFailed { error: &error }.emit();
                if !is_the_peers(&error) {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let proxy = is_trusted(peer.ip().to_canonical(), &state.settings.trusted_proxies);
        let limit = if proxy { usize::MAX } else { limits.connections_per_client };
        let Some(place) = clients.place(peer.ip(), limit) else {
            ConnectionCut { reason: "client-limit" }.emit();
            continue;
        };
        Connections { open: tasks.len() + 1, began: true }.emit();
        tasks.spawn(connection(stream, peer, Arc::clone(&state), (permit, place), stop.clone()));
    }
    drop(listener);
    tasks.close();
    // What is still open after this is cut when the process ends.
    let _ = tokio::time::timeout(limits.drain, tasks.wait()).await;
}

async fn permit(connections: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(connections).try_acquire_owned() {
        return Some(permit);
    }
    ConnectionsFull.emit();
    Arc::clone(connections).acquire_owned().await.ok()
}

/// Whether an error of `accept` is about the connection and not about us.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<State>,
    places: (OwnedSemaphorePermit, Place),
    stop: CancellationToken,
) {
    // An answer is one small write: waiting to fill a segment would only delay it.
    let _ = stream.set_nodelay(true);
    let limits = &state.settings.limits;
    let watch = Watch::new();
    let service = service_fn(|request: hyper::Request<Incoming>| answer(request, peer.ip(), &state, &watch));
    let io = TokioIo::new(Watched { stream, watch: Arc::clone(&watch) });
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .max_buf_size(limits.head_bytes)
            .max_headers(limits.headers)
            .header_read_timeout(None)
            .serve_connection(io, service)
    );
    let mut stopping = false;
    let mut look = Instant::now() + limits.head_timeout;
    loop {
        tokio::select! {
            served = serving.as_mut() => {
                if served.is_err_and(|error| error.is_parse()) {
                    ConnectionCut { reason: "protocol" }.emit();
                }
                break;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(look) => match watch.check(limits.head_timeout, limits.idle_timeout) {
                Ok(next) => look = next,
                Err(reason) => {
                    ConnectionCut { reason }.emit();
                    break;
                }
            },
        }
    }
    drop(places);
}

async fn answer(
    request: hyper::Request<Incoming>,
    peer: IpAddr,
    state: &State,
    watch: &Watch,
) -> Result<Response<Whole>, Infallible> {
    watch.set(Doing::Answer);
    let began = Instant::now();
    let Outcome { answer, event, refused, anonymous } = decide(&request, peer, state);
    drop(request);
    if let Some(refusal) = refused {
        Refused(refusal).emit();
    }
    if let Some(reason) = anonymous {
        Anonymised { reason: reason.as_str() }.emit();
    }
    if let Some(event) = event {
        state.recorder.record(event.into()).await;
    }
    Answered { kind: answer.as_str(), took: began.elapsed() }.emit();
    watch.set(Doing::Idle);
    Ok(response(answer))
}

fn decide(request: &hyper::Request<Incoming>, peer: IpAddr, state: &State) -> Outcome {
    let headers: Vec<(&str, &[u8])> =
        request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let forwarded_for =
        headers.iter().filter(|(name, _)| *name == "x-forwarded-for").map(|(_, value)| *value);
    let request = Request {
        method: match *request.method() {
            hyper::Method::GET => Method::Get,
            hyper::Method::HEAD => Method::Head,
            _ => Method::Other,
        },
        path: request.uri().path(),
        headers: &headers,
        client: client_address(peer, forwarded_for, &state.settings.trusted_proxies),
    };
    state.decide(&request)
}

fn response(answer: Answer) -> Response<Whole> {
    let mut response = Response::new(Whole::default());
    *response.status_mut() = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::NOT_FOUND);
    let headers = response.headers_mut();
    for (name, value) in answer.headers() {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Some(location) = answer.location() {
        // A location is visible ASCII; were it not, the answer would be a redirect to nowhere, not an injection.
        if let Ok(location) = HeaderValue::from_str(location) {
            headers.insert(LOCATION, location);
        }
    }
    let body = match answer.into_body() {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => Bytes::from(bytes),
    };
    *response.body_mut() = Whole(Some(body).filter(|body| !body.is_empty()));
    response
}

/// A body that is there as a whole.
#[derive(Debug, Default)]
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
