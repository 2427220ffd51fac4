//! Which events were sent, for at least 96 hours: no event counts twice, whatever the transport delivers again.
//!
//! - Layer: edge
//! - Takes: ids of events before and after they are sent.
//! - Gives: what is known of an id, after a kill or a power cut too.
//! - On failure: `StoreError`; then nothing should be sent, since nobody could remember it.
//! - Limits: about 36 bytes of disk an event, so 1 GB for 30 million in five days; some megabytes of memory for the last ones
//!   (`journal`). One process at a time, by a lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::group::{Gather, Group, Work};
use super::journal::{self, Entry, Journal};
use super::seen::{self, Days};
use super::sqlite;
use super::{StoreError, TRUST_CLOCK_AFTER};
use crate::event::EventId;
use crate::identity::Timestamp;
use crate::service::clock::{self, Steady};

/// How long an id is known at least: GA4 takes events of the last 72 hours.
const WINDOW: Duration = Duration::from_secs(96 * 60 * 60);
/// How long to wait for the process before this one to end.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_EVERY: Duration = Duration::from_millis(20);
const GATHER: Gather = Gather { wait: Duration::from_millis(1), enough: 4_096, weight: 4_096 };

const MIGRATIONS: &[&str] = &[seen::TABLE, UNDER_WAY, NAME, journal::TABLE];

/// What this memory is known by to the broker, beside the queues whose events it knows.
const NAME: &str = "
CREATE TABLE name (name TEXT NOT NULL) STRICT;
INSERT INTO name VALUES (lower(hex(randomblob(8))));
";

/// Events whose request had begun when the journal was sorted in. `life` tells those of this process from what a former one left.
const UNDER_WAY: &str = "
CREATE TABLE under_way (
    id BLOB PRIMARY KEY, -- 16 bytes
    life INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE life (number INTEGER NOT NULL) STRICT;
INSERT INTO life VALUES (0);
";

/// The memory of a relay. For one process at a time.
#[derive(Debug)]
pub struct Dedupe {
    group: Group<Command>,
    name: String,
}

/// What is known of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing: it was not sent.
    Nothing,
    /// It was sent, or is not to be sent again.
    Sent,
    /// A life of a relay ended while it was being sent: nobody knows if it arrived.
    Interrupted,
}

#[derive(Debug)]
enum Command {
    Look { ids: Vec<EventId>, answer: oneshot::Sender<Result<Vec<Known>, StoreError>> },
    Note { ids: Vec<EventId>, now: Timestamp, note: Note, answer: oneshot::Sender<Result<(), StoreError>> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    Begun,
    Abandoned,
    Sent,
    /// As sent, unless it was forgotten meanwhile.
    SetAside,
    Prune,
}

impl Dedupe {
    /// Opens the memory in this directory, as `sent.db`. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// `StoreError`; `Taken` where another process has it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("sent.db");
        let connection = sqlite::open(&path, 0o600, MIGRATIONS)?;
        let lock = lock(&path)?;
        connection.execute("UPDATE life SET number = number + 1", [])?;
        let life = connection.query_row("SELECT number FROM life", [], |row| row.get(0))?;
        let name = connection.query_row("SELECT name FROM name", [], |row| row.get(0))?;
        let journal = Journal::read(&connection)?;
        let steady = Steady::new(TRUST_CLOCK_AFTER, clock::now());
        let memory =
            Memory { store: Some((connection, journal)), path: path.clone(), life, steady, _lock: lock };
        Group::start("dedupe", GATHER, memory)
            .map(|group| Self { group, name })
            .map_err(|error| StoreError::Open { path, why: error.to_string() })
    }

    /// Forgets these ids in the memory in this directory, so that a replay sends them: an administrator decided that they
    /// did not arrive. Works beside a running relay; nothing happens where there is no memory yet.
    ///
    /// # Errors
    /// `StoreError`: nothing was forgotten.
    pub fn forget(directory: &Path, ids: &[EventId]) -> Result<(), StoreError> {
        let path = directory.join("sent.db");
        if !path.exists() {
            return Ok(());
        }
        let mut connection = sqlite::open_existing(&path, MIGRATIONS)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for id in ids {
            transaction.execute("DELETE FROM seen WHERE id = ?1", [id.as_bytes().as_slice()])?;
            transaction.execute("DELETE FROM under_way WHERE id = ?1", [id.as_bytes().as_slice()])?;
        }
        // The relay that runs reads this before it answers anything.
        journal::write(&transaction, Entry::Forgotten, 0, 0, ids)?;
        transaction.commit()?;
        Ok(())
    }

