//! The thread that owns the spool's file: it gathers what is asked for and commits it together.
//!
//! - Layer: edge
//! - Takes: commands over a channel, each with the place for its answer.
//! - Gives: the answers, after the commit.
//! - On failure: every command of the transaction gets the error, nothing of it is kept, and the next one starts afresh;
//!   a connection that broke is opened again.
//! - Limits: `group_wait` and `group_events` bound a transaction.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use super::checkpoint::Checkpoints;
use super::first;
use super::inbox::{self, Places, SWEEP_ROWS};
use super::refusals::Refusals;
use super::schema::MIGRATIONS;
use super::store::{self, ClaimedRow, NewRow, Room};
use super::{Outcome, Seq, Settings, Sync, TooOld};
use crate::event::{Event, EventId};
use crate::identity::Timestamp;
use crate::queue::PublishError;
use crate::queue::group::Work;
use crate::queue::happenings::{Filled, TakenBack, WaitedTooLong};
use crate::queue::seen::{self, Days};
use crate::queue::sqlite::{self, StoreError};

/// How many free pages go back to the file system in one step.
const VACUUM_PAGES: i64 = 500;
/// How often old events and ids go.
const CHORES_EVERY: Duration = Duration::from_secs(60);
/// The inbox waits for a moment in which nothing was done for so long, …
const QUIET: Duration = Duration::from_millis(250);
/// … but neither with events that are so old, …
const INBOX_AGE: Duration = Duration::from_secs(60);
/// … nor with as many events.
const INBOX_ROWS: u64 = 300_000;
/// What a row that is moved writes, roughly.
const SWEPT_BYTES: u64 = 1_000;
/// How old may be what is known of the disk's room: less than it takes to write the reserve full.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where the time comes from.
pub(super) type Clock = Arc<dyn Fn() -> Timestamp + Send + std::marker::Sync>;

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Command {
    Publish {
        rows: Vec<NewRow>,
        /// Whether the rows go again if nobody waits for the answer any more.
        offered: bool,
        answer: oneshot::Sender<Result<(), PublishError>>,
    },
    Amend {
        events: Vec<Event>,
        answer: oneshot::Sender<Result<Vec<bool>, PublishError>>,
    },
    Claim {
        max: usize,
        now: Timestamp,
        lease_end: Timestamp,
        answer: oneshot::Sender<Answer<Vec<ClaimedRow>>>,
    },
    Settle {
        outcomes: Vec<(Seq, Outcome)>,
        answer: oneshot::Sender<Answer<()>>,
    },
    Extend {
        seqs: Vec<Seq>,
        lease_end: Timestamp,
        answer: oneshot::Sender<Answer<()>>,
    },
}

/// What the thread answers.
pub(super) type Answer<T> = Result<T, StoreError>;

impl Command {
    /// Whether the answer promises that a power cut can't undo it.
    fn must_last(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::Amend { .. } => true,
            Self::Claim { .. } | Self::Extend { .. } => false,
            Self::Settle { outcomes, .. } => outcomes
                .iter()
                .any(|(_, outcome)| matches!(outcome, Outcome::Dead { .. } | Outcome::Uncertain)),
        }
    }

    /// How much it writes, roughly.
    fn bytes(&self) -> u64 {
        match self {
            Self::Publish { rows, .. } => rows.iter().map(|row| row.body.len() as u64).sum(),
            _ => 0,
        }
    }

    /// Whether something may be claimable after it. A claim makes none, or whoever waits would wake itself.
    fn makes_news(&self) -> bool {
        match self {
            Self::Publish { rows, .. } => rows.iter().any(|row| row.held_until.is_none()),
            Self::Amend { .. } | Self::Claim { .. } | Self::Extend { .. } => false,
            Self::Settle { outcomes, .. } => outcomes
                .iter()
                .any(|(_, outcome)| matches!(outcome, Outcome::Retry { .. } | Outcome::Released)),
        }
    }

    fn refuse(self, error: &StoreError) {
        // Whoever asked may have gone; then nobody needs the answer.
        match self {
            Self::Publish { answer, .. } => drop(answer.send(Err(PublishError::Storage(error.to_string())))),
            Self::Amend { answer, .. } => drop(answer.send(Err(PublishError::Storage(error.to_string())))),
            Self::Claim { answer, .. } => drop(answer.send(Err(error.clone()))),
            Self::Settle { answer, .. } | Self::Extend { answer, .. } => {
                drop(answer.send(Err(error.clone())))
            }
        }
    }
}

