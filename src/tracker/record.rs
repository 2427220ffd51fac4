//! Events on their way to the spool, without letting an answer wait for it.
//!
//! - Layer: edge
//! - Takes: what was found, one by one; news of deliveries.
//! - Gives: events to the publisher in batches, with the ledger's last word, the next one while one is written; tells
//!   each caller when its event is stored; what is to change of events that were stored.
//! - On failure: tries again for as long as the queue has room; beyond it, and at the end of a stop, events are lost
//!   and counted.
//!   An answer whose event is not stored in time goes out without waiting on.
//! - Limits: the queue; batches of 1,024, two at once.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::changes::{Changes, TooLate};
use super::happenings::{Forgotten, Lost, Meters, PublishFailed, Recorded, Waits};
use super::held::Change;
use super::ledger::{self, Found, Ledger};
use super::waiting::Waiting;
use crate::queue::deliveries::{Delivery, News};
use crate::queue::{First, Holder, OnStored, Publication, PublishError};
use crate::service::{Component, clock};

const BATCH_EVENTS: usize = 1_024;
/// How many batches are under way at once: what writes them finds the next one ready.
const BATCHES: usize = 2;
/// How exactly the worker looks at the time.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two log lines about lost events.
const LOG_EVERY_MS: u64 = 1_000;

/// Takes events. Clones share the queue.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    queue: mpsc::UnboundedSender<Box<Found>>,
    room: u64,
    waiting: Arc<Waiting>,
    closing: CancellationToken,
    counts: Arc<Counts>,
    meters: Arc<Meters>,
}

#[derive(Debug)]
struct Counts {
    /// Taken, and not in the worker's hands yet: what the queue's limit is about.
    queued: AtomicU64,
    /// Taken and neither stored nor lost yet.
    waiting: AtomicU64,
    /// Lost since the last line of log.
    unlogged: AtomicU64,
    /// When that was, in milliseconds since `began`; 0 means never.
    logged_ms: AtomicU64,
    began: Instant,
}

impl Recorder {
    /// Begins to publish; hand the task to `finish` at the end.
    pub(super) fn start(
        publisher: Holder,
        ledger: Ledger,
        news: Option<News>,
        health: Component,
        (queue_events, wait): (usize, Duration),
    ) -> (Self, JoinHandle<()>) {
        let (queue, jobs) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting::new(wait.max(SHORTEST_WAIT)));
        let closing = CancellationToken::new();
        let counts = Arc::new(Counts {
            queued: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
            logged_ms: AtomicU64::new(0),
            began: Instant::now(),
        });
        let meters = Arc::new(Meters::new());
        health.ready();
        let changes = Changes::new(Arc::clone(&publisher));
        let (way_counts, way_meters) = (Arc::clone(&counts), Arc::clone(&meters));
        let way = Arc::new(Way { publisher, health, counts: way_counts, meters: way_meters });
        let worker = Worker {
            way,
            ledger,
            queue: jobs,
            line: VecDeque::new(),
            taken: 0,
            under_way: FuturesOrdered::new(),
            changes,
            waiting: Arc::clone(&waiting),
        };
        let (watched, until) = (Arc::clone(&waiting), closing.clone());
        let worker = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = worker.run(news, until) => {}
                () = watched.watch() => {}
            }
        });
        (Self { queue, room: queue_events.max(1) as u64, waiting, closing, counts, meters }, worker)
    }

    /// Takes an event. What it gives ends when the event is stored, or after the configured wait while storing goes on;
    /// nothing for an event that is lost at once.
    pub(super) fn record(&self, found: Box<Found>) -> Option<oneshot::Receiver<()>> {
        // Counted before it is sent: the worker may have it stored before this line's end.
        let full = self.counts.queued.fetch_add(1, Ordering::Relaxed) >= self.room;
        let events = self.counts.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        Waits { events }.emit(&self.meters);
        let stored = self.waiting.join(|| !full && self.queue.send(found).is_ok());
        if stored.is_none() {
            self.counts.queued.fetch_sub(1, Ordering::Relaxed);
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost(1, if self.closing.is_cancelled() { "stopping" } else { "queue-full" });
        }
        stored
    }

    /// Takes nothing more, and gives what is queued `within` to be stored.
    pub(super) async fn finish(self, mut worker: JoinHandle<()>, within: Duration) {
        self.closing.cancel();
        if tokio::time::timeout(within, &mut worker).await.is_err() {
            worker.abort();
            let _ = worker.await;
        }
        // What is still in line waits for nothing any more.
        self.waiting.release(0..u64::MAX);
        let left = self.counts.waiting.swap(0, Ordering::Relaxed);
        if left > 0 {
            self.counts.lost(left, "stopping");
        }
        self.counts.log_rest();
    }
}

