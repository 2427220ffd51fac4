//! Opening the SQLite files that events are kept in: mode, write-ahead log, waiting for a lock, schema version.
//!
//! - Layer: edge
//! - Takes: a path, a file mode, and the steps from one schema version to the next.
//! - Gives: a connection that other processes may share the file with.
//! - On failure: `StoreError`; it carries SQLite's words, never a row.
//! - Limits: waits ten seconds for another process's transaction, then reports it.
//! - See: <https://www.sqlite.org/wal.html>, <https://www.sqlite.org/pragma.html#pragma_user_version>.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

/// SQLite's number for: freed pages are given back when it is asked for.
const INCREMENTAL: i64 = 2;
/// How often a lock is tried, a millisecond apart.
const LOCK_TRIES: i32 = 10_000;
/// Pages that are kept at most. Ids are hashes: those of a burst are all over their indexes.
const CACHE_KIB: i64 = 16 * 1024;
/// How much of the write-ahead log stays on disk after a burst.
const JOURNAL_BYTES: i64 = 64 * 1024 * 1024;

/// Why a store of events can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file or its directory can't be created or opened.
    #[error("can't open {}: {why}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The file was written by a later version.
    #[error("the store has schema version {found}; this version knows {known}")]
    Version {
        /// The version of the file.
        found: usize,
        /// The latest one known here.
        known: usize,
    },
    /// Another process has it.
    #[error("{} is locked: another relay runs with the same state_dir; give each one of its own", path.display())]
    Taken {
        /// The lock.
        path: PathBuf,
    },
    /// SQLite refused.
    #[error("the store can't be used: {0}")]
    Sql(String),
    /// The thread that owns the store has ended.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error.to_string())
    }
}

/// Whether the connection should be opened anew after this error.
pub(super) fn is_broken(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::CannotOpen
                | ErrorCode::SystemIoFailure
                | ErrorCode::NotADatabase
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::ReadOnly
        )
    )
}

/// Whether the disk had no room.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Opens a store, creating directory (0750) and file where they are missing, and brings its schema up to date.
pub(super) fn open(path: &Path, file_mode: u32, migrations: &[&str]) -> Result<Connection, StoreError> {
    create(path, file_mode).map_err(|error| failed(path, &error.to_string()))?;
    open_existing(path, migrations)
}

/// Opens a store that exists already; for looking into it, and for the hands of an administrator. On a full disk there may be no room
/// for the index of the write-ahead log, which processes share: then nobody else has the store, and the index is in memory alone.
pub(super) fn open_to_look(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    match open_existing(path, migrations) {
        Err(StoreError::Open { why, .. }) if FULL.iter().any(|name| why.contains(name)) => {
            open_alone(path, migrations).map_err(|_| StoreError::Open { path: path.to_owned(), why })
        }
        opened => opened,
    }
}

fn open_alone(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    let (found, known) = (version(&connection)?, migrations.len());
    if found == known { Ok(connection) } else { Err(StoreError::Version { found, known }) }
}

/// Opens a store that exists already.
pub(super) fn open_existing(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(|error| failed(path, &error.to_string()))?;
    let ready = prepare(&mut connection).and_then(|()| migrate(&mut connection, migrations));
    match ready {
        Ok(()) => Ok(connection),
        Err(StoreError::Sql(why)) => Err(failed(path, &why)),
        Err(error) => Err(error),
    }
}

/// An error at the opening, with a remedy where it is the disk or the file itself; a full disk has many names.
fn failed(path: &Path, why: &str) -> StoreError {
    let any = |names: &[&str]| names.iter().any(|name| why.contains(name));
    let remedy = if any(&FULL) {
        let directory = path.parent().unwrap_or(path).display();
        format!(
            "; look whether the disk is full (df {directory}) and make room, or set state_dir to another disk"
        )
    } else if any(&["not a database", "malformed"]) {
        let path = path.display();
        format!(
            "; it is damaged: stop mailtap, move {path}, {path}-wal and {path}-shm away (no other file), and start it again; it makes a \
             new one. \"A damaged file\" in docs/operations.md says what is lost with it"
        )
    } else {
        String::new()
    };
    StoreError::Open { path: path.to_owned(), why: format!("{why}{remedy}") }
}

/// The names of a full disk.
const FULL: [&str; 3] = ["disk I/O error", "disk is full", "No space left"];

fn create(path: &Path, file_mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    match OpenOptions::new().write(true).create_new(true).mode(file_mode).open(path) {
        // The mode of open(2) is cut by the umask. SQLite gives its -wal and -shm files the mode of this one.
        Ok(file) => file.set_permissions(Permissions::from_mode(file_mode))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    File::open(directory)?.sync_all()
}

fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    connection.busy_handler(Some(|tries: i32| {
        // SQLite's own handler sleeps up to 100 ms, and a busy neighbour would always be faster.
        std::thread::sleep(Duration::from_millis(1));
        tries < LOCK_TRIES
    }))?;
    // Setting it writes, also where it is set already: a full disk would keep out who only looks.
    if connection.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, i64>(0))? != INCREMENTAL {
        connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
    }
    write_ahead(connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES)?;
    // What one statement could have to take back needs no file; an insert with a trigger notes it each time.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Two processes that change the journal mode of a new file at once don't wait for each other by the busy handler.
fn write_ahead(connection: &Connection) -> Result<(), StoreError> {
    let mut tries = 0;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Ok(()) => return Ok(()),
            Err(error) if tries < 200 && error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    if version(connection)? == migrations.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    let Some(missing) = migrations.get(found..) else {
        return Err(StoreError::Version { found, known: migrations.len() });
    };
    for step in missing {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(migrations.len()).unwrap_or(i64::MAX))?;
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> Result<usize, StoreError> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: &str = "CREATE TABLE a (x INTEGER) STRICT";
    const TWO: &str = "ALTER TABLE a ADD COLUMN y INTEGER";

    #[test]
    fn a_store_is_made_with_its_mode_and_in_wal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/a.db");
        let connection = open(&path, 0o640, &[ONE]).unwrap();
        connection.execute("INSERT INTO a VALUES (1)", []).unwrap();
        for name in ["a.db", "a.db-wal", "a.db-shm"] {
            let mode = path.with_file_name(name).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640, "{name}");
        }
        let mode = path.parent().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o027, 0, "the directory is closed to others: {mode:o}");
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn an_older_schema_is_brought_up_to_date_and_a_later_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        open(&path, 0o600, &[ONE]).unwrap().execute("INSERT INTO a VALUES (7)", []).unwrap();
        let newer = open(&path, 0o600, &[ONE, TWO]).unwrap();
        let row: (i64, Option<i64>) =
            newer.query_row("SELECT x, y FROM a", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(row, (7, None));
        assert_eq!(open(&path, 0o600, &[ONE]).unwrap_err(), StoreError::Version { found: 2, known: 1 });
    }

    #[test]
    fn many_that_create_it_at_once_all_get_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| open(&path, 0o600, &[ONE, TWO]).map(drop))).collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    }

    #[test]
    fn what_is_no_database_is_an_error_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        std::fs::write(&path, "not a database, but long enough to look at").unwrap();
        let error = open(&path, 0o600, &[ONE]).unwrap_err().to_string();
        assert!(error.contains(&format!("move {0}, {0}-wal and {0}-shm away", path.display())), "{error}");
        assert!(matches!(
            open_existing(&directory.path().join("b.db"), &[ONE]),
            Err(StoreError::Open { .. })
        ));
    }
}
