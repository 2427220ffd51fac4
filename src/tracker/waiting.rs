//! Requests whose answers wait for their events to be stored, in the order in which they came.
//!
//! - Layer: edge
//! - Takes: requests; word of how many of the first ones have their events stored.
//! - Gives: to each the word that its answer may go out: when its event is stored, or when it has waited for long enough.
//! - On failure: nothing can fail.
//! - Limits: those of the recorder's queue.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::happenings::Unconfirmed;

/// The line.
#[derive(Debug)]
pub(super) struct Waiting {
    wait: Duration,
    line: Mutex<Line>,
    /// Somebody came while nobody waited.
    came: Notify,
}

#[derive(Debug, Default)]
struct Line {
    /// The first one came first; since all wait for equally long, its time is over first, too.
    requests: VecDeque<Request>,
    /// How many of the first ones have gone already, since their time was over.
    gone: usize,
    /// Whether `watch` waits for somebody to come.
    idle: bool,
}

#[derive(Debug)]
struct Request {
    stored: Option<oneshot::Sender<()>>,
    until: Instant,
}

impl Waiting {
    /// A line in which each waits for so long at most.
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, line: Mutex::default(), came: Notify::new() }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the line if `enter` says so; in this order, whatever others do meanwhile.
    pub(super) fn join(&self, enter: impl FnOnce() -> bool) -> Option<oneshot::Receiver<()>> {
        let (stored, is_stored) = oneshot::channel();
        let until = Instant::now() + self.wait;
        let mut line = self.line();
        if !enter() {
            return None;
        }
        line.requests.push_back(Request { stored: Some(stored), until });
        let idle = std::mem::take(&mut line.idle);
        drop(line);
        if idle {
            self.came.notify_one();
        }
        Some(is_stored)
    }

    /// The events of the first so many are stored, or lost.
    pub(super) fn release(&self, count: usize) {
        let mut line = self.line();
        let count = count.min(line.requests.len());
        line.gone = line.gone.saturating_sub(count);
        let first: Vec<_> = line.requests.drain(..count).filter_map(|request| request.stored).collect();
        drop(line);
        for stored in first {
            // The client may have gone.
            let _ = stored.send(());
        }
    }

    /// Lets those go that waited for long enough. Runs until it is dropped.
    pub(super) async fn watch(&self) {
        loop {
            match self.let_go() {
                Some(until) => tokio::time::sleep_until(until).await,
                None => self.came.notified().await,
            }
        }
    }

    /// Lets those go whose time is over; gives that of the next one.
    fn let_go(&self) -> Option<Instant> {
        let mut line = self.line();
        let now = Instant::now();
        let Line { requests, gone, idle } = &mut *line;
        for request in requests.iter_mut().skip(*gone) {
            if request.until > now {
                return Some(request.until);
            }
            if let Some(stored) = request.stored.take() {
                let _ = stored.send(());
                Unconfirmed.emit();
            }
            *gone += 1;
        }
        *idle = true;
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_go_in_turn_and_nobody_waits_for_too_long() {
        let waiting = Waiting::new(Duration::from_millis(250));
        let began = Instant::now();
        let join = || waiting.join(|| true).unwrap();
        let story = async {
            assert!(waiting.join(|| false).is_none());
            let (mut one, two) = (join(), join());
            waiting.release(1);
            assert_eq!(one.try_recv(), Ok(()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (three, mut four) = (join(), join());
            two.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 250, "its time is over");
            // Two has gone, and counts all the same.
            waiting.release(2);
            three.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 250, "it was released");
            assert!(four.try_recv().is_err());
            four.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 350);
            waiting.release(9);
            tokio::time::sleep(Duration::from_secs(9)).await;
            let late = join();
            let began = Instant::now();
            late.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 250);
        };
        tokio::select! {
            () = story => {}
            () = waiting.watch() => {}
        }
    }
}
