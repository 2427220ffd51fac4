//! Every edit and verdict that a filter can give, through the real Postfix and through the library's own MTA side: the
//! same mail, the same recipients, the same replies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
#[path = "../milter/tests/common/script.rs"]
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use harness::{free_ports, repository, run, smtp, wait_for};
use mailtap_milter::client::{Delivery, Mail, Mailbox, Outcome};
use mailtap_milter::driver::{Client, Fallback, Handler, Listener, Peer, Response, Settings, serve};
use mailtap_milter::edits::{Answer, Edit, SmtpReply, Verdict};
use mailtap_milter::session::Message;
use mailtap_milter::wire::{Actions, Offer};
use tokio::net::TcpStream;

const SENDER: &str = "news@shop.example";
const USERS: [&str; 3] = ["anna", "ben", "carl"];

/// Answers as the header `X-Case` says.
#[derive(Debug)]
struct Scripted(BTreeMap<&'static str, Answer>);

impl Handler for Scripted {
    async fn message(&self, message: Message, _: &Fallback) -> Response {
        let case =
            message.header("X-Case").map(|header| header.value.trim_ascii().to_vec()).unwrap_or_default();
        let case = String::from_utf8(case).unwrap();
        self.0.get(case.as_str()).cloned().unwrap_or_else(|| panic!("no case {case}")).into()
    }
}

fn add(name: &str, value: &str) -> Edit {
    Edit::AddHeader { name: name.into(), value: value.into() }
}

fn insert(index: u32, value: &str) -> Edit {
    Edit::InsertHeader { index, name: b"X-Inserted".to_vec(), value: value.into() }
}

fn change(index: u32, name: &str, value: &str) -> Edit {
    Edit::ChangeHeader { index, name: name.into(), value: value.into() }
}

fn delete(index: u32, name: &str) -> Edit {
    Edit::DeleteHeader { index, name: name.into() }
}

fn body(text: impl Into<Vec<u8>>) -> Edit {
    Edit::ReplaceBody(text.into())
}

fn recipient(address: &str, args: &str) -> Edit {
    Edit::AddRecipient { address: address.into(), args: args.into() }
}

fn sender(address: &str, args: &str) -> Edit {
    Edit::ChangeSender { address: address.into(), args: args.into() }
}

/// Cases whose mail is delivered.
fn delivered() -> Vec<(&'static str, Vec<Edit>)> {
    let large: Vec<u8> = (0..20_000).flat_map(|number| format!("line {number}\r\n").into_bytes()).collect();
    vec![
        ("unmodified", vec![]),
        (
            "added",
            vec![add("X-One", "1"), add("X-Folded", "first\n\tsecond\n third"), add("X-Raw", "\tas it is")],
        ),
        ("inserted", vec![insert(0, "above"), insert(1, "second"), insert(2, "third"), insert(99, "last")]),
        (
            "changed",
            vec![change(2, "x-many", "new two"), change(1, "X-Many", "new one"), change(9, "X-None", "new")],
        ),
        ("deleted", vec![delete(1, "X-Many"), delete(3, "x-many")]),
        (
            "all-deleted",
            vec![delete(1, "X-Many"), delete(2, "X-Many"), delete(3, "X-Many"), add("X-Many", "only")],
        ),
        (
            "mixed",
            vec![insert(1, "top"), delete(2, "X-Many"), change(3, "X-Many", "was third"), body("new\r\n")],
        ),
        ("body", vec![body("one\r\n.two\r\n\r\n..\r\n"), add("X-One", "1")]),
        ("body-lf", vec![body("one\ntwo\r\nthree")]),
        ("body-empty", vec![body("")]),
        ("body-large", vec![body(large)]),
        ("body-8bit", vec![body(&b"caf\xe9 \xc3\xa4\r\n"[..])]),
        ("recipient-added", vec![recipient("<ben@example.net>", "")]),
        (
            "recipient-with-args",
            vec![recipient("<ben@example.net>", "NOTIFY=NEVER"), recipient("carl@example.net", "")],
        ),
        (
            "recipient-replaced",
            vec![
                Edit::DeleteRecipient { address: b"<anna@example.net>".to_vec() },
                recipient("carl@example.net", ""),
            ],
        ),
        ("sender", vec![sender("<other@shop.example>", "")]),
        ("sender-with-args", vec![sender("other@shop.example", "RET=HDRS ENVID=abc")]),
        ("sender-null", vec![sender("<>", "")]),
    ]
}

/// Cases whose mail is not.
fn refused() -> Vec<(&'static str, Answer)> {
    let reply = |code, enhanced, text| Verdict::Reply(SmtpReply::new(code, enhanced, text).unwrap()).into();
    vec![
        ("reject", Verdict::Reject.into()),
        ("tempfail", Verdict::TempFail.into()),
        ("discard", Verdict::Discard.into()),
        ("reply", reply(554, (5, 7, 9), "100% refused")),
        ("reply-tempfail", reply(450, (4, 2, 1), "later")),
        ("quarantine", Answer::edited(vec![Edit::Quarantine { reason: b"to be looked at".to_vec() }])),
    ]
}

fn message(case: &str) -> String {
    format!(
        "From: {SENDER}\r\nTo: anna@example.net\r\nX-Case: {case}\r\nMessage-ID: <{case}@shop.example>\r\n\
         Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nX-Many: one\r\nSubject: folded\r\n\tsubject\r\nx-many:two\r\n\
         X-Many:  three \r\n\r\nfirst line\r\n.a dot\r\n\r\nlast line\r\n"
    )
}

/// A Postfix that asks the filter and delivers to three mailboxes.
struct Postfix {
    directory: tempfile::TempDir,
    port: u16,
}

impl Postfix {
    fn start(milter: u16) -> Self {
        let directory = tempfile::Builder::new().prefix("mailtap-test-").tempdir().unwrap();
        let [port] = free_ports::<1>();
        let mut command = Command::new(repository().join("tests/lib/postfix"));
        command
            .arg("start")
            .arg("--dir")
            .arg(directory.path().join("mx"))
            .args(["--port", &port.to_string()]);
        command.args([
            "--milter",
            &format!("inet:127.0.0.1:{milter}"),
            "--mailboxes",
            "example.net:anna,ben,carl",
        ]);
        run(command.args(["--owner", &std::process::id().to_string()]));
        Self { directory, port }
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.directory.path().join("mx").join(below)
    }

    /// Who got the mail of a case, and the mail.
    fn mails(&self, case: &str) -> BTreeMap<&'static str, String> {
        let mark = format!("\nX-Case: {case}\n");
        let of = |user| {
            files(&self.path(&format!("mail/{user}/new"))).into_iter().find(|mail| mail.contains(&mark))
        };
        USERS.into_iter().filter_map(|user| Some((user, of(user)?))).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log/maillog")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let mut command = Command::new(repository().join("tests/lib/postfix"));
        let _ = command.args(["stop", "--remove", "--dir"]).arg(self.path("")).output();
    }
}

