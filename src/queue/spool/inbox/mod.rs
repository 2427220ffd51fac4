//! Where events come in: files that are only appended to, one for each writer; they are moved on in batches.
//!
//! - Layer: edge
//! - Takes: a connection, within a transaction that is the only one that writes; the spool's directory.
//! - Gives: rows of `event` and ids that are known, by `sweep`. Whoever looks at `event` sweeps first.
//! - On failure: SQLite's error; the transaction is rolled back, and how far the files were moved on with it. A file that
//!   can't be read is left out and said so once; bytes that are no record are skipped and said so.
//! - Limits: an event that was there before takes its room until it is swept.
//! - See: `docs/decisions/0009-inbox.md`, `docs/decisions/0015-inbox-files.md`.

pub(super) mod append;
pub(super) mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::schema::PENDING;
use super::{first, store};
use crate::queue::happenings::{InboxDamaged, InboxUnreadable};
use crate::queue::seen::{self, Days};
use record::{Found, Incoming, Record};

/// How many records are moved in one step, so that nobody waits for long.
pub(super) const SWEEP_ROWS: usize = 1_000;
/// How much of a file is read at once, where records are not longer.
const WINDOW: usize = 256 * 1024;
/// What an event takes in a file at least, to be on the safe side where they are not counted.
const LEAST_BYTES: u64 = 200;

const PREFIX: &str = "inbox-";
const SUFFIX: &str = ".log";
/// A file that nobody is to see yet.
const UNBORN: &str = ".new";
/// Nobody takes so long to make a file.
const UNBORN_AGE: Duration = Duration::from_secs(60 * 60);

/// The files of all writers, as this process reads them.
#[derive(Debug)]
pub(super) struct Inbox {
    directory: PathBuf,
    open: BTreeMap<String, File>,
    /// Those that could not be read.
    unreadable: BTreeSet<String>,
    window: Vec<u8>,
    /// What a command leaves to the roles, which tell and count it, by file; they themselves leave nothing.
    left: Option<BTreeMap<String, String>>,
}

/// How far a file was moved on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Bytes of the file.
    pub(super) position: u64,
    /// Events among them.
    pub(super) rows: u64,
    /// Bytes of their bodies.
    pub(super) bytes: u64,
}

/// What a sweep came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// How many records it looked at.
    pub(super) records: usize,
    /// Files that were moved on to their end and don't grow any more.
    pub(super) finished: Vec<String>,
}

