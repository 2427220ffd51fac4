//! Where events come in: a table that is only appended to, so that publishing touches few pages; they are moved on in batches.
//!
//! - Layer: edge
//! - Takes: a connection, within a transaction; new events.
//! - Gives: rows of `event` and ids that are known, by `sweep`. Whoever looks at `event` sweeps first.
//! - On failure: SQLite's error; the transaction is rolled back.
//! - Limits: an event that was there before takes its room until it is swept.
//! - See: `docs/decisions/0009-inbox.md`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::first;
use super::schema::PENDING;
use super::store::{self, NewRow, millis};
use crate::event::EventId;
use crate::identity::Timestamp;
use crate::queue::seen::{self, Days};

/// How many rows are moved in one step, so that nobody waits for long.
pub(super) const SWEEP_ROWS: usize = 1_000;

/// How many events that are held are known by their place here, for amendments: more than the tracker amends.
const PLACES: usize = 1 << 16;

/// Where events that are held were appended, as far as this process did it lately.
#[derive(Debug, Default)]
pub(super) struct Places {
    numbers: HashMap<EventId, i64>,
    order: VecDeque<EventId>,
}

impl Places {
    /// Notes where an event is. One that is known keeps its first place: that is the one that counts.
    pub(super) fn add(&mut self, id: EventId, number: i64) {
        if let Entry::Vacant(entry) = self.numbers.entry(id) {
            entry.insert(number);
            self.order.push_back(id);
        }
        if self.order.len() > PLACES
            && let Some(oldest) = self.order.pop_front()
        {
            self.numbers.remove(&oldest);
        }
    }

    /// Where it was appended.
    pub(super) fn find(&self, id: &EventId) -> Option<i64> {
        self.numbers.get(id).copied()
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Bytes of all bodies since the inbox was empty.
    sum: i64,
}

/// Looks at both ends: between them rows are numbered, and each knows the bytes before it.
pub(super) fn level(connection: &Connection) -> rusqlite::Result<Level> {
    let first: Option<(i64, i64)> = connection
        .prepare_cached("SELECT number, sum - octet_length(body) FROM inbox ORDER BY number LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((first, before)) = first else { return Ok(Level::default()) };
    let (last, sum): (i64, i64) = connection
        .prepare_cached("SELECT number, sum FROM inbox ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Level { rows: (last - first + 1).unsigned_abs(), bytes: (sum - before).unsigned_abs(), sum })
}

/// Whether the oldest event was appended before this time.
pub(super) fn is_older(connection: &Connection, before: Timestamp) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM (SELECT added_ms FROM inbox ORDER BY number LIMIT 1) WHERE added_ms < ?1",
        )?
        .exists([millis(before)])
}

/// Appends events.
pub(super) struct Append<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
}

impl<'c> Append<'c> {
    /// Within a transaction.
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let insert = connection.prepare_cached(
            "INSERT INTO inbox (sum, id, added_ms, at_ms, first_key, first_until_ms, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        Ok(Self { connection, insert })
    }

    pub(super) const fn connection(&self) -> &'c Connection {
        self.connection
    }

    /// Appends an event; gives its number here.
    pub(super) fn add(&mut self, row: &NewRow, level: &mut Level, now: Timestamp) -> rusqlite::Result<i64> {
        level.sum += i64::try_from(row.body.len()).unwrap_or(i64::MAX);
        let at = row.held_until.map_or(now, |until| until.max(now));
        self.insert.execute(params![
            level.sum,
            row.id.as_bytes(),
            millis(now),
            millis(at),
            row.first.map(|first| first.key),
            row.first.map(|first| millis(now.plus(first.within))),
            row.body
        ])?;
        Ok(self.connection.last_insert_rowid())
    }
}

/// Moves up to `max` events on, oldest first, and leaves out those that are known; gives how many it looked at.
pub(super) fn sweep(connection: &Connection, max: usize, days: Days) -> rusqlite::Result<usize> {
    let mut select = connection.prepare_cached(
        "SELECT number, id, added_ms, at_ms, first_key, first_until_ms, body FROM inbox ORDER BY number LIMIT ?1",
    )?;
    let mut insert = connection
        .prepare_cached("INSERT INTO event (id, state, at_ms, added_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let (mut count, mut last) = (0, 0_i64);
    let mut rows = select.query([i64::try_from(max).unwrap_or(i64::MAX)])?;
    while let Some(row) = rows.next()? {
        (count, last) = (count + 1, row.get(0)?);
        let id = EventId::from(row.get::<_, [u8; EventId::BYTES]>(1)?);
        if store::is_known(connection, id, days)? {
            continue;
        }
        let (added, at): (i64, i64) = (row.get(2)?, row.get(3)?);
        let body = row.get_ref(6)?.as_str()?;
        let repetition = match row.get::<_, Option<_>>(4)? {
            Some(key) if !first::take(connection, key, row.get(5)?, added)? => first::repetition(body),
            _ => None,
        };
        let body = repetition.as_deref().unwrap_or(body);
        insert.execute(params![id.as_bytes(), PENDING, at, added, body])?;
        seen::insert(connection, id, days)?;
    }
    if count > 0 {
        connection.prepare_cached("DELETE FROM inbox WHERE number <= ?1")?.execute([last])?;
    }
    Ok(count)
}

/// The body of an event that is held, if it still stands in this place.
pub(super) fn held(
    connection: &Connection,
    number: i64,
    id: EventId,
    now: Timestamp,
) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT body FROM inbox WHERE number = ?1 AND id = ?2 AND at_ms > ?3")?
        .query_row(params![number, id.as_bytes(), millis(now)], |row| row.get(0))
        .optional()
}

/// Puts another body in this place. The sums stay: they are off by the difference until it is swept.
pub(super) fn replace(connection: &Connection, number: i64, body: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE inbox SET body = ?1 WHERE number = ?2")?
        .execute(params![body, number])?;
    Ok(())
}

/// Takes an event out again; `false` if it isn't here any more.
pub(super) fn take_back(connection: &Connection, number: i64, id: EventId) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached("DELETE FROM inbox WHERE number = ?1 AND id = ?2")?
        .execute(params![number, id.as_bytes()])?;
    Ok(gone > 0)
}