/// What the task works with.
struct Worker {
    way: Arc<Way>,
    ledger: Ledger,
    queue: mpsc::UnboundedReceiver<Box<Found>>,
    /// Out of the queue, oldest first.
    line: VecDeque<Box<Found>>,
    /// How many were taken out of the line; by these numbers they wait for their answers.
    taken: u64,
    /// Being stored, in order.
    under_way: FuturesOrdered<Pin<Box<dyn Future<Output = Batch> + Send>>>,
    /// What is to change of those that are stored.
    changes: Changes,
    waiting: Arc<Waiting>,
}

/// Events that were published together.
struct Batch {
    numbers: Range<u64>,
    /// What is to change once they are stored.
    changes: Vec<Change>,
    is_stored: bool,
}

impl Worker {
    async fn run(mut self, mut news: Option<News>, closing: CancellationToken) {
        let mut arrived = Vec::with_capacity(BATCH_EVENTS);
        let mut deliveries = Vec::with_capacity(BATCH_EVENTS);
        loop {
            let idle = self.line.is_empty();
            let room = self.under_way.len() < BATCHES && !self.changes.is_full();
            tokio::select! {
                biased;
                () = closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                Some(batch) = self.under_way.next() => self.settle(batch),
                late = self.changes.next(), if !self.changes.is_done() => self.changed(late),
                () = heard(&mut news, &mut deliveries), if room => {
                    self.delivered(deliveries.drain(..)).await;
                    // In turn, however many news there are.
                    self.wait_in_line();
                    if !self.line.is_empty() {
                        self.batch().await;
                    }
                }
                taken = self.queue.recv_many(&mut arrived, BATCH_EVENTS), if idle && room => {
                    if taken == 0 {
                        return self.settle_all().await;
                    }
                    self.line.extend(arrived.drain(..));
                    // Whoever is about to come, comes along.
                    tokio::task::yield_now().await;
                    self.batch().await;
                }
                () = std::future::ready(()), if !idle && room => self.batch().await,
            }
        }
    }

    /// Publishes together what nothing changes in between: a swap is done before the ledger goes on.
    async fn batch(&mut self) {
        self.wait_in_line();
        let (mut publications, mut changes, mut events) = (Vec::new(), Vec::new(), 0);
        let within = self.ledger.unique_window();
        let now = clock::now();
        let mut swaps = false;
        while let Some(found) = if events < BATCH_EVENTS && !swaps { self.line.pop_front() } else { None } {
            let (publish, more) = self.ledger.take(*found, now);
            events += 1;
            for ledger::Publish { event, held_until, first } in publish {
                Recorded { event: &event }.emit(&self.way.meters);
                let first = first.map(|key| First { key, within });
                publications.push(Publication { event, held_until, first });
            }
            swaps = more.iter().any(Change::is_swap);
            changes.extend(more);
        }
        Forgotten { count: self.ledger.take_forgotten() }.emit();
        self.way.counts.queued.fetch_sub(events as u64, Ordering::Relaxed);
        let numbers = self.taken..self.taken + events as u64;
        self.taken = numbers.end;
        let (waiting, those) = (Arc::clone(&self.waiting), numbers.clone());
        // By whoever stores them: each hand they go through takes its time.
        let stored = OnStored::new(move || waiting.release(those.clone()));
        let way = Arc::clone(&self.way);
        self.under_way.push_back(Box::pin(async move {
            let is_stored = way.store(&publications, &stored).await;
            Batch { numbers, changes, is_stored }
        }));
        if swaps {
            self.settle_all().await;
        }
    }

