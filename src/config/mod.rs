//! The configuration: one TOML file, read strictly, checked whole, never guessed.
//!
//! - Layer: edge
//! - Takes: the path of the file.
//! - Gives: `Config`, with every value in its unit and every secret behind `Secret`.
//! - On failure: `ConfigError` with all problems at once, each with its key and the remedy.
//! - Limits: a file of 1 MiB.
//! - See: `docs/configuration.md`, `examples/mailtap.toml`.

mod check;
mod mapping;
mod parse;
pub mod raw;
pub mod units;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::tracker::{TrackerConfig, TrackingHost};
pub use parse::Problem;
use raw::{Raw, TrackingRule};
use units::Listen;

use crate::consent::SiteConsent;
use crate::delivery::{Classifier, Providers, Replies};
use crate::identity::CampaignId;
use crate::relay::map::Mapping;
use crate::rewrite::{LinkPatterns, PixelAt};
use crate::service::files;
use crate::service::secret::Secret;
use crate::telemetry::Format;

const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The example configuration: complete, every default as a comment.
pub const EXAMPLE: &str = include_str!("../../examples/mailtap.toml");

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read.
    pub path: PathBuf,
    /// The file as it was read; what needs no check is taken from here.
    pub raw: Raw,
    /// Spool, checkpoints, dedupe store.
    pub state_dir: PathBuf,
    /// This host's name in events.
    pub host: String,
    /// How log lines look.
    pub log_format: Format,
    /// Admin addresses by role.
    pub admin: Vec<(&'static str, Option<SocketAddr>)>,
    /// The keyring file.
    pub keyring: PathBuf,
    /// The pseudonym key file.
    pub pseudonym_key: PathBuf,
    /// Tracking hosts; that of `[tracking]` first.
    pub tracking_hosts: Vec<TrackingHost>,
    /// Base URLs of the past, each ending in a slash.
    pub previous_tracking_urls: Vec<String>,
    /// Domains whose mail is tracked: names and `*.` patterns, ASCII, lower case.
    pub sender_domains: Vec<String>,
    /// Links that are left alone for what their path or query says.
    pub link_patterns: LinkPatterns,
    /// Hosts of links that are left alone.
    pub skip_link_hosts: Vec<String>,
    /// When not empty, the only hosts whose links are rewritten.
    pub only_link_hosts: Vec<String>,
    /// Where the pixel goes.
    pub pixel_at: PixelAt,
    /// What is tracked of some mail.
    pub rules: Vec<TrackingRule>,
    /// Larger messages are left alone.
    pub max_message_bytes: usize,
    /// Whether messages to several recipients get shared tokens; otherwise they are left alone.
    pub share: bool,
    /// How they get copies of their own; nothing: they don't.
    pub split: Option<SplitConfig>,
    /// Campaigns by sender.
    pub campaigns: Vec<CampaignSource>,
    /// The site's answer on consent.
    pub consent: SiteConsent,
    /// The list of those who withdrew theirs.
    pub withdrawn_file: Option<PathBuf>,
    /// The keyring of hand-offs, where there are some.
    pub handoff_keys: Option<PathBuf>,
    /// `[milter]`
    pub milter: MilterConfig,
    /// Where the log comes from.
    pub tap_source: TapSource,
    /// Zone of log lines without one.
    pub time_zone: jiff::tz::TimeZone,
    /// Rules of bounce classes before the built-in ones.
    pub bounce_rules: Option<PathBuf>,
    /// Words for relays.
    pub providers: Providers,
    /// Whether events hold replies.
    pub replies: Replies,
    /// `[tracker]`
    pub tracker: TrackerConfig,
    /// Beyond it the spool refuses events.
    pub spool_max_bytes: u64,
    /// SQLite's `synchronous = FULL`.
    pub spool_full_sync: bool,
    /// How long an event may wait in the spool for somebody to take it.
    pub spool_max_age: Duration,
    /// Whether one that waited longer is dropped; otherwise it becomes a dead letter.
    pub spool_drops_old: bool,
    /// How long event ids are remembered.
    pub dedupe: Duration,
    /// RabbitMQ, if there is one.
    pub amqp: Option<AmqpConfig>,
    /// `[relay]`
    pub relay: RelayConfig,
    /// GA4 properties; one without sender domains takes what no other does, and comes last.
    pub properties: Vec<PropertyConfig>,
    /// Names of events and parameters in GA4.
    pub mapping: Mapping,
}

/// A campaign rule.
#[derive(Debug, Clone)]
pub struct CampaignSource {
    /// An address, a domain or `*.domain`, in lower case.
    pub sender: String,
    /// The campaign of its mail.
    pub campaign: CampaignId,
}

