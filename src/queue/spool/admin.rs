//! Looking into the spool, and the administrator's hand on what can't be sent.
//!
//! - Layer: edge
//! - Takes: the spool's directory, filters.
//! - Gives: counts, stored events, dead letters replayed or dropped.
//! - On failure: `StoreError`; a change is made whole or not at all.
//! - Limits: calls block: not for an async runtime's own threads. Lists hold as many events as they were asked for.

use std::cell::RefCell;
use std::path::Path;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use super::filter::Filter;
use super::inbox::{self, Inbox};
use super::room::Level;
use super::schema::{CLAIMED, DEAD, MIGRATIONS, PENDING, UNCERTAIN};
use super::{Seq, store};
use crate::event::Kind;
use crate::identity::Timestamp;
use crate::queue::seen::Days;
use crate::queue::sqlite::{self, StoreError};
use crate::service::clock;

/// A spool that an administrator looks into; other processes may work with it meanwhile.
#[derive(Debug)]
pub struct Admin {
    connection: Connection,
    inbox: RefCell<Inbox>,
}

/// What an event in the spool waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// To be claimed.
    Pending,
    /// Somebody sends it.
    Claimed,
    /// It can't be sent; an administrator decides.
    Dead,
    /// It may or may not have arrived; an administrator decides.
    Uncertain,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Claimed, Self::Dead, Self::Uncertain];

    /// The word in lists and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Claimed => "claimed",
            Self::Dead => "dead",
            Self::Uncertain => "uncertain",
        }
    }

    const fn code(self) -> i64 {
        match self {
            Self::Pending => PENDING,
            Self::Claimed => CLAIMED,
            Self::Dead => DEAD,
            Self::Uncertain => UNCERTAIN,
        }
    }

    fn from_code(code: i64) -> Self {
        Self::ALL.into_iter().find(|state| state.code() == code).unwrap_or(Self::Dead)
    }
}

/// How full the spool is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Events that wait to be claimed.
    pub pending: u64,
    /// Events that somebody sends.
    pub claimed: u64,
    /// Events that can't be sent.
    pub dead: u64,
    /// Events that may or may not have arrived.
    pub uncertain: u64,
    /// Bytes of all these, as the limit counts them.
    pub bytes: u64,
    /// Bytes of the database file, without its log.
    pub file_bytes: u64,
    /// When the oldest event that waits or is being sent was published.
    pub oldest: Option<Timestamp>,
    /// How many ids of events are known.
    pub seen: u64,
}

/// An event as it stands in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub seq: Seq,
    /// What it waits for.
    pub state: State,
    /// Pending: not before; claimed: the end of the lease; dead or uncertain: since when; 0: nobody knows.
    pub at: Timestamp,
    /// When it was published; 0: nobody knows.
    pub added: Timestamp,
    /// How often it was claimed.
    pub attempts: u32,
    /// Why it was tried again last, or is dead.
    pub reason: Option<String>,
    /// The event as JSON; what `Event::from_json` refuses may stand here too.
    pub body: String,
}

/// The conditions of a filter; `?1` … `?6` stand for its values.
const CONDITIONS: &str = "(?1 IS NULL OR id = ?1)
    AND (?2 IS NULL OR CASE WHEN json_valid(body) THEN body ->> '$.type' END = ?2)
    AND (?3 IS NULL OR CASE WHEN json_valid(body) THEN body ->> '$.data.campaign' END = ?3)
    AND (?4 IS NULL OR instr(lower(reason), lower(?4)) > 0)
    AND (?5 IS NULL OR unixepoch(CASE WHEN json_valid(body) THEN body ->> '$.time' END, 'subsec') >= ?5)
    AND (?6 IS NULL OR unixepoch(CASE WHEN json_valid(body) THEN body ->> '$.time' END, 'subsec') < ?6)
    AND (?7 IS NULL OR CASE WHEN json_valid(body) THEN body ->> '$.data.recipient' END = ?7)";

