//! The log role: follows Postfix's log and publishes what became of every tracked message.
//!
//! - Layer: role
//! - Takes: log files, the journal, or standard input.
//! - Gives: `message.delivered`, `.deferred`, `.bounced` and `.expired`.
//! - On failure: what can't be read or published is tried again, and nothing is skipped; `TapError` only before the
//!   first line.
//! - Limits: `max_tracked` messages are remembered; one piece of the log is under way at a time.
//! - See: `docs/postfix.md` for the setting that makes Postfix log the reference.
//!
//! The checkpoint is saved only after the events up to it were published. After a hard end the log is read again from
//! the last checkpoint, which gives the same events with the same ids.

pub mod correlate;
pub mod explain;
pub mod journal_line;
pub mod line;
pub mod loss;
pub mod once;
pub mod queue_id;
pub mod record;
pub mod time;

mod checkpoint;
mod content;
mod early;
mod follow;
mod happenings;
mod intern;
mod journal;
mod known;
mod parts;
mod rotation;
mod run;
mod shape;
mod sink;
mod split;
mod state;
mod taken;
mod tallies;
mod tls;
mod unlogged;
mod unpack;
mod values;
mod waiting;

pub use correlate::{Counts, VerifyRef};
pub use journal::JournalFilter;
pub use once::{Input, OnceError, Summary};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::delivery::{Classifier, Providers, Replies};
use crate::identity::PseudonymKey;
use crate::queue::Publisher;
use crate::queue::acceptances;
use crate::service::Lifecycle;
use checkpoint::CheckpointError;
use correlate::Parts;

/// What to do where there is no log file.
pub const NO_LOG_FILE: &str =
    "where no syslog daemon writes it, as on a Debian 12 without rsyslog, set tap.source = \"journal\"";

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Log files, each followed through its rotations.
    Files(Vec<PathBuf>),
    /// The journal of this host.
    Journal(JournalFilter),
    /// Standard input, to its end: for `omprog` of rsyslog or a pipe of another syslog daemon.
    Stdin,
}

/// Reads the classes' rules.
#[derive(Clone)]
pub struct Rules(pub Arc<dyn Fn() -> Result<Classifier, String> + Send + Sync>);

impl Default for Rules {
    fn default() -> Self {
        Self(Arc::new(|| Ok(Classifier::built_in())))
    }
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rules")
    }
}

/// How the tap works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where lines come from; by default `/var/log/mail.log`.
    pub source: Source,
    /// Where the checkpoint lives (`tap.json`); by default `/var/lib/mailtap`.
    pub state_dir: PathBuf,
    /// The zone of log lines that don't name one; by default this system's.
    pub zone: TimeZone,
    /// Only lines of these `syslog_name`s (`postfix` also means `postfix/submission`); by default of any.
    pub syslog_names: Vec<String>,
    /// How many messages under way are remembered, at about 330 bytes each; by default 1,000,000.
    pub max_tracked: usize,
    /// Own relays, by name or address: what they take is not delivered yet, for their own tap tells; by default none.
    pub own_relays: Vec<String>,
    /// Addresses that get copies of all mail (`always_bcc`): their attempts are no events; by default none.
    pub copy_recipients: Vec<String>,
    /// Units of Postfix: what journald says it dropped of others is no alarm; by default of any.
    pub units: Vec<String>,
    /// Gives the classes' rules, at the start and at every reload; by default the built-in ones.
    pub rules: Rules,
    /// Words for relays; by default the built-in list.
    pub providers: Providers,
    /// Whether events hold replies; by default not.
    pub replies: Replies,
    /// How often a quiet file is looked at; by default 250 ms.
    pub poll_interval: Duration,
    /// How often the checkpoint is saved at the most; by default 5 s. Large states are saved more rarely.
    pub checkpoint_interval: Duration,
    /// How much of a log is read before its events are published; by default 4 MiB.
    pub batch_bytes: u64,
    /// How many events are published at once; by default 1,000.
    pub batch_events: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: Source::Files(vec![PathBuf::from("/var/log/mail.log")]),
            state_dir: PathBuf::from("/var/lib/mailtap"),
            zone: TimeZone::system(),
            syslog_names: Vec::new(),
            max_tracked: 1_000_000,
            own_relays: Vec::new(),
            copy_recipients: Vec::new(),
            units: Vec::new(),
            rules: Rules::default(),
            providers: Providers::default(),
            replies: Replies::default(),
            poll_interval: Duration::from_millis(250),
            checkpoint_interval: Duration::from_secs(5),
            batch_bytes: 4 * 1024 * 1024,
            batch_events: 1_000,
        }
    }
}

/// What the tap needs of others.
pub struct Deps {
    /// Hashes recipients.
    pub pseudonyms: PseudonymKey,
    /// Verifies `X-Mailtap-Ref`; one that can't be verified is no event, and counted.
    pub verify_ref: VerifyRef,
    /// Takes the events.
    pub publisher: Publisher,
    /// This host: part of every event's source.
    pub host: String,
    /// What the milter marks, where it runs in the same process.
    pub accepted: Option<acceptances::News>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Why the tap can't begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The checkpoint can't be used. Moving it away makes the tap read its log from the beginning.
    #[error("{0}")]
    Checkpoint(String),
    /// The bounce rules can't be read.
    #[error("{0}")]
    Rules(String),
    /// Standard input can't be read.
    #[error("can't read standard input")]
    Stdin(#[source] std::io::Error),
    /// A bug: reading panicked.
    #[error("reading the log ended unexpectedly")]
    Reader,
}

impl From<CheckpointError> for TapError {
    fn from(error: CheckpointError) -> Self {
        Self::Checkpoint(error.to_string())
    }
}

/// Follows the log until the process stops, or until standard input ends.
///
/// # Errors
/// See [`TapError`].
pub async fn run(settings: Settings, deps: Deps, life: Lifecycle) -> Result<(), TapError> {
    run::run(settings, deps, life).await
}

impl Settings {
    /// What the correlator is made of, with these settings.
    ///
    /// # Errors
    /// What is wrong with bounce rules that can't be read.
    pub fn parts(
        &self,
        pseudonyms: PseudonymKey,
        verify_ref: VerifyRef,
        host: String,
    ) -> Result<Parts, String> {
        Ok(Parts {
            host,
            pseudonyms,
            verify_ref,
            classifier: (self.rules.0)()?,
            providers: self.providers.clone(),
            replies: self.replies,
            zone: self.zone.clone(),
            max_tracked: self.max_tracked,
            own_relays: self.own_relays.clone(),
            copy_recipients: self.copy_recipients.clone(),
            units: self.units.clone(),
        })
    }
}
