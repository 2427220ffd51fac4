//! Which events were the first of their kind within a window: what makes an open or a click unique.
//!
//! - Layer: edge
//! - Takes: a connection, within the transaction that stores the event; keys.
//! - Gives: whether a key is new, and with it what is stored.
//! - On failure: SQLite's error; the transaction is rolled back, the key is as new as before.
//! - Limits: about 70 bytes of file a key, until its window ends.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::store::millis;
use crate::event::Event;
use crate::identity::Timestamp;
use crate::queue::{First, FirstKey};

/// How many rows go in one transaction of pruning.
const PRUNE_ROWS: i64 = 5_000;

/// What may make an event the first.
#[derive(Debug)]
pub(super) struct NewFirst {
    pub(super) key: FirstKey,
    pub(super) within: Duration,
    /// What is stored if it is.
    pub(super) body: String,
}

/// The body of a repetition, and what makes it the first.
pub(super) fn bodies(event: &Event, first: First) -> (String, Option<NewFirst>) {
    let mut event = event.clone();
    event.data.unique = Some(false);
    let repetition = event.to_json();
    event.data.unique = Some(true);
    (repetition, Some(NewFirst { key: first.key, within: first.within, body: event.to_json() }))
}

/// Whether the key is new; from now on it isn't, until the window ends.
pub(super) fn take(connection: &Connection, first: &NewFirst, now: Timestamp) -> rusqlite::Result<bool> {
    let changed = connection
        .prepare_cached(
            "INSERT INTO first (key, until_ms) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET until_ms = excluded.until_ms WHERE until_ms <= ?3",
        )?
        .execute(params![first.key, millis(now.plus(first.within)), millis(now)])?;
    Ok(changed > 0)
}

/// Forgets a part of the keys whose window has ended; `true` if there may be more.
pub(super) fn prune(connection: &Connection, now: Timestamp) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached(
            "DELETE FROM first WHERE key IN (SELECT key FROM first WHERE until_ms <= ?1 LIMIT ?2)",
        )?
        .execute(params![millis(now), PRUNE_ROWS])?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX) >= PRUNE_ROWS)
}
