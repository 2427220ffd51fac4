//! Filters that fail at each step of a message, in front of the real Postfix; and the milter through reload, stop and chroot.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::letters::{Fate, Kind, fate, letter, number};
use harness::session::Session;
use harness::{Options, SENDER, Site, free_ports, smtp, wait_for};
use mailtap_milter::driver::{Fallback, Handler, Listener, Response, Settings, UnixSocket, serve};
use mailtap_milter::edits::{Answer, Edit};
use mailtap_milter::session::{Interest, Message, Wanted};
use mailtap_milter::wire::{MacroLists, Offer, Protocol, Reply};

/// A Postfix with a place for a milter of the test's own.
fn site(default_action: &'static str) -> Site {
    let options = Options { default_action, milter_only: true, ..Options::default() };
    let mut site = Site::start(&options);
    assert_eq!(site.mailtap.as_mut().unwrap().stop(), Some(0));
    site
}

fn original(number: usize) -> String {
    letter(number, Kind::Html(2_000))
}

/// What became of each letter so far, by number; panics if one came twice.
fn fates(site: &Site) -> Vec<(usize, Fate)> {
    site.wait_for_empty_queues(Duration::from_secs(60));
    let mut fates: Vec<_> = site
        .mailbox()
        .iter()
        .map(|delivered| {
            let number = number(delivered).unwrap();
            let kind = if number == LARGE { Kind::Html(1_000_000) } else { Kind::Html(2_000) };
            (number, fate(&letter(number, kind), delivered, &site.tracking_url()).unwrap())
        })
        .collect();
    fates.sort();
    let mut numbers: Vec<_> = fates.iter().map(|(number, _)| *number).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), fates.len(), "one came twice: {fates:?}");
    fates
}

/// The number of the one large letter.
const LARGE: usize = 1_000;

/// A filter that changes nothing, and does what a test says at one command.
#[derive(Debug, Default)]
struct Plain {
    /// It closes the connection at the command with this code.
    closes_at: AtomicU8,
    /// It has Postfix skip the rest of a body.
    skips: AtomicU8,
    /// Pieces of bodies that came.
    pieces: AtomicUsize,
}

impl Plain {
    fn start(site: &Site) -> Arc<Self> {
        let plain = Arc::new(Self::default());
        let listener = UnixListener::bind(site.milter_socket()).unwrap();
        std::fs::set_permissions(site.milter_socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
        let here = Arc::clone(&plain);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let here = Arc::clone(&here);
                std::thread::spawn(move || here.converse(stream.unwrap()));
            }
        });
        plain
    }

    /// One connection, a reply to everything.
    fn converse(&self, mut stream: UnixStream) -> Option<()> {
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length).ok()?;
            let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut bytes).ok()?;
            let code = *bytes.first()?;
            if code == self.closes_at.load(Ordering::Relaxed) {
                return None;
            }
            let mut out = Vec::new();
            let skips = self.skips.load(Ordering::Relaxed) > 0;
            match code {
                b'D' | b'A' => continue,
                b'Q' => return Some(()),
                b'O' => {
                    let protocol = if skips { Protocol::SKIP } else { Protocol::NONE };
                    let offer = Offer { protocol, ..Offer::POSTFIX };
                    Reply::Negotiate { offer, macros: MacroLists::new(&[]) }.encode(&mut out);
                }
                b'B' => {
                    self.pieces.fetch_add(1, Ordering::Relaxed);
                    if skips { Reply::Skip } else { Reply::Continue }.encode(&mut out);
                }
                _ => Reply::Continue.encode(&mut out),
            }
            stream.write_all(&out).ok()?;
        }
    }
}

/// The steps of a message, by their commands.
const STEPS: [u8; 10] = *b"OCHMRTLNBE";

#[test]
fn a_filter_that_breaks_off_at_any_step_costs_nothing_with_accept() {
    let site = site("accept");
    let plain = Plain::start(&site);
    for (number, step) in STEPS.into_iter().enumerate() {
        plain.closes_at.store(step, Ordering::Relaxed);
        let answer = site.send("anna@example.net", &original(number));
        assert!(answer.starts_with("250 "), "{}: {answer}", char::from(step));
    }
    let expected: Vec<_> = (0..STEPS.len()).map(|number| (number, Fate::AsItCame)).collect();
    assert_eq!(fates(&site), expected);
}

