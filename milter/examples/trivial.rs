//! A filter that adds a header and replaces a URL: `trivial unix:/path/to/socket` or `trivial 127.0.0.1:PORT`.

use std::error::Error;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use mailtap_milter::driver::{Fallback, Handler, Happening, Listener, Response, Settings, UnixSocket, serve};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Interest, Message};

const OLD: &[u8] = b"http://example.com/";
const NEW: &[u8] = b"http://t.example.net/c/";

#[derive(Debug)]
struct Trivial;

impl Handler for Trivial {
    fn headers(&self, message: &Message) -> Interest {
        if message.sender().bare().is_empty() { Interest::Accept } else { Interest::Body }
    }

    async fn message(&self, message: Message, _: &Fallback) -> Response {
        let mut edits = vec![Edit::AddHeader { name: b"X-Trivial-Milter".to_vec(), value: b"yes".to_vec() }];
        let body = replaced(message.body());
        if body != message.body() {
            edits.push(Edit::ReplaceBody(body));
        }
        Answer::edited(edits).into()
    }

    fn observe(&self, happening: &Happening<'_>) {
        if !matches!(happening, Happening::Opened | Happening::Closed { .. } | Happening::Answered { .. }) {
            eprintln!("{happening:?}");
        }
    }
}

fn replaced(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(first) = rest.first() {
        if let Some(after) = rest.strip_prefix(OLD) {
            out.extend_from_slice(NEW);
            rest = after;
        } else {
            out.push(*first);
            rest = &rest[1..];
        }
    }
    out
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let at = std::env::args().nth(1).ok_or("usage: trivial unix:/PATH or HOST:PORT")?;
    let listener = match at.strip_prefix("unix:") {
        Some(path) => Listener::unix(&UnixSocket::new(path, 0o666))?,
        None => Listener::tcp(at.to_socket_addrs()?.next().ok_or("the host has no address")?)?,
    };
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(listener, Arc::new(Trivial), Settings::default(), shutdown).await;
    Ok(())
}
