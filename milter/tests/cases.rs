//! Sessions written as text: `tests/cases/*.txt`.
//!
//! - `# …` a comment
//! - `filter: …` what the filter answers from now on; several lines make one answer; `filter: nothing` empties it
//! - `wanted: protocol 0x…`, `wanted: optional 0x…`, before the first command
//! - `> …` the MTA sends a command; `> MACROS E i=Q1` macros
//! - `< …` the filter replies; all replies to a command must be listed
//! - `! …` what the filter sees
//!
//! Texts may hold `\r`, `\n`, `\t`, `\0` and `\\`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{Log, replies, work_with};
use mailtap_milter::edits::{Answer, Edit, SmtpReply, Verdict};
use mailtap_milter::session::{Session, SessionLimits, Wanted};
use mailtap_milter::wire::{
    Actions, Command, Connect, EnvelopePath, Family, MacroPairs, Offer, Protocol, Texts,
};

#[test]
fn every_case_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        play(&name, &fs::read_to_string(&path).unwrap());
        count += 1;
    }
    assert!(count >= 10, "only {count} cases found");
}

struct Play {
    wanted: Wanted,
    session: Option<Session>,
    answer: Answer,
    replies: Vec<String>,
    events: Vec<String>,
}

fn play(name: &str, text: &str) {
    let mut play = Play {
        wanted: Wanted { optional: Actions::VERSION_6, ..Wanted::default() },
        session: None,
        answer: Answer::unmodified(),
        replies: Vec::new(),
        events: Vec::new(),
    };
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}: {line}", number + 1);
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            "" | "#" => (),
            "wanted:" => play.wanted(rest),
            "filter:" => play.filter(rest),
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
}

impl Play {
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

    fn filter(&mut self, line: &str) {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        let header = |text: &str| {
            let (name, value) = text.split_once(':').unwrap();
            (name.as_bytes().to_vec(), plain(value.strip_prefix(' ').unwrap_or(value)))
        };
        let numbered = |text: &str| {
            let (index, rest) = text.split_once(' ').unwrap();
            (number_of(index), rest.to_owned())
        };
        let mailbox = |text: &str| {
            let (address, args) = text.split_once(' ').unwrap_or((text, ""));
            (plain(address), plain(args))
        };
        let edit = match what {
            "nothing" => {
                self.answer = Answer::unmodified();
                return;
            }
            "reject" | "tempfail" | "discard" | "reply" => {
                self.answer.verdict = match what {
                    "reject" => Verdict::Reject,
                    "tempfail" => Verdict::TempFail,
                    "discard" => Verdict::Discard,
                    _ => {
                        let text = String::from_utf8(plain(rest)).unwrap();
                        Verdict::Reply(SmtpReply::new(550, (5, 7, 1), &text).unwrap())
                    }
                };
                return;
            }
            "add" => {
                let (name, value) = header(rest);
                Edit::AddHeader { name, value }
            }
            "insert" => {
                let (index, rest) = numbered(rest);
                let (name, value) = header(&rest);
                Edit::InsertHeader { index, name, value }
            }
            "change" => {
                let (index, rest) = numbered(rest);
                let (name, value) = header(&rest);
                Edit::ChangeHeader { index, name, value }
            }
            "delete" => {
                let (index, name) = numbered(rest);
                Edit::DeleteHeader { index, name: name.into_bytes() }
            }
            "body" => match rest.split_once(" times ") {
                Some((text, count)) => Edit::ReplaceBody(plain(text).repeat(number_of(count) as usize)),
                None => Edit::ReplaceBody(plain(rest)),
            },
            "add-recipient" => {
                let (address, args) = mailbox(rest);
                Edit::AddRecipient { address, args }
            }
            "delete-recipient" => Edit::DeleteRecipient { address: plain(rest) },
            "sender" => {
                let (address, args) = mailbox(rest);
                Edit::ChangeSender { address, args }
            }
            "quarantine" => Edit::Quarantine { reason: plain(rest) },
            other => panic!("filter: {other}"),
        };
        self.answer.edits.push(edit);
    }

    fn send(&mut self, line: &str) {
        let session =
            self.session.get_or_insert_with(|| Session::new(self.wanted.clone(), SessionLimits::default()));
        session.receive(&command(line));
        let mut log = Log::default();
        work_with(session, &mut log, |_| self.answer.clone());
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

fn number_of(text: &str) -> u32 {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn plain(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match (byte, byte == b'\\') {
            (_, true) => match bytes.next().unwrap() {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                other => other,
            },
            (byte, false) => byte,
        });
    }
    out
}
