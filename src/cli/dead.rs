//! `mailtap dead list|show|replay|drop`: what could not be sent.
//!
//! - Layer: cli
//! - Takes: the dead letters of this host's spool, and those of RabbitMQ where one is configured.
//! - Gives: lists for people and scripts; letters sent again or dropped.
//! - On failure: in the spool a change is made whole or not at all, in RabbitMQ letter by letter. Changing everything
//!   needs `--all`.

use clap::Subcommand;

use super::dead_broker::{self, Change};
use super::events::{self, Which};
use super::exit::{Exit, Failure, OrExit, Result};
use super::{assemble, print};
use crate::config::Config;
use crate::event::{Event, EventId};
use crate::queue::dedupe::Dedupe;
use crate::queue::spool::{Admin, Filter, State};
use crate::service::clock;

/// How many letters `show` prints at most.
const SHOWN: usize = 1_000;

/// List, show, replay or drop dead letters.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Dead letters are events that can't be sent (dead), and those that may have arrived (uncertain). With RabbitMQ they are
in its queue PREFIX.ga4.dead; whatever this host's spool holds of them is listed first.

Examples:
  mailtap dead list --type clicked
  mailtap dead show 3q2-7wAAAAAAAAAAAAAAAA
  mailtap dead replay --reason 'HTTP 500' --since 2h
  mailtap dead drop --reason expired --before 7d
  mailtap dead drop --all")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters
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
    /// Show dead letters whole, as JSON lines; of what is no event, the first 400 characters
    Show {
        #[command(flatten)]
        which: One,
    },
    /// Send dead letters again
    Replay {
        #[command(flatten)]
        which: One,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
    /// Drop dead letters for good
    Drop {
        #[command(flatten)]
        which: One,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

/// `Which`, with the id also as an argument by itself.
#[derive(Debug, clap::Args)]
struct One {
    /// The event with this id.
    #[arg(value_name = "ID", conflicts_with = "id", allow_hyphen_values = true)]
    event: Option<EventId>,
    #[command(flatten)]
    which: Which,
}

impl One {
    fn filter(&self) -> Result<Filter> {
        let filter = dead(&self.which)?;
        Ok(Filter { id: self.event.or(filter.id), ..filter })
    }

    fn chosen(&self, all: bool, verb: &str) -> Result<Filter> {
        if self.which.is_all() && self.event.is_none() && !all {
            let text = format!(
                "say which to {verb} (ID, --type, --campaign, --recipient, --reason, --since, --before), or --all"
            );
            return Err(Failure::new(Exit::Usage, text));
        }
        self.filter()
    }
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        match self.command {
            Command::List { which, max, json } => {
                let mut found = list(config, &dead(&which)?, max.saturating_add(1))?;
                if found.len() > max {
                    found.truncate(max);
                    dead_broker::say(&format!("only {max} of the dead letters are shown; --max shows more"));
                }
                print(if json { events::as_json(&found) } else { events::show(&found) })
            }
            Command::Show { which } => {
                let found = list(config, &which.filter()?, SHOWN)?;
                if found.is_empty() {
                    return Err(none_is_like_that());
                }
                print(events::as_json_whole(&found))
            }
            Command::Replay { which, all } => {
                let filter = which.chosen(all, "replay")?;
                let count = match spool(config)? {
                    Some(spool) => replay(config, spool, &filter)?,
                    None => 0,
                };
                let count = count + dead_broker::change(config, &filter, Change::Replay)?;
                found(count, &filter)?;
                print(format!("replayed {count}\n"))
            }
            Command::Drop { which, all } => {
                let filter = which.chosen(all, "drop")?;
                let count = match spool(config)? {
                    Some(mut spool) => spool.drop_dead(&filter).or_exit(Exit::Io)?,
                    None => 0,
                };
                let count = count + dead_broker::change(config, &filter, Change::Drop)?;
                found(count, &filter)?;
                print(format!("dropped {count}\n"))
            }
        }
    }
}

/// Whoever names one letter wants to know that it was there.
fn found(count: u64, filter: &Filter) -> Result {
    if count == 0 && filter.id.is_some() { Err(none_is_like_that()) } else { Ok(()) }
}

fn none_is_like_that() -> Failure {
    Failure::new(Exit::No, "no dead letter is like that; `mailtap dead list` shows those that are there")
}

/// The spool. A host that only relays from RabbitMQ has none.
fn spool(config: &Config) -> Result<Option<Admin>> {
    let there = events::spool_directory(config).join("spool.db").try_exists();
    if config.amqp.is_some() && there.is_ok_and(|there| !there) {
        return Ok(None);
    }
    events::open(config).map(Some)
}

fn list(config: &Config, filter: &Filter, max: usize) -> Result<Vec<events::Placed>> {
    let mut found = match spool(config)? {
        Some(spool) => events::in_spool(spool.list(filter, None, max).or_exit(Exit::Io)?),
        None => Vec::new(),
    };
    found.extend(dead_broker::list(config, filter, max - found.len())?);
    Ok(found)
}

fn replay(config: &Config, mut spool: Admin, filter: &Filter) -> Result<u64> {
    // The relay remembers uncertain events as sent: without this it would take a replay for a duplicate.
    let uncertain = Filter { states: vec![State::Uncertain], ..filter.clone() };
    let rows = spool.list(&uncertain, None, usize::MAX).or_exit(Exit::Io)?;
    let events = rows.iter().filter_map(|row| Event::from_json(row.body.as_bytes()).ok());
    let ids: Vec<EventId> = events.map(|event| event.id).collect();
    Dedupe::forget(&assemble::relay_directory(config), &ids).or_exit(Exit::Io)?;
    spool.replay(filter, clock::now()).or_exit(Exit::Io)
}

fn dead(which: &Which) -> Result<Filter> {
    which.filter(vec![State::Dead, State::Uncertain])
}
