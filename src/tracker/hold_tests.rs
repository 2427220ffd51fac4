//! Amendments in a race with whoever sends: a tracker, its real spool, and a relay that claims too early and in between.

use std::collections::BTreeMap;

use super::*;
use crate::event::Machine;
use crate::queue::spool::{self, Spool as RealSpool};
use crate::tracker::Rates;

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn deps(real: &RealSpool, ring: &Keyring) -> Deps {
    Deps {
        keys: Keys::fixed(ring.clone()),
        publisher: Arc::new(real.clone()),
        consents: Arc::new(Fixed { opens: Consent::Granted, clicks: Consent::Granted }),
        handoff: None,
        deliveries: None,
        host: "test".into(),
    }
}

/// A tracker that lives until it has answered these requests, each with its User-Agent.
async fn answered(real: &RealSpool, ring: &Keyring, requests: &[(&str, &str, &str)]) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let deps = deps(real, ring);
    let life = Lifecycle::detached();
    let task = tokio::spawn(run_on(listener, Settings::default(), deps, life.clone()));
    for (method, path, agent) in requests {
        let request = format!("{method} {path} HTTP/1.0\r\nUser-Agent: {agent}\r\n\r\n");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(Reply::parse(&read_all(&mut stream).await).status < 400);
    }
    life.stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_person_after_a_machine_counts_once_over_a_restart() {
    const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
    let ring = Keyring::new([7; 32], Timestamp::from_secs(1));
    let signed = |token: &Token| sign(token, ring.signing(clock::now()).unwrap());
    let recipient = Some(Pseudonym::from([0x11; 12]));
    let link = format!("/c/{}", signed(&click("https://shop.example/", hour_ago())));
    let pixel =
        format!("/o/{}", signed(&Token::Open(Open { message: hour_ago(), recipient, campaign: None })));
    for (machine, person) in [
        (("HEAD", &*link, PERSON), ("GET", &*link, PERSON)),
        (("GET", &*pixel, "Mozilla/5.0"), ("GET", &*pixel, PERSON)),
    ] {
        for restarts in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let settings =
                spool::Settings { directory: directory.path().to_owned(), ..spool::Settings::default() };
            let real = RealSpool::open(settings).unwrap();
            // The mail is older than either process.
            if restarts {
                answered(&real, &ring, &[machine]).await;
                answered(&real, &ring, &[person, person]).await;
            } else {
                answered(&real, &ring, &[machine, person, person]).await;
            }
            let sent = claim(&real, 10).await;
            let data = sent.iter().map(|event| &event.data);
            let counted: Vec<_> = data
                .map(|data| {
                    (data.machine == Some(Machine::No), data.unique == Some(true), data.upgrade == Some(true))
                })
                .collect();
            assert_eq!(
                counted,
                [(false, true, false), (true, false, true), (true, false, false)],
                "{restarts}"
            );
        }
    }
}

#[tokio::test]
async fn whatever_is_claimed_meanwhile_every_click_is_sent_once() {
    let directory = tempfile::tempdir().unwrap();
    let settings = spool::Settings { directory: directory.path().to_owned(), ..spool::Settings::default() };
    let real = RealSpool::open(settings).unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let ring = Keyring::new([7; 32], Timestamp::from_secs(1));
    let deps = deps(&real, &ring);
    let life = Lifecycle::detached();
    // One recipient clicks more often here than a site would record.
    let settings = Settings { rates: Rates { client: None, token: None }, ..Settings::default() };
    let task = tokio::spawn(run_on(listener, settings, deps, life.clone()));
    // Accepted after the tracker began, as far as it knows.
    let messages = [1, 2].map(|number| MessageId::new(clock::now().plus(Duration::from_millis(900)), number));
    let mut dice = Dice(7);
    let mut sent: Vec<Event> = Vec::new();
    for number in 0..300 {
        let token = Token::Click(Click {
            message: messages[usize::try_from(dice.below(2)).unwrap()],
            recipient: Some(Pseudonym::from([0x11; 12])),
            link: u16::try_from(1 + dice.below(3)).unwrap(),
            campaign: None,
            target: format!("https://shop.example/{number}"),
        });
        let agent =
            ["curl/8", "Zscaler", "Firefox/128.0", "Firefox/128.0"][usize::try_from(dice.below(4)).unwrap()];
        let path = format!("/c/{}", sign(&token, ring.signing(clock::now()).unwrap()));
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nUser-Agent: {agent}\r\n\r\n");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(Reply::parse(&read_all(&mut stream).await).status, 302);
        if dice.below(12) == 0 {
            sent.extend(claim(&real, usize::try_from(1 + dice.below(20)).unwrap()).await);
        }
    }
    life.stop.cancel();
    task.await.unwrap().unwrap();
    sent.extend(claim(&real, 1_000).await);
    let mut paths: Vec<u32> =
        sent.iter().map(|event| event.data.link_path.as_ref().unwrap()[1..].parse().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, (0..300).collect::<Vec<_>>(), "the facts of every click once");
    let ids: std::collections::BTreeSet<_> = sent.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), 300);
    let mut uniques = BTreeMap::new();
    for event in &sent {
        let count: &mut u32 = uniques.entry((event.message, event.data.link)).or_default();
        *count += u32::from(event.data.unique == Some(true));
    }
    assert_eq!(uniques.len(), 6);
    assert!(uniques.values().all(|unique| *unique == 1), "{uniques:?}");
    let machines = sent.iter().filter(|event| event.data.machine != Some(Machine::No)).count();
    assert!(machines > 150, "more than said so of themselves: {machines}");
}

/// As a relay would half a minute later.
async fn claim(spool: &RealSpool, max: usize) -> Vec<Event> {
    let later = clock::now().plus(Duration::from_secs(31));
    let claimed = spool.claim(max, Duration::from_secs(3_600), later).await.unwrap();
    claimed.into_iter().map(|claimed| claimed.event).collect()
}