/// The thread's own things.
pub(super) struct Writer {
    settings: Arc<Settings>,
    clock: Clock,
    news: watch::Sender<u64>,
    connection: Option<Connection>,
    /// Whether the connection syncs each commit.
    lasting: bool,
    refusals: Refusals,
    unwanted: Vec<Offered>,
    places: Places,
    checkpoints: Checkpoints,
    disk: Disk,
    /// Whether there may be something in the inbox.
    fresh: bool,
    worked: Option<Instant>,
    /// When the chores were done.
    rested: Option<Timestamp>,
}

/// What became of a command's events.
#[derive(Debug, Default)]
struct Published {
    refused: Option<(usize, PublishError)>,
    /// The rows that were added, where they may have to go again.
    offered: Vec<Offered>,
}

/// A row that was offered: its number in the inbox, and its id.
type Offered = (i64, EventId);

impl Published {
    fn refused(rows: usize, error: PublishError) -> Self {
        Self { refused: Some((rows, error)), offered: Vec::new() }
    }
}

/// What one command came to, held back until the commit.
enum Reply {
    Published(Published),
    Amended(Vec<bool>),
    Claimed(Vec<ClaimedRow>),
    Done,
}

impl Work for Writer {
    type Command = Command;

    const CARE_EVERY: Duration = Duration::from_secs(1);

    fn weight(command: &Command) -> usize {
        match command {
            Command::Publish { rows, .. } => rows.len(),
            Command::Amend { events, .. } => events.len(),
            Command::Claim { max, .. } => *max,
            Command::Settle { outcomes, .. } => outcomes.len(),
            Command::Extend { seqs, .. } => seqs.len(),
        }
    }

    fn work(&mut self, commands: Vec<Command>) {
        match self.transact(&commands) {
            Ok(replies) => {
                if commands.iter().any(Command::makes_news) {
                    self.news.send_modify(|count| *count = count.wrapping_add(1));
                }
                self.fresh |= commands.iter().any(|command| matches!(command, Command::Publish { .. }));
                self.checkpoints.wrote(commands.iter().map(Command::bytes).sum());
                self.count(&replies);
                for (command, reply) in commands.into_iter().zip(replies) {
                    self.unwanted.extend(answer(command, reply));
                }
            }
            Err(error) => {
                let refused = PublishError::Storage(error.to_string());
                let now = (self.clock)();
                for command in commands {
                    if let Command::Publish { rows, .. } = &command {
                        self.refusals.refused(rows.len(), &refused, now);
                    }
                    command.refuse(&error);
                }
            }
        }
        // What can't be done now is tried again.
        let _ = self.take_back();
        let _ = self.checkpoint();
        self.worked = Some(Instant::now());
    }

    fn care(&mut self) -> bool {
        // What fails now is tried again in a while; publishing will say what is wrong.
        let fresh = self.sweep().unwrap_or(false);
        let now = (self.clock)();
        if self.rested.is_some_and(|rested| now >= rested && now.since(rested) < CHORES_EVERY) {
            return fresh;
        }
        let expired = self.expire().unwrap_or(false);
        let tidy = self.tidy().unwrap_or(false);
        let _ = self.take_back();
        let _ = self.look();
        self.rested = (!tidy && !expired).then_some(now);
        tidy || expired || fresh
    }
}

