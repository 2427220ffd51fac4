//! The ids of events that were seen, by day: how a second one is known.
//!
//! - Layer: edge
//! - Takes: a connection to a store that has the table, ids, the time.
//! - Gives: whether an id is known, within a window of whole days.
//! - On failure: SQLite's error.
//! - Limits: about 36 bytes of file an id (16 of them the id); one look costs a search in each day of the window.

use std::time::Duration;

use rusqlite::{Connection, params};

use crate::event::EventId;
use crate::identity::Timestamp;

/// Today's ids stand together, so that inserting touches few pages, and old days go as one range.
pub(super) const TABLE: &str = "
CREATE TABLE seen (
    day INTEGER NOT NULL, -- days since 1970
    id BLOB NOT NULL,     -- 16 bytes
    PRIMARY KEY (day, id)
) STRICT, WITHOUT ROWID;
";

const DAY_SECS: u64 = 24 * 60 * 60;
/// How many rows go in one transaction of pruning.
const PRUNE_ROWS: i64 = 5_000;

/// The days of which a store has ids, and today. An id counts as seen for as long as it is there, whatever the clock says: one that was
/// wrong for a while has ids noted under days to come, and those of before are as true as they were.
#[derive(Debug, Clone)]
pub(super) struct Days {
    today: i64,
    /// Today is first among them.
    all: Vec<i64>,
}

impl Days {
    /// Of this store, at this time. To be asked in the transaction that it is for.
    pub(super) fn of(connection: &Connection, now: Timestamp) -> rusqlite::Result<Self> {
        let today = day(now);
        let mut all = vec![today];
        let mut next = connection.prepare_cached("SELECT min(day) FROM seen WHERE day > ?1")?;
        let mut last = i64::MIN;
        while let Some(found) = next.query_row([last], |row| row.get::<_, Option<i64>>(0))? {
            if found != today {
                all.push(found);
            }
            last = found;
        }
        Ok(Self { today, all })
    }
}

/// The number of the day: since 1970.
pub(super) fn day(time: Timestamp) -> i64 {
    i64::try_from(time.as_secs() / DAY_SECS).unwrap_or(i64::MAX)
}

/// Whether the id was seen in these days.
pub(super) fn contains(connection: &Connection, id: EventId, days: &Days) -> rusqlite::Result<bool> {
    let mut look = connection.prepare_cached("SELECT 1 FROM seen WHERE day = ?1 AND id = ?2")?;
    for day in &days.all {
        if look.exists(params![day, id.as_bytes()])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes the id as seen today.
pub(super) fn insert(connection: &Connection, id: EventId, days: &Days) -> rusqlite::Result<()> {
    insert_on(connection, id, days.today)
}

/// Notes the id as seen on that day.
pub(super) fn insert_on(connection: &Connection, id: EventId, day: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO seen (day, id) VALUES (?1, ?2)")?
        .execute(params![day, id.as_bytes()])?;
    Ok(())
}

/// Forgets an id that was noted.
pub(super) fn remove(connection: &Connection, id: EventId, days: &Days) -> rusqlite::Result<()> {
    let mut remove = connection.prepare_cached("DELETE FROM seen WHERE day = ?1 AND id = ?2")?;
    days.all.iter().try_for_each(|day| remove.execute(params![day, id.as_bytes()]).map(drop))
}

/// Forgets a part of the ids of before `window`, which is rounded up to whole days; `true` if there may be more. Not to be asked by a
/// clock that may be wrong.
pub(super) fn prune(connection: &Connection, now: Timestamp, window: Duration) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached(
            "DELETE FROM seen WHERE (day, id) IN (SELECT day, id FROM seen WHERE day < ?1 LIMIT ?2)",
        )?
        .execute(params![day(now.minus(window)), PRUNE_ROWS])?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX) >= PRUNE_ROWS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    fn store() -> (Connection, EventId) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(TABLE).unwrap();
        (connection, EventId::of("test").finish())
    }

    fn seen() -> Timestamp {
        Timestamp::from_secs(1_795_453_092)
    }

    fn knows(connection: &Connection, id: EventId, now: Timestamp) -> bool {
        contains(connection, id, &Days::of(connection, now).unwrap()).unwrap()
    }

    #[test]
    fn an_id_is_known_for_the_whole_window_and_pruned_after_it() {
        let (connection, id) = store();
        insert(&connection, id, &Days::of(&connection, seen()).unwrap()).unwrap();
        for hours in [0, 1, 24, 95, 96] {
            let later = seen().plus(hours * HOUR);
            assert!(!prune(&connection, later, 96 * HOUR).unwrap());
            assert!(knows(&connection, id, later), "{hours}");
        }
        assert!(!knows(&connection, EventId::of("other").finish(), seen()));
        prune(&connection, seen().plus(121 * HOUR), 96 * HOUR).unwrap();
        assert!(!knows(&connection, id, seen()), "the row is gone");
    }

    #[test]
    fn what_was_noted_by_a_wrong_clock_is_known_by_the_right_one_and_the_other_way_round() {
        let (connection, id) = store();
        for noted in [seen(), seen().plus(240 * HOUR), Timestamp::from_secs(0)] {
            insert(&connection, id, &Days::of(&connection, noted).unwrap()).unwrap();
            for now in [
                seen(),
                seen().plus(240 * HOUR),
                seen().minus(240 * HOUR),
                Timestamp::from_secs(u64::MAX / 1_000_000),
            ] {
                assert!(knows(&connection, id, now), "{noted} {now}");
            }
            remove(&connection, id, &Days::of(&connection, seen()).unwrap()).unwrap();
            assert!(!knows(&connection, id, noted));
        }
    }
}