impl Inbox {
    /// Of the spool in this directory.
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self::with(directory, None)
    }

    /// The same for a command, whose log nobody reads: it goes no further than to what is damaged.
    pub(super) const fn to_look(directory: PathBuf) -> Self {
        Self::with(directory, Some(BTreeMap::new()))
    }

    const fn with(directory: PathBuf, left: Option<BTreeMap<String, String>>) -> Self {
        Self { directory, open: BTreeMap::new(), unreadable: BTreeSet::new(), window: Vec::new(), left }
    }

    /// What was left to the roles.
    pub(super) fn left(&self) -> impl Iterator<Item = String> {
        self.left.iter().flatten().map(|(file, why)| format!("{file}: {why}"))
    }

    /// Moves up to `max` records on, oldest file first; leaves out events that are known.
    pub(super) fn sweep(
        &mut self,
        connection: &Connection,
        max: usize,
        days: &Days,
    ) -> rusqlite::Result<Swept> {
        let mut swept = Swept::default();
        let mut mover = Mover::new(connection, days)?;
        // Within the transaction: a file that was removed is not here any more, even if its row is still.
        for name in self.look() {
            let Some(file) = self.open.get(&name) else { continue };
            let before = moved(connection, &name)?.unwrap_or_default();
            let mut walk = Walk { moved: before, stops: self.left.is_some(), ..Walk::default() };
            let left_over = max.saturating_sub(swept.records);
            let walked = walk.go(file, &mut self.window, left_over, |record| mover.take(record))?;
            if let Err(error) = walked {
                self.unreadable(&name, &error);
            }
            match &mut self.left {
                Some(left) if walk.damaged > 0 => {
                    let why = format!(
                        "{} bytes are no event: left to the roles, which skip and count them",
                        walk.damaged
                    );
                    left.insert(name.clone(), why);
                }
                None if walk.skipped > 0 => InboxDamaged { file: &name, bytes: walk.skipped }.emit(),
                _ => {}
            }
            if walk.moved != before {
                mover.note(&name, walk.moved)?;
            }
            swept.records += walk.records;
            if walk.finished {
                swept.finished.push(name);
            }
        }
        Ok(swept)
    }

    /// How many bytes wait in files, and how many events these can be at most, but for the files that are named.
    pub(super) fn waiting(
        &mut self,
        connection: &Connection,
        except: impl Fn(&str) -> bool,
    ) -> rusqlite::Result<(u64, u64)> {
        let mut bytes = 0;
        for name in self.look().into_iter().filter(|name| !except(name)) {
            let length =
                self.open.get(&name).and_then(|file| file.metadata().ok()).map_or(0, |file| file.len());
            let position = moved(connection, &name)?.unwrap_or_default().position;
            bytes += length.saturating_sub(position);
        }
        Ok((bytes.div_ceil(LEAST_BYTES), bytes))
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.directory.join(name).exists()
    }

    /// Removes files that were finished, once nothing can undo that they were moved on; then forgets all that are gone.
    pub(super) fn remove(&mut self, connection: &Connection, finished: &[String]) -> rusqlite::Result<()> {
        for name in finished {
            self.open.remove(name);
            // What can't be removed now is finished again with the next sweep.
            let _ = std::fs::remove_file(self.directory.join(name));
        }
        // In this order: a file that came back after a power cut would be moved on a second time.
        if File::open(&self.directory).and_then(|directory| directory.sync_all()).is_err() {
            return Ok(());
        }
        self.remove_unborn();
        let mut names = connection.prepare_cached("SELECT name FROM inbox_file")?;
        let names = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        let mut forget = connection.prepare_cached("DELETE FROM inbox_file WHERE name = ?1")?;
        for name in names.iter().filter(|name| !self.has(name)) {
            forget.execute([name])?;
        }
        Ok(())
    }

    fn unreadable(&mut self, name: &str, error: &io::Error) {
        if let Some(left) = &mut self.left {
            left.insert(name.to_owned(), format!("{error}: its events are not seen"));
        } else if self.unreadable.insert(name.to_owned()) {
            InboxUnreadable { file: name, error }.emit();
        }
    }

    /// Removes what a process left behind that was killed while it made a file.
    fn remove_unborn(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let is_old =
                || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > UNBORN_AGE);
            let name = entry.file_name();
            let is_unborn =
                name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(UNBORN));
            if is_unborn && is_old() == Some(true) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The names of all files, the oldest first, each opened.
    fn look(&mut self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> =
            names.filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)).collect();
        names.sort_unstable();
        self.open.retain(|name, _| names.binary_search(name).is_ok());
        for name in &names {
            if self.open.contains_key(name) {
                continue;
            }
            match open(&self.directory.join(name)) {
                Ok(file) => drop(self.open.insert(name.clone(), file)),
                Err(error) => self.unreadable(name, &error),
            }
        }
        names
    }
}

/// Opens a file, but no pipe: that would wait for whoever writes to it.
fn open(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    File::open(path)
}

/// Marks files as moved on, so that a commit which syncs makes all that was committed before last. (SQLite commits nothing
/// where nothing changes.)
pub(super) fn settle(connection: &Connection, finished: &[String]) -> rusqlite::Result<()> {
    let mut settle =
        connection.prepare_cached("UPDATE inbox_file SET finished = finished + 1 WHERE name = ?1")?;
    finished.iter().try_for_each(|name| settle.execute([name]).map(drop))
}

/// How far a file was moved on; nothing for one that wasn't yet.
pub(super) fn moved(connection: &Connection, name: &str) -> rusqlite::Result<Option<Moved>> {
    connection
        .prepare_cached("SELECT position, rows, bytes FROM inbox_file WHERE name = ?1")?
        .query_row([name], |row| {
            let [position, rows, bytes] = [0, 1, 2].map(|column| row.get::<_, i64>(column));
            Ok(Moved {
                position: position?.unsigned_abs(),
                rows: rows?.unsigned_abs(),
                bytes: bytes?.unsigned_abs(),
            })
        })
        .optional()
}

/// Puts what came in where it is looked for.
struct Mover<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    days: &'c Days,
}

