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

/// What the body of an event says that is the first. No text within JSON can read so: its quotes are escaped.
const UNIQUE: &str = r#""unique":true"#;
/// What it says otherwise.
const REPETITION: &str = r#""unique":false"#;

/// The body of an event that is the first.
pub(super) fn body(event: &Event) -> String {
    let mut body = event.to_json();
    // `data` is the last member of an event: what is added before the two last brackets is a member of it.
    if event.data.unique.is_none() && body.ends_with("}}") {
        body.truncate(body.len() - 2);
        body.push_str(if body.ends_with('{') { "" } else { "," });
        body.push_str(UNIQUE);
        body.push_str("}}");
        return body;
    }
    let mut event = event.clone();
    event.data.unique = Some(true);
    event.to_json()
}

/// The body of one that isn't, from that of one that is; `None` if it says neither.
pub(super) fn repetition(body: &str) -> Option<String> {
    let (before, after) = body.split_once(UNIQUE)?;
    Some([before, REPETITION, after].concat())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::queue::testing;

    #[test]
    fn a_repetition_says_so_and_nothing_else_changes() {
        let mut event = testing::event(7);
        event.data.link_path = Some(r#"/"unique":true"#.into());
        let bare = Event { data: crate::event::Data::default(), ..event.clone() };
        assert_eq!(Event::from_json(super::body(&bare).as_bytes()).unwrap().data.unique, Some(true));
        let body = body(&event);
        let repeated = Event::from_json(repetition(&body).unwrap().as_bytes()).unwrap();
        event.data.unique = Some(false);
        assert_eq!(repeated, event);
        event.data.unique = None;
        assert_eq!(repetition(&event.to_json()), None);
    }
}
