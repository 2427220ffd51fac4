//! How long a message waits for something outside that may not answer: the spool that stores its event, the port for copies.
//!
//! - Layer: decision
//! - Takes: how the last waits ended, the time.
//! - Gives: how long the next message may wait, if at all.
//! - On failure: nothing can fail.
//! - Limits: as many messages wait in vain as the caller says; then one every few seconds finds out whether it is worth it again.

use std::time::{Duration, Instant};

/// Between two messages that try again.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// A message that tries again waits no longer.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// What the waits so far have taught.
#[derive(Debug)]
pub(super) struct Patience {
    longest: Duration,
    /// As many waits in vain, one after the other, are no accident.
    limit: u32,
    in_vain: u32,
    next_probe: Option<Instant>,
}

/// What a wait that ended says about what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It answers as before.
    Same,
    /// It has ceased to answer.
    Stalled,
    /// It answers again.
    Recovered,
}

impl Patience {
    /// Messages may wait as long while all is well.
    pub(super) const fn new(longest: Duration, limit: u32) -> Self {
        Self { longest, limit, in_vain: 0, next_probe: None }
    }

    /// How long the next message may wait; `None` if it should not.
    pub(super) fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        if self.in_vain < self.limit {
            return Some(self.longest);
        }
        if self.next_probe.is_some_and(|at| now < at) {
            return None;
        }
        self.next_probe = Some(now + PROBE_EVERY);
        Some(self.longest.min(PROBE_WAIT))
    }

    /// A wait ended, with an answer of whatever kind or without one.
    pub(super) fn ended(&mut self, answered: bool, now: Instant) -> Turn {
        let stalled = self.in_vain >= self.limit;
        if answered {
            (self.in_vain, self.next_probe) = (0, None);
            return if stalled { Turn::Recovered } else { Turn::Same };
        }
        self.in_vain = self.in_vain.saturating_add(1);
        if stalled || self.in_vain < self.limit {
            return Turn::Same;
        }
        self.next_probe = Some(now + PROBE_EVERY);
        Turn::Stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_spool_delays_few_messages() {
        let long = Duration::from_secs(5);
        let mut patience = Patience::new(long, 3);
        let start = Instant::now();
        assert_eq!(patience.ended(false, start), Turn::Same);
        assert_eq!(patience.ended(true, start), Turn::Same);
        for _ in 0..2 {
            assert_eq!(patience.next_wait(start), Some(long));
            assert_eq!(patience.ended(false, start), Turn::Same);
        }
        assert_eq!(patience.ended(false, start), Turn::Stalled);
        assert_eq!(patience.next_wait(start), None);
        let later = start + PROBE_EVERY;
        assert_eq!(patience.next_wait(later), Some(PROBE_WAIT));
        assert_eq!(patience.next_wait(later), None, "one message tries at a time");
        assert_eq!(patience.ended(false, later), Turn::Same);
        assert_eq!(patience.ended(true, later), Turn::Recovered);
        assert_eq!(patience.next_wait(later), Some(long));
    }
}
