//! The milter killed at random moments, under a load of messages of every size, behind the real Postfix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::letters::{Dice, Fate, Kind, fate, letter, number};
use harness::session::Session;
use harness::{Options, SENDER, Site, free_ports, long};

const CLIENTS: usize = 4;

/// What clients and killer share.
#[derive(Default)]
struct Load {
    /// Letters whose last byte has been sent.
    ended: AtomicUsize,
    /// The milter listens.
    up: AtomicBool,
    over: AtomicBool,
}

impl Load {
    /// Most sessions begin while the milter runs: without it they are over too soon to be of interest.
    fn wait_for_milter(&self, dice: &mut Dice) {
        while dice.below(50) != 0 && !self.up.load(Ordering::Relaxed) && !self.over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A letter and the answer to it; an empty one if the connection broke.
type Sent = (usize, Kind, String);

/// Mostly small ones, some of up to the size that passes unmodified where the system's send buffers are small.
fn kind(dice: &mut Dice) -> Kind {
    match dice.below(100) {
        0..70 => Kind::Html(1_000 + dice.below(4_000)),
        70..88 => Kind::Html(30_000 + dice.below(60_000)),
        88..96 => Kind::Html(300_000),
        96..99 => Kind::Attachment(2_000_000 + dice.below(1_000_000)),
        _ => Kind::Attachment(5_000_000),
    }
}

/// Sends until the killer has done, a few letters each session.
fn client(site: &Site, load: &Load, client: usize, at_least: usize) -> Vec<Sent> {
    let mut dice = Dice(client as u64 + 1);
    let mut sent = Vec::new();
    while !load.over.load(Ordering::Relaxed) || sent.len() < at_least {
        load.wait_for_milter(&mut dice);
        let mut session = Session::open(site.smtp).ok();
        for _ in 0..=dice.below(3) {
            let number = sent.len() * CLIENTS + client;
            let kind = kind(&mut dice);
            let answer = session.as_mut().and_then(|session| {
                let answer = session.envelope(SENDER, &["anna@example.net"]).ok()?;
                if !answer.starts_with('3') {
                    return Some(answer);
                }
                session.content(&letter(number, kind)).ok()?;
                load.ended.fetch_add(1, Ordering::Relaxed);
                session.answer().ok()
            });
            sent.push((number, kind, answer.unwrap_or_default()));
        }
    }
    sent
}

/// Kills and starts the milter again: half of the times at any moment, half just after the end of a letter.
fn killer(site: &mut Killed<'_>, load: &Load, kills: usize) {
    let mut dice = Dice(42);
    for _ in 0..kills {
        site.start();
        load.up.store(true, Ordering::Relaxed);
        if dice.below(2) == 0 {
            thread::sleep(Duration::from_millis(dice.below(200) as u64));
        } else {
            // The sessions without milter end meanwhile.
            thread::sleep(Duration::from_millis(30));
            let (before, end) = (load.ended.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(1));
            while load.ended.load(Ordering::Relaxed) == before && Instant::now() < end {
                thread::sleep(Duration::from_micros(200));
            }
            thread::sleep(Duration::from_micros(dice.below(30_000) as u64));
        }
        load.up.store(false, Ordering::Relaxed);
        site.mailtap.kill();
    }
    site.start();
    load.over.store(true, Ordering::Relaxed);
}

/// The milter of a site.
struct Killed<'a> {
    site: &'a Site,
    mailtap: harness::Daemon,
    /// Its port, where it listens on TCP.
    port: Option<u16>,
}

impl Killed<'_> {
    fn start(&mut self) {
        self.mailtap = self.site.daemon("mailtap", self.site.command().arg("milter"));
        let end = Instant::now() + Duration::from_secs(30);
        while !self.listens() {
            assert!(Instant::now() < end, "it does not listen");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn listens(&self) -> bool {
        match self.port {
            Some(port) => TcpStream::connect(("127.0.0.1", port)).is_ok(),
            None => UnixStream::connect(self.site.milter_socket()).is_ok(),
        }
    }
}

/// Delivers under kills; gives how many letters came as they were sent, how many rewritten, how many were refused.
fn deliver_under_kills(action: &'static str, tcp: bool) -> BTreeMap<String, usize> {
    let (kills, messages) = kills_and_messages();
    let mut options = Options { default_action: action, milter_only: true, ..Options::default() };
    let port = tcp.then(|| free_ports::<1>()[0]);
    if let Some(port) = port {
        options.relay = vec!["--milter".into(), format!("inet:127.0.0.1:{port}")];
        options
            .changes
            .push(("unix:{dir}/relay/queue/mailtap/milter.sock", format!("inet:127.0.0.1:{port}")));
    }
    let mut site = Site::start(&options);
    let mailtap = site.mailtap.take().unwrap();
    let load = Load::default();
    let mut sent = Vec::new();
    let mut killed = Killed { site: &site, mailtap, port };
    killed.mailtap.kill();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (site, load) = (&site, &load);
                scope.spawn(move || client(site, load, number, messages / CLIENTS))
            })
            .collect();
        // Whatever goes wrong, the clients end.
        let done =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| killer(&mut killed, &load, kills)));
        load.over.store(true, Ordering::Relaxed);
        for client in clients {
            sent.extend(client.join().unwrap());
        }
        done.unwrap();
    });
    site.wait_for_empty_queues(Duration::from_secs(120));
    check(&site, &sent)
}

