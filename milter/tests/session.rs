//! Sessions: every split of their bytes, and generated ones against a model.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Dice, Log, encode, run, set, work};
use mailtap_milter::session::{MessageLimits, Session, SessionLimits, Unseen, Wanted};
use mailtap_milter::wire::{
    Actions, Command, Connect, EnvelopePath, Family, MacroPairs, Offer, Protocol, Texts,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn session() -> Session {
    Session::new(Wanted::default(), SessionLimits::default())
}

const fn path(address: &[u8]) -> EnvelopePath<'_> {
    EnvelopePath { address, args: Texts::new(b"SIZE=1\0") }
}

const fn queue_id(stage: u8, pairs: &[u8]) -> Command<'_> {
    Command::Macros { stage, pairs: MacroPairs::new(pairs) }
}

/// Two messages, one of them given up, a bounce-like one in between, two SMTP sessions.
fn transcript(body: &[u8]) -> Vec<u8> {
    encode(&[
        Command::Negotiate(Offer::POSTFIX),
        Command::Connect(Connect { host: b"h", family: Family::Inet6, port: 9, address: b"::1" }),
        Command::Helo(b"h"),
        Command::Mail(path(b"<a@b>")),
        Command::Rcpt(path(b"<c@d>")),
        Command::Rcpt(path(b"<e@f>")),
        queue_id(b'T', b"i\0Q1\0"),
        Command::Data,
        Command::Header { name: b"S", value: b" one\n\ttwo" },
        queue_id(b'N', b"i\0Q1\0"),
        Command::EndOfHeaders,
        Command::Body(body),
        queue_id(b'B', b"i\0Q1\0"),
        Command::Body(b"b\r\n"),
        queue_id(b'E', b"i\0Q1\0"),
        Command::EndOfMessage(b""),
        Command::Abort,
        Command::Mail(path(b"<skip@b>")),
        Command::Header { name: b"S", value: b"" },
        Command::EndOfHeaders,
        Command::Abort,
        Command::Mail(path(b"<a@b>")),
        Command::Body(b"given up"),
        Command::Abort,
        Command::QuitNewConnection,
        Command::Helo(b"other"),
        Command::Mail(path(b"")),
        Command::EndOfMessage(b"last"),
        Command::Quit,
    ])
}

#[test]
fn the_transcript_is_understood() {
    let log = run(session(), [transcript(b"a\r").as_slice()]);
    assert_eq!(
        log.lines,
        [
            "negotiated",
            "headers: Body",
            r"message Q1 from <a@b> to <c@d>,<e@f> helo h headers S: one\n\ttwo body a\rb\r\n",
            "headers: Accept",
            "aborted",
            "new session",
            "headers: Body",
            "message ? from  to  helo other headers  body last",
            "quit",
        ]
    );
    assert_eq!(
        log.replies()[1..],
        [
            "CONTINUE",
            "ADD-HEADER X-Size: 5",
            r"REPLACE-BODY new a\rb\r\n",
            "ACCEPT",
            "ACCEPT",
            "ADD-HEADER X-Size: 4",
            "REPLACE-BODY new last",
            "ACCEPT",
        ]
    );
}

#[test]
fn every_split_gives_the_same() {
    let bytes = transcript(b"a\r");
    let whole = run(session(), [bytes.as_slice()]);
    for at in 0..=bytes.len() {
        let (one, two) = bytes.split_at(at);
        assert_eq!(run(session(), [one, two]), whole, "split at {at}");
    }
    assert_eq!(run(session(), bytes.chunks(1)), whole, "byte by byte");
}

#[test]
fn random_splits_of_a_long_transcript_give_the_same() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let body: Vec<u8> = (0..200_000).map(|_| dice.below(256) as u8).collect();
    let bytes = transcript(&body);
    let whole = run(session(), [bytes.as_slice()]);
    for _ in 0..30 {
        let longest = [3, 100, 5_000, 100_000][dice.below(4)];
        let mut rest = bytes.as_slice();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + dice.below(longest)).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        assert!(run(session(), pieces) == whole, "pieces up to {longest}");
    }
}

