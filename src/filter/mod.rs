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
mod patience;
pub mod rules;

// Edges.
mod happenings;
mod listen;
pub mod postconf;
mod reinject;

// Together.
mod handler;
pub mod split;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailtap_milter::driver::{self, Oversize, Timeouts};
use mailtap_milter::wire::Actions;

use crate::consent::Consents;
use crate::identity::PseudonymKey;
use crate::keys::Keys;
use crate::queue::Publisher;
use crate::queue::served::Served;
use crate::service::Lifecycle;
use decide::Policy;
use handler::Filter;
use happenings::{Listening, PostfixSays};
pub use listen::{Address, ListenError};
use main_cf::DefaultAction;
use split::Splitter;

/// What the milter is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where Postfix finds it.
    pub address: Address,
    /// What is tracked, and how.
    pub policy: Policy,
    /// Whether `milter_default_action` is `tempfail`: large answers may then go out in several writes.
    pub tempfail: bool,
    /// Where a main.cf lies that should say the same; asked at the start.
    pub postfix_config_dirs: Vec<PathBuf>,
    /// How several recipients get copies of their own; nothing: they share one.
    pub split: Option<split::Settings>,
    /// Connections at once.
    pub connections: usize,
    /// Memory for messages of all connections together, in bytes.
    pub memory_bytes: usize,
    /// A message that takes longer passes unmodified.
    pub message_timeout: Duration,
    /// A session may say nothing for as long.
    pub idle_timeout: Duration,
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
    let listener = listen::bind(&settings.address)?;
    let settings = compare_with_postfix(settings).await;
    let driver = driver_settings(&settings);
    Listening {
        address: &settings.address,
        default_action: if settings.tempfail { "tempfail" } else { "accept" },
        send_buffer_bytes: driver.send_buffer_bytes,
    }
    .emit();
    health.ready();
    let served = deps.served.clone();
    let splitter = settings.split.zip(served).map(|(settings, served)| Splitter { settings, served });
    let filter = Filter::new(settings.policy, settings.publish_wait, splitter, health, deps);
    driver::serve(listener, Arc::new(filter), driver, life.stop.cancelled_owned()).await;
    Ok(())
}

/// Asks each Postfix what it does when we fail, and takes the careful side.
async fn compare_with_postfix(mut settings: Settings) -> Settings {
    let (directories, address) = (settings.postfix_config_dirs.clone(), settings.address.clone());
    let asked = tokio::task::spawn_blocking(move || postconf::ask(&directories, &address)).await;
    for said in asked.unwrap_or_default() {
        PostfixSays { said: &said, tempfail: settings.tempfail }.emit();
        settings.tempfail &= said.action != Some(DefaultAction::Accept);
    }
    settings
}

fn driver_settings(settings: &Settings) -> driver::Settings {
    let mut driver = driver::Settings {
        connections: settings.connections,
        memory_bytes: settings.memory_bytes,
        oversize: if settings.tempfail { Oversize::Stream } else { Oversize::PassUnmodified },
        timeouts: Timeouts {
            handler: settings.message_timeout,
            idle: settings.idle_timeout,
            drain: settings.drain,
            ..Timeouts::default()
        },
        ..driver::Settings::default()
    };
    if settings.split.is_some() {
        driver.wanted.required |= Actions::DELETE_RECIPIENTS;
    }
    driver.session.message.message_bytes = settings.policy.plan.max_message_bytes;
    driver
}
