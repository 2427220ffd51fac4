//! What the spool does to its tables, one statement each.
//!
//! - Layer: edge
//! - Takes: a connection, within the writer's transaction.
//! - Gives: rows changed or read.
//! - On failure: SQLite's error; the writer rolls back.
//! - Limits: a reason is cut to `REASON_CHARS`.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::first;
use super::inbox::record::Incoming;
use super::schema::{CLAIMED, DEAD, PENDING, UNCERTAIN};
use super::{Outcome, Seq, TooOld};
use crate::event::{Event, EventId, Machine};
use crate::identity::Timestamp;
use crate::queue::seen::{self, Days};
use crate::queue::{Amendment, First, Publication};

/// How much of a reason is kept.
pub(super) const REASON_CHARS: usize = 200;

/// The reason of a letter that waited too long; the relay's word for what GA4 would not take any more.
const EXPIRED: &str = "expired";
/// The reason of a letter that may have arrived; the same through RabbitMQ.
const UNCERTAIN_REASON: &str = "uncertain";
/// Longer than anything waits: holding, pacing and retries are of hours at most.
const FAR: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// How long a lease goes on whose end was taken back.
const LEFT_MS: i64 = 60 * 60 * 1_000;
/// How many events are taken out in one step, so that nobody waits for long.
pub(super) const EXPIRE_ROWS: usize = 1_000;

/// An event as it goes into the spool.
#[derive(Debug)]
pub(super) struct NewRow {
    pub(super) id: EventId,
    pub(super) body: String,
    pub(super) held_until: Option<Timestamp>,
    pub(super) first: Option<First>,
}

impl NewRow {
    /// As it comes in at this time.
    pub(super) fn incoming(&self, now: Timestamp) -> Incoming<'_> {
        let at = self.held_until.map_or(now, |until| until.max(now));
        Incoming {
            id: self.id,
            added_ms: now.as_millis(),
            at_ms: at.as_millis(),
            first: self.first.map(|first| (first.key, now.plus(first.within).as_millis())),
            body: &self.body,
        }
    }
}

impl From<&Event> for NewRow {
    fn from(event: &Event) -> Self {
        Self { id: event.id, body: event.to_json(), held_until: None, first: None }
    }
}

impl From<&Publication> for NewRow {
    fn from(publication: &Publication) -> Self {
        let Publication { event, held_until, first } = publication;
        let body = if first.is_some() { first::body(event) } else { event.to_json() };
        Self { id: event.id, body, held_until: *held_until, first: *first }
    }
}

/// An event as it comes out of the spool.
#[derive(Debug)]
pub(super) struct ClaimedRow {
    pub(super) seq: Seq,
    pub(super) attempts: u32,
    pub(super) body: String,
}

/// Rows and bytes of what was moved on, without overhead.
pub(super) fn tally(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let (rows, bytes): (i64, i64) = connection
        .prepare_cached("SELECT rows, bytes FROM tally")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((rows.unsigned_abs(), bytes.unsigned_abs()))
}

/// Whether an event with this id was swept before.
pub(super) fn is_known(connection: &Connection, id: EventId, days: &Days) -> rusqlite::Result<bool> {
    if seen::contains(connection, id, days)? {
        return Ok(true);
    }
    // Older than the window, but still here: dead, or waiting for the end of a long outage.
    connection.prepare_cached("SELECT 1 FROM event WHERE id = ?1")?.exists([id.as_bytes()])
}

/// Takes out an event that nobody has claimed, as if it had never been published; `false` if there is none.
pub(super) fn take_back(connection: &Connection, id: EventId, days: &Days) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached("DELETE FROM event WHERE id = ?1 AND state = ?2 AND attempts = 0")?
        .execute(params![id.as_bytes(), PENDING])?;
    if gone > 0 {
        seen::remove(connection, id, days)?;
    }
    Ok(gone > 0)
}

/// How many events wait for their time, and since when the first one that is due is.
pub(super) fn waiting(connection: &Connection, now: Timestamp) -> rusqlite::Result<(u64, Option<Timestamp>)> {
    let not_due: i64 = connection.query_row(
        "SELECT count(*) FROM event WHERE state = ?1 AND at_ms > ?2",
        params![PENDING, millis(now)],
        |row| row.get(0),
    )?;
    let first: Option<i64> =
        connection.query_row("SELECT min(at_ms) FROM event WHERE state = ?1", [PENDING], |row| row.get(0))?;
    let first = first.map(|millis| Timestamp::from_millis(millis.unsigned_abs()));
    Ok((not_due.unsigned_abs(), first.filter(|first| *first <= now)))
}