fn files(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .map(|entry| String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()).into_owned())
        .collect()
}

/// Takes what the delivery added off: the sender, and the mail without the MTA's own headers.
fn as_queued(mail: &str) -> (String, String) {
    let (mut sender, mut rest) = (String::new(), mail);
    for name in ["Return-Path: ", "X-Original-To: ", "Delivered-To: "] {
        let (line, after) = rest.split_once('\n').unwrap();
        let value = line.strip_prefix(name).unwrap_or_else(|| panic!("{name} expected: {line}"));
        if name == "Return-Path: " {
            sender = value.to_owned();
        }
        rest = after;
    }
    let start = rest.find("Received: from ").unwrap();
    let (before, own) = rest.split_at(start);
    let end = own.match_indices('\n').find(|(at, _)| !own[at + 1..].starts_with(['\t', ' '])).unwrap().0 + 1;
    (sender, before.to_owned() + &own[end..])
}

fn ask_client(runtime: &tokio::runtime::Runtime, port: u16, case: &str) -> Delivery {
    let mail = Mail::parse(
        Mailbox::new(format!("<{SENDER}>")),
        vec![Mailbox::new("<anna@example.net>")],
        message(case).as_bytes(),
    );
    runtime.block_on(async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut client = Client::negotiate(stream, &Offer::POSTFIX).await.unwrap();
        client.open(&Peer::default()).await.unwrap();
        client.send(&mail, "QUEUEID").await.unwrap()
    })
}

fn start_filter(runtime: &tokio::runtime::Runtime, answers: BTreeMap<&'static str, Answer>) -> u16 {
    let mut settings = Settings::default();
    settings.wanted.optional = Actions::VERSION_6;
    runtime.block_on(async {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.tcp_address().unwrap().port();
        tokio::spawn(serve(listener, Arc::new(Scripted(answers)), settings, std::future::pending()));
        port
    })
}