/// `[split]`.
#[derive(Debug, Clone)]
pub struct SplitConfig {
    /// The port that takes copies.
    pub address: SocketAddr,
    /// A message with more recipients is shared.
    pub max_recipients: usize,
    /// All copies of a message must be through by then.
    pub timeout: Duration,
}

/// `[milter]`, checked.
#[derive(Debug, Clone)]
pub struct MilterConfig {
    /// Where Postfix finds it.
    pub listen: Listen,
    /// Mode of the Unix socket.
    pub socket_mode: u32,
    /// Group of the Unix socket.
    pub socket_group: Option<String>,
    /// Whether Postfix answers 451 when the milter fails (otherwise it takes the mail).
    pub tempfail: bool,
    /// Where main.cf lies, to be compared.
    pub postfix_config_dirs: Vec<PathBuf>,
    /// The largest message that Postfix takes, beside what main.cf says; 0: any.
    pub message_size_limit: Option<u64>,
    /// Connections at once.
    pub max_connections: usize,
    /// Beyond it a message passes unmodified.
    pub message_timeout: Duration,
    /// A session may say nothing for as long.
    pub idle_timeout: Duration,
    /// For the first command of a connection.
    pub first_timeout: Duration,
    /// For a command within headers and body.
    pub content_timeout: Duration,
    /// For Postfix to take bytes.
    pub write_timeout: Duration,
    /// Memory for messages under way.
    pub max_memory_bytes: usize,
    /// A message with more headers passes unmodified.
    pub max_headers: usize,
    /// All headers of a message together.
    pub max_header_bytes: usize,
    /// A message with more recipients passes unmodified.
    pub max_recipients: usize,
    /// Sessions may take as long to end at a stop.
    pub drain: Duration,
}

/// Where the log comes from.
#[derive(Debug, Clone)]
pub enum TapSource {
    /// Files to follow.
    Files(Vec<PathBuf>),
    /// Units of the journal.
    Journal(Vec<String>),
    /// Standard input.
    Stdin,
}

/// `[amqp]`, checked.
#[derive(Debug, Clone)]
pub struct AmqpConfig {
    /// With the password.
    pub urls: Vec<Secret<String>>,
    /// What is missing for them to be used: a credential that only the unit has.
    pub missing: Option<String>,
    /// Authorities beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate chain and key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Declare the topology, or only check it.
    pub declare: bool,
    /// Prefix of exchange and queues.
    pub prefix: String,
    /// Events unconfirmed at once.
    pub prefetch: u16,
    /// Deliveries of one event.
    pub delivery_limit: u32,
    /// The broker's own, for consumers that hold an event.
    pub consumer_timeout: Duration,
    /// Work queues.
    pub partitions: u16,
    /// Waits before tries, shortest first.
    pub retry_after: Vec<Duration>,
}

/// `[relay]`, checked.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Requests under way at once.
    pub max_in_flight: usize,
    /// Of them to one property; 0: all.
    pub per_property: usize,
    /// To one property within an hour; 0: no limit.
    pub per_property_hour: u64,
    /// Of them over one connection.
    pub streams: usize,
    /// HTTP/2 without TLS.
    pub h2c: bool,
    /// The work queues that it takes.
    pub queues: Vec<u16>,
    /// Waits as long for more events of one client.
    pub batch_window: Duration,
    /// One request may take as long.
    pub timeout: Duration,
    /// Send again what may have arrived.
    pub retry_uncertain: bool,
}

/// A GA4 property, checked.
#[derive(Debug, Clone)]
pub struct PropertyConfig {
    /// Campaigns that belong to it, whatever their sender; `begin*` too.
    pub campaigns: Vec<String>,
    /// Sender domains that belong to it.
    pub sender_domains: Vec<String>,
    /// G-…
    pub measurement_id: String,
    /// The API secret; absent with a server-side GTM that needs none.
    pub api_secret: Option<Secret<String>>,
    /// Base URL without a slash at its end.
    pub url: String,
    /// Path after it.
    pub path: String,
    /// The token of a preview.
    pub preview: Option<Secret<String>>,
    /// What is missing for it to be used: a credential that only the unit has.
    pub missing: Option<String>,
}

impl PropertyConfig {
    /// Whether it takes what no other does.
    #[must_use]
    pub fn takes_all_others(&self) -> bool {
        self.campaigns.is_empty() && self.sender_domains.is_empty()
    }
}

/// The most that a file of rules may have.
const MAX_RULES_BYTES: u64 = 1024 * 1024;