#[test]
fn a_session_that_lets_everything_through_tells_of_each_message() {
    let passing = || Session::passing_through(Unseen::Connections, SessionLimits::default());
    let bytes = transcript(b"a");
    let log = run(passing(), [bytes.as_slice()]);
    assert_eq!(
        log.lines,
        [
            "negotiated",
            "let through: connections Q1 to 2",
            "let through: connections ? to 0",
            "aborted",
            "new session",
            "let through: connections ? to 0",
            "quit",
        ]
    );
    assert_eq!(log.replies()[0], "NEGOTIATE 6 0x0 0x1bf3b3", "of content, nothing but the end of headers");
    let accepted = log.replies().iter().filter(|reply| *reply == "ACCEPT").count();
    assert_eq!(accepted, 4, "{:?}", log.replies());
    // An MTA that can leave nothing out gets a reply to everything, and is told as soon as headers begin.
    let offer = Offer { version: 2, protocol: Protocol::NONE, ..Offer::POSTFIX };
    let header = Command::Header { name: b"S", value: b"x" };
    let mail = [Command::Negotiate(offer), Command::Mail(path(b"a")), Command::Rcpt(path(b"b")), header];
    let log = run(passing(), [encode(&mail).as_slice()]);
    assert_eq!(log.replies()[1..], ["CONTINUE", "CONTINUE", "ACCEPT"]);
    assert_eq!(log.lines, ["negotiated", "let through: connections ? to 1"]);
}

#[test]
fn a_lacking_mta_gets_its_mail_unmodified() {
    let offer = Offer { actions: Actions::ADD_HEADERS, ..Offer::POSTFIX };
    let log = run(
        session(),
        [encode(&[Command::Negotiate(offer), Command::Mail(path(b"a")), Command::EndOfMessage(b"x")])
            .as_slice()],
    );
    assert_eq!(
        log.lines,
        ["passing: the MTA does not offer CHANGE_BODY|CHANGE_HEADERS", "let through: negotiation ? to 0"]
    );
    assert_eq!(log.replies(), ["NEGOTIATE 6 0x0 0x1bf3b3", "ACCEPT"]);
}

