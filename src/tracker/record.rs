//! Events on their way to the spool, without letting an answer wait for it.
//!
//! - Layer: edge
//! - Takes: publications, one by one.
//! - Gives: them to the publisher in batches; tells each caller when its event is stored.
//! - On failure: tries again for as long as the queue has room; beyond it, and at the end of a stop, events are lost
//!   and counted.
//! - Limits: the queue; batches of 256.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::happenings::{Lost, PublishFailed, Recorded, Unconfirmed, Waiting};
use crate::queue::{Holder, Publication, PublishError};

const BATCH_EVENTS: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two log lines about lost events.
const LOG_EVERY_MS: u64 = 1_000;

/// An event, and who waits for it.
struct Job {
    publication: Publication,
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
    pub(super) fn start(publisher: Holder, queue_events: usize, wait: Duration) -> (Self, JoinHandle<()>) {
        let (queue, jobs) = mpsc::channel(queue_events.max(1));
        let closing = CancellationToken::new();
        let counts = Arc::new(Counts {
            waiting: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
            logged_ms: AtomicU64::new(0),
            began: Instant::now(),
        });
        let worker = tokio::spawn(work(jobs, publisher, closing.clone(), Arc::clone(&counts)));
        (Self { queue, wait, closing, counts }, worker)
    }

    /// Takes an event; returns when it is stored, or after the configured wait while storing goes on.
    pub(super) async fn record(&self, publication: Publication) {
        Recorded { event: &publication.event }.emit();
        let (stored, is_stored) = oneshot::channel();
        // Counted before it is sent: the worker may have it stored before this line's end.
        self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Job { publication, stored }).is_err() {
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

async fn work(
    mut queue: mpsc::Receiver<Job>,
    publisher: Holder,
    closing: CancellationToken,
    counts: Arc<Counts>,
) {
    let mut jobs = Vec::with_capacity(BATCH_EVENTS);
    loop {
        let taken = tokio::select! {
            taken = queue.recv_many(&mut jobs, BATCH_EVENTS) => taken,
            () = closing.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        if taken == 0 {
            return;
        }
        Waiting { events: counts.waiting.load(Ordering::Relaxed) }.emit();
        let (publications, waiting): (Vec<_>, Vec<_>) =
            jobs.drain(..).map(|job| (job.publication, job.stored)).unzip();
        let stored = store(&publisher, &publications).await;
        counts.waiting.fetch_sub(publications.len() as u64, Ordering::Relaxed);
        if stored {
            for stored in waiting {
                // Nobody may be waiting any more.
                let _ = stored.send(());
            }
        } else {
            counts.lost(publications.len() as u64, "spool-closed");
        }
        Waiting { events: counts.waiting.load(Ordering::Relaxed) }.emit();
    }
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