/// Reads the rules of bounce classes: the site's, if it has any, and the built-in ones.
///
/// # Errors
/// What is wrong with the file.
pub fn classifier(path: Option<&Path>) -> Result<Classifier, String> {
    let Some(path) = path else { return Ok(Classifier::built_in()) };
    let bytes =
        files::read_limited(path, MAX_RULES_BYTES).map_err(|error| format!("{}: {error}", path.display()))?;
    let rules = String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8", path.display()))?;
    Classifier::extended(&rules).map_err(|error| format!("{}: {error}", path.display()))
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.report())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Everything that is wrong with it.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    fn report(&self) -> String {
        let mut report = format!("{}: ", self.path.display());
        let _ = match self.problems.len() {
            1 => write!(report, "1 problem"),
            many => write!(report, "{many} problems"),
        };
        for problem in &self.problems {
            let _ = match problem.key.as_str() {
                "" => write!(report, "\n  {}", problem.what),
                key => write!(report, "\n  {key}: {}", problem.what),
            };
        }
        report
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// `ConfigError` with all problems.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let (raw, mut problems) = raw_of(path)?;
        let (config, more) = check::check(raw, &directory_of(path));
        let known: Vec<String> = problems.iter().map(|problem| problem.key.clone()).collect();
        // What could not be read is not missing.
        problems.extend(more.into_iter().filter(|problem| !known.iter().any(|key| is_of(key, &problem.key))));
        let path = path.to_owned();
        if problems.is_empty() { Ok(Self { path, ..config }) } else { Err(ConfigError { path, problems }) }
    }

    /// Where the keyring is, or would be: for the commands that make and mend it while other things are still wrong.
    ///
    /// # Errors
    /// `ConfigError` when the file can't be read or is no TOML.
    pub fn keyring_path(path: &Path) -> Result<PathBuf, ConfigError> {
        Ok(directory_of(path).join(raw_of(path)?.0.keys.keyring))
    }

    /// As `keyring_path`, for the keyring of hand-offs.
    ///
    /// # Errors
    /// As `keyring_path`.
    pub fn handoff_path(path: &Path) -> Result<PathBuf, ConfigError> {
        Ok(directory_of(path).join(raw_of(path)?.0.keys.handoff))
    }

    /// As `keyring_path`: the list of those who withdrew, if there is to be one, and the pseudonym key.
    ///
    /// # Errors
    /// As `keyring_path`.
    pub fn consent_paths(path: &Path) -> Result<(Option<PathBuf>, PathBuf), ConfigError> {
        let (raw, directory) = (raw_of(path)?.0, directory_of(path));
        let file = Some(raw.consent.withdrawn_file).filter(|file| !file.is_empty());
        Ok((file.map(|file| directory.join(file)), directory.join(raw.keys.pseudonym_key)))
    }

    /// The admin address of a role, or of `run`.
    #[must_use]
    pub fn admin_address(&self, role: &str) -> Option<SocketAddr> {
        self.admin.iter().find(|(name, _)| *name == role).and_then(|(_, address)| *address)
    }

    /// The effective values as TOML, passwords in URLs redacted. Other secrets are in files and not part of it.
    #[must_use]
    pub fn effective(&self) -> Raw {
        let mut raw = self.raw.clone();
        for text in std::iter::once(&mut raw.amqp.url).chain(&mut raw.amqp.urls) {
            if let Ok(mut url) = url::Url::parse(text)
                && url.password().is_some()
                && url.set_password(Some("redacted")).is_ok()
            {
                *text = url.into();
            }
        }
        raw
    }
}

/// The file as it is, whatever is wrong with its values, and what could not be read of it.
fn raw_of(path: &Path) -> Result<(Raw, Vec<Problem>), ConfigError> {
    parse::parse(&read(path)?)
        .map_err(|problem| ConfigError { path: path.to_owned(), problems: vec![problem] })
}

/// Whether what could not be read of one key tells of another: the same, one within it, or the list that it is an item of.
fn is_of(unread: &str, key: &str) -> bool {
    let within = key.strip_prefix(unread).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    within || unread.strip_prefix(key).is_some_and(|rest| rest.starts_with('[') && !rest.contains('.'))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let error = |what| ConfigError { path: path.to_owned(), problems: vec![Problem::new("", what)] };
    let bytes = files::read_limited(path, MAX_FILE_BYTES)
        .map_err(|why| error(format!("{why}; `mailtap init --help` shows how to make one")))?;
    String::from_utf8(bytes).map_err(|_| error("not UTF-8 text".into()))
}

/// Relative paths begin at the file's own directory, whatever the working directory of a service is.
fn directory_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).ok();
    path.and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
