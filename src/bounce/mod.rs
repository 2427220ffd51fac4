//! The role for returned mail: reads one message from a pipe(8) transport and publishes what it reports.
//!
//! - Layer: role
//! - Takes: a message on standard input: a DSN, a complaint, or anything else that came to the return path.
//! - Gives: `message.bounced`, `.deferred` and `.complained`; an exit that tells Postfix whether to keep the message.
//! - On failure: `Exit::TryAgain` (75, EX_TEMPFAIL) where events could not be stored: Postfix tries again.
//! - Limits: the first `MAX_MESSAGE_BYTES` are looked at: reports stand at the beginning.
//! - See: pipe(8), sysexits(3); RFC 3464, RFC 5965.

pub mod arf;
pub mod dsn;
pub mod report;

mod fields;
mod happenings;
mod loose;
mod plain;

pub use report::{OwnHosts, Reader, Verdict, VerifyRef};

use crate::identity::Timestamp;
use crate::queue::Publisher;

/// What a bounce with a returned message of usual size has. Postfix cuts at `bounce_size_limit`, 50,000 bytes.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// So many events are stored; none where there was nothing to tell.
    Stored(usize),
    /// No report, or none about mail of ours: the reason.
    NotOurs(&'static str),
    /// The events could not be stored: the message must come again.
    TryAgain,
}

impl Exit {
    /// The exit code for pipe(8).
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Stored(_) | Self::NotOurs(_) => 0,
            Self::TryAgain => 75,
        }
    }
}

/// Reads a message and publishes what it reports.
pub async fn run_once(message: &[u8], reader: &Reader, publisher: &Publisher, now: Timestamp) -> Exit {
    let message = message.get(..MAX_MESSAGE_BYTES).unwrap_or(message);
    let events = match reader.read(message, now) {
        Verdict::Events(events) => events,
        Verdict::Known => return not_ours("known", "known from the log of our own host"),
        Verdict::NotAReport(why) => return not_ours("no-report", why),
        Verdict::Foreign(why) => return not_ours("foreign", why),
    };
    let stored = events.len();
    if stored == 0 {
        happenings::Stored { events: &[] }.emit();
        return Exit::Stored(0);
    }
    match publisher.publish(events.clone()).await {
        Ok(()) => {
            happenings::Stored { events: &events }.emit();
            Exit::Stored(stored)
        }
        Err(error) => {
            happenings::NotStored { error: &error, events: stored }.emit();
            Exit::TryAgain
        }
    }
}

fn not_ours(kind: &'static str, why: &'static str) -> Exit {
    happenings::NotOurs { kind, why }.emit();
    Exit::NotOurs(why)
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
