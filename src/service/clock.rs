//! The one clock: the only place that asks the operating system for the time of day.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: `Timestamp`; whether the clock can be trusted so far that things may be thrown away by it.
//! - On failure: a clock before 1970 reads as 1970.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::identity::Timestamp;

/// The time of day.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the one clock")]
pub fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The time of day as this thread knows it, for another thread of its making.
#[must_use]
pub fn shared() -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
    #[cfg(test)]
    if let Some(clock) = simulated::shared() {
        return clock;
    }
    Arc::new(now)
}

/// How far the time of day may go from what has passed, before it counts as set anew. A clock that is slewed needs a week for it.
const SLACK: Duration = Duration::from_secs(5 * 60);

/// Whether the time of day has gone on evenly for long enough: what is thrown away by a clock that is wrong for a minute does not come
/// back.
#[derive(Debug)]
pub struct Steady {
    needs: Duration,
    /// The time of day when this began, or when it was last set anew.
    at: Timestamp,
    then: Instant,
}

impl Steady {
    /// Begins to watch; `needs` is how long it takes to be trusted.
    #[must_use]
    pub fn new(needs: Duration, now: Timestamp) -> Self {
        Self { needs, at: now, then: Instant::now() }
    }

    /// Whether it is trusted, as of these two clocks. To be asked now and then.
    pub fn holds(&mut self, now: Timestamp, instant: Instant) -> bool {
        let passed = instant.saturating_duration_since(self.then);
        let expected = self.at.plus(passed);
        if now.since(expected).max(expected.since(now)) > SLACK {
            (self.at, self.then) = (now, instant);
            return self.needs.is_zero();
        }
        passed >= self.needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_trusted_after_a_while() {
        const MINUTE: Duration = Duration::from_secs(60);
        let (at, then) = (Timestamp::from_secs(1_795_453_000), Instant::now());
        let mut steady = Steady { needs: 60 * MINUTE, at, then };
        let mut after = |minutes: u32, off: Duration| {
            steady.holds(at.plus(minutes * MINUTE + off), then + minutes * MINUTE)
        };
        assert!(!after(59, Duration::ZERO));
        assert!(after(60, Duration::ZERO) && after(61, 4 * MINUTE));
        let days = 10 * 24 * 60 * MINUTE;
        assert!(!after(62, days) && !after(121, days), "it may be set back");
        assert!(!after(122, Duration::ZERO), "as it was");
        assert!(!after(181, Duration::ZERO) && after(182, Duration::ZERO));
    }
}

/// A time of day that goes on when a test says so, for the thread that began it.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use crate::identity::Timestamp;

    thread_local! {
        static MICROS: RefCell<Option<Arc<AtomicU64>>> = const { RefCell::new(None) };
    }

    /// Stands still at this moment until `advance`, for as long as the thread lives.
    pub(crate) fn begin(at: Timestamp) {
        MICROS.set(Some(Arc::new(at.as_micros().into())));
    }

    /// Goes on.
    pub(crate) fn advance(by: Duration) {
        MICROS.with_borrow(|micros| {
            let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
            if let Some(micros) = micros {
                micros.fetch_add(by, Ordering::Relaxed);
            }
        });
    }

    pub(super) fn now() -> Option<Timestamp> {
        MICROS.with_borrow(|micros| Some(Timestamp::from_micros(micros.as_ref()?.load(Ordering::Relaxed))))
    }

    pub(super) fn shared() -> Option<Arc<dyn Fn() -> Timestamp + Send + Sync>> {
        let micros = MICROS.with_borrow(Clone::clone)?;
        Some(Arc::new(move || Timestamp::from_micros(micros.load(Ordering::Relaxed))))
    }
}