#[test]
fn a_filter_that_breaks_off_at_any_step_defers_with_tempfail() {
    let site = site("tempfail");
    let plain = Plain::start(&site);
    for (number, step) in STEPS.into_iter().enumerate() {
        plain.closes_at.store(step, Ordering::Relaxed);
        let session = Session::open(site.smtp);
        let answer = session.and_then(|mut open| open.send(SENDER, &["anna@example.net"], &original(number)));
        // At CONNECT Postfix itself breaks off, with 421.
        assert!(answer.as_ref().map_or(true, |answer| answer.starts_with('4')), "{step}: {answer:?}");
        plain.closes_at.store(0, Ordering::Relaxed);
        let answer = site.send("anna@example.net", &original(number));
        assert!(answer.starts_with("250 "), "{}: {answer}", char::from(step));
    }
    let expected: Vec<_> = (0..STEPS.len()).map(|number| (number, Fate::AsItCame)).collect();
    assert_eq!(fates(&site), expected, "each once");
}

/// Fails as the header `X-Fault` says; `part` wants no body. Replaces every other body.
#[derive(Debug, Default)]
struct Faulty(Mutex<Vec<(usize, bool)>>);

fn fault(message: &Message) -> String {
    let value = message.header("X-Fault").map(|header| header.value.trim_ascii().to_vec());
    String::from_utf8(value.unwrap_or_default()).unwrap()
}

impl Handler for Faulty {
    fn headers(&self, message: &Message) -> Interest {
        match fault(message).as_str() {
            "headers" => panic!("as told"),
            "part" => Interest::BodyUpTo(0),
            _ => Interest::Body,
        }
    }

    async fn message(&self, message: Message, _: &Fallback) -> Response {
        match fault(&message).as_str() {
            "message" => panic!("as told"),
            "later" => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                panic!("as told");
            }
            "part" => {
                self.0.lock().unwrap().push((message.body().len(), message.body_is_whole()));
                let edit = Edit::AddHeader { name: b"X-Seen".to_vec(), value: b"in part".to_vec() };
                Answer::edited(vec![edit]).into()
            }
            _ => Answer::edited(vec![Edit::ReplaceBody(b"replaced\r\n".to_vec())]).into(),
        }
    }
}

/// The driver at the milter's place, as long as the runtime lives.
fn start_driver(site: &Site, handler: &Arc<Faulty>, wanted: Wanted) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut settings = Settings::default();
    settings.wanted = wanted;
    let handler = Arc::clone(handler);
    runtime.block_on(async {
        let at = UnixSocket::new(site.milter_socket(), 0o666);
        tokio::spawn(serve(Listener::unix(&at).unwrap(), handler, settings, std::future::pending()));
    });
    runtime
}

fn with_fault(number: usize, fault: &str) -> String {
    original(number).replacen("MIME-Version", &format!("X-Fault: {fault}\r\nMIME-Version"), 1)
}

#[test]
fn a_panic_behind_postfix_costs_nothing() {
    for action in ["accept", "tempfail"] {
        let site = site(action);
        let _driver = start_driver(&site, &Arc::default(), Wanted::default());
        let mut session = Session::open(site.smtp).unwrap();
        let faults = ["headers", "message", "later"];
        for (number, fault) in faults.into_iter().enumerate() {
            for text in [with_fault(number, fault), original(100 + number)] {
                let answer = session.send(SENDER, &["anna@example.net"], &text).unwrap();
                assert!(answer.starts_with("250 "), "{action}, {fault}: {answer}");
            }
        }
        site.wait_for_empty_queues(Duration::from_secs(60));
        let mails = site.mailbox();
        assert_eq!(mails.len(), 2 * faults.len(), "each once");
        for mail in mails {
            let number = number(&mail).unwrap();
            if number >= 100 {
                assert!(mail.ends_with("\n\nreplaced\n"), "the next one is served: {mail}");
            } else {
                let sent = with_fault(number, faults[number]);
                assert_eq!(fate(&sent, &mail, &site.tracking_url()), Ok(Fate::AsItCame));
            }
        }
    }
}

/// What the filter does not want of a body, Postfix does not send, and delivers all the same.
#[test]
fn a_body_that_is_skipped_is_delivered() {
    let large = letter(LARGE, Kind::Html(1_000_000));
    let skipping = site("tempfail");
    let plain = Plain::start(&skipping);
    plain.skips.store(1, Ordering::Relaxed);
    assert!(skipping.send("anna@example.net", &large).starts_with("250 "));
    assert_eq!(plain.pieces.load(Ordering::Relaxed), 1, "of sixteen");
    assert_eq!(fates(&skipping), [(LARGE, Fate::AsItCame)]);
    std::fs::remove_file(skipping.milter_socket()).unwrap();

    let handler = Arc::new(Faulty::default());
    let mut wanted = Wanted::default();
    wanted.protocol = Wanted::SKIPS_BODIES;
    let _driver = start_driver(&skipping, &handler, wanted);
    let large = with_fault(LARGE + 1, "part") + &"and so on\r\n".repeat(100_000);
    let mut session = Session::open(skipping.smtp).unwrap();
    for text in [&large, &original(7)] {
        assert!(session.send(SENDER, &["anna@example.net"], text).unwrap().starts_with("250 "));
    }
    skipping.wait_for_empty_queues(Duration::from_secs(60));
    assert_eq!(*handler.0.lock().unwrap(), [(0, false)]);
    let mails = skipping.mailbox();
    let part = mails.iter().find(|mail| number(mail) == Some(LARGE + 1)).unwrap();
    assert!(part.contains("\nX-Seen: in part\n") && part.matches("and so on\n").count() == 100_000);
    assert!(mails.iter().any(|mail| number(mail) == Some(7) && mail.ends_with("\n\nreplaced\n")));
}

