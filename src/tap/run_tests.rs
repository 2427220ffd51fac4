#![allow(clippy::disallowed_methods)]

use std::fs;
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::event::EventId;
use crate::identity::{MessageId, PseudonymKey};
use crate::queue::{Publish, PublishError};
use crate::tap::tallies::MANY_ATTEMPTS;
use crate::telemetry::Captured;

const LOG: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs/postfix-3.7.11.log"));

/// Keeps ids; refuses while `broken`.
#[derive(Debug, Default)]
struct Spool {
    ids: Mutex<Vec<EventId>>,
    broken: AtomicBool,
}

impl Publish for Spool {
    fn publish(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        Box::pin(async move {
            if self.broken.load(Ordering::SeqCst) {
                return Err(PublishError::Full);
            }
            self.ids.lock().unwrap().extend(events.iter().map(|event| event.id));
            Ok(())
        })
    }
}

impl Spool {
    fn len(&self) -> usize {
        self.ids.lock().unwrap().len()
    }
}

struct Bench {
    directory: tempfile::TempDir,
    spool: Arc<Spool>,
}

type Running = (Lifecycle, tokio::task::JoinHandle<Result<(), TapError>>);

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), spool: Arc::default() }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("maillog")
    }

    fn append(&self, text: &str) {
        let mut file = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn start(&self) -> Running {
        let settings = Settings {
            source: Source::Files(vec![self.log()]),
            state_dir: self.directory.path().to_owned(),
            zone: jiff::tz::TimeZone::UTC,
            poll_interval: Duration::from_millis(10),
            checkpoint_interval: Duration::from_millis(20),
            batch_bytes: 1_000,
            batch_events: 3,
            ..Settings::default()
        };
        let deps = Deps {
            pseudonyms: PseudonymKey::new(&[7; 32]),
            verify_ref: Arc::new(|text| {
                let number = text.strip_prefix("test-ref-")?.parse().ok()?;
                Some(MessageId::new("2026-11-23T16:25:10.5Z".parse().unwrap(), number))
            }),
            publisher: self.spool.clone(),
            host: "relay1".into(),
            accepted: None,
        };
        let life = Lifecycle::detached();
        (life.clone(), tokio::spawn(run(settings, deps, life)))
    }

    async fn until(&self, events: usize) {
        for _ in 0..500 {
            if self.spool.len() >= events {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {events} events", self.spool.len());
    }
}

async fn stop((life, handle): Running) {
    life.stop.cancel();
    handle.await.unwrap().unwrap();
}

/// The golden file's events.
fn expected() -> usize {
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/logs/postfix-3.7.11.events.jsonl"))
        .lines()
        .count()
}

/// Waits until this is logged, and looks on for a while: many more tries bring no further line.
async fn told_once(log: &Captured, text: &str) {
    let count = || log.text().matches(text).count();
    for _ in 0..500 {
        if count() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count(), 1, "{text}: {}", log.text());
}

#[tokio::test]
async fn a_log_that_can_not_be_read_is_told_once_and_again_when_it_can() {
    let (log, _guard) = Captured::start();
    let bench = Bench::new();
    let running = bench.start();
    told_once(&log, "the log is not there").await;
    assert!(log.text().contains("tap.source = "), "{}", log.text());
    assert_eq!(running.0.health.troubles().len(), 1);
    bench.append(LOG);
    bench.until(expected()).await;
    stop(running).await;
    told_once(&log, "the log is not there").await;
    told_once(&log, "the log is read again").await;

    let bench = Bench::new();
    fs::create_dir(bench.log()).unwrap();
    let running = bench.start();
    told_once(&log, "can't read the log").await;
    stop(running).await;
}

#[tokio::test]
async fn stops_and_starts_give_every_event_once() {
    let bench = Bench::new();
    for (index, piece) in LOG.as_bytes().chunks(LOG.len() / 7 + 1).enumerate() {
        let running = bench.start();
        bench.append(std::str::from_utf8(piece).unwrap_or_default());
        if index == 3 {
            fs::rename(bench.log(), bench.directory.path().join("maillog.1")).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        stop(running).await;
    }
    let ids = bench.spool.ids.lock().unwrap().clone();
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), distinct.len()), (expected(), expected()));
}

