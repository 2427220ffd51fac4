//! Events on their way to the spool, without letting an answer wait for it.
//!
//! - Layer: edge
//! - Takes: what was found, one by one; news of deliveries.
//! - Gives: events to the publisher in batches, with the ledger's last word; amendments of those that are still held;
//!   tells each caller when its event is stored.
//! - On failure: tries again for as long as the queue has room; beyond it, and at the end of a stop, events are lost
//!   and counted.
//!   An amendment that fails is counted: the event goes out as it was.
//! - Limits: the queue; batches of 256.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::happenings::{Amended, Forgotten, Lost, PublishFailed, Recorded, Unconfirmed, Waiting};
use super::held::Change;
use super::ledger::{self, Found, Ledger};
use crate::event::Event;
use crate::queue::deliveries::{Delivery, News};
use crate::queue::{First, Holder, Publication, PublishError};
use crate::service::clock;

const BATCH_EVENTS: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two log lines about lost events.
const LOG_EVERY_MS: u64 = 1_000;

/// An event, and who waits for it.
struct Job {
    found: Found,
    stored: oneshot::Sender<()>,
}

/// Takes events. Clones share the queue.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    queue: mpsc::Sender<Job>,
    wait: Duration,
    closing: CancellationToken,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
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
        let (queue, jobs) = mpsc::channel(queue_events.max(1));
        let closing = CancellationToken::new();
        let counts = Arc::new(Counts {
            waiting: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
            logged_ms: AtomicU64::new(0),
            began: Instant::now(),
        });
        let worker = Worker { publisher, ledger, counts: Arc::clone(&counts) };
        let worker = tokio::spawn(worker.run(jobs, news, closing.clone()));
        (Self { queue, wait, closing, counts }, worker)
    }

    /// Takes an event; returns when it is stored, or after the configured wait while storing goes on.
    pub(super) async fn record(&self, found: Found) {
        let (stored, is_stored) = oneshot::channel();
        // Counted before it is sent: the worker may have it stored before this line's end.
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Job { found, stored }).is_err() {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.lost(1, if self.closing.is_cancelled() { "stopping" } else { "queue-full" });
            return;
        }
        // An error of the inner result means lost, which is counted where it happened.
        if tokio::time::timeout(self.wait, is_stored).await.is_err() {
            Unconfirmed.emit();
        }
    }

    /// Takes nothing more, and gives what is queued `within` to be stored.
    pub(super) async fn finish(self, mut worker: JoinHandle<()>, within: Duration) {
        self.closing.cancel();
        if tokio::time::timeout(within, &mut worker).await.is_err() {
            worker.abort();
            let _ = worker.await;
        }
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
}

impl Worker {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>, news: Option<News>, closing: CancellationToken) {
        let mut jobs = Vec::with_capacity(BATCH_EVENTS);
        let mut deliveries = Vec::with_capacity(BATCH_EVENTS);
        let mut news = news;
        loop {
            let taken = tokio::select! {
                taken = queue.recv_many(&mut jobs, BATCH_EVENTS) => taken,
                () = heard(&mut news, &mut deliveries) => {
                    self.delivered(deliveries.drain(..)).await;
                    continue;
                }
                () = closing.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            };
            if taken == 0 {
                return;
            }
            self.record(&mut jobs.drain(..).peekable()).await;
            Forgotten { count: self.ledger.take_forgotten() }.emit();
        }
    }

    async fn record(&mut self, jobs: &mut Peekable<impl Iterator<Item = Job>>) {
        Waiting { events: self.counts.waiting.load(Ordering::Relaxed) }.emit();
        while jobs.peek().is_some() {
            self.batch(jobs).await;
        }
        Waiting { events: self.counts.waiting.load(Ordering::Relaxed) }.emit();
    }

    /// Publishes together what nothing changes in between: a swap is done before the ledger goes on.
    async fn batch(&mut self, jobs: &mut impl Iterator<Item = Job>) {
        let (mut publications, mut waiting, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        let within = self.ledger.unique_window();
        for Job { found, stored } in jobs {
            let (publish, more) = self.ledger.take(found, clock::now());
            waiting.push(stored);
            changes.extend(more);
            for ledger::Publish { event, held_until, first } in publish {
                Recorded { event: &event }.emit();
                let first = first.map(|key| First { key, within });
                publications.push(Publication { event, held_until, first });
            }
            if changes.iter().any(|change| matches!(change, Change::Swap { .. })) {
                break;
            }
        }
        let stored = store(&self.publisher, &publications).await;
        self.counts.waiting.fetch_sub(waiting.len() as u64, Ordering::Relaxed);
        if stored {
            for stored in waiting {
                // Nobody may be waiting any more.
                let _ = stored.send(());
            }
            self.change(changes).await;
        } else {
            self.counts.lost(waiting.len() as u64, "spool-closed");
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
                    let mut events = vec![*event];
                    while let Some(Change::Amend(event)) = changes.front() {
                        events.push(Event::clone(event));
                        changes.pop_front();
                    }
                    self.amend(&events).await;
                }
                Change::Swap { first, then, person, machine } => {
                    if self.amend(std::slice::from_ref(&*first)).await {
                        self.amend(std::slice::from_ref(&*then)).await;
                    } else {
                        changes.extend(self.ledger.too_late(person, machine));
                    }
                }
            }
        }
    }

    /// Whether all of them were still held.
    async fn amend(&self, events: &[Event]) -> bool {
        let (amended, late, error) = match self.publisher.amend(events).await {
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
async fn store(publisher: &Holder, publications: &[Publication]) -> bool {
    let mut pause = FIRST_PAUSE;
    loop {
        match publisher.publish_all(publications).await {
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
