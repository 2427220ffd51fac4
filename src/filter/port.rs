//! How the port for copies has behaved: one that is away, hangs or takes nothing must not delay every message.
//!
//! - Layer: edge
//! - Takes: how the last messages that were to be split fared there, the time.
//! - Gives: how long the next one may wait for a sign of it, if it should be split at all; readiness, and one line.
//! - On failure: a lock that is poisoned is read as it stands.
//! - Limits: one message waits in vain; then one every few seconds finds out, for a second at most.
//! - See: `docs/postfix.md`, "Several recipients"

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::happenings::PortTurn;
use super::patience::{Patience, Turn};
use crate::service::Component;

/// So many messages in a row of which the port wants nothing are no accident.
const REFUSED: u32 = 3;

/// What is known of the port.
#[derive(Debug)]
pub(super) struct Port {
    state: Mutex<(Patience, Patience)>,
    health: Component,
}

/// What a message found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It takes copies.
    Takes,
    /// It answers, and wants nothing.
    Refuses,
    /// It does not answer, or not as a server should.
    Away,
}

impl Port {
    /// All is well until it is not; a message may wait as long for a sign.
    pub(super) fn new(longest: Duration, health: Component) -> Self {
        health.ready();
        let (away, refusing) = (Patience::new(longest, 1), Patience::new(longest, REFUSED));
        Self { state: Mutex::new((away, refusing)), health }
    }

    /// How long the next message may wait for a sign of the port; `None` if it should not be split.
    pub(super) fn next_wait(&self) -> Option<Duration> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.next_wait(Instant::now())
    }

    /// Learns from a message that was tried there.
    pub(super) fn learn(&self, found: Found) {
        let now = Instant::now();
        let turns = {
            let (away, refusing) = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let refused =
                if found == Found::Away { Turn::Same } else { refusing.ended(found == Found::Takes, now) };
            [(Found::Away, away.ended(found != Found::Away, now)), (Found::Refuses, refused)]
        };
        for (what, turn) in turns {
            PortTurn { what, turn }.emit();
            match (turn, what) {
                (Turn::Same, _) => (),
                (Turn::Recovered, _) => self.health.ready(),
                (Turn::Stalled, Found::Refuses) => {
                    self.health.not_ready(
                        "the port for copies (split.address) refuses every recipient: mail is shared",
                    );
                }
                (Turn::Stalled, _) => {
                    self.health
                        .not_ready("the port for copies (split.address) does not answer: mail is shared");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Health;

    #[test]
    fn a_port_that_is_away_delays_one_message_and_is_told() {
        let health = Health::default();
        let long = Duration::from_secs(10);
        let port = Port::new(long, health.component("split"));
        assert_eq!(port.next_wait(), Some(long));
        port.learn(Found::Away);
        assert_eq!(port.next_wait(), None);
        assert!(health.troubles().iter().any(|(_, why)| why.contains("does not answer")));
        port.learn(Found::Takes);
        assert_eq!(port.next_wait(), Some(long));
        assert!(health.troubles().is_empty());
    }

    #[test]
    fn a_port_that_refuses_everybody_is_told_and_asked_again() {
        let health = Health::default();
        let port = Port::new(Duration::from_secs(10), health.component("split"));
        port.learn(Found::Refuses);
        port.learn(Found::Takes);
        for _ in 0..REFUSED {
            assert!(health.troubles().is_empty());
            port.learn(Found::Refuses);
        }
        assert!(health.troubles().iter().any(|(_, why)| why.contains("refuses every recipient")));
        assert!(port.next_wait().is_some());
        port.learn(Found::Takes);
        assert!(health.troubles().is_empty());
    }
}
