//! The spool of one host: files in which events come in, and a SQLite database in which they wait until they are sent or forwarded.
//!
//! - Layer: edge
//! - Takes: events of every process of the host, by `Publish`.
//! - Gives: claims with a lease, so that whoever is killed loses nothing; states for what can't be sent.
//! - On failure: publishing returns only what is durable; a full spool or disk is an error, and passes with its cause.
//! - Limits: `max_rows`, `max_bytes` and `max_age`; `group_wait` and `group_events` for one transaction; 4,096 commands under way.
//! - See: `docs/architecture.md`, "The event path"; <https://www.sqlite.org/wal.html>.

mod admin;
mod checkpoint;
mod filter;
mod first;
mod inbox;
mod publish;
mod refusals;
mod room;
mod schema;
mod store;
mod writer;

pub use admin::{Admin, State, Status, Stored};
pub use filter::Filter;
pub use inbox::record::survey;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::group::{Gather, Group};
use super::sqlite::{self, StoreError};
use super::{Amendment, Hold, OnStored, Publication, Publish, PublishError, TRUST_CLOCK_AFTER};
use crate::event::{Event, EventId};
use crate::identity::Timestamp;
use crate::service::clock;
use inbox::append::FILE_BYTES;
use publish::{Publishing, Put};
use room::Room;
use store::{ClaimedRow, NewRow};
use writer::{Clock, Command, Writer};

/// By so many events a sync of the disk is shared well enough: they wait for no more.
const SYNC_SHARED_BY: usize = 16;

/// Where the spool is and what it may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The directory; `spool.db` is made in it. All processes of the host that share it need to write there.
    pub directory: PathBuf,
    /// The most events, dead ones included.
    pub max_rows: u64,
    /// The most bytes of events, with what SQLite needs for them. The file grows somewhat beyond: ids of sent events.
    pub max_bytes: u64,
    /// Bytes of the disk that publishing leaves free, so that what is there can still be claimed and settled: that
    /// writes, too.
    pub reserve_bytes: u64,
    /// What a publisher is promised.
    pub sync: Sync,
    /// How long a commit waits for company.
    pub group_wait: Duration,
    /// From how many events on a commit waits no longer.
    pub group_events: usize,
    /// The mode of a new file: 0600, or 0660 where processes of several users share the spool.
    pub file_mode: u32,
    /// For how long the id of an event that was sent is known.
    pub dedupe: Duration,
    /// How long an event may wait here for somebody to take it.
    pub max_age: Duration,
    /// What becomes of one that waited longer.
    pub too_old: TooOld,
    /// For how long the time of day must have gone on evenly before anything old is thrown away by it.
    pub trust_clock_after: Duration,
}

/// What becomes of events that nobody took in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TooOld {
    /// They become dead letters, for an administrator; they take their room as before.
    #[default]
    Bury,
    /// They are gone, counted as lost.
    Drop,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/mailtap/spool"),
            max_rows: 5_000_000,
            max_bytes: 4 * 1024 * 1024 * 1024,
            reserve_bytes: 64 * 1024 * 1024,
            sync: Sync::Full,
            group_wait: Duration::from_millis(1),
            group_events: 1_000,
            file_mode: 0o600,
            dedupe: Duration::from_secs(96 * 60 * 60),
            max_age: Duration::from_secs(71 * 60 * 60),
            too_old: TooOld::Bury,
            trust_clock_after: TRUST_CLOCK_AFTER,
        }
    }
}

impl Settings {
    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join("spool.db")
    }
}

/// When an event counts as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// When it is on the disk: a power cut loses nothing.
    Full,
    /// When the operating system has it: a killed process loses nothing, a power cut may lose the last moments.
    Normal,
}

/// The number of an event within the spool: in the order of publishing, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub(in crate::queue) i64);

impl Seq {
    /// How many numbers lie between this one and a later one.
    #[must_use]
    pub fn until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0).saturating_sub(1).try_into().unwrap_or(0)
    }
}

/// An event that somebody holds, until the lease ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// What to settle it by.
    pub seq: Seq,
    /// The event.
    pub event: Event,
    /// How often it was claimed, this time included.
    pub attempts: u32,
}

/// What became of a claimed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Sent: forget it, but for its id.
    Done,
    /// Not sent: again, but not before this time.
    Retry {
        /// When.
        not_before: Timestamp,
        /// Why; no personal data, cut to 200 characters.
        reason: String,
    },
    /// Not tried: again, but not before this time, and it doesn't count as an attempt.
    Later {
        /// When.
        not_before: Timestamp,
        /// Why; no personal data, cut to 200 characters.
        reason: String,
    },
    /// It can't be sent: keep it for an administrator.
    Dead {
        /// Why; no personal data, cut to 200 characters.
        reason: String,
    },
    /// It may have arrived, it may not: keep it aside.
    Uncertain,
    /// Not tried: anybody may have it, and it doesn't count as an attempt.
    Released,
}

/// The spool. Clones share one writer thread, which ends with the last of them.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    publishing: Group<Put>,
    writer: Arc<Group<Command>>,
    news: watch::Receiver<u64>,
    settings: Settings,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Spool").field(&self.0.settings.path()).finish()
    }
}

