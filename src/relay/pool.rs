//! Connections to one receiver, and requests over them.
//!
//! - Layer: edge
//! - Takes: the way to the receiver; requests.
//! - Gives: the status of each answer.
//! - On failure: whether the receiver can have seen the request; while a place is looked for it certainly has not. One that it certainly has not goes once more at once, over another
//!   connection where the first is closed: receivers close them whenever they like.
//! - Limits: one HTTP/2 connection; over HTTP/1.1 as many as requests are under way. Idle ones are closed. 64 KiB of an answer are
//!   read.
//! - See: RFC 9113, sections 6.8 and 8.7, for what a receiver has certainly not seen.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::noop_waker_ref;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, Uri, Version};
use tokio::time::Instant;

use super::body::{Body, Touched};
use super::dial::{Channel, Dial, cause};

/// Shorter than receivers and what stands before them usually wait: who closes first never cuts a request.
pub(super) const LONGEST_IDLE: Duration = Duration::from_secs(40);
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// What is read of an answer, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What all requests to a property have, but for their bodies. Holds the API secret.
pub(super) struct Head {
    http2: (Uri, HeaderMap),
    http1: (Uri, HeaderMap),
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Head")
    }
}

impl Head {
    /// Of a URL and the way there; none if the URL has no path.
    pub(super) fn new(url: Uri, headers: HeaderMap, dial: &Dial) -> Option<Self> {
        let host = HeaderValue::try_from(url.authority()?.as_str()).ok()?;
        // Its place is there already when the number comes.
        let mut http2 = (url.clone(), headers.clone());
        http2.1.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let mut http1 = (Uri::from(url.path_and_query()?.clone()), headers);
        http1.1.insert(HOST, host);
        if let Some(proxy) = dial.forwarder() {
            http1.0 = url;
            http1.1.extend(proxy.basic_auth().map(|auth| (PROXY_AUTHORIZATION, auth.clone())));
        }
        Some(Self { http2, http1 })
    }

    fn request<T>(&self, version: Version, body: T) -> Request<T> {
        let (url, headers) = if version == Version::HTTP_2 { &self.http2 } else { &self.http1 };
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.version_mut() = version;
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers.clone();
        request
    }
}

/// Why a request was not answered.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// The receiver has not seen it.
    pub(super) is_unseen: bool,
}

/// An answer that has begun.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    Http1(Incoming, http1::SendRequest<Body>),
    Http2(h2::RecvStream),
}

impl Answer {
    /// Whether there is no more of it, and nothing that waits for its end.
    pub(super) fn is_over(&self) -> bool {
        matches!(&self.rest, Rest::Http2(rest) if rest.is_end_stream())
    }
}

/// The connections.
#[derive(Debug)]
pub(super) struct Pool {
    dial: Arc<Dial>,
    /// Held by who opens a connection that others will share.
    opening: tokio::sync::Mutex<()>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    http2: Option<Idle<h2::client::SendRequest<Body>>>,
    http1: Vec<Idle<http1::SendRequest<Body>>>,
    /// What the receiver spoke last.
    speaks_http1: bool,
    is_swept: bool,
}

#[derive(Debug)]
struct Idle<T> {
    sender: T,
    /// Since when it is idle, if it is.
    since: Instant,
    /// When it last answered.
    answered: Option<Instant>,
}

impl<T> Idle<T> {
    fn new(sender: T) -> Self {
        Self { sender, since: Instant::now(), answered: None }
    }

    fn is_fresh(&self) -> bool {
        self.since.elapsed() < LONGEST_IDLE
    }
}

impl Kept {
    fn close_idle(&mut self) {
        self.http2 = self.http2.take().filter(Idle::is_fresh);
        self.http1.retain(Idle::is_fresh);
    }