/// Every letter that was taken is there once, whole; no other is.
fn check(site: &Site, sent: &[Sent]) -> BTreeMap<String, usize> {
    let mut delivered: BTreeMap<usize, Fate> = BTreeMap::new();
    let kinds: BTreeMap<usize, Kind> = sent.iter().map(|(number, kind, _)| (*number, *kind)).collect();
    let mut wrong = Vec::new();
    for file in site.mail_files("anna") {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        let number = number(&text).unwrap_or_else(|| panic!("no number in {}", file.display()));
        match fate(&letter(number, kinds[&number]), &text, &site.tracking_url()) {
            Ok(fate) => {
                if delivered.insert(number, fate).is_some() {
                    wrong.push(format!("letter {number} came twice"));
                }
            }
            Err(why) => wrong.push(format!("letter {number}, {:?}: {why}", kinds[&number])),
        }
    }
    let mut counts = BTreeMap::new();
    for (number, kind, answer) in sent {
        let fate = delivered.get(number);
        if answer.starts_with("250") != fate.is_some() {
            wrong.push(format!("letter {number}, {kind:?}: {answer:?}, but {fate:?}"));
        }
        let word = fate.map_or_else(|| answer.get(..1).unwrap_or("-").to_owned(), |fate| format!("{fate:?}"));
        *counts.entry(word).or_default() += 1;
    }
    assert!(wrong.is_empty(), "{counts:?}, {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{} letters: {counts:?}", sent.len());
    counts
}

fn kills_and_messages() -> (usize, usize) {
    let asked = std::env::var("MAILTAP_TEST_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills = asked.unwrap_or(if long() { 2_000 } else { 30 });
    (kills, (kills * 5).max(400))
}

#[test]
fn with_accept_every_message_arrives_whole() {
    for tcp in [false, true] {
        let counts = deliver_under_kills("accept", tcp);
        assert!(counts["AsItCame"] > 0 && counts["Rewritten"] > 0, "{counts:?}");
        assert_eq!(counts.len(), 2, "none is refused: {counts:?}");
    }
}

#[test]
fn with_tempfail_every_message_arrives_whole_or_is_deferred() {
    for tcp in [false, true] {
        let counts = deliver_under_kills("tempfail", tcp);
        assert!(counts["Rewritten"] > 0 && counts["4"] > 0, "{counts:?}");
        assert!(!counts.contains_key("5") && !counts.contains_key("-"), "{counts:?}");
    }
}

#[test]
fn mixtures_are_seen() {
    let url = "http://t.example";
    let old = letter(7, Kind::Attachment(1_000));
    let mut new = old.replace("\r\n\r\n--letters", "\r\nX-Mailtap-Ref: x\r\n\r\n--letters");
    for link in 0..20 {
        let target = format!("https://www.example.org/letter-7/{link}\"");
        new = new.replace(&target, &format!("{url}/c/token{link}\""));
    }
    let new = new.replace("</body>", "<img src=\"http://t.example/o/x\" alt=\"\"></body>");
    assert_eq!(fate(&old, &old, url), Ok(Fate::AsItCame));
    assert_eq!(fate(&old, &new, url), Ok(Fate::Rewritten));
    assert_eq!(number(&new), Some(7));
    assert!(fate(&letter(8, Kind::Attachment(1_000)), &new, url).is_err());
    let (head, tail) = (&new[..new.len() / 2], &old[old.len() / 2..]);
    assert!(fate(&old, &format!("{head}{tail}"), url).is_err(), "new, then old");
    assert!(fate(&old, head, url).is_err(), "cut");
    assert!(fate(&old, &new.replace("X-Mailtap-Ref", "X-Other"), url).is_err());
    assert!(fate(&old, &old[..old.len() - 40], url).is_err(), "cut at the end");
}