impl Writer {
    /// For a connection as `sqlite::open` gives it.
    pub(super) fn new(
        settings: Settings,
        clock: Clock,
        news: watch::Sender<u64>,
        connection: Connection,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            clock,
            news,
            connection: Some(connection),
            lasting: true,
            refusals: Refusals::default(),
            unwanted: Vec::new(),
            places: Places::default(),
            checkpoints: Checkpoints::default(),
            disk: Disk::default(),
            fresh: true,
            worked: None,
            rested: None,
        }
    }

    fn transact(&mut self, commands: &[Command]) -> Result<Vec<Reply>, StoreError> {
        let lasting = self.settings.sync == Sync::Full && commands.iter().any(Command::must_last);
        let settings = Arc::clone(&self.settings);
        let disk = self.disk.look(&settings.directory);
        let now = (self.clock)();
        let days = Days::new(now, settings.dedupe);
        // What is rolled back leaves places behind in which nothing stands: the id is compared.
        let mut places = std::mem::take(&mut self.places);
        let done = self.with_connection(lasting, |connection| {
            let reserved = reserve_is_touched(connection, disk, settings.reserve_bytes)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut room = Room::look(&transaction, settings.max_rows, settings.max_bytes)?;
            let mut replies = Vec::with_capacity(commands.len());
            for command in commands {
                if let Command::Publish { answer, .. } = command
                    && answer.is_closed()
                {
                    // Who gave up waiting has done without: stored now, the event would tell of what did not happen.
                    replies.push(Reply::Published(Published::default()));
                    continue;
                }
                if let (Command::Publish { rows, .. }, Some(refused)) = (command, &reserved) {
                    replies.push(Reply::Published(Published::refused(rows.len(), refused.clone())));
                    continue;
                }
                replies.push(apply(&transaction, command, (&mut room, &mut places), now, days)?);
            }
            transaction.commit()?;
            Ok(replies)
        });
        self.places = places;
        done
    }

    fn count(&mut self, replies: &[Reply]) {
        let now = (self.clock)();
        for reply in replies {
            match reply {
                Reply::Published(Published { refused: Some((events, error)), .. }) => {
                    self.refusals.refused(*events, error, now);
                }
                Reply::Published(_) => self.refusals.taken(now),
                _ => {}
            }
        }
    }

    /// Moves a part of the inbox on, in a quiet moment; `true` if there may be more.
    fn sweep(&mut self) -> Result<bool, StoreError> {
        if !self.fresh {
            return Ok(false);
        }
        let now = (self.clock)();
        let (days, before) = (Days::new(now, self.settings.dedupe), now.minus(INBOX_AGE));
        let busy = self.worked.is_some_and(|worked| worked.elapsed() < QUIET);
        let mut moved = 0;
        let more = self.with_connection(false, |connection| {
            if busy && inbox::level(connection)?.rows < INBOX_ROWS && !inbox::is_older(connection, before)? {
                return Ok(true);
            }
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            moved = inbox::sweep(&transaction, SWEEP_ROWS, days)?;
            transaction.commit()?;
            Ok(moved == SWEEP_ROWS)
        })?;
        self.fresh = more;
        self.checkpoints.wrote(moved as u64 * SWEPT_BYTES);
        self.checkpoint()?;
        Ok(more)
    }

    /// Takes out what was stored too late for who offered it.
    fn take_back(&mut self) -> Result<(), StoreError> {
        if self.unwanted.is_empty() {
            return Ok(());
        }
        let unwanted = std::mem::take(&mut self.unwanted);
        let days = Days::new((self.clock)(), self.settings.dedupe);
        let gone = self.with_connection(false, |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut events = 0;
            for (number, id) in &unwanted {
                let gone = inbox::take_back(&transaction, *number, *id)?
                    || store::take_back(&transaction, *id, days)?;
                events += usize::from(gone);
            }
            transaction.commit()?;
            Ok(events)
        });
        match gone {
            Ok(events) => TakenBack { events }.emit(),
            Err(error) => {
                self.unwanted = unwanted;
                return Err(error);
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        if !self.checkpoints.is_due() {
            return Ok(());
        }
        let settings = Arc::clone(&self.settings);
        let mut checkpoints = std::mem::take(&mut self.checkpoints);
        let done =
            self.with_connection(false, |connection| checkpoints.go_on(connection, || settings.path()));
        self.checkpoints = checkpoints;
        done
    }

    /// Says how full the spool is.
    fn look(&mut self) -> Result<(), StoreError> {
        let now = (self.clock)();
        self.with_connection(false, |connection| {
            let (rows, bytes) = store::tally(connection, inbox::level(connection)?)?;
            let (not_due, first) = store::waiting(connection, now)?;
            let lag = first.map_or(Duration::ZERO, |first| now.since(first));
            Filled { rows, bytes, not_due, lag }.emit();
            Ok(())
        })
    }

    /// Takes out what waited too long, a little at a time; `true` if there may be more.
    fn expire(&mut self) -> Result<bool, StoreError> {
        let now = (self.clock)();
        let (cutoff, too_old) = (now.minus(self.settings.max_age), self.settings.too_old);
        let events =
            self.with_connection(false, |connection| store::expire(connection, cutoff, now, too_old))?;
        if events > 0 {
            WaitedTooLong { events, lost: too_old == TooOld::Drop }.emit();
        }
        Ok(events == store::EXPIRE_ROWS)
    }

    /// Prunes old ids and gives free pages back, a little at a time; `true` if there may be more to do.
    fn tidy(&mut self) -> Result<bool, StoreError> {
        let now = (self.clock)();
        let days = Days::new(now, self.settings.dedupe);
        self.with_connection(false, |connection| {
            let more = seen::prune(connection, days)? | first::prune(connection, now)?;
            let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
            // Some free pages stay, for the next burst.
            if free > 4 * VACUUM_PAGES {
                connection.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
            }
            Ok(more || free > 4 * VACUUM_PAGES)
        })
    }

    fn with_connection<T>(
        &mut self,
        lasting: bool,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                self.lasting = true;
                sqlite::open(&self.settings.path(), self.settings.file_mode, MIGRATIONS)?
            }
        };
        if self.lasting != lasting {
            connection.pragma_update(None, "synchronous", if lasting { "FULL" } else { "NORMAL" })?;
            self.lasting = lasting;
        }
        let result = work(&mut connection);
        if result.as_ref().is_err_and(sqlite::is_full) {
            // What the log holds may fit into the database, and the log's own pages can then be used again.
            let _ = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
        }
        if !result.as_ref().is_err_and(sqlite::is_broken) {
            self.connection = Some(connection);
        }
        Ok(result?)
    }
}