/// Sends envelope and half of a letter's content.
fn half(session: &mut Session, letter: &str) -> String {
    let answer = session.envelope(SENDER, &["anna@example.net"]).unwrap();
    assert!(answer.starts_with("354 "), "{answer}");
    let middle = letter.len() / 2;
    let middle = middle + letter[middle..].find("\r\n").unwrap() + 2;
    session.raw(&letter[..middle]).unwrap();
    letter[middle..].to_owned()
}

#[test]
fn a_reload_within_a_session_loses_nothing() {
    let site = Site::start(&Options { milter_only: true, ..Options::default() });
    let mut session = Session::open(site.smtp).unwrap();
    for number in 0..4 {
        let letter = letter(number, Kind::Html(2_000));
        let rest = half(&mut session, &letter);
        site.mailtap.as_ref().unwrap().signal("HUP");
        wait_for("the reload", Duration::from_secs(10), || {
            site.log("mailtap").matches("reloading").count() == number + 1
        });
        session.content(&rest).unwrap();
        assert!(session.answer().unwrap().starts_with("250 "));
    }
    let expected: Vec<_> = (0..4).map(|number| (number, Fate::Rewritten)).collect();
    assert_eq!(fates(&site), expected);
}

/// Settings are not read again: which of them were edited is said, and that a file which is broken would end a restart.
#[test]
fn a_reload_says_what_needs_a_restart() {
    let site = Site::start(&Options { milter_only: true, without_postfix: true, ..Options::default() });
    let original = std::fs::read_to_string(site.config()).unwrap();
    let reload = |text: &str, said: &str| {
        std::fs::write(site.config(), text).unwrap();
        site.mailtap.as_ref().unwrap().signal("HUP");
        let log = || site.log("mailtap");
        wait_for(said, Duration::from_secs(10), || log().contains(said));
        log().lines().find(|line| line.contains(said)).unwrap().to_owned()
    };
    assert!(reload(&original, "configuration unchanged").contains("INFO"));
    let edited = original
        .replace("#drain = \"20s\"", "drain = \"5s\"")
        .replace("#max_message = \"40MiB\"", "max_message = \"39MiB\"");
    let line = reload(&edited, "need a restart");
    assert!(
        line.contains("WARN") && line.contains("\"keys\":\"milter.drain, policy.max_message\""),
        "{line}"
    );
    let line = reload(&format!("{original}\n[nonsense\n"), "the one in use stays");
    assert!(line.contains("ERROR") && line.contains("mailtap.toml"), "{line}");
    assert!(reload(&original.replace("#drain = \"20s\"", "drian = \"5s\""), "drian").contains("ERROR"));
}

/// At a stop, a message that is being received is finished; a session between messages gets 451 and no half message.
#[test]
fn a_stop_finishes_the_message_that_is_under_way() {
    let mut site = Site::start(&Options { milter_only: true, ..Options::default() });
    let (mut busy, mut idle) = (Session::open(site.smtp).unwrap(), Session::open(site.smtp).unwrap());
    // Of an envelope Postfix says nothing before DATA.
    let mut begun = Session::open(site.smtp).unwrap();
    for line in [format!("MAIL FROM:<{SENDER}>"), "RCPT TO:<anna@example.net>".to_owned()] {
        assert!(begun.command(&line).unwrap().starts_with("250 "));
    }
    assert!(idle.send(SENDER, &["anna@example.net"], &original(0)).unwrap().starts_with("250 "));
    let letter = original(1);
    let rest = half(&mut busy, &letter);
    let mut mailtap = site.mailtap.take().unwrap();
    mailtap.signal("TERM");
    wait_for("the listener to go", Duration::from_secs(10), || !site.milter_socket().exists());
    wait_for("the idle connection to be closed", Duration::from_secs(15), || {
        let metrics = harness::http(site.admin, "GET", "/metrics", &[]).unwrap();
        String::from_utf8_lossy(&metrics.body)
            .contains("mailtap_milter_connections_total{end=\"drained\"} 1\n")
    });
    assert!(mailtap.is_running(), "it waits for the messages");
    assert!(begun.command("DATA").unwrap().starts_with("354 "));
    begun.content(&original(2)).unwrap();
    assert!(begun.answer().unwrap().starts_with("250 "));
    busy.content(&rest).unwrap();
    assert!(busy.answer().unwrap().starts_with("250 "));
    wait_for("the end", Duration::from_secs(20), || !mailtap.is_running());
    assert_eq!(mailtap.exit_code(), Some(0));
    let answer = idle.send(SENDER, &["anna@example.net"], &original(3)).unwrap();
    assert!(answer.starts_with("451 "), "{answer}");
    assert_eq!(fates(&site), [(0, Fate::Rewritten), (1, Fate::Rewritten), (2, Fate::Rewritten)]);
}

