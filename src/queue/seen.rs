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

/// The days in which an id counts as seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Days {
    first: i64,
    today: i64,
}

impl Days {
    /// The window that ends `now`, rounded up to whole days.
    pub(super) fn new(now: Timestamp, window: Duration) -> Self {
        Self { first: day(now.minus(window)), today: day(now) }
    }

    /// The window of one day.
    pub(super) const fn one(day: i64) -> Self {
        Self { first: day, today: day }
    }

    pub(super) const fn today(self) -> i64 {
        self.today
    }

    /// Whether an id of this day counts. A clock that was set back leaves ids of tomorrow behind: they count too.
    pub(super) fn has(self, day: i64) -> bool {
        (self.first..=self.today + 1).contains(&day)
    }

    /// All days of which the store still has ids.
    pub(super) fn known(connection: &Connection, now: Timestamp) -> rusqlite::Result<Self> {
        let first: Option<i64> = connection.query_row("SELECT min(day) FROM seen", [], |row| row.get(0))?;
        let today = day(now);
        Ok(Self { first: first.unwrap_or(today).min(today), today })
    }
}

fn day(time: Timestamp) -> i64 {
    i64::try_from(time.as_secs() / DAY_SECS).unwrap_or(i64::MAX)
}

/// Whether the id was seen in these days.
pub(super) fn contains(connection: &Connection, id: EventId, days: Days) -> rusqlite::Result<bool> {
    let mut look = connection.prepare_cached("SELECT 1 FROM seen WHERE day = ?1 AND id = ?2")?;
    // A clock that was set back leaves ids of tomorrow behind: they count too.
    for day in (days.first..=days.today + 1).rev() {
        if look.exists(params![day, id.as_bytes()])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes the id as seen today.
pub(super) fn insert(connection: &Connection, id: EventId, days: Days) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO seen (day, id) VALUES (?1, ?2)")?
        .execute(params![days.today, id.as_bytes()])?;
    Ok(())
}

/// Forgets an id that was noted within the window.
pub(super) fn remove(connection: &Connection, id: EventId, days: Days) -> rusqlite::Result<()> {
    let mut remove = connection.prepare_cached("DELETE FROM seen WHERE day = ?1 AND id = ?2")?;
    for day in days.first..=days.today + 1 {
        remove.execute(params![day, id.as_bytes()])?;
    }
    Ok(())
}

/// Forgets a part of the days before the window; `true` if there may be more.
pub(super) fn prune(connection: &Connection, days: Days) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached(
            "DELETE FROM seen WHERE (day, id) IN (SELECT day, id FROM seen WHERE day < ?1 LIMIT ?2)",
        )?
        .execute(params![days.first, PRUNE_ROWS])?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX) >= PRUNE_ROWS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(96 * 3600);

    #[test]
    fn an_id_is_known_for_the_whole_window_and_pruned_after_it() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(TABLE).unwrap();
        let id = EventId::of("test").finish();
        let seen = Timestamp::from_secs(1_795_453_092);
        insert(&connection, id, Days::new(seen, WINDOW)).unwrap();
        for hours in [0, 1, 24, 95, 96] {
            let later = Days::new(seen.plus(Duration::from_secs(hours * 3600)), WINDOW);
            assert!(!prune(&connection, later).unwrap());
            assert!(contains(&connection, id, later).unwrap(), "{hours}");
        }
        let later = Days::new(seen.plus(Duration::from_secs(121 * 3600)), WINDOW);
        assert!(!contains(&connection, id, later).unwrap());
        prune(&connection, later).unwrap();
        assert!(!contains(&connection, id, Days::new(seen, WINDOW)).unwrap(), "the row is gone");
        assert!(!contains(&connection, EventId::of("other").finish(), Days::new(seen, WINDOW)).unwrap());
    }
}
