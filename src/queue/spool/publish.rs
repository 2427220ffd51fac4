//! The thread that events come in by: it gathers what is published, appends it, and answers when it is safe.
//!
//! - Layer: edge
//! - Takes: events, each with the place for its answer.
//! - Gives: records in an inbox file of this process; the answers, after the sync if one was promised.
//! - On failure: whoever published gets the error; what stands in the file all the same may be sent: publishing again is safe.
//! - Limits: `group_wait` and `group_events` bound a group.
//! - See: `docs/decisions/0015-inbox-files.md`.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::inbox::append::Appender;
use super::inbox::record::{self, Found, Record};
use super::refusals::Refusals;
use super::room::{Level, Room};
use super::store::NewRow;
use super::writer::{Clock, Command};
use super::{Settings, Sync};
use crate::event::EventId;
use crate::identity::Timestamp;
use crate::queue::group::{Group, Work};
use crate::queue::happenings::TakenBack;
use crate::queue::{OnStored, PublishError};

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Put {
    /// Events are to be stored.
    Events {
        rows: Vec<NewRow>,
        /// Whether they are revoked if nobody waits for the answer any more.
        offered: bool,
        stored: Option<OnStored>,
        answer: oneshot::Sender<Result<(), PublishError>>,
    },
    /// Whoever offered these gave up: they did not happen.
    Revoke(Vec<EventId>),
}

/// The thread's own things.
pub(super) struct Publishing {
    clock: Clock,
    sync: Sync,
    news: watch::Sender<u64>,
    room: Arc<Room>,
    /// The thread that moves events on.
    writer: Arc<Group<Command>>,
    appender: Appender,
    refusals: Refusals,
    /// Offered, and given up before they were looked at, or refused: there is nothing to revoke.
    skipped: HashSet<EventId>,
    /// Revocations that are not written yet.
    revoked: Vec<EventId>,
    /// What is to be written, …
    records: Vec<u8>,
    /// … and the events among it.
    level: Level,
}

/// What became of one command's events.
struct Taken {
    level: Level,
    /// How many were refused, and why.
    refused: Option<(usize, PublishError)>,
    stored: Option<OnStored>,
    answer: oneshot::Sender<Result<(), PublishError>>,
}

impl Work for Publishing {
    type Command = Put;

    fn weight(put: &Put) -> usize {
        match put {
            Put::Events { rows, .. } => rows.len(),
            Put::Revoke(ids) => ids.len(),
        }
    }

    fn work(&mut self, puts: Vec<Put>) {
        let now = (self.clock)();
        let reserved = self.room.refuses_all();
        let (mut taken, mut news) = (Vec::with_capacity(puts.len()), false);
        for put in puts {
            match put {
                // Who gave up waiting has done without: stored now, the event would tell of what did not happen.
                Put::Events { rows, offered, answer, .. } if answer.is_closed() => {
                    self.skipped.extend(rows.iter().filter(|_| offered).map(|row| row.id));
                }
                Put::Events { rows, offered, stored, answer } => {
                    news |= rows.iter().any(|row| row.held_until.is_none());
                    let those = self.take(&rows, reserved.as_ref(), now, (stored, answer));
                    if offered && those.refused.is_some() && those.level.rows == 0 {
                        self.skipped.extend(rows.iter().map(|row| row.id));
                    }
                    taken.push(those);
                }
                Put::Revoke(ids) => {
                    let stored = ids.into_iter().filter(|id| !self.skipped.remove(id));
                    self.revoked.extend(stored);
                }
            }
        }
        self.revoke();
        let failed = self.write().err().map(|error| PublishError::Storage(error.to_string()));
        if failed.is_none() && news {
            self.news.send_modify(|count| *count = count.wrapping_add(1));
        }
        for Taken { level, refused, stored, answer } in taken {
            let failed =
                failed.as_ref().filter(|_| level.rows > 0).map(|error| (level.rows as usize, error.clone()));
            let refused = refused.or(failed);
            match &refused {
                Some((events, error)) => self.refusals.refused(*events, error, now),
                None => {
                    self.refusals.taken(now);
                    stored.iter().for_each(OnStored::call);
                }
            }
            // Whoever asked may have gone; then nobody needs the answer.
            let _ = answer.send(refused.map_or(Ok(()), |(_, error)| Err(error)));
        }
        self.appender.rotate();
    }