/// A message that takes longer than the drain passes as it came, rather than meeting the default action.
#[test]
fn a_stop_lets_a_message_through_that_takes_too_long() {
    let mut site = Site::start(&Options {
        milter_only: true,
        changes: vec![("#drain = \"20s\"", "drain = \"1s\"".into())],
        ..Options::default()
    });
    let mut session = Session::open(site.smtp).unwrap();
    let letter = original(1);
    let rest = half(&mut session, &letter);
    let mut mailtap = site.mailtap.take().unwrap();
    mailtap.signal("TERM");
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(mailtap.is_running());
    session.content(&rest).unwrap();
    assert!(session.answer().unwrap().starts_with("250 "));
    wait_for("the end", Duration::from_secs(10), || !mailtap.is_running());
    assert_eq!(fates(&site), [(1, Fate::AsItCame)]);
    let log = site.log("mailtap");
    let line =
        log.lines().find(|line| line.contains("\"reason\":\"stopping\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("\"recipients\":1") && !line.contains("\"queue_id\":\"\""), "{line}");
}

/// What a table of clients says of the milter counts as what main.cf says.
#[test]
fn a_table_that_says_accept_is_believed() {
    let site = Site::start(&Options {
        milter_only: true,
        settings: vec![
            "smtpd_milter_maps = inline:{ {192.0.2.1 = { unix:mailtap/milter.sock, default_action=accept }} }",
        ],
        ..Options::default()
    });
    let log = site.log("mailtap");
    assert!(log.contains("says default_action=accept"), "{log}");
}

/// The socket's name is relative to the queue directory: it is found from within a chroot.
#[test]
fn a_chroot_finds_the_socket() {
    let [port] = free_ports::<1>();
    let site = Site::start(&Options {
        milter_only: true,
        services: vec![
            format!("127.0.0.1:{port} inet n - y - - smtpd -o cleanup_service_name=jailed"),
            "jailed unix n - y - 0 cleanup".into(),
        ],
        ..Options::default()
    });
    assert!(smtp(port, SENDER, &["anna@example.net"], &original(1)).starts_with("250 "));
    assert_eq!(fates(&site), [(1, Fate::Rewritten)]);
}

/// Every message that passes a limit has its line.
#[test]
fn limits_of_the_configuration_hold() {
    let site = Site::start(&Options {
        milter_only: true,
        changes: vec![
            ("#max_headers = 2000", "max_headers = 20".into()),
            ("#max_header_size = \"1MiB\"", "max_header_size = \"4KiB\"".into()),
            ("#max_recipients = 50000", "max_recipients = 2".into()),
        ],
        mailboxes: vec!["example.net:ben,carl"],
        ..Options::default()
    });
    let with =
        |number, more: &str| original(number).replacen("MIME-Version", &format!("{more}MIME-Version"), 1);
    let many = with(1, &"X-Many: yes\r\n".repeat(30));
    let long = with(2, &format!("X-Long: {}\r\n", "yes ".repeat(200)).repeat(6));
    let mut session = Session::open(site.smtp).unwrap();
    for text in [&many, &long, &original(3)] {
        assert!(session.send(SENDER, &["anna@example.net"], text).unwrap().starts_with("250 "));
    }
    let all = ["anna@example.net", "ben@example.net", "carl@example.net"];
    assert!(session.send(SENDER, &all, &original(4)).unwrap().starts_with("250 "));
    site.wait_for_empty_queues(Duration::from_secs(60));
    let url = site.tracking_url();
    let rewritten: Vec<_> =
        site.mailbox().iter().filter(|mail| mail.contains(&url)).map(|mail| number(mail).unwrap()).collect();
    assert_eq!(rewritten, [3], "and the others as they came");
    assert_eq!(site.mailbox().len(), 4);
    let log = site.log("mailtap");
    for (reason, recipients) in [("headers", 1), ("header_bytes", 1), ("recipients", 3)] {
        let mark = format!("\"reason\":\"{reason}\"");
        let line = log.lines().find(|line| line.contains(&mark)).unwrap_or_else(|| panic!("{reason}: {log}"));
        assert!(line.contains(&format!("\"recipients\":{recipients}")), "{line}");
        assert!(!line.contains("\"queue_id\":\"\"") && line.contains("\"micros\":"), "{line}");
    }
}
