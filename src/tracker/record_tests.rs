//! Tests of the way to the spool: stalls, errors, a full queue, a stop.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::event::{Data, Event, EventId, Kind};
use crate::identity::{MessageId, Timestamp};

/// A spool that stalls, fails some times, or works.
#[derive(Debug, Default)]
struct Spool {
    stalls: bool,
    failures: AtomicUsize,
    closed: bool,
    kept: Mutex<BTreeSet<EventId>>,
}

impl crate::queue::Hold for Spool {
    fn publish_all<'a>(
        &'a self,
        publications: &'a [Publication],
        stored: crate::queue::OnStored,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>> {
        Box::pin(async move {
            if self.stalls {
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
        events: &'a [Event],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<bool>, PublishError>> + Send + 'a>> {
        Box::pin(async move { Ok(vec![false; events.len()]) })
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

async fn record(recorder: &Recorder, number: u32) {
    if let Some(stored) = recorder.record(event(number)) {
        let _ = stored.await;
    }
}

fn start(spool: &Arc<Spool>, queue_events: usize) -> (Recorder, JoinHandle<()>) {
    let publisher: Holder = Arc::clone(spool) as Holder;
    let ledger = Ledger::new(rules(), crate::tracker::terms::Terms::default(), clock::now());
    Recorder::start(publisher, ledger, None, queue_events, Duration::from_millis(250))
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
    let spool = Arc::new(Spool { stalls: true, ..Spool::default() });
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
    let spool = Arc::new(Spool { stalls: true, ..Spool::default() });
    let (recorder, _worker) = start(&spool, 5);
    // The first is in the worker's hands.
    record(&recorder, 0).await;
    let mut tasks = Vec::new();
    for number in 1..=5 {
        let recorder = recorder.clone();
        tasks.push(tokio::spawn(async move { record(&recorder, number).await }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(recorder.counts.waiting.load(Ordering::Relaxed), 6);
    let began = Instant::now();
    record(&recorder, 6).await;
    assert!(began.elapsed() < Duration::from_millis(10));
    assert_eq!(recorder.counts.waiting.load(Ordering::Relaxed), 6, "the seventh is lost");
}

#[tokio::test(start_paused = true)]
async fn errors_are_tried_again_until_it_works() {
    let spool = Arc::new(Spool { failures: AtomicUsize::new(4), ..Spool::default() });
    let (recorder, worker) = start(&spool, 10);
    record(&recorder, 1).await;
    recorder.finish(worker, Duration::from_secs(30)).await;
    assert_eq!(spool.kept.lock().unwrap().len(), 1);
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
