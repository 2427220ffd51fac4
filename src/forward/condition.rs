//! How the forwarder stands: what `/readyz` says of it, and what is logged when that changes.
//!
//! - Layer: role
//! - Takes: connections that are made, events that the broker gives back, alarms.
//! - Gives: health; happenings: one when events begin to come back and one when that is over, with how often they came.
//! - On failure: nothing can fail.
//! - Limits: events are over with coming back when none has for `QUIET`, three times as long as one waits for its next try.

use std::time::Duration;

use tokio::time::Instant;

use super::NOT_TAKEN_WAIT;
use super::happenings::{Blocked, NotTaken, TakesAgain, Unblocked};
use crate::queue::amqp::Refused;
use crate::service::Component;

const QUIET: Duration = Duration::from_secs(3 * NOT_TAKEN_WAIT.as_secs());

/// How the forwarder stands with the broker.
#[derive(Debug)]
pub(super) struct Condition {
    health: Component,
    blocked: bool,
    unroutable: Option<Burst>,
    nacked: Option<Burst>,
    denied: Option<Burst>,
}

/// Events that come back.
#[derive(Debug)]
struct Burst {
    /// Why, for administrators.
    why: String,
    times: u64,
    last: Instant,
}

impl Condition {
    pub(super) fn new(health: Component) -> Self {
        Self { health, blocked: false, unroutable: None, nacked: None, denied: None }
    }

    /// The broker is there. That events came back is not over with that.
    pub(super) fn connected(&mut self) {
        self.blocked = false;
        self.tell();
    }

    /// It is not, or not as it should be.
    pub(super) fn lost(&self, why: &str) {
        self.health.not_ready(why);
    }

    /// The broker gave events back.
    pub(super) fn refused(&mut self, refused: &[Refused], now: Instant) {
        for refused in refused {
            let (burst, kind) = match refused {
                Refused::Unroutable { .. } => (&mut self.unroutable, "unroutable"),
                Refused::Nack => (&mut self.nacked, "nack"),
                Refused::Denied(_) => (&mut self.denied, "denied"),
                Refused::Lost(_) => continue,
            };
            let begins = burst.is_none();
            let burst = burst.get_or_insert_with(|| Burst { why: reason(refused), times: 0, last: now });
            burst.times += 1;
            burst.last = now;
            NotTaken { kind, why: &burst.why, begins }.emit();
        }
        if !refused.is_empty() {
            self.tell();
        }
    }

    /// Looks whether events still come back, and whether the broker takes messages at all.
    pub(super) fn look(&mut self, blocked: bool, now: Instant) {
        let mut changed = blocked != self.blocked;
        match (self.blocked, blocked) {
            (false, true) => Blocked.emit(),
            (true, false) => Unblocked.emit(),
            _ => {}
        }
        self.blocked = blocked;
        for burst in [&mut self.denied, &mut self.unroutable, &mut self.nacked] {
            // A broker that takes nothing gives nothing back either.
            if let Some(over) =
                burst.take_if(|burst| !blocked && now.saturating_duration_since(burst.last) >= QUIET)
            {
                TakesAgain { times: over.times }.emit();
                changed = true;
            }
        }
        if changed {
            self.tell();
        }
    }

    fn tell(&self) {
        if self.blocked {
            return self.health.not_ready("RabbitMQ takes no messages: it is short of memory or disk");
        }
        match self.denied.as_ref().or(self.unroutable.as_ref()).or(self.nacked.as_ref()) {
            Some(burst) => self.health.not_ready(burst.why.clone()),
            None => self.health.ready(),
        }
    }
}

fn reason(refused: &Refused) -> String {
    let remedy = match refused {
        Refused::Unroutable { .. } => {
            "; `mailtap amqp check` lists what is needed, `mailtap amqp definitions` has it to import"
        }
        Refused::Nack => "; is the work queue full, or short of its quorum?",
        Refused::Denied(_) | Refused::Lost(_) => "",
    };
    format!("RabbitMQ gives events back: {refused}{remedy}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::service::Health;

    #[test]
    fn events_that_come_back_are_no_readiness_until_none_has_for_a_while() {
        let health = Health::default();
        let mut condition = Condition::new(health.component("forward"));
        let mut now = Instant::now();
        condition.connected();
        assert!(health.troubles().is_empty());
        for _ in 0..5 {
            let said = "NO_ROUTE".to_owned();
            let unroutable = Refused::Unroutable { exchange: String::new(), key: "m.ga4".into(), said };
            condition.refused(&[unroutable, Refused::Nack], now);
            now += NOT_TAKEN_WAIT + Duration::from_secs(1);
            condition.look(false, now);
        }
        let (part, why) = health.troubles().remove(0);
        assert!(part == "forward" && why.contains("no queue m.ga4") && why.contains("NO_ROUTE"), "{why}");
        condition.connected();
        assert_eq!(health.troubles().len(), 1, "a new connection mends no binding");
        condition.look(true, now + QUIET);
        assert!(health.troubles().remove(0).1.contains("memory or disk"));
        assert_eq!(condition.unroutable.as_ref().map(|burst| burst.times), Some(5));
        condition.look(false, now + QUIET);
        assert!(health.troubles().is_empty() && condition.unroutable.is_none());
    }
}
