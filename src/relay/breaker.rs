//! Stops the relay from taking events while nothing gets through, and tries with one request before it goes on.
//!
//! - Layer: role
//! - Takes: what each request says of the way to GA4, troubles of the queue.
//! - Gives: until when to pause, how many requests may be under way; tells health and administrators.
//! - On failure: nothing can fail.
//! - Limits: pauses from one second to a minute; after three failures in a row one request at a time, so that an outage
//!   makes few events uncertain.

use std::time::Duration;

use tokio::time::Instant;

use super::happenings::{Paused, QueueTrouble, Resumed};
use crate::service::Component;

/// Failures in a row after which the relay pauses.
const PATIENCE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a settlement says about the way to GA4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// A request was answered by somebody who could have taken it.
    Through,
    /// It was not, and why.
    Blocked(&'static str),
    /// Nothing was sent.
    Neither,
}

#[derive(Debug)]
pub(super) struct Breaker {
    failures: u32,
    queue_troubled: bool,
    pause: Duration,
    paused: bool,
    /// The end of the pause; the relay clears it when that has come.
    pub(super) until: Option<Instant>,
    health: Component,
}

impl Breaker {
    pub(super) fn new(health: Component) -> Self {
        health.ready();
        Self { failures: 0, queue_troubled: false, pause: FIRST_PAUSE, paused: false, until: None, health }
    }

    /// How many requests may be under way, of those that may be when all is well.
    pub(super) fn allowed(&self, most: usize) -> usize {
        if self.failures >= PATIENCE { 1 } else { most.max(1) }
    }

    pub(super) fn note(&mut self, fate: Fate) {
        match fate {
            Fate::Through => {
                (self.failures, self.pause) = (0, FIRST_PAUSE);
                self.works();
            }
            Fate::Blocked(why) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures >= PATIENCE {
                    self.health.not_ready(why);
                    self.wait();
                }
            }
            Fate::Neither => {}
        }
    }

    pub(super) fn queue_trouble(&mut self, why: String) {
        self.health.not_ready(why.clone());
        QueueTrouble { why }.emit();
        self.queue_troubled = true;
        self.wait();
    }

    pub(super) fn queue_works(&mut self) {
        if std::mem::take(&mut self.queue_troubled) {
            self.works();
        }
    }

    /// Says so, once it does: both ways, to GA4 and to the queue.
    fn works(&mut self) {
        if self.failures < PATIENCE && !self.queue_troubled && std::mem::take(&mut self.paused) {
            (self.pause, self.until) = (FIRST_PAUSE, None);
            Resumed.emit();
            self.health.ready();
        }
    }

    /// Pauses, unless it does already; each time longer.
    fn wait(&mut self) {
        if self.until.is_none() {
            let pause = self.pause.mul_f64(rand::random_range(0.75..1.0));
            Paused { pause, again: std::mem::replace(&mut self.paused, true) }.emit();
            self.until = Some(Instant::now() + pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Health;

    fn breaker() -> (Breaker, Health) {
        let health = Health::default();
        (Breaker::new(health.component("relay")), health)
    }

    fn reasons(health: &Health) -> Vec<String> {
        health.troubles().into_iter().map(|(_, why)| why).collect()
    }

    #[tokio::test]
    async fn three_failures_in_a_row_pause_and_one_request_tries_the_way() {
        let (mut breaker, health) = breaker();
        for _ in 0..2 {
            breaker.note(Fate::Blocked("why"));
        }
        breaker.note(Fate::Through);
        for _ in 0..2 {
            breaker.note(Fate::Blocked("why"));
        }
        assert_eq!((breaker.until, breaker.allowed(8), reasons(&health).len()), (None, 8, 0));
        breaker.note(Fate::Blocked("why"));
        assert!(breaker.until.is_some());
        assert_eq!((breaker.allowed(8), reasons(&health)), (1, vec!["why".to_owned()]));
        breaker.until = None;
        assert_eq!(breaker.allowed(8), 1, "after the pause too");
        breaker.note(Fate::Through);
        assert_eq!((breaker.allowed(8), breaker.until, reasons(&health).len()), (8, None, 0));
    }

    #[tokio::test]
    async fn pauses_grow_to_a_minute() {
        let (mut breaker, _) = breaker();
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            breaker.until = None;
            for _ in 0..3 {
                breaker.note(Fate::Blocked("why"));
            }
            let pause = breaker.until.map(|until| until - Instant::now()).unwrap_or_default();
            assert!(pause <= LONGEST_PAUSE);
            longest = longest.max(pause);
        }
        assert!(longest > LONGEST_PAUSE / 2);
    }

    #[tokio::test]
    async fn troubles_of_queue_and_ga4_end_each_for_itself() {
        let (mut breaker, health) = breaker();
        breaker.queue_trouble("broker".into());
        for _ in 0..3 {
            breaker.note(Fate::Blocked("ga4"));
        }
        breaker.queue_works();
        assert_eq!(reasons(&health), ["ga4"], "the other one is still there");
        breaker.note(Fate::Through);
        assert!(reasons(&health).is_empty());
        breaker.queue_trouble("broker".into());
        breaker.note(Fate::Through);
        assert_eq!(reasons(&health), ["broker"]);
        breaker.queue_works();
        assert!(reasons(&health).is_empty());
    }
}
