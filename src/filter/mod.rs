//! The milter role: looks at every message that Postfix hands over, and rewrites those in scope.
//!
//! - Layer: role
//! - Takes: messages over the milter protocol; keyring, pseudonym key, consents, a publisher.
//! - Gives: edits for Postfix, one log line a message, `message.accepted`.
//! - On failure: the message goes through as it came, with the reason counted; nothing here refuses mail.
//! - Limits: those of `mailtap_milter::driver::Settings` and `rewrite::Plan`.
//! - See: `docs/postfix.md`, Postfix `MILTER_README`.

// Decisions.
pub mod campaign;
pub mod decide;
pub mod header;
pub mod hosts;
pub mod main_cf;
pub mod master_cf;
mod patience;
pub mod rules;

// Edges.
pub mod agreement;
mod counters;
mod happenings;
mod listen;
mod port;
pub mod postconf;
mod protocol;
mod reinject;

// Together.
mod handler;
pub mod split;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailtap_milter::driver::{self, Oversize};
use mailtap_milter::wire::{Actions, MacroStage};

use crate::consent::Consents;
use crate::identity::PseudonymKey;
use crate::keys::Keys;
use crate::queue::served::Served;
use crate::queue::{Publisher, acceptances};
use crate::service::{Component, Lifecycle};
use agreement::{Agreement, Told};
use decide::Policy;
use handler::Filter;
use happenings::Listening;
pub use listen::{Address, Endpoint, ListenError};
use port::Port;
use split::Splitter;

/// How long the milter waits for what Postfix says of it before it begins.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// What the milter is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where Postfix finds it.
    pub address: Address,
    /// What is tracked, and how.
    pub policy: Policy,
    /// Whether `milter_default_action` is `tempfail`: large answers may then go out in several writes.
    pub tempfail: bool,
    /// Where a main.cf lies that has to say the same before large answers may.
    pub postfix_config_dirs: Vec<PathBuf>,
    /// Whether `tempfail` is believed where no main.cf can be asked that names us.
    pub trust_default_action: bool,
    /// The largest message that Postfix takes, beside what main.cf says; 0: any.
    pub message_size_limit: Option<u64>,
    /// How several recipients get copies of their own; nothing: they share one.
    pub split: Option<split::Settings>,
    /// Connections at once.
    pub connections: usize,
    /// Memory for messages of all connections together, in bytes.
    pub memory_bytes: usize,
    /// A message with more headers passes unmodified.
    pub max_headers: usize,
    /// All headers of a message together, in bytes.
    pub max_header_bytes: usize,
    /// A message with more recipients passes unmodified.
    pub max_recipients: usize,
    /// A message that takes longer passes unmodified.
    pub message_timeout: Duration,
    /// A session may say nothing for as long.
    pub idle_timeout: Duration,
    /// For the first command of a connection.
    pub first_timeout: Duration,
    /// For a command within headers and body.
    pub content_timeout: Duration,
    /// For Postfix to take bytes.
    pub write_timeout: Duration,
    /// Messages under way may take as long at a stop.
    pub drain: Duration,
    /// How long a message waits for its event to be stored; then it passes as it came.
    pub publish_wait: Duration,
}

/// What the milter works with.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The keyring; whoever made it refreshes it.
    pub keys: Keys,
    /// Makes pseudonyms.
    pub pseudonyms: PseudonymKey,
    /// Who may be followed.
    pub consents: Arc<dyn Consents>,
    /// Takes the events.
    pub publisher: Publisher,
    /// Hears of copies that were taken, if anybody listens.
    pub copies: Option<acceptances::Copies>,
    /// Who got a copy; needed where `Settings::split` is.
    pub served: Option<Served>,
    /// This host's name in events.
    pub host: String,
}

/// Runs the milter until `life.stop`.
///
/// # Errors
/// `ListenError`; once it listens, nothing ends it but `life.stop`.
pub async fn run(settings: Settings, deps: Deps, life: Lifecycle) -> Result<(), ListenError> {
    let health = life.health.component("milter");
    let (listener, listens) = listen::bind(&settings.address)?;
    let agreement = agree(&settings, &listens, &life).await;
    let driver = driver_settings(&settings);
    counters::begin(driver.memory_bytes);
    Listening {
        address: &listens,
        default_action: agreement.default_action(),
        answer_room_bytes: listener.answer_room_bytes(driver.send_buffer_bytes).unwrap_or_default(),
        largest_bytes: settings.policy.plan.max_message_bytes,
    }
    .emit();
    health.ready();
    if deps.keys.current().keys().is_empty() {
        tokio::spawn(wait_for_keys(deps.keys.clone(), life.health.component("keyring")));
    }
    let served = deps.served.clone();
    let splitter = settings.split.zip(served).map(|(settings, served)| {
        let port = Port::new(settings.timeout, life.health.component("split"));
        Splitter { settings, served, port }
    });
    let filter = Filter::new(settings.policy, settings.publish_wait, splitter, agreement, health, deps);
    let filter = Arc::new(filter);
    driver::serve(listener, Arc::clone(&filter), driver, life.stop.cancelled_owned()).await;
    filter.forgotten().await;
    Ok(())
}

/// Reports that there is no key until there is one; whoever made the keyring refreshes it.
async fn wait_for_keys(keys: Keys, health: Component) {
    health.not_ready("the keyring can't be read: messages pass as they came");
    while keys.current().keys().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    health.ready();
}

/// Asks Postfix what it does when we fail, now and from time to time; the first answer is waited for.
async fn agree(settings: &Settings, listens: &Endpoint, life: &Lifecycle) -> Arc<Agreement> {
    let told = Told {
        tempfail: settings.tempfail,
        trusted: settings.trust_default_action,
        message_size_limit: settings.message_size_limit,
        listens: listens.clone(),
    };
    let agreement = Arc::new(Agreement::new(told));
    let (directories, listens) = (settings.postfix_config_dirs.clone(), listens.clone());
    let ask = move || postconf::ask(&directories, &listens);
    let (first, answered) = tokio::sync::oneshot::channel();
    tokio::spawn(agreement::watch(Arc::clone(&agreement), ask, first, life.clone()));
    // Without an answer we begin as one who has none.
    let _ = tokio::time::timeout(FIRST_ANSWER, answered).await;
    agreement
}

pub(crate) fn driver_settings(settings: &Settings) -> driver::Settings {
    let mut driver = driver::Settings::default();
    driver.connections = settings.connections;
    driver.memory_bytes = settings.memory_bytes;
    // Whether it may be more, the handler says with each message.
    driver.oversize = Oversize::PassUnmodified;
    driver.timeouts.handler = settings.message_timeout;
    driver.timeouts.idle = settings.idle_timeout;
    driver.timeouts.negotiation = settings.first_timeout;
    driver.timeouts.content = settings.content_timeout;
    driver.timeouts.write = settings.write_timeout;
    driver.timeouts.drain = settings.drain;
    if settings.split.is_some() {
        driver.wanted.required |= Actions::DELETE_RECIPIENTS;
    }
    // The queue id is all that is used of the macros.
    driver.wanted.macros = vec![(MacroStage::EndOfHeaders, "i".into())];
    let limits = &mut driver.session.message;
    limits.message_bytes = settings.policy.plan.max_message_bytes;
    limits.header_bytes = settings.max_header_bytes;
    limits.headers = settings.max_headers;
    limits.recipients = settings.max_recipients;
    driver
}