    /// What it is known by: another one for each memory.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of each id.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn look(&self, ids: &[EventId]) -> Result<Vec<Known>, StoreError> {
        let ids = ids.to_vec();
        self.group.ask(|answer| Command::Look { ids, answer }).await?
    }

    /// Notes durably that these are about to be sent; to be called before the first byte of the request.
    ///
    /// # Errors
    /// `StoreError`: don't send.
    pub async fn begin(&self, ids: &[EventId]) -> Result<(), StoreError> {
        self.note(ids, Timestamp::default(), Note::Begun).await
    }

    /// Notes that these certainly didn't arrive.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn abandon(&self, ids: &[EventId]) -> Result<(), StoreError> {
        self.note(ids, Timestamp::default(), Note::Abandoned).await
    }

    /// Remembers durably that these were sent, or that they are not to be sent again.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn remember(&self, ids: &[EventId], now: Timestamp) -> Result<(), StoreError> {
        self.note(ids, now, Note::Sent).await
    }

    /// Remembers durably that nobody knows whether these arrived, and that they are not to be sent again; but for those that
    /// an administrator had forgotten meanwhile.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn set_aside(&self, ids: &[EventId], now: Timestamp) -> Result<(), StoreError> {
        self.note(ids, now, Note::SetAside).await
    }

    /// Forgets a part of what is older than the window. Happens by itself, too.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn prune(&self, now: Timestamp) -> Result<(), StoreError> {
        self.note(&[], now, Note::Prune).await
    }

    async fn note(&self, ids: &[EventId], now: Timestamp, note: Note) -> Result<(), StoreError> {
        if ids.is_empty() && note != Note::Prune {
            return Ok(());
        }
        let ids = ids.to_vec();
        self.group.ask(|answer| Command::Note { ids, now, note, answer }).await?
    }
}

/// The lock goes with the process, however it ends.
fn lock(path: &Path) -> Result<File, StoreError> {
    let path = path.with_extension("lock");
    let failed = |why: String| StoreError::Open { path: path.clone(), why };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|error| failed(error.to_string()))?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_EVERY),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Taken { path }),
            Err(TryLockError::Error(error)) => return Err(failed(error.to_string())),
        }
    }
}

struct Memory {
    /// None after an error: what is known is then read from the file again.
    store: Option<(Connection, Journal)>,
    path: PathBuf,
    life: i64,
    steady: Steady,
    _lock: File,
}

impl Work for Memory {
    type Command = Command;

    fn weight(command: &Command) -> usize {
        match command {
            Command::Look { ids, .. } | Command::Note { ids, .. } => ids.len(),
        }
    }

    fn work(&mut self, commands: Vec<Command>) {
        let (mut notes, mut answers) = (Vec::new(), Vec::new());
        // Whoever asked may have gone: then nobody needs the answer.
        for command in commands {
            match command {
                Command::Look { ids, answer } => {
                    let life = self.life;
                    let known = self.with(|connection, journal| look(connection, journal, life, &ids));
                    drop(answer.send(known));
                }
                Command::Note { ids, now, note, answer } => {
                    notes.push((ids, now, note));
                    answers.push(answer);
                }
            }
        }
        if notes.is_empty() {
            return;
        }
        let life = self.life;
        let result = self.with(|connection, journal| write(connection, journal, life, &notes));
        for answer in answers {
            drop(answer.send(result.clone()));
        }
        self.sort_in();
    }

    fn care(&mut self) -> bool {
        self.sort_in();
        let now = clock::now();
        // A clock that is wrong for a while makes nothing forgotten. What fails now is tried again in a while.
        self.steady.holds(now, Instant::now())
            && self.with(|connection, _| seen::prune(connection, now, WINDOW)).unwrap_or(false)
    }
}

impl Memory {
    /// Does something with the database; opens it anew after an error.
    fn with<T>(
        &mut self,
        what: impl FnOnce(&mut Connection, &mut Journal) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let (mut connection, mut journal) = match self.store.take() {
            Some(store) => store,
            // Never a new file: what was sent before would be sent again.
            None => {
                let connection = sqlite::open_existing(&self.path, MIGRATIONS)?;
                let journal = Journal::read(&connection)?;
                (connection, journal)
            }
        };
        let result = what(&mut connection, &mut journal)?;
        self.store = Some((connection, journal));
        Ok(result)
    }

    /// Sorts in what the journal has, if it is time.
    fn sort_in(&mut self) {
        let today = seen::day(clock::now());
        if self.store.as_ref().is_some_and(|(_, journal)| journal.is_due(today)) {
            // What fails now is tried again with the next group.
            drop(self.with(sort_in));
        }
    }
}

