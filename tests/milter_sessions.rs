//! The crate's text cases that say how an SMTP client, or the sendmail command, brings them about: played through the real
//! Postfix, what stands on the wire between it and the filter is what the case says, and what the filter sees too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../milter/tests/common/mod.rs"]
mod common;
mod harness;
#[path = "../milter/tests/common/script.rs"]
mod script;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command as Process;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use harness::session::Session;
use harness::{free_ports, repository, run, run_with_input, wait_for};
use mailtap_milter::driver::{Fallback, Handler, Listener, Response, Settings, serve};
use mailtap_milter::edits::Answer;
use mailtap_milter::session::{Interest, Message};
use mailtap_milter::wire::{Actions, Command, EnvelopePath, Frame, Reply};

/// Postfix shows no more than what the cases have: its version and address are not their concern.
const SETTINGS: [&str; 8] = [
    "milter_connect_macros =",
    "milter_helo_macros =",
    "milter_mail_macros = i",
    "milter_rcpt_macros = i",
    "milter_end_of_data_macros = i",
    "smtpd_milters = inet:127.0.0.1:",
    "non_smtpd_milters = inet:127.0.0.1:",
    // What comes in goes on as it is.
    "local_header_rewrite_clients =",
];

/// The filter of the cases: what it answers next, and what it saw.
#[derive(Debug, Default)]
struct Scripted {
    answers: Mutex<VecDeque<Answer>>,
    saw: Mutex<Vec<String>>,
}

impl Handler for Scripted {
    fn headers(&self, message: &Message) -> Interest {
        common::interest(message)
    }

    async fn message(&self, message: Message, _: &Fallback) -> Response {
        self.saw.lock().unwrap().push(format!("! {}", common::describe(&message)));
        self.answers.lock().unwrap().pop_front().unwrap().into()
    }
}

/// Stands between Postfix and the filter of the moment, and writes down what goes over the wire.
#[derive(Debug, Default)]
struct Recorder {
    filter: Mutex<u16>,
    lines: Mutex<Vec<String>>,
}

impl Recorder {
    fn start(self: &Arc<Self>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let recorder = Arc::clone(self);
        thread::spawn(move || {
            for mta in listener.incoming() {
                let (mta, filter) =
                    (mta.unwrap(), TcpStream::connect(("127.0.0.1", recorder.port())).unwrap());
                let (to_mta, to_filter) = (mta.try_clone().unwrap(), filter.try_clone().unwrap());
                let (one, two) = (Arc::clone(&recorder), Arc::clone(&recorder));
                thread::spawn(move || one.pump(mta, to_filter, |frame| format!("> {}", command(frame))));
                thread::spawn(move || {
                    two.pump(filter, to_mta, |frame| {
                        format!("< {}", common::show(&Reply::decode(frame).unwrap()))
                    });
                });
            }
        });
        port
    }

    fn port(&self) -> u16 {
        *self.filter.lock().unwrap()
    }