/// How much room the disk has.
#[derive(Debug, Default)]
struct Disk {
    looked: Option<Instant>,
    free: Option<u64>,
}

impl Disk {
    /// As of a moment ago. `None` for a disk that can't be asked.
    fn look(&mut self, directory: &Path) -> Option<u64> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            self.looked = Some(Instant::now());
            let disk = nix::sys::statvfs::statvfs(directory).ok();
            self.free = disk.map(|disk| disk.blocks_available().saturating_mul(disk.fragment_size()));
        }
        self.free
    }
}

/// Why nothing may be added: the rest of the disk is for getting rid of what is there. Free pages of the file count as
/// free; a disk that can't be asked passes.
fn reserve_is_touched(
    connection: &Connection,
    disk_free: Option<u64>,
    reserve_bytes: u64,
) -> rusqlite::Result<Option<PublishError>> {
    let Some(disk_free) = disk_free.filter(|free| *free < reserve_bytes) else { return Ok(None) };
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = (pragma("freelist_count")? * pragma("page_size")?).unsigned_abs();
    let free = disk_free.saturating_add(pages);
    Ok((free < reserve_bytes).then(|| PublishError::Storage(format!("the disk has only {free} bytes left"))))
}

fn apply(
    connection: &Connection,
    command: &Command,
    (room, places): (&mut Room, &mut Places),
    now: Timestamp,
    days: Days,
) -> rusqlite::Result<Reply> {
    match command {
        Command::Publish { rows, offered, .. } => {
            let mut published = Published::default();
            let mut append = inbox::Append::new(connection)?;
            for (done, row) in rows.iter().enumerate() {
                match store::publish(&mut append, row, room, now, days)? {
                    Some(number) if *offered => published.offered.push((number, row.id)),
                    Some(number) if row.held_until.is_some() => places.add(row.id, number),
                    Some(_) => {}
                    None => {
                        published.refused = Some((rows.len() - done, PublishError::Full));
                        break;
                    }
                }
            }
            Ok(Reply::Published(published))
        }
        Command::Amend { events, .. } => {
            let amended = events.iter().map(|event| store::amend(connection, event, places, now, days));
            amended.collect::<rusqlite::Result<_>>().map(Reply::Amended)
        }
        Command::Claim { max, now, lease_end, .. } => {
            inbox::sweep(connection, SWEEP_ROWS.max(*max), days)?;
            store::claim(connection, *max, *now, *lease_end).map(Reply::Claimed)
        }
        Command::Settle { outcomes, .. } => {
            for (seq, outcome) in outcomes {
                store::settle(connection, *seq, outcome, now)?;
            }
            Ok(Reply::Done)
        }
        Command::Extend { seqs, lease_end, .. } => {
            for seq in seqs {
                store::extend(connection, *seq, *lease_end)?;
            }
            Ok(Reply::Done)
        }
    }
}

/// Answers; gives the rows back that nobody waits for any more.
fn answer(command: Command, reply: Reply) -> Vec<Offered> {
    match (command, reply) {
        (Command::Publish { answer, .. }, Reply::Published(published)) => {
            let result = published.refused.map_or(Ok(()), |(_, error)| Err(error));
            if answer.send(result).is_err() {
                return published.offered;
            }
        }
        (Command::Amend { answer, .. }, Reply::Amended(amended)) => drop(answer.send(Ok(amended))),
        (Command::Claim { answer, .. }, Reply::Claimed(rows)) => drop(answer.send(Ok(rows))),
        (Command::Settle { answer, .. } | Command::Extend { answer, .. }, _) => drop(answer.send(Ok(()))),
        // Not possible: `apply` answers each command in kind.
        (command, _) => command.refuse(&StoreError::Closed),
    }
    Vec::new()
}
