//! The tables of the spool, version by version.
//!
//! - Layer: edge
//! - Takes: nothing.
//! - Gives: the SQL that leads from each version to the next, and the numbers of the states.
//! - On failure: `sqlite::open` reports it.
//! - Limits: a step that was released is never changed; a change is a further step.

use crate::queue::seen;

/// Waits to be claimed; `at_ms` is the time before which it isn't.
pub(super) const PENDING: i64 = 0;
/// Somebody sends it; `at_ms` is the end of the lease.
pub(super) const CLAIMED: i64 = 1;
/// It can't be sent; `at_ms` is since when.
pub(super) const DEAD: i64 = 2;
/// It may or may not have arrived; `at_ms` is since when.
pub(super) const UNCERTAIN: i64 = 3;

/// What a row costs beside its JSON: columns, two index entries, page overhead. Measured, rounded up.
pub(super) const ROW_BYTES: u64 = 110;

/// The steps.
pub(super) const MIGRATIONS: &[&str] = &[EVENTS, seen::TABLE, FIRSTS, INBOX, INBOX_FILES, PERSONS];

const EVENTS: &str = "
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice: a late `done` can't hit another event
    id BLOB NOT NULL UNIQUE,               -- 16 bytes
    state INTEGER NOT NULL,                -- 0 pending, 1 claimed, 2 dead, 3 uncertain
    at_ms INTEGER NOT NULL,                -- not before; end of the lease; since when
    attempts INTEGER NOT NULL DEFAULT 0,   -- how often it was claimed
    added_ms INTEGER NOT NULL,
    reason TEXT,                           -- of the last retry, or why it is dead
    body TEXT NOT NULL                     -- the event in JSON
) STRICT;
CREATE INDEX event_state ON event (state, at_ms);

-- How much there is, kept by the database itself, so that no way of writing can forget it.
CREATE TABLE tally (rows INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT INTO tally VALUES (0, 0);
CREATE TRIGGER event_added AFTER INSERT ON event BEGIN
    UPDATE tally SET rows = rows + 1, bytes = bytes + octet_length(NEW.body);
END;
CREATE TRIGGER event_gone AFTER DELETE ON event BEGIN
    UPDATE tally SET rows = rows - 1, bytes = bytes - octet_length(OLD.body);
END;
";

const FIRSTS: &str = "
-- Which events were the first of their kind, so that later ones are known as repetitions.
CREATE TABLE first (
    key BLOB PRIMARY KEY,     -- 16 bytes
    until_ms INTEGER NOT NULL -- the end of the window
) STRICT, WITHOUT ROWID;
CREATE INDEX first_until ON first (until_ms);

CREATE TRIGGER event_amended AFTER UPDATE OF body ON event BEGIN
    UPDATE tally SET bytes = bytes + octet_length(NEW.body) - octet_length(OLD.body);
END;
";

const PERSONS: &str = "
-- The event that counts for a person: NULL where none was seen yet; empty where it is not known, for keys from before.
ALTER TABLE first ADD COLUMN person BLOB DEFAULT x'';
";

const INBOX: &str = "
CREATE TABLE inbox (
    number INTEGER PRIMARY KEY, -- from 1 whenever it was empty
    sum INTEGER NOT NULL,       -- bytes of the bodies up to this one, since it was empty
    id BLOB NOT NULL,           -- 16 bytes
    added_ms INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,     -- not before
    first_key BLOB,             -- what it may be the first of
    first_until_ms INTEGER,
    body TEXT NOT NULL          -- the event in JSON; unique, if it may be the first
) STRICT;
";

const INBOX_FILES: &str = "
-- How far each of the files in which events come in was moved on: in the transaction that moved them.
CREATE TABLE inbox_file (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL, -- in bytes
    rows INTEGER NOT NULL,     -- events up to there
    bytes INTEGER NOT NULL,    -- of their bodies
    finished INTEGER NOT NULL DEFAULT 0 -- how often it was to be removed
) STRICT, WITHOUT ROWID;

-- What still stands in the table of before counts as it was published; one that was published twice is there once.
INSERT OR IGNORE INTO event (id, state, at_ms, added_ms, body)
    SELECT id, 0, at_ms, added_ms, body FROM inbox WHERE id NOT IN (SELECT id FROM seen) ORDER BY number;
INSERT OR IGNORE INTO seen (day, id) SELECT added_ms / 86400000, id FROM inbox;
DROP TABLE inbox;
";