/// Puts the event in the place of the one with its id, while that is still held; `false` if it isn't.
pub(super) fn amend(
    connection: &Connection,
    amendment: &Amendment,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    let event = &amendment.event;
    let held: Option<(i64, String)> = connection
        .prepare_cached(
            "SELECT seq, body FROM event WHERE id = ?1 AND state = ?2 AND attempts = 0 AND at_ms > ?3",
        )?
        .query_row(params![event.id.as_bytes(), PENDING, millis(now)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((seq, body)) = held else { return Ok(false) };
    let Some(mut event) = amended(event, &body) else { return Ok(false) };
    if let Some(key) = amendment.first {
        first::amended(connection, key, &mut event)?;
    }
    connection
        .prepare_cached("UPDATE event SET body = ?1 WHERE seq = ?2")?
        .execute(params![event.to_json(), seq])?;
    Ok(true)
}

/// The event as it is to be stored in the place of another one, which says whether it is unique or a person's first.
fn amended(event: &Event, stored: &str) -> Option<Event> {
    let stored = Event::from_json(stored.as_bytes()).ok()?;
    let mut event = event.clone();
    event.data.unique = stored.data.unique;
    if event.data.machine == Some(Machine::No) {
        event.data.upgrade = event.data.upgrade.or(stored.data.upgrade);
    }
    Some(event)
}

/// Claims what is due, oldest first; events whose lease has ended among them.
pub(super) fn claim(
    connection: &Connection,
    max: usize,
    now: Timestamp,
    lease_end: Timestamp,
) -> rusqlite::Result<Vec<ClaimedRow>> {
    connection
        .prepare_cached("UPDATE event SET state = ?1 WHERE state = ?2 AND at_ms <= ?3")?
        .execute(params![PENDING, CLAIMED, millis(now)])?;
    let mut claim = connection.prepare_cached(
        "UPDATE event SET state = ?1, at_ms = ?2, attempts = attempts + 1 WHERE seq IN
         (SELECT seq FROM event WHERE state = ?3 AND at_ms <= ?4 ORDER BY at_ms, seq LIMIT ?5)
         RETURNING seq, attempts, body",
    )?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = claim.query_map(params![CLAIMED, millis(lease_end), PENDING, millis(now), max], |row| {
        Ok(ClaimedRow { seq: Seq(row.get(0)?), attempts: row.get(1)?, body: row.get(2)? })
    })?;
    let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    rows.sort_unstable_by_key(|row| row.seq);
    Ok(rows)
}

/// Writes down what became of a claimed event.
pub(super) fn settle(
    connection: &Connection,
    seq: Seq,
    outcome: &Outcome,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let (state, at, reason) = match outcome {
        Outcome::Done => {
            // Whoever holds the lease by now: it was sent. What became uncertain meanwhile stays listed: `Done` may mean
            // no more than that this very row is remembered as set aside.
            connection
                .prepare_cached("DELETE FROM event WHERE seq = ?1 AND state <> ?2")?
                .execute([seq.0, UNCERTAIN])?;
            return Ok(());
        }
        Outcome::Released => {
            connection
                .prepare_cached(
                    "UPDATE event SET state = ?1, at_ms = added_ms, attempts = max(attempts - 1, 0)
                     WHERE seq = ?2 AND state = ?3",
                )?
                .execute(params![PENDING, seq.0, CLAIMED])?;
            return Ok(());
        }
        Outcome::Retry { not_before, reason } | Outcome::Later { not_before, reason } => {
            (PENDING, *not_before, Some(cut(reason)))
        }
        Outcome::Dead { reason } => (DEAD, now, Some(cut(reason))),
        Outcome::Uncertain => (UNCERTAIN, now, Some(UNCERTAIN_REASON)),
    };
    // A lease may have lapsed, and the event be pending again: it is uncertain all the same.
    let or = if state == UNCERTAIN { PENDING } else { CLAIMED };
    let untried = i64::from(matches!(outcome, Outcome::Later { .. }));
    connection
        .prepare_cached(
            "UPDATE event SET state = ?1, at_ms = ?2, reason = coalesce(?3, reason), attempts = max(attempts - ?7, 0)
             WHERE seq = ?4 AND state IN (?5, ?6)",
        )?
        .execute(params![state, millis(at), reason, seq.0, CLAIMED, or, untried])?;
    Ok(())
}

/// Takes a part of the events out that nobody took for too long; gives their number. A lease that ended so long ago is nobody's.
pub(super) fn expire(
    connection: &Connection,
    cutoff: Timestamp,
    now: Timestamp,
    too_old: TooOld,
) -> rusqlite::Result<usize> {
    let old = format!(
        "(SELECT seq FROM event WHERE state IN ({PENDING}, {CLAIMED}) AND at_ms < ?1 AND added_ms < ?1
          LIMIT {EXPIRE_ROWS})"
    );
    let cutoff = millis(cutoff);
    match too_old {
        TooOld::Bury => connection.execute(
            &format!("UPDATE event SET state = {DEAD}, at_ms = ?2, reason = '{EXPIRED}' WHERE seq IN {old}"),
            params![cutoff, millis(now)],
        ),
        TooOld::Drop => connection.execute(&format!("DELETE FROM event WHERE seq IN {old}"), params![cutoff]),
    }
}

/// Takes back times that a clock which was wrong for a while has set far ahead: nothing waits so long. What is due too early is put
/// off again by whoever claims it. A lease is left a moment, in which whoever lives moves its end.
pub(super) fn bring_nearer(connection: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    let (now, far) = (millis(now), millis(now.plus(FAR)));
    let lease_end = now + LEFT_MS;
    connection
        .prepare_cached(
            "UPDATE event SET at_ms = CASE state WHEN ?1 THEN ?2 ELSE ?3 END WHERE state IN (?1, ?4) AND at_ms > ?5",
        )?
        .execute(params![PENDING, now, lease_end, CLAIMED, far])?;
    Ok(())
}

/// Moves the end of a lease.
pub(super) fn extend(connection: &Connection, seq: Seq, lease_end: Timestamp) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE event SET at_ms = ?1 WHERE seq = ?2 AND state = ?3")?
        .execute(params![millis(lease_end), seq.0, CLAIMED])?;
    Ok(())
}

/// Milliseconds as SQLite keeps them.
pub(super) fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn cut(reason: &str) -> &str {
    match reason.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => reason.get(..end).unwrap_or_default(),
        None => reason,
    }
}
