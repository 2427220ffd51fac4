//! Which events were the first of their kind within a window, and which was the first of a person: what makes an open or
//! a click unique, or an upgrade.
//!
//! - Layer: edge
//! - Takes: a connection, within the transaction that stores the event; keys.
//! - Gives: whether a key is new, or new to people, and with it what is stored.
//! - On failure: SQLite's error; the transaction is rolled back, the key is as new as before.
//! - Limits: about 65 bytes of file a key, 85 once a person counts, until its window ends.

use rusqlite::{Connection, params};

use super::store::millis;
use crate::event::{Event, EventId, Machine};
use crate::identity::Timestamp;
use crate::queue::FirstKey;

/// How many rows go in one transaction of pruning.
const PRUNE_ROWS: i64 = 5_000;

/// What the body of an event says that is the first. No text within JSON can read so: its quotes are escaped.
const UNIQUE: &str = r#""unique":true"#;
/// What it says otherwise.
const REPETITION: &str = r#""unique":false"#;
/// What that of the first person adds.
const UPGRADE: &str = r#""upgrade":true"#;
/// What that of a person says.
const PERSON: &str = r#""machine":"no""#;

/// Which one an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The first.
    First,
    /// A repetition, and the first of a person.
    Person,
    /// A repetition.
    Repetition,
}

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

/// The body of one that isn't, from that of one that is; `None` if that is what it says, or if it says neither.
pub(super) fn at_place(body: &str, place: Place) -> Option<String> {
    let (before, after) = body.split_once(UNIQUE).filter(|_| place != Place::First)?;
    let upgrade = if place == Place::Person && !body.contains(UPGRADE) { [",", UPGRADE] } else { ["", ""] };
    Some([before, REPETITION, &upgrade.concat(), after].concat())
}

/// The place of an event whose body is that of the first. Its key is new at this time, and from then on it isn't, until
/// the window ends; the same for people. Times in milliseconds.
pub(super) fn take(
    connection: &Connection,
    key: FirstKey,
    (until_ms, at_ms): (i64, i64),
    (id, body): (EventId, &str),
) -> rusqlite::Result<Place> {
    let person = body.contains(PERSON);
    let changed = connection
        .prepare_cached(
            "INSERT INTO first (key, until_ms, person) VALUES (?1, ?2, ?4)
             ON CONFLICT DO UPDATE SET until_ms = excluded.until_ms, person = excluded.person WHERE until_ms <= ?3",
        )?
        .execute(params![key, until_ms, at_ms, person.then_some(id.as_bytes())])?;
    if changed > 0 {
        return Ok(Place::First);
    }
    // Whoever published it may know already that nobody else counts any more.
    let is_known = body.contains(UPGRADE);
    let counts = person && counts_from(connection, key, id, is_known)?;
    Ok(if counts { Place::Person } else { Place::Repetition })
}

/// Notes whom an event counts for that was put in the place of another one. What is the person's first says so.
pub(super) fn amended(connection: &Connection, key: FirstKey, event: &mut Event) -> rusqlite::Result<()> {
    let data = &event.data;
    if data.machine != Some(Machine::No) {
        connection
            .prepare_cached("UPDATE first SET person = NULL WHERE key = ?1 AND person = ?2")?
            .execute(params![key, event.id.as_bytes()])?;
        return Ok(());
    }
    let is_known = data.unique == Some(true) || data.upgrade == Some(true);
    if counts_from(connection, key, event.id, is_known)? && !is_known {
        event.data.upgrade = Some(true);
    }
    Ok(())
}

/// Whether an event of a person counts: nobody's did, or it is known that it does.
fn counts_from(
    connection: &Connection,
    key: FirstKey,
    id: EventId,
    is_known: bool,
) -> rusqlite::Result<bool> {
    let changed = connection
        .prepare_cached("UPDATE first SET person = ?2 WHERE key = ?1 AND (person IS NULL OR ?3)")?
        .execute(params![key, id.as_bytes(), is_known])?;
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
        let repeated = |place| Event::from_json(at_place(&body, place)?.as_bytes()).ok();
        event.data.unique = Some(false);
        assert_eq!(repeated(Place::First), None);
        assert_eq!(repeated(Place::Repetition).as_ref(), Some(&event));
        event.data.upgrade = Some(true);
        assert_eq!(repeated(Place::Person).as_ref(), Some(&event));
        event.data.unique = None;
        let known = super::body(&event);
        event.data.unique = Some(false);
        assert_eq!(Event::from_json(at_place(&known, Place::Person).unwrap().as_bytes()).unwrap(), event);
        event.data.unique = None;
        assert_eq!(at_place(&event.to_json(), Place::Repetition), None);
        event.data.machine = Some(Machine::No);
        assert!(event.to_json().contains(PERSON) && event.to_json().contains(UPGRADE));
    }
}
