//! A thread that copies SQLite's log into the database, so that publishers don't wait for that.
//!
//! - Layer: edge
//! - Takes: word of how much was written; it begins with the first burst, so that a quiet process has no such thread.
//! - Gives: word when so little is left to copy that the writer can do it itself, after which the log begins anew.
//! - On failure: the log grows until SQLite's own threshold makes the writer do all of it, as without this thread.
//! - See: <https://www.sqlite.org/wal.html>, section 2.2; `docs/decisions/0013-clicks-under-load.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

use rusqlite::Connection;

use super::schema::MIGRATIONS;
use crate::queue::sqlite;

/// After so many bytes of events the log is copied.
const BYTES: u64 = 4 * 1024 * 1024;
/// With how many pages of the log the writer does it alone, where the thread does not keep up.
const PAGES_AT_MOST: i64 = 16_000;

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    written: u64,
    thread: Option<(SyncSender<()>, Arc<AtomicBool>)>,
}

impl Checkpoints {
    /// Takes in that so much was written.
    pub(super) const fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
    }

    /// Whether there is anything to do on the writer's connection.
    pub(super) fn is_due(&self) -> bool {
        self.written >= BYTES || self.thread.as_ref().is_some_and(|(_, ready)| ready.load(Ordering::Relaxed))
    }

    /// Has the log of the store at this path copied, after so many bytes; and copies the rest of it.
    pub(super) fn go_on(
        &mut self,
        connection: &Connection,
        path: impl FnOnce() -> PathBuf,
    ) -> rusqlite::Result<()> {
        self.finish(connection);
        if self.written < BYTES {
            return Ok(());
        }
        self.written = 0;
        // Each time: the connection may be another one.
        connection.pragma_update(None, "wal_autocheckpoint", PAGES_AT_MOST)?;
        if self.thread.is_none() {
            let (wake, woken) = mpsc::sync_channel(1);
            let ready = Arc::new(AtomicBool::new(false));
            let (path, is_ready) = (path(), Arc::clone(&ready));
            let thread = std::thread::Builder::new().name("checkpoint".into());
            if thread.spawn(move || run(&woken, &path, &is_ready)).is_err() {
                return Ok(());
            }
            self.thread = Some((wake, ready));
        }
        // One that is at work already looks again afterwards.
        if let Some((wake, _)) = &self.thread {
            let _ = wake.try_send(());
        }
        Ok(())
    }

    /// Copies the rest, if there is only little of it: the next commit then begins the log anew.
    fn finish(&self, connection: &Connection) {
        if let Some((_, ready)) = &self.thread
            && ready.swap(false, Ordering::Relaxed)
        {
            // What fails now is tried again with the next burst.
            let _ = copy(connection);
        }
    }
}

fn run(woken: &Receiver<()>, path: &Path, ready: &AtomicBool) {
    let mut connection = None;
    while woken.recv().is_ok() {
        if connection.is_none() {
            connection = sqlite::open_existing(path, MIGRATIONS).ok();
        }
        let copied = connection.as_ref().is_some_and(|connection| copy(connection).is_ok());
        ready.store(copied, Ordering::Relaxed);
        if !copied {
            connection = None;
        }
    }
}

/// Copies what can be copied without keeping anybody waiting.
fn copy(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// As much as calls for a copy, in a table of its own.
    fn burst(connection: &Connection) {
        let rows = BYTES / 65_536;
        for _ in 0..rows {
            connection.execute("INSERT INTO burst VALUES (zeroblob(65536))", []).unwrap();
        }
    }

    #[test]
    fn the_log_is_copied_beside_the_writer_and_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spool.db");
        let connection = sqlite::open(&path, 0o600, MIGRATIONS).unwrap();
        // Nothing but what is tested here copies the log.
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        connection.execute("CREATE TABLE burst (bytes BLOB)", []).unwrap();
        let log_bytes = || std::fs::metadata(directory.path().join("spool.db-wal")).unwrap().len();

        let mut checkpoints = Checkpoints::default();
        assert!(!checkpoints.is_due());
        burst(&connection);
        checkpoints.wrote(BYTES);
        checkpoints.go_on(&connection, || path.clone()).unwrap();
        let began = Instant::now();
        while !checkpoints.is_due() {
            assert!(began.elapsed() < Duration::from_secs(60), "never copied");
            std::thread::sleep(Duration::from_millis(5));
        }
        checkpoints.go_on(&connection, || path.clone()).unwrap();
        let before = log_bytes();
        burst(&connection);
        assert!(before > BYTES && log_bytes() < before * 5 / 4, "{before}, then {}", log_bytes());
    }
}