impl Spool {
    /// Opens the spool, and makes it if it isn't there. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        let connection = sqlite::open(&settings.path(), settings.file_mode, schema::MIGRATIONS)?;
        Self::start(settings, clock::shared(), connection, FILE_BYTES)
    }

    fn start(
        settings: Settings,
        clock: Clock,
        connection: rusqlite::Connection,
        file_bytes: u64,
    ) -> Result<Self, StoreError> {
        let path = settings.path();
        let (news, listener) = watch::channel(0);
        let failed = |error: std::io::Error| StoreError::Open { path: path.clone(), why: error.to_string() };
        let weight = settings.group_events;
        let gather = Gather { wait: settings.group_wait, enough: weight, weight };
        let room = Arc::new(Room::new(&settings));
        let writer =
            Writer::new(settings.clone(), Arc::clone(&clock), news.clone(), Arc::clone(&room), connection);
        let writer = Arc::new(Group::start("spool", gather, writer).map_err(failed)?);
        let publishing = Publishing::new(&settings, clock, news, room, Arc::clone(&writer), file_bytes);
        // Without a sync there is nothing to share by waiting.
        let wait = if settings.sync == Sync::Full { settings.group_wait } else { Duration::ZERO };
        let gather = Gather { wait, enough: SYNC_SHARED_BY, weight };
        let publishing = Group::start("publish", gather, publishing).map_err(failed)?;
        Ok(Self(Arc::new(Inner { publishing, writer, news: listener, settings })))
    }

    /// What it was opened with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Changes when this process may have made something claimable; other processes don't tell, so look now and then.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.0.news.clone()
    }

    /// Claims up to `max` events that are due `now`, oldest first. What is no event any more goes to the dead letters.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn claim(
        &self,
        max: usize,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Vec<Claimed>, StoreError> {
        let lease_end = now.plus(lease);
        let rows = self.0.writer.ask(|answer| Command::Claim { max, now, lease_end, answer }).await??;
        let mut claimed = Vec::with_capacity(rows.len());
        let mut malformed = Vec::new();
        for ClaimedRow { seq, attempts, body } in rows {
            match Event::from_json(body.as_bytes()) {
                Ok(event) => claimed.push(Claimed { seq, event, attempts }),
                Err(error) => malformed.push((seq, Outcome::Dead { reason: format!("malformed: {error}") })),
            }
        }
        if !malformed.is_empty() {
            self.settle(malformed).await?;
        }
        Ok(claimed)
    }

    /// Writes down what became of claimed events, all in one transaction.
    ///
    /// # Errors
    /// `StoreError`: then nothing was written, and the leases go on.
    pub async fn settle(&self, outcomes: Vec<(Seq, Outcome)>) -> Result<(), StoreError> {
        self.0.writer.ask(|answer| Command::Settle { outcomes, answer }).await?
    }

    /// Settles events as sent.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn done(&self, seqs: &[Seq]) -> Result<(), StoreError> {
        self.settle(seqs.iter().map(|seq| (*seq, Outcome::Done)).collect()).await
    }

    /// Holds events for longer.
    ///
    /// # Errors
    /// `StoreError`.
    pub async fn extend(&self, seqs: Vec<Seq>, lease_end: Timestamp) -> Result<(), StoreError> {
        self.0.writer.ask(|answer| Command::Extend { seqs, lease_end, answer }).await?
    }

    /// Settles events without waiting for it: for a drop.
    pub(in crate::queue) fn settle_later(&self, outcomes: Vec<(Seq, Outcome)>) {
        let (answer, _) = oneshot::channel();
        // A writer that has ended leaves the events to their leases.
        self.0.writer.tell(Command::Settle { outcomes, answer });
    }
}

impl Publish for Spool {
    fn publish(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        Box::pin(self.0.publish(events.iter().map(NewRow::from).collect(), false))
    }

    fn offer(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        Box::pin(self.0.publish(events.iter().map(NewRow::from).collect(), true))
    }
}

impl Hold for Spool {
    fn publish_all<'a>(
        &'a self,
        publications: &'a [Publication],
        stored: OnStored,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + 'a>> {
        let rows: Vec<_> = publications.iter().map(NewRow::from).collect();
        Box::pin(async move {
            if rows.is_empty() {
                stored.call();
                return Ok(());
            }
            let asked = self.0.publishing.ask(|answer| Put::Events {
                rows,
                offered: false,
                stored: Some(stored),
                answer,
            });
            asked.await.map_err(|_| PublishError::Closed)?
        })
    }

    fn amend<'a>(
        &'a self,
        amendments: &'a [Amendment],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<bool>, PublishError>> + Send + 'a>> {
        let amendments = amendments.to_vec();
        Box::pin(async move {
            let ask = self.0.writer.ask(|answer| Command::Amend { amendments, answer });
            ask.await.map_err(|_| PublishError::Closed)?
        })
    }
}

impl Inner {
    async fn publish(&self, rows: Vec<NewRow>, offered: bool) -> Result<(), PublishError> {
        if rows.is_empty() {
            return Ok(());
        }
        let ids = if offered { rows.iter().map(|row| row.id).collect() } else { Vec::new() };
        let mut offer = Offer { publishing: &self.publishing, ids: Vec::new() };
        let asked = self.publishing.ask(|answer| {
            offer.ids = ids;
            Put::Events { rows, offered, stored: None, answer }
        });
        asked.await.map_err(|_| PublishError::Closed)??;
        offer.ids.clear();
        Ok(())
    }
}

/// Events that are offered: revoked, unless they were stored while somebody waited for it.
struct Offer<'a> {
    publishing: &'a Group<Put>,
    ids: Vec<EventId>,
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.publishing.tell(Put::Revoke(std::mem::take(&mut self.ids)));
        }
    }
}

#[cfg(test)]
mod age_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod person_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