fn look(
    connection: &mut Connection,
    journal: &mut Journal,
    life: i64,
    ids: &[EventId],
) -> rusqlite::Result<Vec<Known>> {
    // In one transaction: each question alone would take the locks of the file and give them back.
    let transaction = connection.transaction()?;
    let days = Days::of(&transaction, clock::now())?;
    journal.catch_up(&transaction)?;
    let known = |id: &EventId| {
        Ok(if journal.is_sent(*id) || seen::contains(&transaction, *id, &days)? {
            Known::Sent
        } else if journal.begun(*id).is_some_and(|begun| begun != life) {
            Known::Interrupted
        } else {
            Known::Nothing
        })
    };
    ids.iter().map(known).collect()
}

fn write(
    connection: &mut Connection,
    journal: &mut Journal,
    life: i64,
    notes: &[(Vec<EventId>, Timestamp, Note)],
) -> rusqlite::Result<()> {
    if let Some((_, now, _)) = notes.iter().find(|(_, _, note)| *note == Note::Prune) {
        sort_in(connection, journal)?;
        seen::prune(connection, *now, WINDOW)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    journal.catch_up(&transaction)?;
    // Each asks for other events: one row for all that say the same.
    let mut rows: Vec<(Entry, i64, Vec<EventId>)> = Vec::new();
    for (ids, now, note) in notes {
        let (entry, ids) = match note {
            Note::Begun => (Entry::Begun, ids.clone()),
            Note::Abandoned => (Entry::Abandoned, ids.clone()),
            Note::Sent => (Entry::Sent, ids.clone()),
            Note::SetAside => {
                (Entry::Sent, ids.iter().copied().filter(|id| journal.begun(*id).is_some()).collect())
            }
            Note::Prune => continue,
        };
        let today = seen::day(*now);
        match rows.iter_mut().find(|row| (row.0, row.1) == (entry, today)) {
            Some(row) => row.2.extend(ids),
            None => rows.push((entry, today, ids)),
        }
    }
    for (entry, day, ids) in rows {
        journal::write(&transaction, entry, life, day, &ids)?;
    }
    journal.catch_up(&transaction)?;
    transaction.commit()
}

fn sort_in(connection: &mut Connection, journal: &mut Journal) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    journal.catch_up(&transaction)?;
    journal.sort_in(&transaction)?;
    transaction.commit()?;
    journal.sorted_in();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::queue::testing::event;

    #[tokio::test]
    async fn what_was_sent_is_known_after_a_restart_and_forgotten_after_the_window() {
        let directory = tempfile::tempdir().unwrap();
        let ids: Vec<_> = (0..3).map(|number| event(number).id).collect();
        let (sent, unsent) = ids.split_at(2);
        let now = clock::now();
        let dedupe = Dedupe::open(directory.path()).unwrap();
        dedupe.remember(sent, now).await.unwrap();
        drop(dedupe);
        let dedupe = Dedupe::open(directory.path()).unwrap();
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Sent, Known::Sent, Known::Nothing]);
        dedupe.remember(unsent, now.minus(Duration::from_secs(121 * 60 * 60))).await.unwrap();
        dedupe.prune(now).await.unwrap();
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Sent, Known::Sent, Known::Nothing]);
        dedupe.prune(now.plus(Duration::from_secs(130 * 60 * 60))).await.unwrap();
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Nothing; 3]);
    }

    #[tokio::test]
    async fn what_was_under_way_when_a_life_ended_is_told_from_what_is_under_way_now() {
        let directory = tempfile::tempdir().unwrap();
        let ids: Vec<_> = (0..4).map(|number| event(number).id).collect();
        let dedupe = Dedupe::open(directory.path()).unwrap();
        dedupe.begin(&ids).await.unwrap();
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Nothing; 4]);
        dedupe.remember(&ids[..1], clock::now()).await.unwrap();
        dedupe.abandon(&ids[1..2]).await.unwrap();
        drop(dedupe);
        let dedupe = Dedupe::open(directory.path()).unwrap();
        use Known::{Interrupted, Nothing, Sent};
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Sent, Nothing, Interrupted, Interrupted]);
        dedupe.begin(&ids[2..3]).await.unwrap();
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Sent, Nothing, Nothing, Interrupted]);
    }

    #[tokio::test]
    async fn what_was_forgotten_while_it_was_set_aside_stays_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let ids: Vec<_> = (0..2).map(|number| event(number).id).collect();
        let dedupe = Dedupe::open(directory.path()).unwrap();
        dedupe.begin(&ids).await.unwrap();
        Dedupe::forget(directory.path(), &ids[..1]).unwrap();
        dedupe.set_aside(&ids, clock::now()).await.unwrap();
        assert_eq!(dedupe.look(&ids).await.unwrap(), [Known::Nothing, Known::Sent]);
    }

    /// What a memory has to know of one event.
    #[derive(Clone, Copy, Default)]
    struct Model {
        sent: bool,
        /// By which life.
        begun: Option<u32>,
    }

    /// Whatever is noted in whatever order, through restarts and an administrator's hands, and sorted in many times meanwhile.
    #[tokio::test]
    async fn it_knows_what_a_simple_model_knows() {
        use rand::{RngExt, SeedableRng};
        let directory = tempfile::tempdir().unwrap();
        let mut random = rand::rngs::StdRng::seed_from_u64(6);
        let ids: Vec<_> = (0..40).map(|number| event(number).id).collect();
        let (mut model, mut life) = ([Model::default(); 40], 1);
        let mut dedupe = Dedupe::open(directory.path()).unwrap();
        for step in 0..600 {
            let first = random.random_range(0..36);
            let some = first..first + random.random_range(1..=4);
            let (these, models) = (&ids[some.clone()], &mut model[some]);
            match random.random_range(0..12) {
                0..4 => {
                    dedupe.begin(these).await.unwrap();
                    models.iter_mut().for_each(|event| event.begun = Some(life));
                }
                4..7 => {
                    dedupe.remember(these, clock::now()).await.unwrap();
                    models.iter_mut().for_each(|event| *event = Model { sent: true, begun: None });
                }
                7 | 8 => {
                    dedupe.abandon(these).await.unwrap();
                    models.iter_mut().for_each(|event| event.begun = None);
                }
                9 => {
                    dedupe.set_aside(these, clock::now()).await.unwrap();
                    for event in models {
                        *event = Model { sent: event.sent || event.begun.is_some(), begun: None };
                    }
                }
                10 => {
                    Dedupe::forget(directory.path(), these).unwrap();
                    models.fill(Model::default());
                }
                _ => {
                    drop(dedupe);
                    dedupe = Dedupe::open(directory.path()).unwrap();
                    life += 1;
                }
            }
            let expected = model.iter().map(|event| match event {
                Model { sent: true, .. } => Known::Sent,
                Model { begun: Some(begun), .. } if *begun != life => Known::Interrupted,
                _ => Known::Nothing,
            });
            assert_eq!(dedupe.look(&ids).await.unwrap(), expected.collect::<Vec<_>>(), "step {step}");
        }
        let connection = rusqlite::Connection::open(directory.path().join("sent.db")).unwrap();
        let rows: i64 = connection.query_row("SELECT count(*) FROM seen", [], |row| row.get(0)).unwrap();
        assert!(rows > 0, "nothing was sorted in");
    }

    #[tokio::test]
    async fn one_process_has_it_and_the_next_one_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let dedupe = Dedupe::open(directory.path()).unwrap();
        let error = Dedupe::open(directory.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Taken { path } if path.ends_with("sent.lock")), "{error}");
        drop(dedupe);
        Dedupe::open(directory.path()).unwrap();
    }

    #[tokio::test]
    async fn a_database_that_broke_is_opened_anew_and_never_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let id = [event(1).id];
        let dedupe = Dedupe::open(directory.path()).unwrap();
        dedupe.remember(&id, clock::now()).await.unwrap();
        // Written over under the open connection, as a bad disk does.
        let path = directory.path().join("sent.db");
        let kept = std::fs::read(&path).unwrap();
        let wal = std::fs::read(directory.path().join("sent.db-wal")).unwrap();
        std::fs::write(&path, vec![7; kept.len()]).unwrap();
        std::fs::write(directory.path().join("sent.db-wal"), vec![7; wal.len()]).unwrap();
        std::fs::write(directory.path().join("sent.db-shm"), vec![7; 32_768]).unwrap();
        assert!(dedupe.look(&id).await.is_err() || dedupe.begin(&id).await.is_err());
        std::fs::write(&path, &kept).unwrap();
        std::fs::write(directory.path().join("sent.db-wal"), &wal).unwrap();
        let mut known = dedupe.look(&id).await;
        for _ in 0..20 {
            if known.is_ok() {
                break;
            }
            known = dedupe.look(&id).await;
        }
        assert_eq!(known.unwrap(), [Known::Sent]);
    }
}
