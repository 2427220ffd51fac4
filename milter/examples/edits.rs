//! A filter that does what the header `X-Case` of a message says, to see what an MTA makes of it: `edits ADDRESS`, with
//! ADDRESS as in `trivial`.

use std::error::Error;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use mailtap_milter::driver::{Fallback, Handler, Happening, Listener, Response, Settings, UnixSocket, serve};
use mailtap_milter::edits::{Answer, Edit, SmtpReply, Verdict};
use mailtap_milter::session::{Interest, Message};
use mailtap_milter::wire::Actions;

#[derive(Debug)]
struct Edits;

fn case(message: &Message) -> String {
    let value = message.header("X-Case").map(|header| header.value.trim_ascii());
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

impl Handler for Edits {
    fn headers(&self, message: &Message) -> Interest {
        match case(message).as_str() {
            "accept at headers" => Interest::Accept,
            "panic at headers" => panic!("as told"),
            _ => Interest::Body,
        }
    }

    async fn message(&self, message: Message, _: &Fallback) -> Response {
        let text = |text: &str| text.as_bytes().to_vec();
        let edits = match case(&message).as_str() {
            "quarantine" => vec![Edit::Quarantine { reason: text("to be looked at") }],
            "sender" => {
                vec![Edit::ChangeSender { address: text("<other@example.org>"), args: text("RET=HDRS") }]
            }
            "recipients" => vec![
                Edit::DeleteRecipient { address: text("<rcpt@example.net>") },
                Edit::AddRecipient { address: text("<plain@example.net>"), args: Vec::new() },
                Edit::AddRecipient { address: text("<args@example.net>"), args: text("NOTIFY=NEVER") },
            ],
            "headers" => vec![
                Edit::ChangeHeader { index: 1, name: text("Subject"), value: text("changed") },
                Edit::DeleteHeader { index: 1, name: text("X-Gone") },
                Edit::InsertHeader { index: 0, name: text("X-First"), value: text("yes") },
            ],
            "reject" => return Answer::from(Verdict::Reject).into(),
            "tempfail" => return Answer::from(Verdict::TempFail).into(),
            "discard" => return Answer::from(Verdict::Discard).into(),
            "reply" => {
                let reply = SmtpReply::new(554, (5, 7, 9), "not like this");
                return Answer::from(reply.map_or(Verdict::Reject, Verdict::Reply)).into();
            }
            "panic" => panic!("as told"),
            "slow" => {
                tokio::time::sleep(Duration::from_secs(3)).await;
                vec![Edit::AddHeader { name: text("X-Slow"), value: text("yes") }]
            }
            _ => Vec::new(),
        };
        Answer::edited(edits).into()
    }

    fn observe(&self, happening: &Happening<'_>) {
        if !matches!(happening, Happening::Opened | Happening::Closed { .. } | Happening::Answered { .. }) {
            eprintln!("{happening:?}");
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let at = std::env::args().nth(1).ok_or("usage: edits unix:/PATH or HOST:PORT")?;
    let listener = match at.strip_prefix("unix:") {
        Some(path) => Listener::unix(&UnixSocket::new(path, 0o666))?,
        None => Listener::tcp(at.to_socket_addrs()?.next().ok_or("the host has no address")?)?,
    };
    let mut settings = Settings::default();
    settings.wanted.optional = Actions::VERSION_6;
    settings.timeouts.progress = Duration::from_millis(500);
    let shutdown = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(listener, Arc::new(Edits), settings, shutdown).await;
    Ok(())
}
