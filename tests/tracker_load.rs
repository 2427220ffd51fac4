//! The tracker under load: killed in the middle of clicks, and flooded with forged tokens.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Options, Site, http, long};
use mailtap::identity::{MessageId, Timestamp};
use mailtap::keys::Keys;
use mailtap::keys::token::{Click, Token, sign};

/// A site whose events stay in the spool, and whose tracker knows no rate and waits for the spool.
fn site() -> Site {
    Site::start(&Options {
        without_postfix: true,
        changes: vec![
            ("#answer_wait = \"250ms\"", "answer_wait = \"60s\"".to_owned()),
            ("#client_rate = 200", "client_rate = 0".to_owned()),
            ("#token_rate = 60", "token_rate = 0".to_owned()),
            ("[tap]\n#enabled = true", "[tap]\nenabled = false".to_owned()),
            ("[relay]\n#enabled = true", "[relay]\nenabled = false".to_owned()),
        ],
        ..Options::default()
    })
}

/// The path of a click of its own: the message's random bits are its number.
fn link(keys: &Keys, number: u32) -> String {
    let ring = keys.current();
    let now = Timestamp::from_secs(1_790_000_000);
    let token = Token::Click(Click {
        message: MessageId::new(now, number),
        recipient: None,
        link: 1,
        campaign: None,
        target: "https://shop.example/".to_owned(),
    });
    let key = ring.keys().first().unwrap();
    format!("/c/{}", sign(&token, key))
}

/// Status of the next answer on a connection; `None` when it ended.
fn answer(reader: &mut impl BufRead) -> Option<u16> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(status)
}

/// One click after the other, until the tracker is gone; the numbers of those answered by a redirect.
fn clicks(port: u16, keys: &Keys, next: &AtomicU64, stop: &AtomicBool, done: &Mutex<BTreeSet<u32>>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !stop.load(Ordering::Relaxed) {
            let number = u32::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
            let request = format!("GET {} HTTP/1.1\r\nHost: t\r\n\r\n", link(keys, number));
            if stream.write_all(request.as_bytes()).is_err() {
                break;
            }
            match answer(&mut reader) {
                Some(302) => {
                    done.lock().unwrap().insert(number);
                }
                Some(other) => panic!("answered {other}"),
                None => break,
            }
        }
    }
}

/// Message ids of all clicks in the spool, read by SQLite itself.
fn stored(site: &Site) -> BTreeSet<String> {
    let output = harness::run(site.command().args(["events", "list", "--json", "--max", "1000000"]));
    output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|event| Some(event["event"]["subject"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn every_click_that_was_answered_survives_kill_9() {
    let mut site = site();
    let keys = Keys::open(&site.dir.join("mailtap/keyring.json")).unwrap();
    let (next, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let done = Arc::new(Mutex::new(BTreeSet::new()));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (keys, next, stop, done) = (keys.clone(), next.clone(), stop.clone(), done.clone());
            let port = site.tracker;
            std::thread::spawn(move || clicks(port, &keys, &next, &stop, &done))
        })
        .collect();
    let kills = if long() { 40 } else { 6 };
    for kill in 0..kills {
        let before = done.lock().unwrap().len();
        harness::wait_for("clicks", Duration::from_secs(30), || {
            done.lock().unwrap().len() > before + 50 + kill * 7
        });
        site.mailtap.as_mut().unwrap().kill();
        site.start_mailtap();
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let done = done.lock().unwrap();
    let stored = stored(&site);
    let lost: Vec<_> = done
        .iter()
        .filter(|number| {
            let id = MessageId::new(Timestamp::from_secs(1_790_000_000), **number);
            !stored.contains(&id.to_string())
        })
        .collect();
    println!("{} clicks answered over {kills} kills, {} stored", done.len(), stored.len());
    assert!(done.len() > kills * 50 && lost.is_empty(), "{} of {} lost", lost.len(), done.len());
}

/// 100,000 forged tokens, written as fast as they are taken; good links are answered all the while.
#[test]
fn a_flood_of_forged_tokens_holds_up_no_good_link() {
    let site = site();
    let keys = Keys::open(&site.dir.join("mailtap/keyring.json")).unwrap();
    let (port, admin) = (site.tracker, site.admin);
    let good = link(&keys, 1);
    let flooding = Arc::new(AtomicU64::new(0));
    let floods: Vec<_> = (0..4_usize)
        .map(|flood| {
            let (good, flooding) = (good.clone(), flooding.clone());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let mut reader = BufReader::with_capacity(256 * 1024, stream.try_clone().unwrap());
                for round in 0..250 {
                    let mut requests = String::new();
                    for number in 0..100 {
                        // Each another byte of a good token changed.
                        let mut forged = good.clone().into_bytes();
                        let at = 3 + (flood * 25_000 + round * 100 + number) % (forged.len() - 3);
                        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
                        let forged = String::from_utf8(forged).unwrap();
                        requests.push_str(&format!("GET {forged} HTTP/1.1\r\nHost: t\r\n\r\n"));
                    }
                    stream.write_all(requests.as_bytes()).unwrap();
                    for _ in 0..100 {
                        assert_eq!(answer(&mut reader), Some(404));
                        flooding.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut answered = 0;
    while floods.iter().any(|flood| !flood.is_finished()) {
        let reply = http(port, "GET", &good, &[]).expect("an answer");
        assert_eq!((reply.status, reply.header("location")), (302, Some("https://shop.example/")));
        answered += 1;
    }
    for flood in floods {
        flood.join().unwrap();
    }
    assert_eq!(flooding.load(Ordering::Relaxed), 100_000);
    assert!(answered >= 10, "only {answered} good links were answered meanwhile");
    let metrics = http(admin, "GET", "/metrics", &[]).unwrap().body;
    let metrics = String::from_utf8(metrics).unwrap();
    let refused: u64 = metrics
        .lines()
        .filter(|line| line.starts_with("mailtap_tracker_refused_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(refused, 100_000, "each is counted");
}