    /// A connection that is not known to be closed; the one that was used last.
    fn take(&mut self) -> Option<Channel> {
        self.close_idle();
        if let Some(mut sender) = self.http2.as_ref().map(|idle| idle.sender.clone()) {
            // One that closes takes no more requests, though it may still answer some.
            if matches!(sender.poll_ready(&mut Context::from_waker(noop_waker_ref())), Poll::Ready(Ok(()))) {
                return Some(Channel::Http2(sender));
            }
            self.http2 = None;
        }
        std::iter::from_fn(|| self.http1.pop())
            .find(|idle| !idle.sender.is_closed())
            .map(|idle| Channel::Http1(idle.sender))
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new(dial: Arc<Dial>) -> Self {
        Self { dial, opening: tokio::sync::Mutex::default(), kept: Arc::default() }
    }

    /// Finds a connection on which a request can go now. Nothing is written. May be dropped meanwhile.
    pub(super) async fn place(&self) -> Result<Channel, String> {
        match self.channel().await? {
            Channel::Http1(mut sender) => match sender.ready().await {
                Ok(()) => Ok(Channel::Http1(sender)),
                // Closed since it was used last.
                Err(_) => self.channel().await,
            },
            channel => Ok(channel),
        }
    }

    /// Sends a request from its place and waits for the answer. May be dropped meanwhile.
    pub(super) async fn send(
        &self,
        place: Channel,
        head: &Head,
        body: &Bytes,
        touched: &Touched,
    ) -> Result<Answer, Failure> {
        match self.send_once(place, head, Body::new(body.clone(), touched)).await {
            Err(failure) if failure.is_unseen || !touched.is_so() => {}
            answered => return answered,
        }
        let place = self.channel().await.map_err(|why| Failure { why, is_unseen: true })?;
        let again = self.send_once(place, head, Body::new(body.clone(), touched)).await;
        again.map_err(|failure| Failure { is_unseen: failure.is_unseen || !touched.is_so(), ..failure })
    }

    /// Reads what the answer says, which changes nothing: so that its connection can be used again.
    pub(super) async fn read(&self, answer: Answer) {
        let mut read = 0;
        match answer.rest {
            Rest::Http2(mut rest) => {
                while let Some(Ok(chunk)) = rest.data().await {
                    read += chunk.len();
                    if read > MAX_ANSWER_BYTES || rest.flow_control().release_capacity(chunk.len()).is_err() {
                        return;
                    }
                }
            }
            Rest::Http1(mut rest, sender) => {
                while let Some(frame) = poll_fn(|context| Pin::new(&mut rest).poll_frame(context)).await {
                    read += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                    if read > MAX_ANSWER_BYTES || frame.is_err() {
                        return;
                    }
                }
                lock(&self.kept).http1.push(Idle::new(sender));
            }
        }
    }

    /// Leaves a connection on which nothing was answered since then; it is closed once all requests on it have ended.
    pub(super) fn leave_silent(&self, since: Instant) {
        let mut kept = lock(&self.kept);
        kept.http2 = kept.http2.take().filter(|idle| idle.answered.is_some_and(|at| at > since));
    }

    /// Whether no connection is kept that is not known to be closed.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let kept = lock(&self.kept);
        kept.http2.is_none() && kept.http1.iter().all(|idle| idle.sender.is_closed())
    }

    async fn send_once(&self, place: Channel, head: &Head, body: Body) -> Result<Answer, Failure> {
        match place {
            Channel::Http2(sender) => match over_http2(sender, head, body).await {
                Ok(answer) => {
                    if let Some(idle) = &mut lock(&self.kept).http2 {
                        idle.since = Instant::now();
                        idle.answered = Some(idle.since);
                    }
                    Ok(answer)
                }
                Err(error) => Err(Failure { why: cause(&error), is_unseen: is_unseen(&error) }),
            },
            Channel::Http1(sender) => over_http1(sender, head, body)
                .await
                .map_err(|error| Failure { why: cause(&error), is_unseen: false }),
        }
    }

    async fn channel(&self) -> Result<Channel, String> {
        if let Some(channel) = lock(&self.kept).take() {
            return Ok(channel);
        }
        let one = self.opening.lock().await;
        let speaks_http1 = {
            let mut kept = lock(&self.kept);
            if let Some(channel) = kept.take() {
                return Ok(channel);
            }
            kept.speaks_http1
        };
        if speaks_http1 {
            drop(one);
        }
        let channel = self.dial.open().await?;
        let mut kept = lock(&self.kept);
        match &channel {
            Channel::Http1(_) => kept.speaks_http1 = true,
            Channel::Http2(sender) => {
                kept.speaks_http1 = false;
                kept.http2 = Some(Idle::new(sender.clone()));
            }
        }
        if !std::mem::replace(&mut kept.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.kept)));
        }
        Ok(channel)
    }
}

/// Closes what is idle, for as long as anything is kept.
async fn sweep(kept: Weak<Mutex<Kept>>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = lock(&kept);
        kept.close_idle();
        kept.is_swept = kept.http2.is_some() || !kept.http1.is_empty();
        if !kept.is_swept {
            return;
        }
    }
}

async fn over_http2(
    mut sender: h2::client::SendRequest<Body>,
    head: &Head,
    body: Body,
) -> Result<Answer, h2::Error> {
    let mut request = head.request(Version::HTTP_2, ());
    request.headers_mut().insert(CONTENT_LENGTH, body.remaining().into());
    let (answer, mut stream) = sender.send_request(request, false)?;
    stream.send_data(body, true)?;
    let (head, rest) = answer.await?.into_parts();
    Ok(Answer { status: head.status.as_u16(), rest: Rest::Http2(rest) })
}

async fn over_http1(
    mut sender: http1::SendRequest<Body>,
    head: &Head,
    body: Body,
) -> Result<Answer, hyper::Error> {
    sender.ready().await?;
    let (head, rest) = sender.send_request(head.request(Version::HTTP_11, body)).await?.into_parts();
    Ok(Answer { status: head.status.as_u16(), rest: Rest::Http1(rest, sender) })
}

/// Whether the receiver says that it has not looked at the request.
fn is_unseen(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let going = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (refused || going)
}
