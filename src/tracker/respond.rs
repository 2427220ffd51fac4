//! From a request of the HTTP library to our decision, and back.
//!
//! - Layer: edge
//! - Takes: a whole head; a body is never read.
//! - Gives: the answer, after its event is stored or the wait is over.
//! - On failure: nothing can fail.
//! - See: RFC 9110.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, ETAG, HOST, HeaderName, HeaderValue, LOCATION};
use hyper::{Method as HttpMethod, Response, StatusCode, Version};
use tokio::time::Instant;

use super::answer::Answer;
use super::client::client_address;
use super::connection::Shared;
use super::connections::Watch;
use super::happenings::{Anonymised, Answered, ClientUnnamed, Limited, Refused};
use super::hit::Outcome;
use super::ledger::Found;
use super::request::{Method, Request, is_host};
use super::rules::Rules;
use super::serve::State;

/// Decides at once; what is left is the wait for the spool, and small: each request has it moved about.
pub(super) fn answer(
    request: hyper::Request<Incoming>,
    peer: IpAddr,
    shared: Arc<Shared>,
    watch: &Arc<Watch>,
) -> impl Future<Output = Result<Response<Whole>, Infallible>> + Send + use<> {
    let answering = watch.answering(request.version() == Version::HTTP_2);
    if !request.body().is_end_stream() {
        watch.has_body();
    }
    let began = Instant::now();
    let state = &shared.state;
    let (Outcome { answer, event, track, headers, refused, anonymous }, rules) =
        if names_one_host(&request) { decide(&request, peer, state) } else { state.bad_request() };
    let is_head = *request.method() == HttpMethod::HEAD;
    drop(request);
    if let Some(refusal) = refused {
        Refused(refusal).emit();
    }
    if let Some(reason) = anonymous {
        Anonymised { reason: reason.as_str() }.emit();
    }
    let stored = event.and_then(|event| state.recorder().record(Box::new(Found { event, track, rules })));
    async move {
        if let Some(stored) = stored {
            // An error means lost, which is counted where it happened.
            let _ = stored.await;
        }
        Answered { kind: answer.as_str(), took: began.elapsed() }.emit(shared.state.meters());
        drop(answering);
        Ok(response(answer, headers, is_head))
    }
}

/// Whether it is clear which host is asked: RFC 9112 section 3.2 has all else of HTTP/1.1 refused.
fn names_one_host(request: &hyper::Request<Incoming>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host(host.as_bytes()),
        (None, _) => request.version() != Version::HTTP_11,
        _ => false,
    }
}

fn decide(request: &hyper::Request<Incoming>, peer: IpAddr, state: &State) -> (Outcome, Arc<Rules>) {
    let mut headers: Vec<(&str, &[u8])> = Vec::with_capacity(request.headers().len() + 1);
    // HTTP/2 has no Host header, and where the request line names the host, it counts (RFC 9112 section 3.2.2).
    let authority = request.uri().host();
    if let Some(host) = authority {
        headers.push(("host", host.as_bytes()));
    }
    let named = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    headers.extend(named.filter(|(name, _)| authority.is_none() || *name != "host"));
    let forwarded_for =
        headers.iter().filter(|(name, _)| *name == "x-forwarded-for").map(|(_, value)| *value);
    let client = client_address(peer, forwarded_for, &state.settings().trusted_proxies);
    let request = Request {
        method: match *request.method() {
            HttpMethod::GET => Method::Get,
            HttpMethod::HEAD => Method::Head,
            _ => Method::Other,
        },
        path: request.uri().path(),
        headers: &headers,
        client: client.address,
        is_client_named: client.is_named,
    };
    let (mut outcome, rules) = state.decide(&request);
    if !client.is_named && outcome.event.is_some() {
        ClientUnnamed { is_first: State::is_first(&state.unnamed) }.emit();
    }
    if let Some(whose) = state.exceeds(&request, &outcome) {
        Limited { whose, event: outcome.event.is_some() }.emit();
        outcome.event = None;
        outcome.answer = outcome.answer.limited();
    }
    outcome.answer = outcome.answer.unless_known(request.all("if-none-match"));
    (outcome, rules)
}

fn response(answer: Answer, more: Vec<(&'static str, String)>, is_head: bool) -> Response<Whole> {
    let mut response = Response::new(Whole::default());
    *response.status_mut() = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::NOT_FOUND);
    let headers = response.headers_mut();
    for (name, value) in answer.headers() {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    for (name, value) in more {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if let Some((name, value)) = answer.content() {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Some(etag) = answer.etag().and_then(|etag| HeaderValue::from_str(etag).ok()) {
        headers.insert(ETAG, etag);
    }
    if let Answer::Redirect(location) = answer {
        // A location is visible ASCII; were it not, the answer would be a redirect to nowhere, not an injection.
        if let Ok(location) = HeaderValue::try_from(location) {
            headers.insert(LOCATION, location);
        }
        return response;
    }
    let body = answer.into_body();
    if is_head && !body.is_empty() {
        // What GET would have. Of HTTP/2 the library sends the body whatever the method was.
        response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        return response;
    }
    *response.body_mut() = Whole(Some(body).filter(|body| !body.is_empty()));
    response
}

/// A body that is there as a whole.
#[derive(Debug, Default)]
pub(super) struct Whole(Option<Bytes>);

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
