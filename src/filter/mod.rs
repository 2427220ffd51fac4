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
mod counters;
mod happenings;
mod listen;
pub mod postconf;
mod protocol;
mod reinject;

// Together.
mod handler;
pub mod split;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mailtap_milter::driver::{self, Oversize, Timeouts};
use mailtap_milter::session::MessageLimits;
use mailtap_milter::wire::{Actions, MacroStage};

use crate::consent::Consents;
use crate::identity::PseudonymKey;
use crate::keys::Keys;
use crate::queue::served::Served;
use crate::queue::{Publisher, acceptances};
use crate::service::Lifecycle;
use decide::Policy;
use handler::Filter;
use happenings::{Listening, PostfixSays, SplitOff};
pub use listen::{Address, ListenError};
use main_cf::DefaultAction;
use postconf::Said;
use protocol::Wire;
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
    let listener = listen::bind(&settings.address)?;
    let settings = compare_with_postfix(settings).await;
    let driver = driver_settings(&settings);
    let default_action = if settings.tempfail { "tempfail" } else { "accept" };
    counters::begin(driver.memory_bytes);
    Listening {
        address: &settings.address,
        default_action,
        answer_room_bytes: listener.answer_room_bytes(driver.send_buffer_bytes).unwrap_or_default(),
        largest_bytes: settings.policy.plan.max_message_bytes,
    }
    .emit();
    health.ready();
    let served = deps.served.clone();
    let splitter = settings.split.zip(served).map(|(settings, served)| Splitter { settings, served });
    let wire = Wire::new(default_action);
    let filter = Filter::new(settings.policy, settings.publish_wait, splitter, wire, health, deps);
    driver::serve(listener, Arc::new(filter), driver, life.stop.cancelled_owned()).await;
    Ok(())
}

/// Asks each Postfix what it does when we fail, and takes the careful side.
async fn compare_with_postfix(mut settings: Settings) -> Settings {
    let (directories, address) = (settings.postfix_config_dirs.clone(), settings.address.clone());
    let asked = tokio::task::spawn_blocking(move || postconf::ask(&directories, &address)).await;
    for said in asked.unwrap_or_default() {
        believe(&mut settings, &said);
    }
    settings
}

/// With `accept` a large answer must not go out in pieces, and no copy may exist beside an original that goes on as it
/// came when we die.
fn believe(settings: &mut Settings, said: &Said) {
    PostfixSays { said, tempfail: settings.tempfail }.emit();
    if said.action != Some(DefaultAction::Accept) {
        return;
    }
    settings.tempfail = false;
    if settings.split.take().is_some() {
        SplitOff { directory: &said.directory }.emit();
    }
}

fn driver_settings(settings: &Settings) -> driver::Settings {
    let mut driver = driver::Settings {
        connections: settings.connections,
        memory_bytes: settings.memory_bytes,
        oversize: if settings.tempfail { Oversize::Stream } else { Oversize::PassUnmodified },
        timeouts: Timeouts {
            handler: settings.message_timeout,
            idle: settings.idle_timeout,
            negotiation: settings.first_timeout,
            content: settings.content_timeout,
            write: settings.write_timeout,
            drain: settings.drain,
            ..Timeouts::default()
        },
        ..driver::Settings::default()
    };
    if settings.split.is_some() {
        driver.wanted.required |= Actions::DELETE_RECIPIENTS;
    }
    // The queue id is all that is used of the macros.
    driver.wanted.macros = vec![(MacroStage::EndOfHeaders, "i".into())];
    driver.session.message = MessageLimits {
        message_bytes: settings.policy.plan.max_message_bytes,
        header_bytes: settings.max_header_bytes,
        headers: settings.max_headers,
        recipients: settings.max_recipients,
    };
    driver
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            address: Address::Tcp("127.0.0.1:1".parse().unwrap()),
            policy: Policy::new(Vec::new(), hosts::TrackingHost::at("https://t.example.org/")),
            tempfail: true,
            postfix_config_dirs: Vec::new(),
            split: Some(split::Settings {
                address: "127.0.0.1:1".parse().unwrap(),
                max_recipients: 50,
                timeout: Duration::from_secs(1),
            }),
            connections: 1,
            memory_bytes: 1,
            max_headers: 1,
            max_header_bytes: 1,
            max_recipients: 1,
            message_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(2),
            first_timeout: Duration::from_secs(2),
            content_timeout: Duration::from_secs(2),
            write_timeout: Duration::from_secs(2),
            drain: Duration::from_secs(2),
            publish_wait: Duration::from_secs(1),
        }
    }

    #[test]
    fn where_main_cf_says_accept_nothing_is_split_or_streamed() {
        for (action, careful) in
            [(Some(DefaultAction::Accept), true), (Some(DefaultAction::NotAccept), false), (None, false)]
        {
            let mut settings = settings();
            believe(&mut settings, &Said { directory: PathBuf::from("/etc/postfix"), action });
            assert_eq!((!settings.tempfail, settings.split.is_none()), (careful, careful), "{action:?}");
        }
    }
}