#[tokio::test]
async fn nothing_is_skipped_while_the_spool_refuses() {
    let bench = Bench::new();
    bench.spool.broken.store(true, Ordering::SeqCst);
    bench.append(LOG);
    let (life, handle) = bench.start();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(life.health.troubles(), [("tap", "can't publish: the spool is full".to_owned())]);
    stop((life, handle)).await;
    // The checkpoint is of the beginning: nothing was published. What it covers is read again below.
    let running = bench.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    bench.spool.broken.store(false, Ordering::SeqCst);
    bench.until(expected()).await;
    stop(running).await;
    assert_eq!(bench.spool.len(), expected());
    let checkpoint = fs::read_to_string(bench.directory.path().join(CHECKPOINT)).unwrap();
    assert!(!checkpoint.contains('@') && !checkpoint.contains("example.net"), "no address in the state");
}

#[tokio::test]
async fn a_missing_log_is_waited_for_and_a_damaged_checkpoint_is_borne() {
    let bench = Bench::new();
    fs::write(bench.directory.path().join(CHECKPOINT), "{").unwrap();
    let running = bench.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let troubles = running.0.health.troubles();
    assert!(troubles[0].1.ends_with("does not exist (yet)"), "{troubles:?}");
    bench.append(LOG);
    bench.until(expected()).await;
    assert!(running.0.health.troubles().is_empty());
    stop(running).await;
}

#[tokio::test]
async fn journal_entries_go_through_a_pipe_split_anywhere() {
    let bench = Bench::new();
    let mut entries = String::new();
    for (index, line) in LOG.lines().enumerate() {
        let Some((header, message)) = line.split_once("]: ") else { continue };
        let (tag, pid) = header.rsplit(' ').next().unwrap().split_once('[').unwrap();
        let entry = serde_json::json!({
            "__CURSOR": format!("c{index}"), "__REALTIME_TIMESTAMP": format!("{}", 1_795_451_111_000_000_u64 + index as u64),
            "_HOSTNAME": "mx", "SYSLOG_IDENTIFIER": tag, "SYSLOG_PID": pid, "MESSAGE": message,
        });
        entries.push_str(&format!("{entry}\n"));
    }
    let life = Lifecycle::detached();
    let sink =
        Sink { publisher: bench.spool.clone(), batch: 10, component: life.health.component("tap"), life };
    let parts = Settings::default()
        .parts(
            PseudonymKey::new(&[7; 32]),
            Arc::new(|text| text.strip_prefix("test-ref-").map(|_| MessageId::from([1; 10]))),
            "h".into(),
        )
        .unwrap();
    let mut worker = Worker::new(Correlator::new(parts, None));
    let path = bench.directory.path().join(CHECKPOINT);
    let mut saver =
        Saver { path: path.clone(), interval: Duration::ZERO, saved: Instant::now(), took: Duration::ZERO };
    let mut feed = Feed::Journal { splitter: Splitter::default(), cursor: None };
    for piece in entries.as_bytes().chunks(4_001) {
        let mut pipe = piece;
        assert!(read_pipe(&mut pipe, &mut feed, &mut worker, &sink, &mut saver).await);
    }
    assert_eq!(bench.spool.len(), expected());
    let last = format!("c{}", LOG.lines().count() - 1);
    assert_eq!(feed.cursor(), Some(last));
    assert!(Checkpoint::load(&path).unwrap().unwrap().journal_cursor.is_some());
}

#[test]
fn what_is_no_entry_of_the_journal_is_counted_and_passed_over() {
    let parts = Settings::default()
        .parts(PseudonymKey::new(&[7; 32]), Arc::new(|_| Some(MessageId::from([1; 10]))), "h".into())
        .unwrap();
    let mut worker = Worker::new(Correlator::new(parts, None));
    let mut feed = Feed::Journal { splitter: Splitter::default(), cursor: None };
    let entry = |message: &str| {
        format!(
            "{{\"__CURSOR\":\"c\",\"__REALTIME_TIMESTAMP\":\"1\",\"SYSLOG_IDENTIFIER\":\"postfix/smtp\",\"MESSAGE\":\"{message}\"}}\n"
        )
    };
    feed.feed((entry(&"x".repeat(80_000)) + &entry("A1B2C3D4: removed")).as_bytes(), &mut worker);
    assert_eq!((worker.unreadable, worker.correlator.counts().lines), (1, 1));
    assert_eq!(feed.cursor().as_deref(), Some("c"));
}

