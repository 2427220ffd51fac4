//! Tests of the way to the spool: stalls, errors, a full queue, a stop.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::event::{Data, Event, EventId, Kind};
use crate::identity::{MessageId, Timestamp};
use crate::tracker::ledger::Track;

/// A spool that stalls, fails some times, or works.
#[derive(Debug, Default)]
struct Spool {
    /// So many batches are never stored.
    stalls: AtomicUsize,
    failures: AtomicUsize,
    closed: bool,
    /// No amendment is ever answered.
    amends_stall: bool,
    kept: Mutex<BTreeSet<EventId>>,
    amended: Mutex<Vec<EventId>>,
}

impl crate::queue::Hold for Spool {
    fn publish_all<'a>(
        &'a self,
        publications: &'a [Publication],
        stored: crate::queue::OnStored,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>> {
        Box::pin(async move {
            if self.stalls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                std::future::pending::<()>().await;
            }
            if self.closed {
                return Err(PublishError::Closed);
            }
            if self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
            {
                return Err(PublishError::Full);
            }
            self.kept.lock().unwrap().extend(publications.iter().map(|publication| publication.event.id));
            stored.call();
            Ok(())
        })
    }

    fn amend<'a>(
        &'a self,
        events: &'a [crate::queue::Amendment],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<bool>, PublishError>> + Send + 'a>> {
        Box::pin(async move {
            self.amended.lock().unwrap().extend(events.iter().map(|amendment| amendment.event.id));
            if self.amends_stall {
                std::future::pending::<()>().await;
            }
            Ok(vec![true; events.len()])
        })
    }
}

fn event(number: u32) -> Box<Found> {
    let event = Event {
        id: EventId::of("test").part(number.to_be_bytes()).finish(),
        source: "test".into(),
        kind: Kind::Opened,
        time: Timestamp::default(),
        message: MessageId::new(Timestamp::default(), number),
        data: Data::default(),
    };
    Box::new(Found { event, track: None, rules: rules() })
}

fn rules() -> Arc<crate::tracker::rules::Rules> {
    Arc::new(crate::tracker::rules::Rules::parse("version = 2").unwrap())
}

/// A click on this link, of one burst.
fn click(link: u16) -> Box<Found> {
    let mut found = event(link.into());
    let hit = crate::tracker::watch::Hit {
        id: found.event.id,
        time: clock::now(),
        scope: crate::tracker::rules::Scope::Click,
        message: found.event.message,
        recipient: None,
        link: Some(link),
        network: 1,
        client: 1,
        agent: 1,
        is_client_named: true,
        is_head: false,
        machine: crate::event::Machine::No,
        waiting: u64::MAX,
    };
    // All of one message.
    found.track = Some(Track {
        hit: crate::tracker::watch::Hit { message: MessageId::new(Timestamp::default(), 0), ..hit },
        first: None,
        implied: None,
    });
    found
}

async fn record(recorder: &Recorder, number: u32) {
    if let Some(stored) = recorder.record(event(number)) {
        let _ = stored.await;
    }
}

fn events() -> Component {
    crate::service::Health::default().component("events")
}

fn start(spool: &Arc<Spool>, queue_events: usize) -> (Recorder, JoinHandle<()>) {
    let publisher: Holder = Arc::clone(spool) as Holder;
    let ledger = Ledger::new(rules(), crate::tracker::terms::Terms::default(), clock::now());
    Recorder::start(publisher, ledger, None, events(), (queue_events, Duration::from_millis(250)))
}