/// The answers of the crate's text cases, each with a name of its own; the same one once.
fn of_the_text_cases() -> Vec<(&'static str, Answer)> {
    let mut answers: Vec<(&'static str, Answer)> = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(repository().join("milter/tests/cases"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for answer in script::answers(&text) {
            if answers.iter().all(|(_, other)| *other != answer) {
                let name = format!("{}-{}", file.file_stem().unwrap().to_string_lossy(), answers.len());
                answers.push((name.leak(), answer));
            }
        }
    }
    assert!(answers.len() > 10, "{answers:?}");
    answers
}

/// Who of a delivery's recipients has a mailbox here.
fn local(delivery: &Delivery) -> BTreeSet<&str> {
    let addresses =
        delivery.mail.recipients.iter().map(|mailbox| std::str::from_utf8(mailbox.bare()).unwrap());
    addresses.filter_map(|address| address.strip_suffix("@example.net")).collect()
}

/// What the text cases of the crate have their filter answer, behind the real Postfix.
#[test]
fn postfix_and_the_client_make_the_same_of_the_text_cases() {
    let answers = of_the_text_cases();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let milter = start_filter(&runtime, answers.iter().cloned().collect());
    let postfix = Postfix::start(milter);
    for (case, _) in answers {
        let reply = smtp(postfix.port, SENDER, &["anna@example.net"], &message(case));
        let delivery = ask_client(&runtime, milter, case);
        if let Outcome::Refused(wanted) = &delivery.outcome {
            let wanted = String::from_utf8_lossy(wanted).into_owned();
            assert_eq!(Some(reply.as_str()), wanted.trim_end().lines().last(), "{case}");
            continue;
        }
        assert!(reply.starts_with("250 "), "{case}: {reply}");
        if delivery.outcome == Outcome::Discarded || delivery.quarantine.is_some() {
            continue;
        }
        let users = local(&delivery);
        wait_for(case, Duration::from_secs(20), || postfix.mails(case).len() >= users.len());
        let mails = postfix.mails(case);
        assert_eq!(mails.keys().copied().collect::<BTreeSet<_>>(), users, "{case}");
        for mail in mails.values() {
            assert_as_the_client(case, mail, &delivery);
        }
    }
}

/// A delivered mail is what the client made of it.
fn assert_as_the_client(case: &str, mail: &str, delivery: &Delivery) {
    let (sender, text) = as_queued(mail);
    let wanted = String::from_utf8_lossy(&delivery.mail.to_bytes()).replace("\r\n", "\n");
    assert!(text == wanted, "{case}:\n---- Postfix\n{text}\n---- client\n{wanted}");
    let wanted = String::from_utf8_lossy(delivery.mail.sender.bare()).into_owned();
    assert_eq!(sender, format!("<{wanted}>"), "{case}");
}

#[test]
fn postfix_and_the_client_make_the_same_of_every_answer() {
    let answers = delivered().into_iter().map(|(case, edits)| (case, Answer::edited(edits)));
    let answers = answers.chain(refused()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let milter = start_filter(&runtime, answers);
    let postfix = Postfix::start(milter);
    let send = |case: &str| smtp(postfix.port, SENDER, &["anna@example.net"], &message(case));

    let mut expected = Vec::new();
    for (case, _) in delivered() {
        let reply = send(case);
        assert!(reply.starts_with("250 "), "{case}: {reply}\n{}", postfix.log());
        expected.push((case, ask_client(&runtime, milter, case)));
    }
    for (case, delivery) in expected {
        assert_eq!(delivery.outcome, Outcome::Accepted, "{case}");
        let users = local(&delivery);
        wait_for(case, Duration::from_secs(20), || postfix.mails(case).len() >= users.len());
        let mails = postfix.mails(case);
        assert_eq!(mails.keys().copied().collect::<BTreeSet<_>>(), users, "{case}");
        for mail in mails.values() {
            assert_as_the_client(case, mail, &delivery);
        }
    }
    for (case, _) in refused() {
        let reply = send(case);
        let delivery = ask_client(&runtime, milter, case);
        match delivery.outcome {
            Outcome::Refused(wanted) => assert_eq!(reply.as_bytes(), wanted.trim_ascii_end(), "{case}"),
            _ => assert!(reply.starts_with("250 "), "{case}: {reply}"),
        }
        assert_eq!(delivery.quarantine.is_some(), case == "quarantine");
    }
    let log = postfix.log();
    for trace in
        ["milter-hold: END-OF-MESSAGE", "milter-discard: END-OF-MESSAGE", "milter-reject: END-OF-MESSAGE"]
    {
        assert!(log.contains(trace), "{trace}");
    }
    // All that was to be delivered has been by now.
    for (case, _) in refused() {
        assert!(postfix.mails(case).is_empty(), "{case} was delivered");
    }
}
