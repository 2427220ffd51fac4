//! What happened to events lately: short rows that are cheap to commit, sorted into the table of what was seen in large pieces.
//!
//! - Layer: edge
//! - Takes: a connection to the memory of a relay, notes on ids.
//! - Gives: what is known of an id that is not sorted in yet.
//! - On failure: SQLite's error; what is known here is then only what is in the file, and is read from there again.
//! - Limits: `MANY` ids wait to be sorted in, some 50 bytes of memory and 32 of file each.
//! - See: ids are hashes: each that goes into the table by itself changes a page of its own, and the disk is given 4 KiB for 16 bytes.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::seen;
use crate::event::EventId;

/// How many ids wait before they are sorted in; few in tests, so that they see it happen.
const MANY: usize = if cfg!(test) { 64 } else { 65_536 };

pub(super) const TABLE: &str = "
CREATE TABLE journal (
    number INTEGER PRIMARY KEY,
    note INTEGER NOT NULL,
    life INTEGER NOT NULL, -- of the process that noted it
    day INTEGER NOT NULL,  -- days since 1970
    ids BLOB NOT NULL      -- 16 bytes each
) STRICT;
";

/// What happened to an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Its request is about to begin.
    Begun = 1,
    /// It certainly did not arrive.
    Abandoned = 2,
    /// It was sent, or is not to be sent again.
    Sent = 3,
    /// An administrator decided that nothing is known of it.
    Forgotten = 4,
}

impl Entry {
    const ALL: [Self; 4] = [Self::Begun, Self::Abandoned, Self::Sent, Self::Forgotten];
}

/// What the journal says.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// The last row that is known here.
    last: i64,
    /// The ids in all rows.
    ids: usize,
    /// The day of the first that was sent.
    since: Option<i64>,
    /// Events whose request has begun, each with the life that began it.
    under_way: HashMap<EventId, i64>,
    /// Those that were sent and are not sorted in, each with its day.
    sent: HashMap<EventId, i64>,
}

impl Journal {
    /// Reads all of it.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut journal = Self::default();
        let mut begun = connection.prepare("SELECT life, id FROM under_way")?;
        let mut rows = begun.query([])?;
        while let Some(row) = rows.next()? {
            let life = row.get(0)?;
            journal.under_way.extend(ids(row.get_ref(1)?.as_blob()?).map(|id| (id, life)));
        }
        journal.catch_up(connection)?;
        Ok(journal)
    }

    /// Reads what was written since: by this process, and by an administrator's.
    pub(super) fn catch_up(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut select = connection.prepare_cached(
            "SELECT number, note, life, day, ids FROM journal WHERE number > ?1 ORDER BY number",
        )?;
        let mut rows = select.query([self.last])?;
        while let Some(row) = rows.next()? {
            let note: i64 = row.get(1)?;
            if let Some(entry) = Entry::ALL.into_iter().find(|entry| *entry as i64 == note) {
                let ids: Vec<EventId> = ids(row.get_ref(4)?.as_blob()?).collect();
                self.apply(entry, row.get(2)?, row.get(3)?, &ids);
            }
            self.last = row.get(0)?;
        }
        Ok(())
    }

    fn apply(&mut self, entry: Entry, life: i64, day: i64, ids: &[EventId]) {
        self.ids += ids.len();
        if entry == Entry::Sent {
            self.since.get_or_insert(day);
        }
        for id in ids {
            match entry {
                Entry::Begun => drop(self.under_way.insert(*id, life)),
                Entry::Abandoned => drop(self.under_way.remove(id)),
                Entry::Sent => {
                    self.under_way.remove(id);
                    self.sent.insert(*id, day);
                }
                Entry::Forgotten => {
                    self.under_way.remove(id);
                    self.sent.remove(id);
                }
            }
        }
    }

    /// Whether an event was sent, and is not sorted in yet.
    pub(super) fn is_sent(&self, id: EventId) -> bool {
        self.sent.contains_key(&id)
    }

    /// The life that began the request of an event, if it has not ended.
    pub(super) fn begun(&self, id: EventId) -> Option<i64> {
        self.under_way.get(&id).copied()
    }

    /// Whether it is time to sort in: there is much, or some of another day.
    pub(super) fn is_due(&self, today: i64) -> bool {
        self.ids >= MANY || self.since.is_some_and(|day| day != today)
    }

    /// Sorts in what was sent, keeps what is under way, and empties the journal: all in the transaction of this connection. What is
    /// known here changes with `sorted_in`.
    pub(super) fn sort_in(&self, connection: &Connection) -> rusqlite::Result<()> {
        let mut sent: Vec<(i64, EventId)> = self.sent.iter().map(|(id, day)| (*day, *id)).collect();
        sent.sort_unstable();
        sent.into_iter().try_for_each(|(day, id)| seen::insert_on(connection, id, day))?;
        connection.execute("DELETE FROM under_way", [])?;
        let mut keep = connection.prepare_cached("INSERT INTO under_way (id, life) VALUES (?1, ?2)")?;
        self.under_way.iter().try_for_each(|(id, life)| keep.execute((id.as_bytes(), life)).map(drop))?;
        connection.execute("DELETE FROM journal", [])?;
        Ok(())
    }

    /// The transaction of `sort_in` is committed.
    pub(super) fn sorted_in(&mut self) {
        self.sent.clear();
        (self.last, self.ids, self.since) = (0, 0, None);
    }
}

/// Writes a row.
pub(super) fn write(
    connection: &Connection,
    entry: Entry,
    life: i64,
    day: i64,
    ids: &[EventId],
) -> rusqlite::Result<()> {
    let bytes: Vec<u8> = ids.iter().flat_map(EventId::as_bytes).copied().collect();
    connection
        .prepare_cached("INSERT INTO journal (note, life, day, ids) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![entry as i64, life, day, bytes])?;
    Ok(())
}

fn ids(bytes: &[u8]) -> impl Iterator<Item = EventId> {
    let (ids, _) = bytes.as_chunks();
    ids.iter().map(|id| EventId::from(*id))
}
