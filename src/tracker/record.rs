//! Events on their way to the spool, without letting an answer wait for it.
//!
//! - Layer: edge
//! - Takes: what was found, one by one; news of deliveries.
//! - Gives: events to the publisher in batches, with the ledger's last word; amendments of those that are still held;
//!   tells each caller when its event is stored.
//! - On failure: tries again for as long as the queue has room; beyond it, and at the end of a stop, events are lost
//!   and counted.
//!   An amendment that fails is counted: the event goes out as it was.
//!   An answer whose event is not stored in time goes out without waiting on.
//! - Limits: the queue; batches of 1,024.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::happenings::{Amended, Forgotten, Lost, Meters, PublishFailed, Recorded, Waits};
use super::held::Change;
use super::ledger::{self, Found, Ledger};
use super::waiting::Waiting;
use crate::event::Event;
use crate::queue::deliveries::{Delivery, News};
use crate::queue::{First, Holder, OnStored, Publication, PublishError};
use crate::service::clock;

const BATCH_EVENTS: usize = 1_024;
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
        queue_events: usize,
        wait: Duration,
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
        let worker = Worker {
            publisher,
            ledger,
            counts: Arc::clone(&counts),
            meters: Meters::new(),
            queue: jobs,
            line: VecDeque::new(),
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
        (Self { queue, room: queue_events.max(1) as u64, waiting, closing, counts }, worker)
    }

    /// Takes an event. What it gives ends when the event is stored, or after the configured wait while storing goes on;
    /// nothing for an event that is lost at once.
    pub(super) fn record(&self, found: Box<Found>) -> Option<oneshot::Receiver<()>> {
        // Counted before it is sent: the worker may have it stored before this line's end.
        let full = self.counts.queued.fetch_add(1, Ordering::Relaxed) >= self.room;
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
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
        self.waiting.release(usize::MAX);
        let left = self.counts.waiting.swap(0, Ordering::Relaxed);
        if left > 0 {
            self.counts.lost(left, "stopping");
        }
        self.counts.log_rest();
    }
}

/// What the task works with.
struct Worker {
    publisher: Holder,
    ledger: Ledger,
    counts: Arc<Counts>,
    meters: Meters,
    queue: mpsc::UnboundedReceiver<Box<Found>>,
    /// Out of the queue, oldest first.
    line: VecDeque<Box<Found>>,
    /// Their answers, in the same order.
    waiting: Arc<Waiting>,
}

impl Worker {
    async fn run(mut self, mut news: Option<News>, closing: CancellationToken) {
        let mut arrived = Vec::with_capacity(BATCH_EVENTS);
        let mut deliveries = Vec::with_capacity(BATCH_EVENTS);
        loop {
            let idle = self.line.is_empty();
            tokio::select! {
                biased;
                () = closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                () = heard(&mut news, &mut deliveries) => {
                    self.delivered(deliveries.drain(..)).await;
                    // In turn, however many news there are.
                    self.wait_in_line();
                    if !self.line.is_empty() {
                        self.batch().await;
                    }
                }
                taken = self.queue.recv_many(&mut arrived, BATCH_EVENTS), if idle => {
                    if taken == 0 {
                        return;
                    }
                    self.line.extend(arrived.drain(..));
                    self.batch().await;
                }
                () = std::future::ready(()), if !idle => self.batch().await,
            }
        }
    }

    /// Publishes together what nothing changes in between: a swap is done before the ledger goes on.
    async fn batch(&mut self) {
        self.wait_in_line();
        let (mut publications, mut changes, mut events) = (Vec::new(), Vec::new(), 0);
        let within = self.ledger.unique_window();
        let now = clock::now();
        while let Some(found) = if events < BATCH_EVENTS { self.line.pop_front() } else { None } {
            let (publish, more) = self.ledger.take(*found, now);
            events += 1;
            for ledger::Publish { event, held_until, first } in publish {
                Recorded { event: &event }.emit(&self.meters);
                let first = first.map(|key| First { key, within });
                publications.push(Publication { event, held_until, first });
            }
            let swaps = more.iter().any(|change| matches!(change, Change::Swap { .. }));
            changes.extend(more);
            if swaps {
                break;
            }
        }
        self.counts.queued.fetch_sub(events as u64, Ordering::Relaxed);
        let waiting = Arc::clone(&self.waiting);
        // By whoever stores them: each hand they go through takes its time.
        let stored = OnStored::new(move || waiting.release(events));
        let is_stored = store(&self.publisher, &publications, &stored).await;
        self.counts.waiting.fetch_sub(events as u64, Ordering::Relaxed);
        if is_stored {
            self.change(changes).await;
        } else {
            self.waiting.release(events);
            self.counts.lost(events as u64, "spool-closed");
        }
        Waits { events: self.counts.waiting.load(Ordering::Relaxed) }.emit(&self.meters);
        Forgotten { count: self.ledger.take_forgotten() }.emit();
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
            self.change(changes).await;
        }
    }

    /// Amends events, in order.
    async fn change(&mut self, changes: Vec<Change>) {
        let mut changes = VecDeque::from(changes);
        while let Some(change) = changes.pop_front() {
            match change {
                Change::Amend(event) => {
                    let mut events = vec![event];
                    while let Some(Change::Amend(event)) = changes.front() {
                        events.push(Arc::clone(event));
                        changes.pop_front();
                    }
                    self.amend(events).await;
                }
                Change::Swap { first, then, person, machine } => {
                    if self.amend(vec![first]).await {
                        self.amend(vec![then]).await;
                    } else {
                        changes.extend(self.ledger.too_late(person, machine));
                    }
                }
            }
        }
    }

    /// Whether all of them were still held.
    async fn amend(&mut self, events: Vec<Arc<Event>>) -> bool {
        let events: Vec<Event> = events.into_iter().map(Arc::unwrap_or_clone).collect();
        let asked = self.publisher.amend(&events).await;
        let (amended, late, error) = match asked {
            Ok(held) => {
                let amended = held.iter().filter(|held| **held).count();
                (amended, events.len() - amended, None)
            }
            Err(error) => (0, events.len(), Some(error)),
        };
        Amended { amended, late, error: error.as_ref() }.emit();
        late == 0
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

/// Publishes until it works; `false` when it never will.
async fn store(publisher: &Holder, publications: &[Publication], stored: &OnStored) -> bool {
    let mut pause = FIRST_PAUSE;
    loop {
        match publisher.publish_all(publications, stored.clone()).await {
            Ok(()) => return true,
            Err(PublishError::Closed) => return false,
            Err(error) => PublishFailed { error: &error, events: publications.len() }.emit(),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
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