    /// Writes down before it hands on: so that an answer always stands behind what it answers.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, show: impl Fn(Frame<'_>) -> String) {
        let mut length = [0; 4];
        while from.read_exact(&mut length).is_ok() {
            let mut data = vec![0; u32::from_be_bytes(length) as usize];
            from.read_exact(&mut data).unwrap();
            self.lines.lock().unwrap().push(show(Frame { code: data[0], data: &data[1..] }));
            to.write_all(&[&length[..], &data].concat()).unwrap();
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

/// A command as the cases write it.
fn command(frame: Frame<'_>) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\x", "\\\\x");
    let path = |path: EnvelopePath<'_>| {
        let args = path.args.iter().map(|arg| format!(" {}", text(arg)));
        format!("{}{}", text(path.address), args.collect::<String>())
    };
    match Command::decode(frame).unwrap() {
        Command::Negotiate(offer) => {
            format!("NEGOTIATE {} {:#x} {:#x}", offer.version, offer.actions.bits(), offer.protocol.bits())
        }
        Command::Macros { stage, pairs } => {
            let pairs = pairs.iter().map(|(name, value)| format!(" {}={}", text(name), text(value)));
            format!("MACROS {}{}", char::from(stage), pairs.collect::<String>())
        }
        Command::Mail(sender) => format!("MAIL {}", path(sender)),
        Command::Rcpt(recipient) => format!("RCPT {}", path(recipient)),
        Command::Header { name, value } => format!("HEADER {}:{}", text(name), text(value)),
        Command::EndOfHeaders => "END-OF-HEADERS".to_owned(),
        Command::Body(piece) => format!("BODY {}", text(piece)),
        Command::EndOfMessage(_) => "END-OF-MESSAGE".to_owned(),
        Command::Abort => "ABORT".to_owned(),
        Command::Quit => "QUIT".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Puts `Q1`, `Q2`, … in the place of the queue ids, in the order in which they come.
fn numbered(lines: &[String]) -> Vec<String> {
    let mut ids: Vec<&str> = Vec::new();
    for line in lines {
        let macros = line.strip_prefix("> MACROS ").unwrap_or_default();
        let id = macros.split(' ').find_map(|pair| pair.strip_prefix("i="));
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    let with_numbers = |line: &String| {
        let replaced =
            |line: String, (number, id): (usize, &&str)| line.replace(*id, &format!("Q{}", number + 1));
        ids.iter().enumerate().fold(line.clone(), replaced)
    };
    lines.iter().map(with_numbers).collect()
}

/// Brings a case about, as its lines say.
fn provoke(port: u16, config: &PathBuf, name: &str, text: &str) {
    let mut session = None;
    let mut sendmail = Vec::new();
    for line in text.lines() {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        match mark {
            "smtp>" => {
                let session = session.get_or_insert_with(|| Session::open(port).unwrap());
                let line = String::from_utf8(script::plain(rest)).unwrap();
                session.raw(&format!("{line}\r\n")).unwrap();
            }
            "smtp<" => {
                let answer = session.as_mut().unwrap().answer().unwrap();
                assert!(answer.starts_with(rest), "{name}: {line}: {answer}");
            }
            "sendmail>" => sendmail = rest.split(' ').collect(),
            "stdin>" => {
                let mut command = Process::new("/usr/sbin/sendmail");
                command.arg("-C").arg(config).args(&sendmail);
                let output = run_with_input(&mut command, &script::plain(rest));
                assert!(output.status.success(), "{name}: {}", harness::said(&output));
            }
            _ => (),
        }
    }
}

/// The cases that say how they are brought about.
fn cases() -> Vec<(String, String)> {
    let files = std::fs::read_dir(repository().join("milter/tests/cases")).unwrap();
    let mut cases: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|file| {
            (file.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(file).unwrap())
        })
        .filter(|(_, text)| text.contains("\nsmtp> ") || text.contains("\nsendmail> "))
        .collect();
    cases.sort();
    assert!(cases.len() >= 5, "only {} cases found", cases.len());
    cases
}

struct Postfix(tempfile::TempDir);

impl Postfix {
    fn start(port: u16, milter: u16) -> Self {
        let directory = tempfile::Builder::new().prefix("mailtap-test-").tempdir().unwrap();
        let postfix = Self(directory);
        let mut command = Process::new(repository().join("tests/lib/postfix"));
        command.arg("start").arg("--dir").arg(postfix.directory()).args(["--port", &port.to_string()]);
        command.args([
            "--mailboxes",
            "example.net:anna,ben,carl",
            "--owner",
            &std::process::id().to_string(),
        ]);
        for setting in SETTINGS {
            let milter = if setting.ends_with(':') { milter.to_string() } else { String::new() };
            command.arg("--set").arg(format!("{setting}{milter}"));
        }
        run(&mut command);
        postfix
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("mx")
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let mut command = Process::new(repository().join("tests/lib/postfix"));
        let _ = command.args(["stop", "--remove", "--dir"]).arg(self.directory()).output();
    }
}

fn start_filter(runtime: &tokio::runtime::Runtime, filter: &Arc<Scripted>) -> u16 {
    let mut settings = Settings::default();
    settings.wanted.optional = Actions::VERSION_6;
    runtime.block_on(async {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.tcp_address().unwrap().port();
        tokio::spawn(serve(listener, Arc::clone(filter), settings, std::future::pending()));
        port
    })
}

#[test]
fn postfix_says_what_the_text_cases_say() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let recorder = Arc::new(Recorder::default());
    let [port] = free_ports::<1>();
    let postfix = Postfix::start(port, recorder.start());
    let mut failures = Vec::new();
    for (name, text) in cases() {
        let filter = Arc::new(Scripted::default());
        filter.answers.lock().unwrap().extend(script::answers(&text));
        *recorder.filter.lock().unwrap() = start_filter(&runtime, &filter);
        recorder.lines.lock().unwrap().clear();
        provoke(port, &postfix.directory().join("config"), &name, &text);
        let over = || recorder.lines().last().is_some_and(|line| line == "> QUIT");
        wait_for(&name, Duration::from_secs(20), over);

        let of_case = |marks: &[&str]| -> Vec<&str> {
            text.lines().filter(|line| marks.iter().any(|mark| line.starts_with(mark))).collect()
        };
        let lines = recorder.lines();
        let saw = filter.saw.lock().unwrap().clone();
        let all = numbered(&[lines.clone(), saw].concat());
        let (wire, saw) = all.split_at(lines.len());
        for (seen, written) in [(wire, of_case(&["> ", "< "])), (saw, of_case(&["! message "]))] {
            if seen != written {
                failures.push(format!(
                    "{name}:\n{}\nbut the case has\n{}",
                    seen.join("\n"),
                    written.join("\n")
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
