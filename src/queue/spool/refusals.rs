//! When the spool refuses events: one line of log when it begins and one when it is over, a counter for all.
//!
//! - Layer: edge
//! - Takes: how each publishing ended, the time.
//! - Gives: happenings.
//! - On failure: nothing can fail.
//! - Limits: a burst is over when events were taken and the last refusal is a minute ago, so that a spool at its limit, which
//!   takes an event for each one sent, fills no log.

use std::time::Duration;

use crate::identity::Timestamp;
use crate::queue::PublishError;
use crate::queue::happenings::{Refused, TakesAgain};

const QUIET: Duration = Duration::from_secs(60);

/// The burst of refusals under way, if there is one.
#[derive(Debug, Default)]
pub(super) struct Refusals(Option<Burst>);

#[derive(Debug)]
struct Burst {
    /// Each try of an event.
    events: u64,
    last: Timestamp,
}

impl Refusals {
    /// Events were refused.
    pub(super) fn refused(&mut self, events: usize, error: &PublishError, now: Timestamp) {
        Refused { events, error, begins: self.0.is_none() }.emit();
        let burst = self.0.get_or_insert(Burst { events: 0, last: now });
        burst.events += events as u64;
        burst.last = now;
    }

    /// Events were taken.
    pub(super) fn taken(&mut self, now: Timestamp) {
        if let Some(burst) = self.0.take_if(|burst| now.since(burst.last) >= QUIET) {
            TakesAgain { refused: burst.events }.emit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_at_its_limit_begins_one_burst_and_not_many() {
        let mut refusals = Refusals::default();
        let mut now = Timestamp::from_secs(1_795_453_000);
        for _ in 0..100 {
            refusals.refused(2, &PublishError::Full, now);
            now = now.plus(QUIET / 2);
            refusals.taken(now);
        }
        assert_eq!(refusals.0.as_ref().map(|burst| burst.events), Some(200));
        refusals.taken(now.plus(QUIET / 2));
        assert!(refusals.0.is_none());
    }
}
