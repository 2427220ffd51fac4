//! How much the spool holds, and whether there is room for more: known without asking SQLite.
//!
//! - Layer: edge
//! - Takes: word of what is added; a look at the store, now and then.
//! - Gives: yes or no for each event, in no time.
//! - On failure: what other processes added since the last look is not known: the limits may be passed by that much.
//! - Limits: those of `Settings`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::inbox::{self, Inbox};
use super::schema::ROW_BYTES;
use super::{Settings, store};
use crate::queue::PublishError;

/// How old may be what is known of the disk's room: less than it takes to write the reserve full.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Rows, and bytes of their bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Level {
    pub(super) const fn plus(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, bytes: self.bytes + other.bytes }
    }

    pub(super) const fn minus(self, other: Self) -> Self {
        Self { rows: self.rows.saturating_sub(other.rows), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    /// Bytes as the limit counts them.
    pub(super) const fn all_bytes(self) -> u64 {
        self.bytes + self.rows * ROW_BYTES
    }
}

/// What a process knows of the room. Shared by its threads.
#[derive(Debug)]
pub(super) struct Room {
    directory: PathBuf,
    /// The store's file, and its inode when it was opened.
    store: PathBuf,
    inode: Option<u64>,
    max_rows: u64,
    max_bytes: u64,
    reserve_bytes: u64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the store and in the inboxes of others, as of the last look.
    stored: Level,
    /// Taken by this process since it began, …
    taken: Level,
    /// … and of these moved on into the store by the last look.
    swept: Level,
    /// What went into each of this process's files that is still there.
    files: Vec<(String, Level)>,
    /// Of files that are gone: all of it was moved on.
    gone: Level,
    /// When this process took something last.
    took: Option<Instant>,
    /// When the disk was asked, and what it said.
    disk: Option<(Instant, Disk)>,
    /// Bytes of the store's file that are free for use.
    free_pages: u64,
}

#[derive(Debug, Clone, Copy)]
struct Disk {
    /// Bytes.
    free: Option<u64>,
    /// Whether the store's file is still the one that was opened.
    has_store: bool,
}

impl Room {
    pub(super) fn new(settings: &Settings) -> Self {
        let store = settings.path();
        Self {
            directory: settings.directory.clone(),
            inode: inode(&store),
            store,
            max_rows: settings.max_rows,
            max_bytes: settings.max_bytes,
            reserve_bytes: settings.reserve_bytes,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for an event of so many bytes, if there is any.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let mut known = self.known();
        let one = Level { rows: 1, bytes };
        let level = known.level().plus(one);
        let fits = level.rows <= self.max_rows && level.all_bytes() <= self.max_bytes;
        if fits {
            known.taken = known.taken.plus(one);
        }
        fits
    }

    /// Gives back what was taken and then not written.
    pub(super) fn give_back(&self, level: Level) {
        let mut known = self.known();
        known.taken = known.taken.minus(level);
    }

    /// What was taken stands in this file.
    pub(super) fn wrote(&self, name: &str, level: Level) {
        let mut known = self.known();
        known.took = Some(Instant::now());
        match known.files.iter_mut().rev().find(|(file, _)| file == name) {
            Some((_, there)) => *there = there.plus(level),
            None => known.files.push((name.to_owned(), level)),
        }
    }

    /// How long ago this process took something last.
    pub(super) fn rests(&self) -> Option<Duration> {
        self.known().took.map(|took| took.elapsed())
    }

    /// What is known now: in the store and on the way to it.
    pub(super) fn level(&self) -> Level {
        self.known().level()
    }

    /// How much of it waits in the inbox, as far as this process put it there.
    pub(super) fn waiting(&self) -> Level {
        let known = self.known();
        known.taken.minus(known.swept)
    }

    /// Looks at the store again. Within a transaction it is exact for what this process added.
    pub(super) fn look(&self, connection: &Connection, inbox: &mut Inbox) -> rusqlite::Result<()> {
        // Nobody who publishes waits for this.
        let files = self.known().files.clone();
        let (mut gone, mut swept) = (Vec::new(), Level::default());
        for (name, _) in &files {
            match inbox::moved(connection, name)? {
                Some(moved) => swept = swept.plus(Level { rows: moved.rows, bytes: moved.bytes }),
                None if !inbox.has(name) => gone.push(name),
                None => {}
            }
        }
        let (rows, bytes) = store::tally(connection)?;
        let is_own = |name: &str| files.iter().any(|(file, _)| file == name);
        let (more_rows, more_bytes) = inbox.waiting(connection, is_own)?;
        // What a record has beside its body stands for what the row will have.
        let others = Level { rows: more_rows, bytes: more_bytes.saturating_sub(more_rows * ROW_BYTES) };
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let free_pages = (pragma("freelist_count")? * pragma("page_size")?).unsigned_abs();

        let mut known = self.known();
        known.free_pages = free_pages;
        known.stored = Level { rows, bytes }.plus(others);
        // A file that is gone was moved on to its end.
        let (past, there) =
            std::mem::take(&mut known.files).into_iter().partition(|(name, _)| gone.contains(&name));
        known.files = there;
        let past: Vec<(String, Level)> = past;
        known.gone = past.into_iter().fold(known.gone, |sum, (_, level)| sum.plus(level));
        known.swept = known.gone.plus(swept);
        Ok(())
    }

    /// Why nothing may be added: the store is gone from under us, or the rest of the disk is for getting rid of what is there.
    /// Free pages of the file count as free; a disk that can't be asked passes.
    pub(super) fn refuses_all(&self) -> Option<PublishError> {
        let mut known = self.known();
        let disk = match known.disk {
            Some((asked, disk)) if asked.elapsed() < LOOK_EVERY => disk,
            _ => {
                let disk = Disk { free: free(&self.directory), has_store: inode(&self.store) == self.inode };
                known.disk = Some((Instant::now(), disk));
                disk
            }
        };
        if !disk.has_store {
            let store = self.store.display();
            return Some(PublishError::Storage(format!(
                "{store} was removed or replaced while it was in use: put it back, or restart mailtap"
            )));
        }
        let free = disk.free?.saturating_add(known.free_pages);
        (free < self.reserve_bytes)
            .then(|| PublishError::Storage(format!("the disk has only {free} bytes left")))
    }
}

impl Known {
    const fn level(&self) -> Level {
        self.stored.plus(self.taken.minus(self.swept))
    }
}

fn free(directory: &Path) -> Option<u64> {
    let disk = nix::sys::statvfs::statvfs(directory).ok()?;
    Some(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.ino())
}
