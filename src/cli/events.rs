//! `mailtap events list|tail`.
//!
//! - Layer: cli
//! - Takes: the spool of this host, or what passes through RabbitMQ.
//! - Gives: stored events for people or as JSON lines.
//! - On failure: exit code 69 where there is no spool yet.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::dead_broker::say;
use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use super::tail;
use super::terminal::table;
use crate::config::{Config, units};
use crate::event::{Event, Kind};
use crate::identity::{CampaignId, Pseudonym, Timestamp};
use crate::queue::spool::{Admin, Filter, State, Stored};
use crate::service::clock;

/// How many characters are shown of what is no event.
const SHOWN: usize = 400;

/// The directory of the spool.
pub(super) fn spool_directory(config: &Config) -> PathBuf {
    config.state_dir.join("spool")
}

/// Opens the spool that is there.
pub(super) fn open(config: &Config) -> Result<Admin> {
    let directory = spool_directory(config);
    let there = directory.join("spool.db").try_exists();
    if let Err(error) = &there {
        let text = format!("{}: {error}; run it as the user of the roles, or as root", directory.display());
        return Err(Failure::new(Exit::Unavailable, text));
    }
    if there.is_ok_and(|there| !there) {
        let text = format!(
            "{}: there is no spool: no role has run here yet, or --config is not the file that the roles run with (its state_dir)",
            directory.display()
        );
        return Err(Failure::new(Exit::Unavailable, text));
    }
    let spool = Admin::open(&directory).or_exit(Exit::Unavailable)?;
    for trouble in spool.troubles() {
        say(&format!("{}: {trouble}", directory.display()));
    }
    Ok(spool)
}

/// Says that the events in RabbitMQ are not seen, where there are any: nobody can look at a work queue without being
/// handed its events, which brings them nearer to `amqp.delivery_limit`, and keeps them from the relay meanwhile.
pub(super) fn say_what_is_not_seen(config: &Config) {
    if config.amqp.is_some() {
        let text = "only the spool is looked at. What waits in RabbitMQ is not shown: to look at a work queue counts as a \
                    delivery (amqp.delivery_limit). See events as they come: mailtap events tail; dead ones: mailtap dead list";
        let _ = writeln!(anstream::stderr(), "mailtap: {text}");
    }
}

/// Which events: the options that several commands share.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Only of this type: accepted, delivered, deferred, bounced, expired, complained, opened, clicked.
    #[arg(long = "type", value_name = "TYPE", value_parser = kind)]
    kind: Option<Kind>,
    /// Only of this campaign.
    #[arg(long, value_name = "ID")]
    campaign: Option<CampaignId>,
    /// Only those of this recipient: a pseudonym, as `mailtap pseudonym ADDRESS` prints it.
    #[arg(long, value_name = "PSEUDONYM", allow_hyphen_values = true)]
    recipient: Option<Pseudonym>,
    /// Only those that happened within the last while: 30m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    since: Option<std::time::Duration>,
    /// Only those that happened longer ago: 30m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    before: Option<std::time::Duration>,
    /// Only those whose reason holds this text.
    #[arg(long, value_name = "TEXT", value_parser = some_text)]
    reason: Option<String>,
    /// Only the event with this id.
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    id: Option<String>,
}

impl Which {
    pub(super) fn filter(&self, states: Vec<State>) -> Result<Filter> {
        let id = self.id.as_deref().map(str::parse).transpose().or_exit(Exit::Usage)?;
        Ok(Filter {
            states,
            id,
            kind: self.kind,
            campaign: self.campaign.clone(),
            recipient: self.recipient,
            reason: self.reason.clone(),
            since: self.since.map(|while_| clock::now().minus(while_)),
            until: self.before.map(|while_| clock::now().minus(while_)),
        })
    }

    /// Whether nothing narrows the choice.
    pub(super) const fn is_all(&self) -> bool {
        self.kind.is_none()
            && self.campaign.is_none()
            && self.recipient.is_none()
            && self.since.is_none()
            && self.before.is_none()
            && self.reason.is_none()
            && self.id.is_none()
    }
}

/// Every reason holds an empty text: that is not asked for, but an unset variable of a script.
fn some_text(text: &str) -> std::result::Result<String, &'static str> {
    if text.trim().is_empty() { Err("it is empty, and would mean all of them") } else { Ok(text.to_owned()) }
}

fn kind(text: &str) -> std::result::Result<Kind, String> {
    let short = |kind: &Kind| kind.as_str().rsplit('.').next() == Some(text);
    Kind::from_type(text).or_else(|| Kind::ALL.into_iter().find(short)).ok_or_else(|| {
        "expected accepted, delivered, deferred, bounced, expired, complained, opened or clicked".to_owned()
    })
}

/// Where an event lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Spool,
    Broker,
}

impl Place {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Spool => "spool",
            Self::Broker => "rabbitmq",
        }
    }
}

