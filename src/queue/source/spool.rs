//! The spool as a source: claims, leases that last while the relay lives, settlements.
//!
//! - Layer: edge
//! - Takes: a spool.
//! - Gives: `Source`.
//! - On failure: the spool's errors. When the relay dies, its leases end and the events come again; when it drops the
//!   source, they are released at once.
//! - Limits: `max_held` deliveries at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BoxFuture, Delivery, Settle, Settlement, Source, SourceError, Tag, Unsettled};
use crate::identity::Timestamp;
use crate::queue::StoreError;
use crate::queue::spool::{Claimed, Outcome, Seq, Spool};
use crate::service::clock;

/// How long an event stays claimed after its relay died.
const LEASE: Duration = Duration::from_secs(30);
/// How often living relays move the end of their leases.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often to look for events of other processes, and for retries that are due.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// The spool, as the relay sees it.
#[derive(Debug)]
pub struct SpoolSource {
    spool: Spool,
    stop: CancellationToken,
    news: watch::Receiver<u64>,
    held: Held,
    max_held: usize,
    pending: Option<JoinHandle<Result<Vec<Claimed>, StoreError>>>,
    renewal: JoinHandle<()>,
}

/// The deliveries that are not settled yet.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<BTreeSet<Seq>>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Seq>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpoolSource {
    /// Takes events from the spool, at most `max_held` at once, until `stop`. Needs a Tokio runtime.
    #[must_use]
    pub fn new(spool: Spool, max_held: usize, stop: CancellationToken) -> Self {
        let held = Held::default();
        let renewal = tokio::spawn(renew(spool.clone(), held.clone()));
        Self { news: spool.news(), spool, stop, held, max_held: max_held.max(1), pending: None, renewal }
    }

    async fn wait_and_claim(&mut self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        loop {
            if self.stop.is_cancelled() {
                return Ok(Vec::new());
            }
            self.news.mark_unchanged();
            let room = self.max_held.saturating_sub(self.held.lock().len()).min(max);
            let claimed = if room == 0 { Vec::new() } else { self.claim(room).await? };
            if !claimed.is_empty() {
                return Ok(claimed);
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                _ = self.news.changed() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
        }
    }

    /// The claim lives on a task of its own and its handle here: a caller that stops waiting loses nothing of it.
    async fn claim(&mut self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        let spool = &self.spool;
        let pending = self.pending.get_or_insert_with(|| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.claim(max, LEASE, clock::now()).await })
        });
        let claimed = pending.await;
        self.pending = None;
        let claimed = claimed.map_err(|_| StoreError::Closed)??;
        self.held.lock().extend(claimed.iter().map(|claimed| claimed.seq));
        Ok(claimed.into_iter().map(delivery).collect())
    }
}

impl Source for SpoolSource {
    fn next(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(self.wait_and_claim(max))
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::new(Settler { spool: self.spool.clone(), held: self.held.clone() })
    }

    fn most(&self) -> usize {
        self.max_held
    }

    fn is_full(&self) -> bool {
        self.held.lock().len() >= self.max_held
    }
}

#[derive(Debug)]
struct Settler {
    spool: Spool,
    held: Held,
}

impl Settle for Settler {
    fn settle(&self, outcomes: Vec<(Tag, Settlement)>) -> BoxFuture<'_, Unsettled> {
        Box::pin(async move {
            let now = clock::now();
            let tags: Vec<Tag> = outcomes.iter().map(|(tag, _)| *tag).collect();
            let outcomes: Vec<_> =
                outcomes.into_iter().map(|(tag, settlement)| (seq(tag), outcome(settlement, now))).collect();
            if let Err(error) = self.spool.settle(outcomes).await {
                return tags.into_iter().map(|tag| (tag, error.clone().into())).collect();
            }
            let mut held = self.held.lock();
            for tag in tags {
                held.remove(&seq(tag));
            }
            Vec::new()
        })
    }
}

