//! What the MTA's side makes of a filter, written as text: `tests/client_cases/*.txt`.
//!
//! Two mails are sent over one connection.
//! - `# …` a comment
//! - `negotiate: VERSION ACTIONS PROTOCOL` what the filter takes; by default all of version 6, and a reply to each command
//! - `reply: CODE REPLY` the filter's reply to each command of this code, instead of CONTINUE; several make one answer
//! - `sent: …` the codes of all commands that the filter gets up to here, but macros
//! - `outcome: …` of a mail: `accepted, N edits`, `refused TEXT` or `discarded`
//! - `error: …` words of the error that ends the connection

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use mailtap_milter::client::{Mail, Mailbox, Outcome};
use mailtap_milter::driver::{Client, ClientError, Peer};
use mailtap_milter::wire::{Actions, Command, Frame, MacroLists, Offer, Protocol, Reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What a filter of a case does.
#[derive(Debug, Clone)]
struct Script {
    taken: Offer,
    replies: Vec<(u8, String)>,
}

impl Script {
    fn read(text: &str) -> Self {
        let mut script =
            Self { taken: Offer { protocol: Protocol::NONE, ..Offer::POSTFIX }, replies: Vec::new() };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("negotiate: ") {
                let numbers: Vec<u32> = rest.split(' ').map(number).collect();
                let (actions, protocol) = (Actions::from_bits(numbers[1]), Protocol::from_bits(numbers[2]));
                script.taken = Offer { version: numbers[0], actions, protocol };
            } else if let Some(rest) = line.strip_prefix("reply: ") {
                let (code, reply) = rest.split_once(' ').unwrap();
                script.replies.push((code.as_bytes()[0], reply.to_owned()));
            }
        }
        script
    }

    fn answer(&self, code: u8, out: &mut Vec<u8>) {
        let before = out.len();
        for (_, reply) in self.replies.iter().filter(|(at, _)| *at == code) {
            match reply.as_str() {
                "ACCEPT" => Reply::Accept,
                "CONTINUE" => Reply::Continue,
                "REJECT" => Reply::Reject,
                "DISCARD" => Reply::Discard,
                "PROGRESS" => Reply::Progress,
                "SHUTDOWN" => Reply::Shutdown,
                "ADD-HEADER" => Reply::AddHeader { name: b"X", value: b"y" },
                "CONNECTION-FAILED" => Reply::ConnectionFailed,
                other => panic!("reply: {other}"),
            }
            .encode(out);
        }
        if out.len() == before {
            Reply::Continue.encode(out);
        }
    }
}

fn number(text: &str) -> u32 {
    text.strip_prefix("0x").map_or_else(|| text.parse().unwrap(), |hex| u32::from_str_radix(hex, 16).unwrap())
}

async fn filter(mut stream: DuplexStream, script: Script, seen: Arc<Mutex<Vec<char>>>) {
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.unwrap_or_default() > 0 {
        let mut out = Vec::new();
        while let Some((frame, size)) = Frame::decode(&bytes, 1 << 20).unwrap() {
            let command = Command::decode(frame).unwrap();
            let code = command.code();
            if code != b'D' {
                seen.lock().unwrap().push(code.into());
            }
            match command {
                Command::Negotiate(_) => {
                    Reply::Negotiate { offer: script.taken, macros: MacroLists::new(&[]) }.encode(&mut out);
                }
                Command::Macros { .. } | Command::Abort | Command::Quit => (),
                _ => script.answer(code, &mut out),
            }
            bytes.drain(..size);
        }
        if stream.write_all(&out).await.is_err() {
            return;
        }
    }
}

async fn send_two(stream: DuplexStream) -> Result<Vec<String>, (Vec<String>, ClientError)> {
    let text = b"Subject: x\r\n\r\nbody\r\n";
    let mail = Mail::parse(Mailbox::new("<a@b>"), vec![Mailbox::new("<c@d>")], text);
    let mut outcomes = Vec::new();
    let work = async || {
        let mut client = Client::negotiate(stream, &Offer::POSTFIX).await?;
        client.open(&Peer::default()).await?;
        for _ in 0..2 {
            let delivery = client.send(&mail, "Q1").await?;
            outcomes.push(match delivery.outcome {
                Outcome::Accepted => format!("accepted, {} edits", delivery.edits),
                Outcome::Refused(reply) => format!("refused {}", String::from_utf8(reply).unwrap()),
                Outcome::Discarded => "discarded".to_owned(),
                other => format!("{other:?}"),
            });
        }
        client.quit().await
    };
    match work().await {
        Ok(()) => Ok(outcomes),
        Err(error) => Err((outcomes, error)),
    }
}

fn words(error: &dyn Error) -> String {
    let cause = error.source().map(words).unwrap_or_default();
    format!("{error} {cause}")
}

#[tokio::test]
async fn every_case_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client_cases");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = path.display();
        let (here, there) = tokio::io::duplex(1 << 16);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(filter(there, Script::read(&text), Arc::clone(&seen)));
        let ended = send_two(here).await;
        task.await.unwrap();
        let all = |mark: &str| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix(mark)).map(str::to_owned).collect()
        };
        let sent: String = all("sent: ").concat().split(' ').collect();
        assert_eq!(seen.lock().unwrap().iter().collect::<String>(), sent, "{name}");
        let (outcomes, errors) = match ended {
            Ok(outcomes) => (outcomes, String::new()),
            Err((outcomes, error)) => (outcomes, words(&error)),
        };
        assert_eq!(outcomes, all("outcome: "), "{name}");
        let expected = all("error: ");
        assert_eq!(expected.is_empty(), errors.is_empty(), "{name}: {errors}");
        assert!(expected.iter().all(|words| errors.contains(words)), "{name}: {errors}");
        count += 1;
    }
    assert!(count >= 11, "only {count} cases found");
}
