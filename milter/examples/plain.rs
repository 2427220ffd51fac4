//! The least a filter can do, to compare with others: `plain null ADDRESS` sees nothing but the end of each message,
//! `plain replace ADDRESS` replaces the body by itself and adds a header. ADDRESS as in `trivial`.

use std::error::Error;
use std::sync::Arc;

use mailtap_milter::driver::{Handler, Listener, Response, Settings, UnixSocket, serve};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Message, Wanted};
use mailtap_milter::wire::{Actions, Protocol};

#[derive(Debug)]
struct Plain {
    replaces: bool,
}

impl Handler for Plain {
    async fn message(&self, message: Message) -> Response {
        if !self.replaces {
            return Answer::unmodified().into();
        }
        let name = b"X-Bench".to_vec();
        let value = b"yes".to_vec();
        Answer::edited(vec![Edit::AddHeader { name, value }, Edit::ReplaceBody(message.body().to_vec())])
            .into()
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
    Wanted { required: Actions::NONE, protocol, ..Wanted::default() }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(what), Some(at)) = (args.next(), args.next()) else {
        return Err("usage: plain null|replace unix:/PATH|HOST:PORT".into());
    };
    let replaces = what == "replace";
    let listener = match at.strip_prefix("unix:") {
        Some(path) => Listener::unix(&UnixSocket { path: path.into(), mode: 0o666, group: None })?,
        None => Listener::tcp(at.parse()?)?,
    };
    let settings =
        Settings { wanted: if replaces { Wanted::default() } else { nothing() }, ..Settings::default() };
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(listener, Arc::new(Plain { replaces }), settings, shutdown).await;
    Ok(())
}
