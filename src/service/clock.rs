//! The one clock: the only place that asks the operating system for the time of day.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: `Timestamp`.
//! - On failure: a clock before 1970 reads as 1970.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
