//! Sessions written as text: `tests/cases/*.txt`.
//!
//! - `# …` a comment
//! - `filter: …` what the filter answers from now on; several lines make one answer; `filter: nothing` empties it
//! - `wanted: protocol 0x…`, `wanted: optional 0x…`, before the first command
//! - `> …` the MTA sends a command; `> MACROS E i=Q1` macros
//! - `< …` the filter replies; all replies to a command must be listed
//! - `! …` what the filter sees
//! - `smtp> …`, `smtp< …`, `sendmail> …`, `stdin> …` what brings the same about in the real Postfix, for
//!   `tests/milter_sessions.rs` of the whole; not read here
//!
//! Texts may hold `\r`, `\n`, `\t`, `\0` and `\\`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/script.rs"]
mod script;
#[cfg(feature = "tokio")]
#[path = "common/server.rs"]
mod server;

use std::cell::RefCell;
use std::fs;
use std::path::Path;
#[cfg(feature = "tokio")]
use std::{sync::Arc, time::Duration};

use common::{Log, replies, set, work_with};
#[cfg(feature = "tokio")]
use mailtap_milter::driver::{Fallback, Handler, Listener, Oversize, Response, Settings, UnixSocket, serve};
use mailtap_milter::edits::Answer;
#[cfg(feature = "tokio")]
use mailtap_milter::session::{Interest, Message};
use mailtap_milter::session::{Session, SessionLimits, Wanted};
use mailtap_milter::wire::{
    Actions, Command, Connect, EnvelopePath, Family, MacroPairs, Offer, Protocol, Texts,
};
use script::{number_of, plain};
#[cfg(feature = "tokio")]
use server::Socket;
#[cfg(feature = "tokio")]
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn cases() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())
    };
    let cases: Vec<_> = fs::read_dir(folder).unwrap().map(read).collect();
    assert!(cases.len() >= 10, "only {} cases found", cases.len());
    cases
}

#[test]
fn every_case_goes_as_written() {
    for (name, text) in cases() {
        play(&name, &text);
    }
}

/// However the bytes of a case are cut in two, and byte by byte, the same happens.
#[test]
fn every_case_goes_the_same_at_every_split() {
    for (name, text) in cases() {
        let Play { wanted, sent, answers, .. } = play(&name, &text);
        let replay = |pieces: &[&[u8]]| {
            let mut session = Session::new(wanted.clone(), SessionLimits::default());
            let (mut log, left) = (Log::default(), RefCell::new(answers.clone().into_iter()));
            for piece in pieces {
                session.receive(piece);
                work_with(&mut session, &mut log, |_| left.borrow_mut().next().unwrap());
            }
            assert!(left.borrow_mut().next().is_none(), "{name}");
            log
        };
        let whole = replay(&[&sent]);
        for at in 0..sent.len() {
            let (one, two) = sent.split_at(at);
            assert!(replay(&[one, two]) == whole, "{name}, split at {at}");
        }
        assert!(replay(&sent.chunks(1).collect::<Vec<_>>()) == whole, "{name}, byte by byte");
    }
}

/// The filter of the cases for the driver: answers as the case says at the moment.
#[cfg(feature = "tokio")]
#[derive(Debug, Default)]
struct Scripted(std::sync::Mutex<Answer>);

#[cfg(feature = "tokio")]
impl Handler for Scripted {
    fn headers(&self, message: &Message) -> Interest {
        common::interest(message)
    }

    async fn message(&self, _: Message, _: &Fallback) -> Response {
        self.0.lock().unwrap().clone().into()
    }
}

/// Every case over a real socket, through the driver: the same replies.
#[cfg(feature = "tokio")]
#[tokio::test]
async fn every_case_goes_as_written_over_a_socket() {
    for (name, text) in cases() {
        for tcp in [false, true] {
            tokio::time::timeout(Duration::from_secs(20), over_a_socket(&name, &text, tcp))
                .await
                .unwrap_or_else(|_| panic!("{name}: a reply that never came"));
        }
    }
}

#[cfg(feature = "tokio")]
async fn over_a_socket(name: &str, text: &str, tcp: bool) {
    let Play { wanted, .. } = play(name, text);
    let folder = tempfile::tempdir().unwrap();
    let at = UnixSocket::new(folder.path().join("milter.sock"), 0o600);
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = if tcp { Listener::tcp(any) } else { Listener::unix(&at) }.unwrap();
    let address = listener.tcp_address();
    let handler = Arc::new(Scripted::default());
    let settings = set(|settings: &mut Settings| {
        settings.wanted = wanted;
        settings.oversize = Oversize::Stream;
    });
    tokio::spawn(serve(listener, Arc::clone(&handler), settings, std::future::pending()));
    let mut stream = match address {
        Some(address) => Socket::Tcp(tokio::net::TcpStream::connect(address).await.unwrap()),
        None => Socket::Unix(tokio::net::UnixStream::connect(&at.path).await.unwrap()),
    };
    let mut play = Play::new();
    for line in text.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("filter:", rest) => script::apply(&mut play.answer, rest),
            (">", rest) => {
                *handler.0.lock().unwrap() = play.answer.clone();
                stream.write_all(&command(rest)).await.unwrap();
            }
            ("<", rest) => {
                let mut frame = vec![0; 4];
                stream.read_exact(&mut frame).await.unwrap();
                let length = u32::from_be_bytes(frame[..4].try_into().unwrap());
                frame.resize(4 + length as usize, 0);
                stream.read_exact(&mut frame[4..]).await.unwrap();
                assert_eq!(replies(&frame), [rest], "{name}");
            }
            _ => (),
        }
    }
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{name}: replies too many: {:?}", replies(&rest));
}

