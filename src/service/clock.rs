//! The one clock: the only place that asks the operating system for the time of day.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: `Timestamp`.
//! - On failure: a clock before 1970 reads as 1970.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::identity::Timestamp;

/// The time of day.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the one clock")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