#[test]
fn what_passes_a_limit_passes_unmodified_and_the_next_message_is_whole() {
    let limits = set(|limits: &mut MessageLimits| {
        limits.message_bytes = 30;
        limits.header_bytes = 20;
        limits.headers = 2;
        limits.recipients = 2;
    });
    let header = Command::Header { name: b"Name", value: b" v" };
    let start = [Command::Negotiate(Offer::POSTFIX), Command::Mail(path(b"<a@b>"))];
    let end = [Command::EndOfHeaders, Command::Body(b"0123456789"), Command::EndOfMessage(b"")];
    let rcpt = Command::Rcpt(path(b"a"));
    let id = queue_id(b'N', b"i\0Q1\0");
    let cases: [(&str, Vec<Command<'_>>); 4] = [
        ("let through: recipients Q1 to 4", vec![rcpt, rcpt, rcpt, rcpt, id]),
        ("let through: headers Q1 to 1", vec![rcpt, id, header, header, header]),
        (
            "let through: header_bytes Q1 to 0",
            vec![id, header, Command::Header { name: b"Name", value: b" 0123456789" }],
        ),
        (
            "let through: message_bytes Q1 to 0",
            vec![id, header, Command::Body(b"012345678901234567890123456789")],
        ),
    ];
    for (line, more) in cases {
        let next = [Command::Abort, Command::Mail(path(b"<a@b>")), Command::EndOfMessage(b"fits")];
        let bytes = encode(&[start.as_slice(), &more, &end, &next].concat());
        let limits = set(|session: &mut SessionLimits| session.message = limits);
        let log = run(Session::new(Wanted::default(), limits), [bytes.as_slice()]);
        assert_eq!(log.lines.iter().filter(|seen| *seen == line).count(), 1, "{:?}", log.lines);
        assert!(log.lines.last().unwrap().ends_with("body fits"), "{line}: {:?}", log.lines);
        let accepted = log.replies().iter().filter(|reply| *reply == "ACCEPT").count();
        assert!(accepted >= 2, "{line}: {:?}", log.replies());
    }
}

/// A part of a body is wanted, or none: the MTA is told to skip the rest where that is possible.
#[test]
fn the_rest_of_a_body_is_skipped() {
    let mail = |protocol| {
        let offer = Offer { protocol, ..Offer::POSTFIX };
        let pieces = [Command::Body(b"0123"), Command::Body(b"4567"), Command::Body(b"89")];
        let start = [Command::Negotiate(offer), Command::Mail(path(b"part@b")), Command::EndOfHeaders];
        let end = [Command::EndOfMessage(b"!"), Command::Mail(path(b"<a@b>")), Command::EndOfMessage(b"all")];
        encode(&[start.as_slice(), &pieces, &end].concat())
    };
    let wanted = || set(|wanted: &mut Wanted| wanted.protocol = Wanted::SKIPS_BODIES);
    let everything = Protocol::POSTFIX;
    let cases = [
        (everything, ["CONTINUE", "CONTINUE", "SKIP", "SKIP"]),
        (everything - Protocol::SKIP, ["CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE"]),
    ];
    for (protocol, replies) in cases {
        let log = run(Session::new(wanted(), SessionLimits::default()), [mail(protocol).as_slice()]);
        assert_eq!(log.replies()[1..5], replies);
        assert!(log.lines[2].ends_with("body 012345"), "{:?}", log.lines);
        assert!(log.lines.last().unwrap().ends_with("body all"), "{:?}", log.lines);
    }
}

#[test]
fn an_answer_that_does_not_fit_is_not_begun() {
    let limits = set(|limits: &mut SessionLimits| limits.answer_room_bytes = Some(60));
    let bytes = encode(&[
        Command::Negotiate(Offer::POSTFIX),
        Command::Mail(path(b"a")),
        Command::EndOfMessage(&[b'x'; 30]),
    ]);
    let log = run(Session::new(Wanted::default(), limits), [bytes.as_slice()]);
    assert_eq!(log.replies()[1..], ["ACCEPT"]);
    assert!(log.lines.last().unwrap().starts_with("cannot: an answer of"), "{:?}", log.lines);
}

/// What a filter must know of a session, said as simply as possible.
#[derive(Default)]
struct Model {
    protocol: Protocol,
    helo: bool,
    /// Whether HELO came before MAIL.
    greeted: bool,
    open: bool,
    sender: Vec<u8>,
    recipients: usize,
    headers: usize,
    body: Vec<u8>,
    messages: Vec<String>,
    replies: usize,
    closed: bool,
}

impl Model {
    fn take(&mut self, command: &Command<'_>) {
        if self.closed {
            return;
        }
        let silent = match command {
            Command::Connect(_) => Protocol::NO_REPLY_CONNECT,
            Command::Helo(_) => Protocol::NO_REPLY_HELO,
            Command::Mail(_) => Protocol::NO_REPLY_MAIL,
            Command::Rcpt(_) => Protocol::NO_REPLY_RCPT,
            Command::Data => Protocol::NO_REPLY_DATA,
            Command::Unknown(_) => Protocol::NO_REPLY_UNKNOWN,
            Command::Header { .. } => Protocol::NO_REPLY_HEADER,
            Command::EndOfHeaders => Protocol::NO_REPLY_END_OF_HEADERS,
            Command::Body(_) => Protocol::NO_REPLY_BODY,
            _ => Protocol::NONE,
        };
        let never = matches!(
            command,
            Command::Macros { .. } | Command::Abort | Command::Quit | Command::QuitNewConnection
        );
        let due = !never && (silent.is_empty() || !self.protocol.contains(silent));
        self.replies += usize::from(due);
        match command {
            Command::Mail(path) => {
                let greeted = self.helo;
                *self = Self { greeted, open: true, sender: path.address.to_vec(), ..self.empty() };
            }
            Command::Helo(_) => self.helo = true,
            Command::Rcpt(_) => self.recipients += usize::from(self.open),
            Command::Header { .. } => self.headers += usize::from(self.open),
            // What the filter accepts at the end of headers is over, seen or unseen.
            Command::EndOfHeaders if self.sender.starts_with(b"skip") => *self = self.empty(),
            Command::Body(piece) => self.body.extend_from_slice(piece),
            Command::EndOfMessage(piece) => {
                self.body.extend_from_slice(piece);
                if self.open && !self.sender.starts_with(b"skip") {
                    self.messages.push(self.line());
                    self.replies += 2;
                }
                *self = self.empty();
            }
            Command::Abort => *self = self.empty(),
            Command::Connect(_) | Command::QuitNewConnection => *self = Self { helo: false, ..self.empty() },
            Command::Quit => self.closed = true,
            _ => (),
        }
    }

    /// The message as [`common::describe`] tells it, from its recipients on.
    fn line(&self) -> String {
        let recipients = vec!["r"; self.recipients].join(",");
        let headers = vec!["N:v"; self.headers].join("|");
        let helo = if self.greeted { "h" } else { "" };
        format!("{recipients} helo {helo} headers {headers} body {}", self.body.escape_ascii())
    }

    fn empty(&mut self) -> Self {
        let messages = std::mem::take(&mut self.messages);
        Self { protocol: self.protocol, helo: self.helo, messages, replies: self.replies, ..Self::default() }
    }
}

fn command(number: usize) -> Command<'static> {
    [
        Command::Connect(Connect { host: b"h", family: Family::Unknown, port: 0, address: b"" }),
        Command::Helo(b"h"),
        Command::Mail(EnvelopePath { address: b"one", args: Texts::new(b"") }),
        Command::Mail(EnvelopePath { address: b"skip", args: Texts::new(b"") }),
        Command::Rcpt(EnvelopePath { address: b"r", args: Texts::new(b"") }),
        Command::Rcpt(EnvelopePath { address: b"r", args: Texts::new(b"") }),
        Command::Data,
        Command::Header { name: b"N", value: b"v" },
        Command::Header { name: b"N", value: b"v" },
        Command::EndOfHeaders,
        Command::EndOfHeaders,
        Command::Body(b"x"),
        Command::Body(b"yz"),
        Command::EndOfMessage(b""),
        Command::EndOfMessage(b"!"),
        Command::Abort,
        Command::QuitNewConnection,
        Command::Unknown(b"VERB"),
        Command::Macros { stage: b'M', pairs: MacroPairs::new(b"i\0Q\0") },
        Command::Quit,
    ][number]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Commands in any order, on any terms: one reply for each that is due, no message lost, none mixed.
    #[test]
    fn sessions_follow_the_model(numbers in vec(0_usize..20, 0..60), protocol: u32) {
        let protocol = Protocol::from_bits(protocol & Protocol::POSTFIX.bits());
        let wanted = set(|wanted: &mut Wanted| wanted.protocol = protocol);
        let commands: Vec<_> = numbers.into_iter().map(command).collect();
        let mut model = Model { protocol, replies: 1, ..Model::default() };
        let mut session = Session::new(wanted, SessionLimits::default());
        let mut log = Log::default();
        session.receive(&encode(&[Command::Negotiate(Offer::POSTFIX)]));
        for command in &commands {
            model.take(command);
            session.receive(&encode(std::slice::from_ref(command)));
            work(&mut session, &mut log);
            prop_assert_eq!(log.replies().len(), model.replies, "after {:?} of {:?}", command, commands);
        }
        let messages: Vec<_> = log
            .lines
            .iter()
            .filter(|line| line.starts_with("message"))
            .map(|line| line.split_once(" to ").unwrap().1.to_owned())
            .collect();
        prop_assert_eq!(messages, model.messages, "{:?}", commands);
    }

    /// Any bytes: no panic, no runaway memory.
    #[test]
    fn any_bytes(bytes: Vec<u8>) {
        let mut session = session();
        session.receive(&encode(&[Command::Negotiate(Offer::POSTFIX)]));
        session.receive(&bytes);
        for _ in 0..1_000 {
            match session.poll() {
                Ok(Some(_)) => {
                    session.answer_headers(mailtap_milter::session::Interest::Body);
                    let _ = session.answer(&mailtap_milter::edits::Answer::unmodified());
                }
                Ok(None) | Err(_) => break,
            }
        }
        prop_assert!(session.held_bytes() < 64 << 10);
    }
}
