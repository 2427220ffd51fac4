//! Start, reload, stalls and stop.

use std::time::Instant;

use super::*;
use crate::tracker::Rates;
use crate::tracker::rules::CATALOGUE;
use crate::tracker::{TrackerError, check, load_rules, run, run_patiently};

#[tokio::test]
async fn case_59_with_the_spool_stalled_links_work_and_nothing_is_lost() {
    let settings = Settings { answer_wait: Duration::from_millis(150), ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    tracker.spool.stalls.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let began = Instant::now();
        let reply = tracker.get(&tracker.link("https://shop.example/")).await;
        let took = began.elapsed();
        assert_eq!(reply.status, 302);
        assert!(took >= Duration::from_millis(140) && took < Duration::from_millis(1_000), "{took:?}");
    }
    assert_eq!(tracker.events(), []);
    tracker.spool.stalls.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tracker.events().len(), 3);
}

#[tokio::test]
async fn a_full_queue_costs_events_and_no_redirect() {
    let settings =
        Settings { queue_events: 2, answer_wait: Duration::from_millis(50), ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    tracker.spool.stalls.store(true, Ordering::Relaxed);
    for _ in 0..6 {
        assert_eq!(tracker.get(&tracker.link("https://shop.example/")).await.status, 302);
    }
    tracker.spool.stalls.store(false, Ordering::Relaxed);
    tracker.life.stop.cancel();
    let spool = tracker.spool.clone();
    tracker.task.await.unwrap().unwrap();
    assert_eq!(spool.events.lock().unwrap().len(), 4, "two in hand and two queued");
}

#[tokio::test]
async fn a_stop_lets_answers_out_and_stores_what_is_queued() {
    let settings = Settings { answer_wait: Duration::from_millis(400), ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    let idle = TcpStream::connect(tracker.address).await.unwrap();
    assert_eq!(tracker.get("/").await.status, 200);
    assert_eq!(tracker.life.health.troubles(), []);
    tracker.spool.stalls.store(true, Ordering::Relaxed);
    let link = tracker.link("https://shop.example/");
    let (address, spool, life) = (tracker.address, tracker.spool.clone(), tracker.life.clone());
    let asking = tokio::spawn(async move { (tracker.get(&link).await, tracker.task) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    life.stop.cancel();
    let (reply, task) = asking.await.unwrap();
    assert_eq!(reply.status, 302);
    spool.stalls.store(false, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap().unwrap();
    assert_eq!(spool.events.lock().unwrap().len(), 1);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    drop(idle);
}

#[tokio::test]
async fn a_reload_brings_new_rules_and_a_broken_file_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bots.toml");
    std::fs::write(&path, CATALOGUE).unwrap();
    let rates = Rates::new(0, 0);
    let settings = Settings { rules_file: Some(path.clone()), rates, ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    let link = tracker.link("https://shop.example/");
    let rule = "\n[[rule]]\nname = \"everybody\"\nscope = \"both\"\ncertainty = \"probable\"\nuser_agent_parts = [\"firefox\"]\n";
    let seen = async || {
        assert_eq!(tracker.get(&link).await.status, 302);
        tracker.take_event().data.machine_rule
    };
    assert_eq!(seen().await, None);
    std::fs::write(&path, format!("{CATALOGUE}{rule}")).unwrap();
    tracker.reload.send(1).unwrap();
    let began = Instant::now();
    while seen().await.is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "never loaded");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(&path, "version = 9").unwrap();
    tracker.reload.send(2).unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(seen().await.as_deref(), Some("everybody"));
    }
}

#[tokio::test]
async fn what_cannot_work_is_said_at_the_start() {
    let mut settings = Settings { queue_events: 0, ..Settings::default() };
    settings.site.utm = vec![("source".into(), "x".into())];
    let Err(TrackerError::Settings(problems)) = check(&settings) else { panic!("no error") };
    assert_eq!(problems.len(), 2, "{problems:?}");

    let missing = Settings { rules_file: Some("/nonexistent/bots.toml".into()), ..Settings::default() };
    assert!(matches!(load_rules(&missing), Err(TrackerError::RulesFile { .. })));

    let tracker = Tracker::start(Settings::default()).await;
    let taken = Settings { listen: tracker.address, ..Settings::default() };
    let deps = Deps {
        keys: Keys::fixed(tracker.ring.clone()),
        publisher: tracker.spool.clone(),
        consents: Arc::new(Fixed { opens: Consent::Denied, clicks: Consent::Denied }),
        handoff: None,
        deliveries: None,
        host: "test".into(),
    };
    assert!(matches!(run(taken, deps, Lifecycle::detached()).await, Err(TrackerError::Listen { .. })));
}

#[tokio::test]
async fn beside_other_roles_a_tracker_that_can_not_begin_waits_and_says_why() {
    let (captured, _guard) = crate::telemetry::Captured::start();
    let other = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = other.local_addr().unwrap();
    let deps = Deps {
        keys: Keys::fixed(Keyring::new([7; 32], Timestamp::from_secs(1))),
        publisher: Arc::new(Spool::default()),
        consents: Arc::new(Fixed { opens: Consent::Granted, clicks: Consent::Granted }),
        handoff: None,
        deliveries: None,
        host: "test".into(),
    };
    let life = Lifecycle::detached();
    let settings = Settings { listen: address, ..Settings::default() };
    let task = tokio::spawn(run_patiently(settings, deps, life.clone()));
    let trouble =
        || life.health.troubles().first().map(|(part, why)| format!("{part}: {why}")).unwrap_or_default();
    let until = async |done: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(60), "{}", trouble());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    until(&|| trouble().contains(&format!("tracker: can't listen on {address}: "))).await;
    assert!(trouble().contains("`ss -ltnp`"), "{}", trouble());
    assert_eq!(captured.text().matches("the tracker can't begin").count(), 1, "{}", captured.text());
    drop(other);
    until(&|| life.health.troubles().is_empty() && life.health.has_started()).await;
    assert!(TcpStream::connect(address).await.is_ok());
    life.stop.cancel();
    task.await.unwrap().unwrap();
}

#[test]
fn a_port_that_takes_a_right_names_what_gives_it() {
    let listen = |port, kind| {
        let error = std::io::Error::from(kind);
        TrackerError::Listen { address: ([0, 0, 0, 0], port).into(), error }.to_string()
    };
    let text = listen(443, std::io::ErrorKind::PermissionDenied);
    for part in ["mailtap-tracker.socket", "AmbientCapabilities=CAP_NET_BIND_SERVICE", "PrivateUsers=no"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!listen(8025, std::io::ErrorKind::PermissionDenied).contains("CAP_NET"));
}

#[tokio::test]
async fn a_key_that_was_just_added_works_at_its_first_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyring.json");
    crate::keys::create_ring(&path).unwrap();
    // Nobody looks at the file at intervals here.
    let keys = Keys::open(&path).unwrap();
    let mut tracker = Tracker::by(Settings::default(), keys).await;
    let (now, mut known) = (clock::now(), Keys::open(&path).unwrap().current());
    for _ in 0..2 {
        crate::keys::update_ring(&path, |ring, secret| ring.rotate(secret, now, now)).unwrap();
        tracker.ring = Keyring::clone(&Keys::open(&path).unwrap().current());
        assert!(known.by_id(tracker.ring.signing(clock::now()).unwrap().id).is_none());
        let link = tracker.link("https://shop.example/");
        // At once, or a moment after somebody looked for the one before.
        let began = Instant::now();
        while tracker.get(&link).await.status != 302 {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        known = Arc::new(tracker.ring.clone());
    }
    // Removed meanwhile: its links say so, and not that they were changed.
    tracker.ring.rotate([9; 32], now, now).unwrap();
    let link = tracker.link("https://shop.example/");
    let reply = tracker.ask("GET", &link, "Accept-Language: en\r\n").await;
    assert_eq!(reply.status, 404);
    let page = String::from_utf8(reply.body).unwrap();
    assert!(page.contains("made too long ago") && !page.contains("changed on its way"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clicks_at_one_moment_are_events_of_their_own() {
    let settings = Settings { rates: Rates::new(0, 0), ..Settings::default() };
    let tracker = Arc::new(Tracker::start(settings).await);
    let link = tracker.link("https://shop.example/");
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let (tracker, link) = (tracker.clone(), link.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                assert_eq!(tracker.get(&link).await.status, 302);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let ids: std::collections::BTreeSet<_> = tracker.events().iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), 500);
}

#[tokio::test]
async fn a_reload_does_not_forget_a_burst() {
    let rates = Rates::new(0, 0);
    let tracker = Tracker::start(Settings { rates, ..Settings::default() }).await;
    let message = hour_ago();
    let link = |number: u16| {
        let token = Token::Click(Click {
            message,
            recipient: Some(Pseudonym::from([0x11; 12])),
            link: number,
            campaign: None,
            target: "https://shop.example/".into(),
        });
        format!("/c/{}", sign(&token, tracker.ring.signing(clock::now()).unwrap()))
    };
    for number in 1..=4 {
        if number == 3 {
            let before = tracker.reload.borrow().to_owned();
            tracker.reload.send(before + 1).unwrap();
            // Read by a thread of its own.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(tracker.get(&link(number)).await.status, 302);
    }
    tracker.life.stop.cancel();
    let spool = tracker.spool.clone();
    tracker.task.await.unwrap().unwrap();
    let events = spool.events.lock().unwrap();
    assert!(
        events.iter().all(|event| event.data.machine_rule.as_deref() == Some("few-links-at-once")),
        "{events:?}"
    );
}
