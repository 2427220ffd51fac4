//! A session driven by bytes, with a simple filter, written down line by line.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Event, Interest, LetThrough, Message, Session};
use mailtap_milter::wire::{Command, Frame, Reply};

/// The default, changed.
pub fn set<T: Default>(change: impl FnOnce(&mut T)) -> T {
    let mut value = T::default();
    change(&mut value);
    value
}

/// What the simple filter does: it accepts mail from `skip` at the end of headers, and edits all other; of mail from `part`
/// it wants six bytes of body.
pub fn answer(message: &Message) -> Answer {
    let size = message.body().len().to_string();
    Answer::edited(vec![
        Edit::ReplaceBody([b"new ", message.body()].concat()),
        Edit::AddHeader { name: b"X-Size".to_vec(), value: size.into_bytes() },
    ])
}

pub fn interest(message: &Message) -> Interest {
    match message.sender().bare() {
        [b's', b'k', b'i', b'p', ..] => Interest::Accept,
        [b'p', b'a', b'r', b't', ..] => Interest::BodyUpTo(6),
        _ => Interest::Body,
    }
}

/// One line for each thing that happened.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Log {
    pub lines: Vec<String>,
    pub out: Vec<u8>,
}

impl Log {
    fn note(&mut self, line: String) {
        self.lines.push(line);
    }

    /// The replies sent.
    pub fn replies(&self) -> Vec<String> {
        replies(&self.out)
    }
}

pub fn replies(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some((frame, size)) = Frame::decode(bytes, 1 << 24).unwrap() {
        lines.push(show(&Reply::decode(frame).unwrap()));
        bytes = &bytes[size..];
    }
    assert!(bytes.is_empty(), "half a reply");
    lines
}

fn quoted(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A reply as a line of text.
pub fn show(reply: &Reply<'_>) -> String {
    match reply {
        Reply::Negotiate { offer, .. } => {
            format!("NEGOTIATE {} {:#x} {:#x}", offer.version, offer.actions.bits(), offer.protocol.bits())
        }
        Reply::AddHeader { name, value } => format!("ADD-HEADER {}:{}", quoted(name), quoted(value)),
        Reply::InsertHeader { index, name, value } => {
            format!("INSERT-HEADER {index} {}:{}", quoted(name), quoted(value))
        }
        Reply::ChangeHeader { index, name, value } => {
            format!("CHANGE-HEADER {index} {}:{}", quoted(name), quoted(value))
        }
        Reply::ReplaceBody(piece) if piece.len() > 200 => format!("REPLACE-BODY {} bytes", piece.len()),
        Reply::ReplaceBody(piece) => format!("REPLACE-BODY {}", quoted(piece)),
        Reply::AddRecipient(address) => format!("ADD-RECIPIENT {}", quoted(address)),
        Reply::AddRecipientWithArgs { address, args } => {
            format!("ADD-RECIPIENT {} {}", quoted(address), quoted(args))
        }
        Reply::DeleteRecipient(address) => format!("DELETE-RECIPIENT {}", quoted(address)),
        Reply::ChangeSender { address, args } => {
            format!("CHANGE-SENDER {} {}", quoted(address), quoted(args))
        }
        Reply::Quarantine(reason) => format!("QUARANTINE {}", quoted(reason)),
        Reply::ReplyCode(text) => format!("REPLY {}", quoted(text)),
        other => format!("{other:?}").to_uppercase(),
    }
}

/// Works off what a session has, with the simple filter.
pub fn work(session: &mut Session, log: &mut Log) {
    work_with(session, log, answer);
}

/// Works off what a session has.
pub fn work_with(session: &mut Session, log: &mut Log, answer: impl Fn(&Message) -> Answer) {
    while let Some(event) = session.poll().unwrap() {
        match event {
            Event::Negotiated => log.note("negotiated".into()),
            Event::PassingThrough(error) => log.note(format!("passing: {error}")),
            Event::Headers => {
                let interest = interest(session.message().unwrap());
                log.note(format!("headers: {interest:?}"));
                session.answer_headers(interest);
            }
            Event::Message(message) => {
                log.note(describe(&message));
                if let Err(error) = session.answer(&answer(&message)) {
                    log.note(format!("cannot: {error}"));
                }
            }
            Event::LetThrough(LetThrough { why, queue_id, recipients, .. }) => {
                let (why, queue_id) = (why.as_str(), quoted(&queue_id));
                let queue_id = if queue_id.is_empty() { "?" } else { &queue_id };
                log.note(format!("let through: {why} {queue_id} to {recipients}"));
            }
            Event::Aborted => log.note("aborted".into()),
            Event::NewSession => log.note("new session".into()),
            Event::Quit => log.note("quit".into()),
            other => panic!("{other:?}"),
        }
    }
    let sent = session.outgoing().len();
    log.out.extend_from_slice(session.outgoing());
    session.sent(sent);
}

pub fn describe(message: &Message) -> String {
    let headers: Vec<_> =
        message.headers().map(|header| format!("{}:{}", quoted(header.name), quoted(header.value))).collect();
    let recipients: Vec<_> = message.recipients().iter().map(|path| quoted(&path.address)).collect();
    format!(
        "message {} from {} to {} helo {} headers {} body {}",
        quoted(message.queue_id().unwrap_or(b"?")),
        quoted(&message.sender().address),
        recipients.join(","),
        quoted(&message.client().helo),
        headers.join("|"),
        quoted(message.body()),
    )
}

/// Gives a session bytes in pieces.
pub fn run<'a>(mut session: Session, pieces: impl IntoIterator<Item = &'a [u8]>) -> Log {
    let mut log = Log::default();
    for piece in pieces {
        session.receive(piece);
        work(&mut session, &mut log);
    }
    log
}

/// Commands as bytes.
pub fn encode(commands: &[Command<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for command in commands {
        command.encode(&mut bytes);
    }
    bytes
}

/// Numbers that are the same in every run.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