impl Drop for SpoolSource {
    fn drop(&mut self) {
        self.renewal.abort();
        let held = std::mem::take(&mut *self.held.lock());
        if !held.is_empty() {
            self.spool.settle_later(held.into_iter().map(|seq| (seq, Outcome::Released)).collect());
        }
    }
}

async fn renew(spool: Spool, held: Held) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let seqs: Vec<_> = held.lock().iter().copied().collect();
        if !seqs.is_empty() {
            // A lease that could not be moved may still be in the next round: there are several to a lease.
            let _ = spool.extend(seqs, clock::now().plus(LEASE)).await;
        }
    }
}

fn delivery(claimed: Claimed) -> Delivery {
    let tag = Tag { epoch: 0, number: claimed.seq.0.unsigned_abs() };
    Delivery { tag, event: claimed.event, attempts: claimed.attempts, replay: None, suspect: false }
}

fn seq(tag: Tag) -> Seq {
    Seq(i64::try_from(tag.number).unwrap_or(i64::MAX))
}

fn outcome(settlement: Settlement, now: Timestamp) -> Outcome {
    match settlement {
        Settlement::Done => Outcome::Done,
        Settlement::Retry { after, reason } => Outcome::Retry { not_before: now.plus(after), reason },
        Settlement::Later { after, reason } => Outcome::Later { not_before: now.plus(after), reason },
        Settlement::Dead { reason } => Outcome::Dead { reason },
        Settlement::Uncertain => Outcome::Uncertain,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::queue::Publish;
    use crate::queue::spool::{Admin, Settings};
    use crate::queue::testing::event;

    #[tokio::test]
    async fn deliveries_are_bounded_settled_and_released_by_a_drop() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().to_owned(), ..Settings::default() };
        let spool = Spool::open(settings).unwrap();
        spool.publish((0..10).map(event).collect()).await.unwrap();
        let stop = CancellationToken::new();
        let mut source = SpoolSource::new(spool.clone(), 4, stop.clone());
        let held = source.next(100).await.unwrap();
        assert_eq!(held.len(), 4);
        assert!(
            tokio::time::timeout(Duration::from_millis(400), source.next(100)).await.is_err(),
            "no more than the bound"
        );
        let reason = String::from("busy");
        let outcomes = [
            Settlement::Done,
            Settlement::Retry { after: Duration::from_millis(300), reason: reason.clone() },
            Settlement::Dead { reason },
        ];
        source.settle(held.iter().map(|delivery| delivery.tag).zip(outcomes).collect()).await.unwrap();
        assert_eq!(source.next(1).await.unwrap().len(), 1);
        drop(source);

        let mut source = SpoolSource::new(spool, 100, stop.clone());
        let mut again = source.next(100).await.unwrap();
        while again.len() < 8 {
            again.extend(source.next(100).await.unwrap());
        }
        assert_eq!(
            again.iter().filter(|delivery| delivery.attempts == 2).count(),
            1,
            "the retry alone counts"
        );
        let status = Admin::open(directory.path()).unwrap().status().unwrap();
        assert_eq!((status.pending, status.claimed, status.dead), (0, 8, 1));
        stop.cancel();
        assert!(source.next(1).await.unwrap().is_empty(), "stop wakes it");
    }

    #[tokio::test]
    async fn events_of_another_handle_are_found_and_a_dropped_call_loses_none() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { directory: directory.path().to_owned(), ..Settings::default() };
        let mut source =
            SpoolSource::new(Spool::open(settings.clone()).unwrap(), 100, CancellationToken::new());
        let other = Spool::open(settings).unwrap();
        let mut found = 0;
        for number in 0..40 {
            other.publish(vec![event(number)]).await.unwrap();
            let wait = Duration::from_micros(300 * number);
            if let Ok(deliveries) = tokio::time::timeout(wait, source.next(100)).await {
                found += deliveries.unwrap().len();
            }
        }
        while found < 40 {
            found +=
                tokio::time::timeout(Duration::from_secs(5), source.next(100)).await.unwrap().unwrap().len();
        }
    }
}
