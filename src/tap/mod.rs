//! The log role: follows Postfix's log and publishes what became of every tracked message.
//!
//! - Layer: role
//! - Takes: log files, the journal, or standard input.
//! - Gives: `message.delivered`, `.deferred`, `.bounced` and `.expired`.
//! - On failure: what can't be read or published is tried again; nothing is skipped.
//! - See: `docs/postfix.md` for the setting that makes Postfix log the reference.

pub mod correlate;
pub mod line;
pub mod once;
pub mod queue_id;
pub mod record;
mod split;
mod state;
pub mod time;