struct Play {
    wanted: Wanted,
    session: Option<Session>,
    answer: Answer,
    replies: Vec<String>,
    events: Vec<String>,
    /// All that the MTA sent, and the answers to its messages.
    sent: Vec<u8>,
    answers: Vec<Answer>,
}

fn play(name: &str, text: &str) -> Play {
    let mut play = Play::new();
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}: {line}", number + 1);
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            "" | "#" | "smtp>" | "smtp<" | "sendmail>" | "stdin>" => (),
            "wanted:" => play.wanted(rest),
            "filter:" => script::apply(&mut play.answer, rest),
            ">" => {
                play.finished(&at);
                play.send(rest);
            }
            "<" => play.expect(&at, true, rest),
            "!" => play.expect(&at, false, rest),
            _ => panic!("{at}: not understood"),
        }
    }
    play.finished(name);
    play
}

impl Play {
    fn new() -> Self {
        Self {
            wanted: set(|wanted: &mut Wanted| wanted.optional = Actions::VERSION_6),
            session: None,
            answer: Answer::unmodified(),
            replies: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn wanted(&mut self, line: &str) {
        let (what, number) = line.split_once(' ').unwrap();
        let bits = number_of(number);
        match what {
            "protocol" => self.wanted.protocol = Protocol::from_bits(bits),
            "optional" => self.wanted.optional = Actions::from_bits(bits),
            "required" => self.wanted.required = Actions::from_bits(bits),
            other => panic!("wanted: {other}"),
        }
    }

    fn send(&mut self, line: &str) {
        let session =
            self.session.get_or_insert_with(|| Session::new(self.wanted.clone(), SessionLimits::default()));
        let (bytes, answers) = (command(line), RefCell::new(&mut self.answers));
        session.receive(&bytes);
        self.sent.extend(bytes);
        let mut log = Log::default();
        work_with(session, &mut log, |_| {
            answers.borrow_mut().push(self.answer.clone());
            self.answer.clone()
        });
        self.replies = replies(&log.out);
        self.events = log.lines;
    }

    fn expect(&mut self, at: &str, reply: bool, line: &str) {
        let found = if reply { &mut self.replies } else { &mut self.events };
        assert!(!found.is_empty(), "{at}: nothing came");
        assert_eq!(found.remove(0), line, "{at}");
    }

    fn finished(&self, at: &str) {
        assert!(self.replies.is_empty(), "{at}: before this, a reply not listed: {:?}", self.replies);
        assert!(self.events.is_empty(), "{at}: before this, an event not listed: {:?}", self.events);
    }
}

fn command(line: &str) -> Vec<u8> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
    let text = plain(rest);
    let word = |index: usize| words.get(index).map(|word| plain(word)).unwrap_or_default();
    let args = Texts::join(&words.iter().skip(1).map(|word| plain(word)).collect::<Vec<_>>());
    let (first, second) = (word(0), word(1));
    let path = EnvelopePath { address: &first, args: Texts::new(&args) };
    let pairs: Vec<_> = words.iter().skip(1).filter_map(|pair| pair.split_once('=')).collect();
    let pairs = MacroPairs::join(&pairs);
    let (name, value) = rest.split_once(':').unwrap_or((rest, ""));
    let value = plain(value);
    let mut bytes = Vec::new();
    match verb {
        "NEGOTIATE" => Command::Negotiate(Offer {
            version: number_of(words[0]),
            actions: Actions::from_bits(number_of(words[1])),
            protocol: Protocol::from_bits(number_of(words[2])),
        }),
        "MACROS" => Command::Macros { stage: first[0], pairs: MacroPairs::new(&pairs) },
        "CONNECT" => {
            Command::Connect(Connect { host: &first, family: Family::Inet, port: 25, address: &second })
        }
        "HELO" => Command::Helo(&first),
        "MAIL" => Command::Mail(path),
        "RCPT" => Command::Rcpt(path),
        "DATA" => Command::Data,
        "HEADER" => Command::Header { name: name.as_bytes(), value: &value },
        "END-OF-HEADERS" => Command::EndOfHeaders,
        "BODY" => Command::Body(&text),
        "END-OF-MESSAGE" => Command::EndOfMessage(&text),
        "ABORT" => Command::Abort,
        "QUIT" => Command::Quit,
        "QUIT-NEW-CONNECTION" => Command::QuitNewConnection,
        "UNKNOWN" => Command::Unknown(&text),
        other => panic!("{other}: no such command"),
    }
    .encode(&mut bytes);
    bytes
}