impl<'c> Mover<'c> {
    fn new(connection: &'c Connection, days: &'c Days) -> rusqlite::Result<Self> {
        let insert = connection.prepare_cached(
            // An error ends the transaction: nothing needs to be noted for taking back this statement alone.
            "INSERT OR FAIL INTO event (id, state, at_ms, added_ms, body) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        Ok(Self { connection, insert, days })
    }

    fn take(&mut self, record: &Record<'_>) -> rusqlite::Result<()> {
        let Incoming { id, added_ms, at_ms, first, body } = match record {
            Record::Event(incoming) => incoming,
            Record::Revoked(id) => {
                store::take_back(self.connection, *id, self.days)?;
                return Ok(());
            }
        };
        if store::is_known(self.connection, *id, self.days)? {
            return Ok(());
        }
        let [added, at] = [*added_ms, *at_ms].map(signed);
        let other = match first {
            Some((key, until)) => {
                let times = (signed(*until), added);
                first::at_place(body, first::take(self.connection, *key, times, (*id, body))?)
            }
            None => None,
        };
        let body = other.as_deref().unwrap_or(body);
        self.insert.execute(params![id.as_bytes(), PENDING, at, added, body])?;
        seen::insert(self.connection, *id, self.days)
    }

    fn note(&self, name: &str, moved: Moved) -> rusqlite::Result<()> {
        let Moved { position, rows, bytes } = moved;
        self.connection
            .prepare_cached(
                "INSERT INTO inbox_file (name, position, rows, bytes) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET position = ?2, rows = ?3, bytes = ?4",
            )?
            .execute(params![name, signed(position), signed(rows), signed(bytes)])?;
        Ok(())
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A way through one file.
#[derive(Debug, Default)]
struct Walk {
    moved: Moved,
    records: usize,
    /// Whether it goes no further than to bytes that are no record.
    stops: bool,
    /// How many of these are ahead.
    damaged: u64,
    /// Bytes that are no record.
    skipped: u64,
    finished: bool,
}

impl Walk {
    /// Takes up to `max` records from where it stands. The outer error is of `take`, the inner one of the file.
    fn go<E>(
        &mut self,
        file: &File,
        window: &mut Vec<u8>,
        max: usize,
        mut take: impl FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<io::Result<()>, E> {
        let mut left = false;
        let mut size = WINDOW;
        loop {
            let length = match file.metadata() {
                Ok(file) => file.len(),
                Err(error) => return Ok(Err(error)),
            };
            let rest = length.saturating_sub(self.moved.position);
            if rest == 0 || self.records >= max {
                if rest > 0 || left {
                    self.finished = rest == 0;
                    return Ok(Ok(()));
                }
                // Then its length again: its writer may have written until it went.
                left = is_left(file);
                if !left {
                    return Ok(Ok(()));
                }
                continue;
            }
            window.resize(usize::try_from(rest).unwrap_or(size).min(size), 0);
            if let Err(error) = file.read_exact_at(window, self.moved.position) {
                return Ok(Err(error));
            }
            let mut at = 0;
            while self.records < max
                && let Found::Record(record, length) = record::read(window.get(at..).unwrap_or_default())
            {
                take(&record)?;
                at += length;
                self.records += 1;
                if let Record::Event(incoming) = record {
                    self.moved.rows += 1;
                    self.moved.bytes += incoming.body.len() as u64;
                }
            }
            self.moved.position += at as u64;
            let is_cut = at == 0 && record::read(window) == Found::Cut;
            if at > 0 || (is_cut && (window.len() as u64) < rest && size < record::MAX_BYTES) {
                size = if at > 0 { WINDOW } else { record::MAX_BYTES };
            } else if left {
                // Nobody finishes this record any more.
                let skipped = record::damage(window) as u64;
                if self.stops {
                    self.damaged = skipped;
                    return Ok(Ok(()));
                }
                self.skipped += skipped;
                self.moved.position += skipped;
            } else {
                left = is_left(file);
                if !left {
                    return Ok(Ok(()));
                }
            }
        }
    }
}

/// Whether nobody appends to this file any more.
fn is_left(file: &File) -> bool {
    file.try_lock().is_ok_and(|()| {
        // Another process that asks meanwhile takes it for one that grows, and asks again.
        let _ = file.unlock();
        true
    })
}

#[cfg(test)]
mod tests;