    /// Waits for all that is under way.
    async fn settle_all(&mut self) {
        while let Some(batch) = self.under_way.next().await {
            self.settle(batch);
        }
        while !self.changes.is_done() {
            let late = self.changes.next().await;
            self.changed(late);
        }
    }

    /// Does what is to be done after a batch.
    fn settle(&mut self, Batch { numbers, changes, is_stored }: Batch) {
        let (events, counts) = (numbers.end - numbers.start, &self.way.counts);
        counts.waiting.fetch_sub(events, Ordering::Relaxed);
        if is_stored {
            self.changes.add(changes);
        } else {
            self.waiting.release(numbers);
            counts.lost(events, "spool-closed");
        }
        self.way.tell();
    }

    /// Takes from the queue what is there.
    fn wait_in_line(&mut self) {
        while let Ok(job) = self.queue.try_recv() {
            self.line.push_back(job);
        }
    }

    async fn delivered(&mut self, deliveries: impl Iterator<Item = Delivery>) {
        for Delivery { message, recipient, time } in deliveries {
            let changes = self.ledger.delivered(message, recipient, time, clock::now());
            if changes.is_empty() {
                continue;
            }
            let swaps = changes.iter().any(Change::is_swap);
            // Behind those that are on their way: what changes may be among them.
            let batch = Batch { numbers: self.taken..self.taken, changes, is_stored: true };
            self.under_way.push_back(Box::pin(std::future::ready(batch)));
            if swaps {
                self.settle_all().await;
            }
        }
    }

    /// Goes on after something was changed, or was too late for it.
    fn changed(&mut self, late: Option<TooLate>) {
        if let Some(TooLate { person, machine }) = late {
            self.changes.add(self.ledger.too_late(person, machine));
        }
    }
}

/// Waits for news; for ever where nobody tells any.
async fn heard(news: &mut Option<News>, deliveries: &mut Vec<Delivery>) {
    if let Some(listening) = news
        && listening.recv_many(deliveries, BATCH_EVENTS).await > 0
    {
        return;
    }
    *news = None;
    std::future::pending().await
}

/// The way to the spool, and what is told of it.
#[derive(Debug)]
struct Way {
    publisher: Holder,
    health: Component,
    counts: Arc<Counts>,
    meters: Arc<Meters>,
}

impl Way {
    /// Publishes until it works; `false` when it never will.
    async fn store(&self, publications: &[Publication], stored: &OnStored) -> bool {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.publisher.publish_all(publications, stored.clone()).await {
                Ok(()) => {
                    if pause > FIRST_PAUSE {
                        self.health.ready();
                    }
                    return true;
                }
                Err(PublishError::Closed) => return false,
                Err(error) => {
                    PublishFailed { error: &error, events: publications.len() }.emit();
                    self.health.not_ready(format!("links work, and {} events wait: {error}", self.tell()));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells how many events wait.
    fn tell(&self) -> u64 {
        let events = self.counts.waiting.load(Ordering::Relaxed);
        Waits { events }.emit(&self.meters);
        events
    }
}

/// Whoever is ended before its time says what is lost by it.
impl Drop for Counts {
    fn drop(&mut self) {
        let left = self.waiting.load(Ordering::Relaxed);
        if left > 0 {
            Lost { events: left, why: "stopping", log: Some(left) }.emit();
        }
    }
}

impl Counts {
    fn lost(&self, events: u64, why: &'static str) {
        self.unlogged.fetch_add(events, Ordering::Relaxed);
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let logged_ms = self.logged_ms.load(Ordering::Relaxed);
        let due = logged_ms == 0 || now_ms.saturating_sub(logged_ms) >= LOG_EVERY_MS;
        let ours = due
            && self
                .logged_ms
                .compare_exchange(logged_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        let log = ours.then(|| self.unlogged.swap(0, Ordering::Relaxed));
        Lost { events, why, log }.emit();
    }

    /// Names what the pauses between log lines kept back.
    fn log_rest(&self) {
        let rest = self.unlogged.swap(0, Ordering::Relaxed);
        if rest > 0 {
            Lost { events: 0, why: "stopping", log: Some(rest) }.emit();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
#[path = "record_tests.rs"]
mod tests;
