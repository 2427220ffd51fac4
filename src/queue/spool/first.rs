//! Which events were the first of their kind within a window: what makes an open or a click unique.
//!
//! - Layer: edge
//! - Takes: a connection, within the transaction that stores the event; keys.
//! - Gives: whether a key is new, and with it what is stored.
//! - On failure: SQLite's error; the transaction is rolled back, the key is as new as before.
//! - Limits: about 70 bytes of file a key, until its window ends.

use rusqlite::{Connection, params};

use super::store::millis;
use crate::event::Event;
use crate::identity::Timestamp;
use crate::queue::FirstKey;

/// How many rows go in one transaction of pruning.
const PRUNE_ROWS: i64 = 5_000;

/// The body of an event that is the first.
pub(super) fn body(event: &Event) -> String {
    let mut event = event.clone();
    event.data.unique = Some(true);
    event.to_json()
}

/// The body of one that isn't, from that of one that is; `None` if that is no event.
pub(super) fn repetition(body: &str) -> Option<String> {
    let mut event = Event::from_json(body.as_bytes()).ok()?;
    event.data.unique = Some(false);
    Some(event.to_json())
}

/// Whether the key is new at this time; from then on it isn't, until the window ends. Times in milliseconds.
pub(super) fn take(
    connection: &Connection,
    key: FirstKey,
    until_ms: i64,
    at_ms: i64,
) -> rusqlite::Result<bool> {
    let changed = connection
        .prepare_cached(
            "INSERT INTO first (key, until_ms) VALUES (?1, ?2)
             ON CONFLICT DO UPDATE SET until_ms = excluded.until_ms WHERE until_ms <= ?3",
        )?
        .execute(params![key, until_ms, at_ms])?;
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
