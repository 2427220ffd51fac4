//! The least a filter can do, to compare with others: `plain null ADDRESS` sees nothing but the end of each message,
//! `plain replace ADDRESS` replaces the body by itself and adds a header, `plain grow ADDRESS PERCENT` by one of so many
//! percent of its size. ADDRESS as in `trivial`.

use std::error::Error;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use mailtap_milter::driver::{Fallback, Handler, Listener, Response, Settings, UnixSocket, serve};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Message, Wanted};
use mailtap_milter::wire::{Actions, Protocol};

/// What a body grows by.
const LINE: &[u8] = b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n";

#[derive(Debug)]
struct Plain {
    /// What a new body has of the old one's size; nothing: no new one.
    percent: Option<usize>,
}

impl Handler for Plain {
    async fn message(&self, message: Message, _: &Fallback) -> Response {
        let Some(percent) = self.percent else { return Answer::unmodified().into() };
        let name = b"X-Bench".to_vec();
        let value = b"yes".to_vec();
        let bytes = message.body().len() * percent / 100;
        let mut body = message.into_body();
        while body.len() < bytes {
            body.extend_from_slice(LINE);
        }
        Answer::edited(vec![Edit::AddHeader { name, value }, Edit::ReplaceBody(body)]).into()
    }
}

/// Nothing but the end of the message.
fn nothing() -> Wanted {
    let protocol = Wanted::FEW_ROUND_TRIPS
        | Protocol::NO_MAIL
        | Protocol::NO_RCPT
        | Protocol::NO_DATA
        | Protocol::NO_HEADERS
        | Protocol::NO_END_OF_HEADERS
        | Protocol::NO_BODY;
    let mut wanted = Wanted::default();
    wanted.required = Actions::NONE;
    wanted.protocol = protocol;
    wanted
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(what), Some(at)) = (args.next(), args.next()) else {
        return Err("usage: plain null|replace|grow unix:/PATH|HOST:PORT [PERCENT]".into());
    };
    let percent = match what.as_str() {
        "null" => None,
        "grow" => Some(args.next().ok_or("grow by how much?")?.parse()?),
        _ => Some(100),
    };
    let listener = match at.strip_prefix("unix:") {
        Some(path) => Listener::unix(&UnixSocket::new(path, 0o666))?,
        None => Listener::tcp(at.to_socket_addrs()?.next().ok_or("the host has no address")?)?,
    };
    let mut settings = Settings::default();
    settings.wanted = percent.map_or_else(nothing, |_| Wanted::default());
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(listener, Arc::new(Plain { percent }), settings, shutdown).await;
    Ok(())
}