    fn care(&mut self) -> bool {
        self.revoke();
        // What fails now is tried again in a while.
        let _ = self.write();
        false
    }
}

impl Publishing {
    pub(super) fn new(
        settings: &Settings,
        clock: Clock,
        news: watch::Sender<u64>,
        room: Arc<Room>,
        writer: Arc<Group<Command>>,
        file_bytes: u64,
    ) -> Self {
        let appender = Appender::new(settings.directory.clone(), settings.file_mode, file_bytes);
        let (sync, refusals) = (settings.sync, Refusals::default());
        Self {
            clock,
            sync,
            news,
            room,
            writer,
            appender,
            refusals,
            skipped: HashSet::new(),
            revoked: Vec::new(),
            records: Vec::new(),
            level: Level::default(),
        }
    }

    /// Takes those rows of a command for which there is room, in order.
    fn take(
        &mut self,
        rows: &[NewRow],
        reserved: Option<&PublishError>,
        now: Timestamp,
        (stored, answer): (Option<OnStored>, oneshot::Sender<Result<(), PublishError>>),
    ) -> Taken {
        let mut taken = Taken { level: Level::default(), refused: None, stored, answer };
        if let Some(error) = reserved {
            taken.refused = Some((rows.len(), error.clone()));
            return taken;
        }
        let mut known: Option<Vec<bool>> = None;
        for (done, row) in rows.iter().enumerate() {
            let bytes = row.body.len() as u64;
            let mut fits = self.room.take(bytes);
            if !fits {
                // Now it matters what is known already: that needs no room.
                let known = known.get_or_insert_with(|| self.known(rows));
                if known.get(done) == Some(&true) {
                    continue;
                }
                fits = self.room.take(bytes);
            }
            let one = Level { rows: 1, bytes };
            if fits && record::put_event(&mut self.records, &row.incoming(now)) {
                taken.level = taken.level.plus(one);
                self.level = self.level.plus(one);
                continue;
            }
            let error = if fits {
                self.room.give_back(one);
                PublishError::Storage("an event is longer than a record may be".into())
            } else {
                PublishError::Full
            };
            taken.refused = Some((rows.len() - done, error));
            break;
        }
        taken
    }

    /// Has the inbox moved on, and what is there counted; says which of these are known.
    fn known(&self, rows: &[NewRow]) -> Vec<bool> {
        let ids = rows.iter().map(|row| row.id).collect();
        let (answer, answered) = oneshot::channel();
        self.writer.tell(Command::MakeRoom { ids, answer });
        // Where the store can't be asked nothing is known, and what does not fit is refused.
        answered.blocking_recv().ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Adds the revocations to what is to be written.
    fn revoke(&mut self) {
        self.revoked.iter().for_each(|id| record::put_revoked(&mut self.records, *id));
    }

    /// Writes what there is.
    fn write(&mut self) -> io::Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let mut records = std::mem::take(&mut self.records);
        let (appended, mut result) = self.appender.append(&records);
        let all = std::mem::take(&mut self.level);
        let there =
            if result.is_ok() { all } else { level(records.get(..appended.bytes).unwrap_or_default()) };
        if let Some(name) = &appended.name {
            self.room.wrote(name, there);
        }
        self.room.give_back(all.minus(there));
        if result.is_ok() && self.sync == Sync::Full {
            result = self.appender.sync();
        }
        if result.is_ok() && !self.revoked.is_empty() {
            TakenBack { events: self.revoked.len() }.emit();
            self.revoked.clear();
        }
        records.clear();
        records.shrink_to(record::MAX_BYTES);
        self.records = records;
        result
    }
}

/// The events among whole records.
fn level(mut records: &[u8]) -> Level {
    let mut level = Level::default();
    while let Found::Record(record, length) = record::read(records) {
        if let Record::Event(incoming) = record {
            level = level.plus(Level { rows: 1, bytes: incoming.body.len() as u64 });
        }
        records = records.get(length..).unwrap_or_default();
    }
    level
}
