//! The thread that owns the spool's database: it gathers what is asked for and commits it together.
//!
//! - Layer: edge
//! - Takes: commands over a channel, each with the place for its answer.
//! - Gives: the answers, after the commit.
//! - On failure: every command of the transaction gets the error, nothing of it is kept, and the next one starts afresh;
//!   a connection that broke is opened again.
//! - Limits: `group_wait` and `group_events` bound a transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use super::checkpoint::Checkpoints;
use super::first;
use super::inbox::{self, Inbox, SWEEP_ROWS};
use super::room::Room;
use super::schema::MIGRATIONS;
use super::store::{self, ClaimedRow};
use super::{Outcome, Seq, Settings, Sync, TooOld};
use crate::event::EventId;
use crate::identity::Timestamp;
use crate::queue::group::Work;
use crate::queue::happenings::{Filled, WaitedTooLong};
use crate::queue::seen::{self, Days};
use crate::queue::sqlite::{self, StoreError};
use crate::queue::{Amendment, PublishError};
use crate::service::clock::Steady;

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
/// How many are moved on in one step where somebody waits for what is in it.
const LONG_SWEEP_ROWS: usize = 20_000;

/// Where the time comes from.
pub(super) type Clock = Arc<dyn Fn() -> Timestamp + Send + std::marker::Sync>;

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Command {
    /// The room is to be known exactly, and which of these events were published before.
    MakeRoom {
        ids: Vec<EventId>,
        answer: oneshot::Sender<Answer<Vec<bool>>>,
    },
    Amend {
        amendments: Vec<Amendment>,
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
            Self::Amend { .. } => true,
            Self::MakeRoom { .. } | Self::Claim { .. } | Self::Extend { .. } => false,
            Self::Settle { outcomes, .. } => outcomes
                .iter()
                .any(|(_, outcome)| matches!(outcome, Outcome::Dead { .. } | Outcome::Uncertain)),
        }
    }

    /// Whether something may be claimable after it. A claim makes none, or whoever waits would wake itself.
    fn makes_news(&self) -> bool {
        match self {
            Self::MakeRoom { .. } | Self::Amend { .. } | Self::Claim { .. } | Self::Extend { .. } => false,
            Self::Settle { outcomes, .. } => outcomes
                .iter()
                .any(|(_, outcome)| matches!(outcome, Outcome::Retry { .. } | Outcome::Released)),
        }
    }

    fn refuse(self, error: &StoreError) {
        // Whoever asked may have gone; then nobody needs the answer.
        match self {
            Self::MakeRoom { answer, .. } => drop(answer.send(Err(error.clone()))),
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
    room: Arc<Room>,
    connection: Option<Connection>,
    /// Whether the connection syncs each commit.
    lasting: bool,
    inbox: Inbox,
    /// Since when there has been something in the inbox.
    waiting: Option<Instant>,
    checkpoints: Checkpoints,
    worked: Option<Instant>,
    /// When the chores were done.
    rested: Option<Timestamp>,
    steady: Steady,
}

/// What one command came to, held back until the commit.
enum Reply {
    Known(Vec<bool>),
    Amended(Vec<bool>),
    Claimed(Vec<ClaimedRow>),
    Done,
}

impl Work for Writer {
    type Command = Command;

    const CARE_EVERY: Duration = Duration::from_secs(1);

    fn weight(command: &Command) -> usize {
        match command {
            Command::MakeRoom { ids, .. } => ids.len(),
            Command::Amend { amendments, .. } => amendments.len(),
            Command::Claim { max, .. } => *max,
            Command::Settle { outcomes, .. } => outcomes.len(),
            Command::Extend { seqs, .. } => seqs.len(),
        }
    }

    fn work(&mut self, commands: Vec<Command>) {
        if commands.iter().any(|command| matches!(command, Command::Amend { .. })) {
            // What can't be moved on now can't be amended either, and says so.
            let _ = self.sweep_all();
        }
        match self.transact(&commands) {
            Ok(replies) => {
                if commands.iter().any(Command::makes_news) {
                    self.news.send_modify(|count| *count = count.wrapping_add(1));
                }
                for (command, reply) in commands.into_iter().zip(replies) {
                    answer(command, reply);
                }
            }
            Err(error) => commands.into_iter().for_each(|command| command.refuse(&error)),
        }
        // What can't be done now is tried again.
        let _ = self.checkpoint();
        self.worked = Some(Instant::now());
    }

    fn care(&mut self) -> bool {
        // What fails now is tried again in a while; publishing will say what is wrong.
        let fresh = self.care_for_inbox().unwrap_or(false);
        let now = (self.clock)();
        if self.rested.is_some_and(|rested| now >= rested && now.since(rested) < CHORES_EVERY) {
            return fresh;
        }
        // What a clock that is wrong for a while makes look old is not thrown away.
        let trusted = self.steady.holds(now, Instant::now());
        let expired = trusted && self.expire().unwrap_or(false);
        let tidy = self.tidy(trusted).unwrap_or(false);
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
        room: Arc<Room>,
        connection: Connection,
    ) -> Self {
        let inbox = Inbox::new(settings.directory.clone());
        let steady = Steady::new(settings.trust_clock_after, clock());
        let mut writer = Self {
            settings: Arc::new(settings),
            clock,
            news,
            room,
            connection: Some(connection),
            lasting: true,
            inbox,
            waiting: None,
            checkpoints: Checkpoints::default(),
            worked: None,
            rested: None,
            steady,
        };
        // What fails now is tried again in a while; until then the spool counts as empty.
        let _ = writer.look_at_room();
        writer
    }

    fn transact(&mut self, commands: &[Command]) -> Result<Vec<Reply>, StoreError> {
        let lasting = self.settings.sync == Sync::Full && commands.iter().any(Command::must_last);
        let now = (self.clock)();
        let room = Arc::clone(&self.room);
        let mut finished = Vec::new();
        let replies = self.with_connection(lasting, |connection, inbox| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let days = Days::of(&transaction, now)?;
            let mut replies = Vec::with_capacity(commands.len());
            for command in commands {
                let sweep = match command {
                    Command::Claim { max, .. } => SWEEP_ROWS.max(*max),
                    Command::MakeRoom { .. } => LONG_SWEEP_ROWS,
                    _ => 0,
                };
                if sweep > 0 {
                    finished.extend(inbox.sweep(&transaction, sweep, &days)?.finished);
                }
                if matches!(command, Command::MakeRoom { .. }) {
                    room.look(&transaction, inbox)?;
                }
                replies.push(apply(&transaction, command, now, &days)?);
            }
            transaction.commit()?;
            Ok(replies)
        })?;
        let _ = self.remove(finished);
        Ok(replies)
    }

    /// Moves a part of the inbox on; `true` if there may be more.
    fn sweep(&mut self, records: usize) -> Result<bool, StoreError> {
        let now = (self.clock)();
        let swept = self.with_connection(false, |connection, inbox| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let swept = inbox.sweep(&transaction, records, &Days::of(&transaction, now)?)?;
            transaction.commit()?;
            Ok(swept)
        })?;
        self.checkpoints.wrote(swept.records as u64 * SWEPT_BYTES);
        self.remove(swept.finished)?;
        self.checkpoint()?;
        Ok(swept.records >= records)
    }

    fn sweep_all(&mut self) -> Result<(), StoreError> {
        while self.sweep(LONG_SWEEP_ROWS)? {}
        Ok(())
    }

    /// Moves a part of the inbox on, in a quiet moment; `true` if there may be more.
    fn care_for_inbox(&mut self) -> Result<bool, StoreError> {
        self.look_at_room()?;
        if self.room.level().rows == 0 {
            self.waiting = None;
        }
        let waiting = self.waiting.get_or_insert_with(Instant::now).elapsed();
        let is_busy = [self.room.rests(), self.worked.map(|worked| worked.elapsed())]
            .into_iter()
            .flatten()
            .any(|rests| rests < QUIET);
        if is_busy && self.room.waiting().rows < INBOX_ROWS && waiting < INBOX_AGE {
            return Ok(true);
        }
        // Ids are hashes: the more of them go at once, the fewer pages each one changes alone.
        let is_long = self.room.waiting().rows > LONG_SWEEP_ROWS as u64;
        let more = self.sweep(if is_long { LONG_SWEEP_ROWS } else { SWEEP_ROWS })?;
        self.look_at_room()?;
        if !more {
            self.waiting = None;
        }
        Ok(more)
    }

    fn look_at_room(&mut self) -> Result<(), StoreError> {
        let room = Arc::clone(&self.room);
        self.with_connection(false, |connection, inbox| {
            let transaction = connection.transaction()?;
            room.look(&transaction, inbox)
        })
    }

    /// Removes files of the inbox that were moved on: what was moved on must be there to stay before.
    fn remove(&mut self, finished: Vec<String>) -> Result<(), StoreError> {
        if finished.is_empty() {
            return Ok(());
        }
        self.with_connection(true, |connection, _| inbox::settle(connection, &finished))?;
        self.with_connection(false, |connection, inbox| inbox.remove(connection, &finished))
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        if !self.checkpoints.is_due() {
            return Ok(());
        }
        let settings = Arc::clone(&self.settings);
        let mut checkpoints = std::mem::take(&mut self.checkpoints);
        let done =
            self.with_connection(false, |connection, _| checkpoints.go_on(connection, || settings.path()));
        self.checkpoints = checkpoints;
        done
    }

    /// Says how full the spool is.
    fn look(&mut self) -> Result<(), StoreError> {
        let now = (self.clock)();
        let level = self.room.level();
        let (rows, bytes) = (level.rows, level.all_bytes());
        self.with_connection(false, |connection, _| {
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
            self.with_connection(false, |connection, _| store::expire(connection, cutoff, now, too_old))?;
        if events > 0 {
            WaitedTooLong { events, lost: too_old == TooOld::Drop }.emit();
        }
        Ok(events == store::EXPIRE_ROWS)
    }

    /// Prunes old ids and gives free pages back, a little at a time; `true` if there may be more to do.
    fn tidy(&mut self, may_forget: bool) -> Result<bool, StoreError> {
        let (now, window) = ((self.clock)(), self.settings.dedupe);
        self.with_connection(false, |connection, _| {
            store::bring_nearer(connection, now)?;
            let more = may_forget && (seen::prune(connection, now, window)? | first::prune(connection, now)?);
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
        work: impl FnOnce(&mut Connection, &mut Inbox) -> rusqlite::Result<T>,
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
        let result = work(&mut connection, &mut self.inbox);
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

fn apply(connection: &Connection, command: &Command, now: Timestamp, days: &Days) -> rusqlite::Result<Reply> {
    match command {
        Command::MakeRoom { ids, .. } => {
            let known = ids.iter().map(|id| store::is_known(connection, *id, days));
            known.collect::<rusqlite::Result<_>>().map(Reply::Known)
        }
        Command::Amend { amendments, .. } => {
            let amended = amendments.iter().map(|amendment| store::amend(connection, amendment, now));
            amended.collect::<rusqlite::Result<_>>().map(Reply::Amended)
        }
        Command::Claim { max, now, lease_end, .. } => {
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

fn answer(command: Command, reply: Reply) {
    match (command, reply) {
        (Command::MakeRoom { answer, .. }, Reply::Known(known)) => drop(answer.send(Ok(known))),
        (Command::Amend { answer, .. }, Reply::Amended(amended)) => drop(answer.send(Ok(amended))),
        (Command::Claim { answer, .. }, Reply::Claimed(rows)) => drop(answer.send(Ok(rows))),
        (Command::Settle { answer, .. } | Command::Extend { answer, .. }, _) => drop(answer.send(Ok(()))),
        // Not possible: `apply` answers each command in kind.
        (command, _) => command.refuse(&StoreError::Closed),
    }
}
