//! Requests whose answers wait for their events to be stored, in the order in which they came.
//!
//! - Layer: edge
//! - Takes: requests; word of which of them, by their numbers, have their events stored.
//! - Gives: to each the word that its answer may go out: when its event is stored, or when it has waited for long enough.
//! - On failure: nothing can fail.
//! - Limits: those of the recorder's queue.

use std::collections::VecDeque;
use std::ops::Range;
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
    /// The first one came first, and has not gone; since all wait for equally long, its time is over first, too.
    requests: VecDeque<Request>,
    /// The number of the first one: each has the next.
    first: u64,
    /// Whether `watch` waits for somebody to come.
    idle: bool,
}

#[derive(Debug)]
struct Request {
    /// Nothing for one that has gone.
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

    /// The events of those that joined as these, counted from nought, are stored, or lost.
    pub(super) fn release(&self, numbers: Range<u64>) {
        let mut line = self.line();
        let place = |number: u64| {
            let place = usize::try_from(number.saturating_sub(line.first)).unwrap_or(usize::MAX);
            place.min(line.requests.len())
        };
        let places = place(numbers.start)..place(numbers.end);
        let those = line.requests.range_mut(places).filter_map(|request| request.stored.take());
        let those: Vec<_> = those.collect();
        line.move_up();
        drop(line);
        for stored in those {
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
        while let Some(request) = line.requests.front_mut() {
            if request.until > now {
                return Some(request.until);
            }
            if let Some(stored) = request.stored.take() {
                let _ = stored.send(());
                Unconfirmed.emit();
            }
            line.move_up();
        }
        line.idle = true;
        None
    }
}

impl Line {
    /// Forgets those in front that have gone.
    fn move_up(&mut self) {
        while self.requests.front().is_some_and(|request| request.stored.is_none()) {
            self.requests.pop_front();
            self.first += 1;
        }
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
            waiting.release(0..1);
            assert_eq!(one.try_recv(), Ok(()));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (three, mut four) = (join(), join());
            two.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 250, "its time is over");
            // Two has gone, and counts all the same.
            waiting.release(1..3);
            three.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 250, "it was released");
            assert!(four.try_recv().is_err());
            four.await.unwrap();
            assert_eq!(began.elapsed().as_millis(), 350);
            waiting.release(3..4);
            let (five, mut six) = (join(), join());
            waiting.release(5..6);
            six.try_recv().unwrap();
            waiting.release(0..9);
            five.await.unwrap();
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