impl Admin {
    /// Opens the spool in this directory; it is not made if it isn't there.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let connection = sqlite::open_to_look(&directory.join("spool.db"), MIGRATIONS)?;
        let admin = Self { connection, inbox: RefCell::new(Inbox::to_look(directory.to_owned())) };
        admin.sweep();
        Ok(admin)
    }

    /// What is wrong with the files in which events come in, so that some are not seen here. It is left to the roles.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.inbox.borrow().left().collect()
    }

    /// How full it is. Counts rows: some milliseconds for each 100,000.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn status(&self) -> Result<Status, StoreError> {
        self.sweep();
        let mut status = Status::default();
        let mut counts = self.connection.prepare("SELECT state, count(*) FROM event GROUP BY state")?;
        let mut rows = counts.query([])?;
        while let Some(row) = rows.next()? {
            let count = row.get::<_, i64>(1)?.unsigned_abs();
            match State::from_code(row.get(0)?) {
                State::Pending => status.pending = count,
                State::Claimed => status.claimed = count,
                State::Dead => status.dead = count,
                State::Uncertain => status.uncertain = count,
            }
        }
        let (rows, bytes) = store::tally(&self.connection)?;
        status.bytes = Level { rows, bytes }.all_bytes();
        status.oldest = self
            .connection
            .query_row(
                "SELECT added_ms FROM event WHERE state IN (?1, ?2) ORDER BY seq LIMIT 1",
                params![PENDING, CLAIMED],
                |row| time(row, 0),
            )
            .map(Some)
            .or_else(
                |error| if error == rusqlite::Error::QueryReturnedNoRows { Ok(None) } else { Err(error) },
            )?;
        status.seen = self
            .connection
            .query_row("SELECT count(*) FROM seen", [], |row| row.get::<_, i64>(0))?
            .unsigned_abs();
        let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        status.file_bytes = (pragma("page_count")? * pragma("page_size")?).unsigned_abs();
        Ok(status)
    }

    /// How many events wait for a time of their own: held, or to be tried again.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn not_due(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.sweep();
        Ok(store::waiting(&self.connection, now)?.0)
    }

    /// The first `max` events that the filter lets through, after `after` if that is given, in the order of publishing.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn list(&self, filter: &Filter, after: Option<Seq>, max: usize) -> Result<Vec<Stored>, StoreError> {
        self.sweep();
        let sql = format!(
            "SELECT seq, state, at_ms, added_ms, attempts, reason, body FROM event
             WHERE seq > ?8 AND {CONDITIONS} AND {} ORDER BY seq LIMIT ?9",
            states(&filter.states)
        );
        let mut list = self.connection.prepare(&sql)?;
        let after = after.map_or(0, |seq| seq.0);
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let (id, kind, campaign, reason, since, until, recipient) = values(filter);
        let rows =
            list.query_map(params![id, kind, campaign, reason, since, until, recipient, after, max], stored)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The number of the latest event that was ever published.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn last(&self) -> Result<Seq, StoreError> {
        self.sweep();
        let last = self.connection.query_row(
            "SELECT max(seq) FROM sqlite_sequence WHERE name = 'event'",
            [],
            |row| row.get::<_, Option<i64>>(0),
        )?;
        Ok(Seq(last.unwrap_or(0)))
    }

    /// Sends dead letters again: those among the filtered that are dead or uncertain. Gives their number.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn replay(&mut self, filter: &Filter, now: Timestamp) -> Result<u64, StoreError> {
        self.change(
            filter,
            &format!("UPDATE event SET state = {PENDING}, attempts = 0, at_ms = {}", store::millis(now)),
        )
    }

    /// Drops dead letters for good: those among the filtered that are dead or uncertain. Gives their number.
    ///
    /// # Errors
    /// `StoreError`.
    pub fn drop_dead(&mut self, filter: &Filter) -> Result<u64, StoreError> {
        self.change(filter, "DELETE FROM event")
    }

    /// Moves what just came in to where this looks. On a full disk, what is there already is worth a look too. Files are
    /// left for those to remove who write them.
    fn sweep(&self) {
        let mut inbox = self.inbox.borrow_mut();
        let mut step = || -> rusqlite::Result<usize> {
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let days = Days::of(&transaction, clock::now())?;
            let swept = inbox.sweep(&transaction, inbox::SWEEP_ROWS, &days)?;
            transaction.commit()?;
            Ok(swept.records)
        };
        while step().is_ok_and(|records| records > 0) {}
    }

    fn change(&mut self, filter: &Filter, what: &str) -> Result<u64, StoreError> {
        let sql = format!(
            "{what} WHERE state IN ({DEAD}, {UNCERTAIN}) AND {CONDITIONS} AND {}",
            states(&filter.states)
        );
        let (id, kind, campaign, reason, since, until, recipient) = values(filter);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let count =
            transaction.execute(&sql, params![id, kind, campaign, reason, since, until, recipient])?;
        transaction.commit()?;
        Ok(count as u64)
    }
}

type Values<'a> = (
    Option<&'a [u8]>,
    Option<&'a str>,
    Option<String>,
    Option<&'a str>,
    Option<f64>,
    Option<f64>,
    Option<String>,
);

fn values(filter: &Filter) -> Values<'_> {
    let seconds = |time: Timestamp| time.as_millis() as f64 / 1_000.0;
    (
        filter.id.as_ref().map(|id| id.as_bytes().as_slice()),
        filter.kind.map(Kind::as_str),
        filter.campaign.as_ref().map(ToString::to_string),
        filter.reason.as_deref(),
        filter.since.map(seconds),
        filter.until.map(seconds),
        filter.recipient.as_ref().map(ToString::to_string),
    )
}

fn states(states: &[State]) -> String {
    if states.is_empty() {
        return "1".into();
    }
    let codes: Vec<_> = states.iter().map(|state| state.code().to_string()).collect();
    format!("state IN ({})", codes.join(", "))
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        seq: Seq(row.get(0)?),
        state: State::from_code(row.get(1)?),
        at: time(row, 2)?,
        added: time(row, 3)?,
        attempts: row.get(4)?,
        reason: row.get(5)?,
        body: row.get(6)?,
    })
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Ok(Timestamp::from_millis(row.get::<_, i64>(column)?.unsigned_abs()))
}