#[tokio::test(start_paused = true)]
async fn a_stored_event_is_stored_before_its_answer() {
    let spool = Arc::new(Spool::default());
    let (recorder, worker) = start(&spool, 10);
    for number in 0..1_000 {
        record(&recorder, number).await;
        assert_eq!(spool.kept.lock().unwrap().len(), number as usize + 1);
    }
    recorder.finish(worker, Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_spool_holds_no_answer_longer_than_the_wait() {
    let spool = Arc::new(Spool { stalls: AtomicUsize::new(usize::MAX), ..Spool::default() });
    let (recorder, worker) = start(&spool, 10);
    let began = Instant::now();
    record(&recorder, 1).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_millis(300), "{took:?}");
    let counts = Arc::clone(&recorder.counts);
    recorder.finish(worker, Duration::from_secs(1)).await;
    assert_eq!(counts.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_beyond_it_nobody_waits() {
    let spool = Arc::new(Spool { stalls: AtomicUsize::new(usize::MAX), ..Spool::default() });
    let (recorder, _worker) = start(&spool, 5);
    // As many as may be under way at once are in the worker's hands.
    for number in 0..BATCHES as u32 {
        record(&recorder, number).await;
    }
    let mut tasks = Vec::new();
    for number in 2..=6 {
        let recorder = recorder.clone();
        tasks.push(tokio::spawn(async move { record(&recorder, number).await }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(recorder.counts.waiting.load(Ordering::Relaxed), 7);
    let began = Instant::now();
    record(&recorder, 7).await;
    assert!(began.elapsed() < Duration::from_millis(10));
    assert_eq!(recorder.counts.waiting.load(Ordering::Relaxed), 7, "the eighth is lost");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_stored_and_answered_while_an_earlier_one_is_still_written() {
    let spool = Arc::new(Spool { stalls: AtomicUsize::new(1), ..Spool::default() });
    let (recorder, _worker) = start(&spool, 10);
    let began = Instant::now();
    let first = tokio::spawn({
        let recorder = recorder.clone();
        async move { record(&recorder, 0).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    record(&recorder, 1).await;
    assert!(began.elapsed() < Duration::from_millis(10) && !first.is_finished());
    assert_eq!(spool.kept.lock().unwrap().len(), 1);
    first.await.unwrap();
    assert_eq!(began.elapsed().as_millis(), 250);
}

#[tokio::test(start_paused = true)]
async fn a_correction_that_takes_its_time_holds_no_other_event() {
    let rules = "version = 2\n[[rule]]\nname = \"burst\"\nscope = \"click\"\ncertainty = \"probable\"\nburst_links = 3\nin_ms = 10000\n";
    let rules = Arc::new(crate::tracker::rules::Rules::parse(rules).unwrap());
    let spool = Arc::new(Spool { amends_stall: true, ..Spool::default() });
    let ledger = Ledger::new(Arc::clone(&rules), crate::tracker::terms::Terms::default(), clock::now());
    let publisher: Holder = Arc::clone(&spool) as Holder;
    let (recorder, _worker) =
        Recorder::start(publisher, ledger, None, events(), (10, Duration::from_millis(250)));
    let began = Instant::now();
    for link in 1..=5 {
        let found = Box::new(Found { rules: Arc::clone(&rules), ..*click(link) });
        recorder.record(found).unwrap().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    assert_eq!(spool.kept.lock().unwrap().len(), 5);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let ids = [1, 2].map(|link| click(link).event.id);
    assert_eq!(*spool.amended.lock().unwrap(), ids, "those before the third were corrected");
}

#[tokio::test(start_paused = true)]
async fn errors_are_tried_again_until_it_works() {
    let spool = Arc::new(Spool { failures: AtomicUsize::new(4), ..Spool::default() });
    let health = crate::service::Health::default();
    let publisher: Holder = Arc::clone(&spool) as Holder;
    let ledger = Ledger::new(rules(), crate::tracker::terms::Terms::default(), clock::now());
    let limits = (10, Duration::from_millis(250));
    let (recorder, worker) = Recorder::start(publisher, ledger, None, health.component("events"), limits);
    assert_eq!(health.troubles(), []);
    record(&recorder, 1).await;
    assert_eq!(health.troubles(), [("events", "links work, and 1 events wait: the spool is full".into())]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(health.troubles(), []);
    recorder.finish(worker, Duration::from_secs(30)).await;
    assert_eq!(spool.kept.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_ended_before_its_time_says_what_is_lost() {
    let (captured, _guard) = crate::telemetry::Captured::start();
    let spool = Arc::new(Spool { stalls: AtomicUsize::new(usize::MAX), ..Spool::default() });
    let (recorder, worker) = start(&spool, 10);
    record(&recorder, 0).await;
    record(&recorder, 1).await;
    worker.abort();
    assert!(worker.await.is_err());
    drop(recorder);
    let log = captured.text();
    assert!(log.contains("lost") && log.contains("events=2"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_stores_what_is_queued_and_a_closed_spool_ends_the_wait() {
    let spool = Arc::new(Spool { failures: AtomicUsize::new(3), ..Spool::default() });
    let (recorder, worker) = start(&spool, 1_000);
    for number in 0..600 {
        let recorder = recorder.clone();
        tokio::spawn(async move { record(&recorder, number).await });
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    recorder.finish(worker, Duration::from_secs(30)).await;
    assert_eq!(spool.kept.lock().unwrap().len(), 600);

    let closed = Arc::new(Spool { closed: true, ..Spool::default() });
    let (recorder, worker) = start(&closed, 10);
    let began = Instant::now();
    record(&recorder, 1).await;
    assert!(began.elapsed() < Duration::from_millis(10));
    recorder.finish(worker, Duration::from_secs(1)).await;
}