#[test]
fn a_wrong_keyring_is_not_a_missing_setting() {
    let parts =
        Settings::default().parts(PseudonymKey::new(&[7; 32]), Arc::new(|_| None), "h".into()).unwrap();
    let mut worker = Worker::new(Correlator::new(parts, None));
    for number in 0..MANY_ATTEMPTS * 2 {
        let line = |text: String| format!("Nov 23 16:25:11 mx postfix/smtp[1]: B{number:07}: {text}");
        worker.line(line("info: header X-Mailtap-Ref: r from x; from=<a@b> to=<c@d>:".into()).as_bytes());
        let sent = "to=<a@b>, relay=none, delay=1, delays=1/0/0/0, dsn=2.0.0, status=sent (ok)";
        worker.line(line(sent.into()).as_bytes());
    }
    assert_eq!(worker.correlator.silent(), []);
    assert_eq!(worker.correlator.counts().unverified_refs, MANY_ATTEMPTS * 2);
}

#[test]
fn missing_references_are_noticed_once_there_are_attempts_enough() {
    let seen = |attempts: u64, with_reference: bool| {
        let parts = Settings::default()
            .parts(PseudonymKey::new(&[7; 32]), Arc::new(|_| Some(MessageId::from([1; 10]))), "h".into())
            .unwrap();
        let mut worker = Worker::new(Correlator::new(parts, None));
        let line = |text: String| format!("Nov 23 16:25:11 mx postfix/smtp[1]: {text}");
        if with_reference {
            worker.line(
                line("A1B2C3D4: info: header X-Mailtap-Ref: r from x; from=<a@b> to=<c@d>:".into())
                    .as_bytes(),
            );
        }
        for number in 0..attempts {
            let text = format!(
                "B{number:07}: to=<a@b>, relay=none, delay=1, delays=1/0/0/0, dsn=2.0.0, status=sent (ok)"
            );
            worker.line(line(text).as_bytes());
        }
        !worker.correlator.silent().is_empty()
    };
    assert!(seen(MANY_ATTEMPTS, false));
    assert!(!seen(MANY_ATTEMPTS - 1, false));
    assert!(!seen(MANY_ATTEMPTS, true));
}

#[test]
fn what_the_milter_marked_and_nobody_logged_is_found_out() {
    let message = MessageId::from([1; 10]);
    let parts =
        Settings::default().parts(PseudonymKey::new(&[7; 32]), Arc::new(move |_| Some(message)), "h".into());
    let (milter, accepted) = tokio::sync::mpsc::channel(10);
    let correlator = Correlator::new(parts.unwrap(), None).knowing_marks();
    let mut worker = Worker { accepted: Some(accepted), ..Worker::new(correlator) };
    let tell = |queue_id: &str, message| {
        let queue_id = queue_id.to_owned();
        milter.try_send(acceptances::Acceptance { queue_id, message, is_copy: false }).unwrap();
    };
    let line = |worker: &mut Worker, text: &str| {
        worker.line(format!("Nov 23 16:25:11 mx postfix/cleanup[1]: {text}").as_bytes());
    };
    // Nothing is known to be tracked: much mail without a reference is as it should be.
    for number in 0..MANY_ATTEMPTS {
        let sent = "to=<a@b>, relay=none, delay=1, delays=1/0/0/0, dsn=2.0.0, status=sent (ok)";
        line(&mut worker, &format!("B{number:07}: {sent}"));
    }
    assert_eq!(worker.correlator.silent(), []);
    let late = worker.now.plus(Duration::from_secs(60));
    for (queue_id, with_header) in [("A1B2C3D4", false), ("A1B2C3D5", true), ("A1B2C3D6", false)] {
        tell(queue_id, if with_header { message } else { MessageId::from([2; 10]) });
        line(&mut worker, &format!("{queue_id}: message-id=<x@y>"));
        if with_header {
            let header = "info: header X-Mailtap-Ref: r from x; from=<a@b> to=<c@d>:";
            line(&mut worker, &format!("{queue_id}: {header}"));
        }
        if queue_id != "A1B2C3D6" {
            line(&mut worker, &format!("{queue_id}: removed"));
        }
        worker.take();
        assert_eq!(worker.correlator.missing(worker.now), []);
    }
    let missing = worker.correlator.missing(late);
    let queue_ids: Vec<String> = missing.iter().map(|missing| missing.queue_id.to_string()).collect();
    assert_eq!(queue_ids, ["A1B2C3D4"], "the last one is queued still");
}
