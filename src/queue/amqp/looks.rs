//! Looks at the work queues from outside: how full they are, and whether anybody takes what is in them.
//!
//! - Layer: edge
//! - Takes: a connection, for as long as it lasts; what is known is kept over the next.
//! - Gives: gauges each minute; a warning when a queue with messages has had no consumer for five minutes, and one when a work queue of another
//!   layout holds messages.
//! - On failure: a question that has no answer is asked again after a minute.
//! - Limits: each of the latter two is told once, until it is over; queues of other layouts are looked for once in a process.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Channel;
use tokio::time::Instant;

use super::{AmqpError, Link};
use crate::queue::happenings::{LeftOver, NobodyTakes, WorkQueue};

const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A relay that is started again, or a host, is back by then.
const UNTAKEN_AFTER: Duration = Duration::from_secs(300);

/// What is known of the work queues.
#[derive(Debug, Default)]
pub struct Looks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    has_asked_others: bool,
    untaken: BTreeMap<String, Untaken>,
}

/// A queue whose messages nobody takes.
#[derive(Debug)]
struct Untaken {
    since: Instant,
    is_told: bool,
}

impl Looks {
    /// Looks on while the connection lasts.
    pub async fn go_on(&self, link: &Link) {
        while link.is_connected() {
            // A blocked connection answers nothing.
            if !link.is_blocked() {
                let _ = self.look(link).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, link: &Link) -> Result<(), AmqpError> {
        if !self.lock().has_asked_others {
            for (queue, count) in link.left_over().await? {
                LeftOver { queue: &queue, count }.emit();
            }
            self.lock().has_asked_others = true;
        }
        let mut channel: Option<Channel> = None;
        for queue in link.topology().work_queues() {
            let asked = match channel.take() {
                Some(channel) => channel,
                None => link.channel().await?,
            };
            // A queue that is gone costs the channel.
            let Ok((ready, consumers)) = link.look_at(&asked, &queue).await else { continue };
            channel = Some(asked);
            WorkQueue { queue: &queue, ready, consumers }.emit();
            if self.lock().is_news(&queue, ready > 0 && consumers == 0, Instant::now()) {
                NobodyTakes { queue: &queue, ready }.emit();
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it is to be told now that nobody takes what is in a queue.
    fn is_news(&mut self, queue: &str, is_untaken: bool, now: Instant) -> bool {
        if !is_untaken {
            self.untaken.remove(queue);
            return false;
        }
        let untaken = self.untaken.entry(queue.to_owned()).or_insert(Untaken { since: now, is_told: false });
        let is_news = !untaken.is_told && now.saturating_duration_since(untaken.since) >= UNTAKEN_AFTER;
        untaken.is_told |= is_news;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nobody_takes_what_waits_is_told_once_until_somebody_does() {
        let (mut state, begin) = (State::default(), Instant::now());
        let mut at = |minutes: u64, is_untaken| {
            state.is_news("q", is_untaken, begin + Duration::from_secs(60 * minutes))
        };
        assert!((0..5).all(|minutes| !at(minutes, true)));
        assert!(at(5, true));
        assert!(!at(6, true) && !at(60, true), "once");
        assert!(!at(61, false));
        assert!(!at(62, true) && !at(66, true), "from the beginning");
        assert!(at(67, true));
    }
}