/// An event, and where it lies.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) place: Place,
    /// Of its body, which may be no text.
    pub(super) bytes: usize,
    pub(super) content_type: Option<String>,
    pub(super) stored: Stored,
}

/// Events of the spool.
pub(super) fn in_spool(stored: Vec<Stored>) -> Vec<Placed> {
    let placed =
        |stored: Stored| Placed { place: Place::Spool, bytes: stored.body.len(), content_type: None, stored };
    stored.into_iter().map(placed).collect()
}

/// Rows for people.
pub(super) fn show(found: &[Placed]) -> String {
    let now = clock::now();
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|Placed { stored, .. }| {
            let state = match stored.state {
                State::Pending if stored.at > now => format!("due {}", stored.at),
                state => state.as_str().to_owned(),
            };
            let reason = stored.reason.clone().unwrap_or_default();
            match Event::from_json(stored.body.as_bytes()) {
                Ok(event) => {
                    let campaign =
                        event.data.campaign.map(|campaign| campaign.to_string()).unwrap_or_default();
                    let (message, id) = (event.message.to_string(), event.id.to_string());
                    vec![event.time.to_string(), event.kind.to_string(), campaign, message, id, state, reason]
                }
                Err(error) => {
                    let blank = String::new;
                    vec![
                        known(stored.added).map_or_else(|| "-".to_owned(), |time| time.to_string()),
                        format!("({error})"),
                        blank(),
                        blank(),
                        blank(),
                        state,
                        reason,
                    ]
                }
            }
        })
        .collect();
    table(&["time", "type", "campaign", "message", "event id", "state", "reason"], &rows)
}

/// A time, unless nobody knows it.
fn known(time: Timestamp) -> Option<Timestamp> {
    Some(time).filter(|time| time.as_millis() > 0)
}

/// One JSON object a line: the event, where it lies and how it stands.
pub(super) fn as_json(found: &[Placed]) -> String {
    found.iter().map(|placed| line(placed).to_string() + "\n").collect()
}

/// The same, with the beginning of what is no event: it may hold anything, so only who asks for it sees it.
pub(super) fn as_json_whole(found: &[Placed]) -> String {
    let lines = found.iter().map(|placed| {
        let (mut line, stored) = (line(placed), &placed.stored);
        if line["event"].is_null() {
            let shown: String = stored.body.chars().take(SHOWN).collect();
            line["body"] = shown.into();
            (line["bytes"], line["content_type"]) = (placed.bytes.into(), placed.content_type.clone().into());
        }
        line.to_string() + "\n"
    });
    lines.collect()
}

fn line(Placed { place, stored, .. }: &Placed) -> serde_json::Value {
    // What is no event may hold anything, also where it is JSON.
    let event = Event::from_json(stored.body.as_bytes()).ok();
    let event = event.and_then(|_| serde_json::from_str(&stored.body).ok()).unwrap_or(json!(null));
    let at = match stored.state {
        State::Pending => "due",
        State::Claimed => "claimed_until",
        State::Dead | State::Uncertain => "since",
    };
    json!({ "in": place.as_str(), "state": stored.state.as_str(), at: known(stored.at), "published": known(stored.added),
            "attempts": stored.attempts, "reason": stored.reason, "event": event })
}

/// Look at events, stored or as they come.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap events list --type bounced --since 1h
  mailtap events list --json | jq .event.data
  mailtap events tail --type clicked
  mailtap events tail --json | jq -c .data")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the events that the spool holds; those in RabbitMQ, and sent ones, are gone from it
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        max: usize,
        /// As JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// Show events as they come, until Ctrl-C
    ///
    /// With RabbitMQ, forwarders send copies of what they publish once they see that somebody watches: what passes in the first second or so
    /// is missed. Nothing that is watched is taken, held up or lost.
    Tail {
        #[command(flatten)]
        live: Live,
        /// As CloudEvents, one a line.
        #[arg(long)]
        json: bool,
        /// Where to look; RabbitMQ where it is configured.
        #[arg(long, value_name = "WHERE")]
        from: Option<tail::From>,
    },
}

/// Which events of those that come.
#[derive(Debug, clap::Args)]
pub(super) struct Live {
    /// Only of this type: accepted, delivered, deferred, bounced, expired, complained, opened, clicked.
    #[arg(long = "type", value_name = "TYPE", value_parser = kind)]
    kind: Option<Kind>,
    /// Only of this campaign.
    #[arg(long, value_name = "ID")]
    campaign: Option<CampaignId>,
}

impl Live {
    pub(super) fn filter(&self) -> Filter {
        Filter { kind: self.kind, campaign: self.campaign.clone(), ..Filter::default() }
    }
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let (which, max, json) = match self.command {
            Command::List { which, max, json } => (which, max, json),
            Command::Tail { live, json, from } => return tail::run(config, &live, json, from),
        };
        say_what_is_not_seen(config);
        let found = in_spool(open(config)?.list(&which.filter(Vec::new())?, None, max).or_exit(Exit::Io)?);
        print(if json { as_json(&found) } else { show(&found) })
    }
}
