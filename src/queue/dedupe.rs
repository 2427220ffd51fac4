//! Which events were sent, for at least 96 hours: no event counts twice, whatever the transport delivers again.
//!
//! - Layer: edge
//! - Takes: ids of events before and after they are sent.
//! - Gives: what is known of an id, after a kill or a power cut too.
//! - On failure: `StoreError`; then nothing should be sent, since nobody could remember it.
//! - Limits: about 36 bytes of disk an event, so 1 GB for 30 million in five days. One relay knows only its own: several on one
//!   queue need a layout that always gives an event to the same one.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::StoreError;
use super::group::{Gather, Group, Work};
use super::seen::{self, Days};
use super::sqlite;
use crate::event::EventId;
use crate::identity::Timestamp;
use crate::service::clock;

/// How long an id is known at least: GA4 takes events of the last 72 hours.
const WINDOW: Duration = Duration::from_secs(96 * 60 * 60);
const GATHER: Gather = Gather { wait: Duration::from_millis(1), weight: 4_096 };

const MIGRATIONS: &[&str] = &[seen::TABLE, UNDER_WAY];

/// Events whose request has begun. `life` tells those of this process from what a former one left.
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
pub struct Dedupe(Group<Command>);

#[derive(Debug)]
enum Command {
    Already { ids: Vec<EventId>, answer: oneshot::Sender<Result<Vec<bool>, StoreError>> },
    Interrupted { ids: Vec<EventId>, answer: oneshot::Sender<Result<Vec<bool>, StoreError>> },
    Note { ids: Vec<EventId>, now: Timestamp, note: Note, answer: oneshot::Sender<Result<(), StoreError>> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    Begun,
    Abandoned,
    Sent,
    Prune,
}

impl Dedupe {
    /// Opens the memory in this directory, as `sent.db`. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("sent.db");
        let connection = sqlite::open(&path, 0o600, MIGRATIONS)?;
        connection.execute("UPDATE life SET number = number + 1", [])?;
        let life = connection.query_row("SELECT number FROM life", [], |row| row.get(0))?;
        Group::start("dedupe", GATHER, Memory { connection, life })
            .map(Self)
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
        transaction.commit()?;
        Ok(())
    }

    /// For each id, whether it was sent.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn already(&self, ids: &[EventId]) -> Result<Vec<bool>, StoreError> {
        let ids = ids.to_vec();
        self.0.ask(|answer| Command::Already { ids, answer }).await?
    }

    /// For each id, whether a former life of this relay ended while it was being sent: nobody knows if it arrived.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn interrupted(&self, ids: &[EventId]) -> Result<Vec<bool>, StoreError> {
        let ids = ids.to_vec();
        self.0.ask(|answer| Command::Interrupted { ids, answer }).await?
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
        self.0.ask(|answer| Command::Note { ids, now, note, answer }).await?
    }
}

struct Memory {
    connection: Connection,
    life: i64,
}

impl Work for Memory {
    type Command = Command;

    fn weight(command: &Command) -> usize {
        match command {
            Command::Already { ids, .. } | Command::Interrupted { ids, .. } | Command::Note { ids, .. } => {
                ids.len()
            }
        }
    }

    fn work(&mut self, commands: Vec<Command>) {
        let mut notes = Vec::new();
        // Whoever asked may have gone: then nobody needs the answer.
        for command in commands {
            match command {
                Command::Already { ids, answer } => drop(answer.send(self.already(&ids).map_err(Into::into))),
                Command::Interrupted { ids, answer } => {
                    drop(answer.send(self.interrupted(&ids).map_err(Into::into)))
                }
                Command::Note { ids, now, note, answer } => notes.push((ids, now, note, answer)),
            }
        }
        if notes.is_empty() {
            return;
        }
        let result = self.note(notes.iter().map(|(ids, now, note, _)| (ids.as_slice(), *now, *note)));
        for (_, _, _, answer) in notes {
            drop(answer.send(result.clone().map_err(StoreError::Sql)));
        }
    }

    fn care(&mut self) -> bool {
        let days = Days::new(clock::now(), WINDOW);
        // What fails now is tried again in a while.
        seen::prune(&self.connection, days).unwrap_or(false)
    }
}

impl Memory {
    fn already(&self, ids: &[EventId]) -> rusqlite::Result<Vec<bool>> {
        let days = Days::new(clock::now(), WINDOW);
        ids.iter().map(|id| seen::contains(&self.connection, *id, days)).collect()
    }

    fn interrupted(&self, ids: &[EventId]) -> rusqlite::Result<Vec<bool>> {
        let mut look =
            self.connection.prepare_cached("SELECT 1 FROM under_way WHERE id = ?1 AND life <> ?2")?;
        ids.iter().map(|id| look.exists((id.as_bytes(), self.life))).collect()
    }

    fn note<'a>(
        &mut self,
        notes: impl Iterator<Item = (&'a [EventId], Timestamp, Note)>,
    ) -> Result<(), String> {
        let life = self.life;
        let text = |error: rusqlite::Error| error.to_string();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(text)?;
        for (ids, now, note) in notes {
            write(&transaction, life, ids, now, note).map_err(text)?;
        }
        transaction.commit().map_err(text)
    }
}

fn write(
    connection: &Connection,
    life: i64,
    ids: &[EventId],
    now: Timestamp,
    note: Note,
) -> rusqlite::Result<()> {
    let days = Days::new(now, WINDOW);
    match note {
        Note::Begun => {
            let mut begin =
                connection.prepare_cached("INSERT OR REPLACE INTO under_way (id, life) VALUES (?1, ?2)")?;
            ids.iter().try_for_each(|id| begin.execute((id.as_bytes(), life)).map(drop))
        }
        Note::Abandoned | Note::Sent => {
            let mut end = connection.prepare_cached("DELETE FROM under_way WHERE id = ?1")?;
            for id in ids {
                end.execute([id.as_bytes()])?;
                if note == Note::Sent {
                    seen::insert(connection, *id, days)?;
                }
            }
            Ok(())
        }
        Note::Prune => seen::prune(connection, days).map(drop),
    }
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
        assert_eq!(dedupe.already(&ids).await.unwrap(), [true, true, false]);
        dedupe.remember(unsent, now.minus(Duration::from_secs(121 * 60 * 60))).await.unwrap();
        dedupe.prune(now).await.unwrap();
        assert_eq!(dedupe.already(&ids).await.unwrap(), [true, true, false]);
        dedupe.prune(now.plus(Duration::from_secs(130 * 60 * 60))).await.unwrap();
        assert_eq!(dedupe.already(&ids).await.unwrap(), [false, false, false]);
    }

    #[tokio::test]
    async fn what_was_under_way_when_a_life_ended_is_told_from_what_is_under_way_now() {
        let directory = tempfile::tempdir().unwrap();
        let ids: Vec<_> = (0..4).map(|number| event(number).id).collect();
        let dedupe = Dedupe::open(directory.path()).unwrap();
        dedupe.begin(&ids).await.unwrap();
        assert_eq!(dedupe.interrupted(&ids).await.unwrap(), [false; 4]);
        dedupe.remember(&ids[..1], clock::now()).await.unwrap();
        dedupe.abandon(&ids[1..2]).await.unwrap();
        drop(dedupe);
        let dedupe = Dedupe::open(directory.path()).unwrap();
        assert_eq!(dedupe.interrupted(&ids).await.unwrap(), [false, false, true, true]);
        dedupe.begin(&ids[2..3]).await.unwrap();
        assert_eq!(dedupe.interrupted(&ids).await.unwrap(), [false, false, false, true]);
    }
}
