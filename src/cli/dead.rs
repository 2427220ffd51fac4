//! `mailtap dead list|show|replay|drop`: what could not be sent.
//!
//! - Layer: cli
//! - Takes: the dead letters of this host's spool.
//! - Gives: lists for people and scripts; letters sent again or dropped.
//! - On failure: a change is made whole or not at all; dropping everything needs `--all`.

use clap::Subcommand;

use super::assemble;
use super::events::{self, Which};
use super::exit::{Exit, Failure, OrExit, Result};
use super::print;
use crate::config::Config;
use crate::event::{Event, EventId};
use crate::queue::dedupe::Dedupe;
use crate::queue::spool::{Filter, State};
use crate::service::clock;

/// List, show, replay or drop dead letters.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Dead letters are events that can't be sent (dead), and those that may have arrived (uncertain).

Examples:
  mailtap dead list --type clicked
  mailtap dead show --id 3q2-7wAAAAAAAAAAAAAAAA
  mailtap dead replay --reason 'HTTP 500' --since 2h
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
    /// Show dead letters whole, as JSON lines
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Send dead letters again
    Replay {
        #[command(flatten)]
        which: Which,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
    /// Drop dead letters for good
    Drop {
        #[command(flatten)]
        which: Which,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let mut spool = events::open(config)?;
        match self.command {
            Command::List { which, max, json } => {
                let found = spool.list(&dead(&which)?, None, max).or_exit(Exit::Io)?;
                print(if json { events::as_json(&found) } else { events::show(&found) })
            }
            Command::Show { which } => {
                print(events::as_json(&spool.list(&dead(&which)?, None, 1_000).or_exit(Exit::Io)?))
            }
            Command::Replay { which, all } => {
                let filter = chosen(&which, all, "replay")?;
                // The relay remembers uncertain events as sent: without this it would take a replay for a duplicate.
                let uncertain = Filter { states: vec![State::Uncertain], ..filter.clone() };
                let rows = spool.list(&uncertain, None, usize::MAX).or_exit(Exit::Io)?;
                let events = rows.iter().filter_map(|row| Event::from_json(row.body.as_bytes()).ok());
                let ids: Vec<EventId> = events.map(|event| event.id).collect();
                Dedupe::forget(&assemble::relay_directory(config), &ids).or_exit(Exit::Io)?;
                let count = spool.replay(&filter, clock::now()).or_exit(Exit::Io)?;
                print(format!("replayed {count}\n"))
            }
            Command::Drop { which, all } => {
                let filter = chosen(&which, all, "drop")?;
                let count = spool.drop_dead(&filter).or_exit(Exit::Io)?;
                print(format!("dropped {count}\n"))
            }
        }
    }
}

fn dead(which: &Which) -> Result<Filter> {
    which.filter(vec![State::Dead, State::Uncertain])
}

fn chosen(which: &Which, all: bool, verb: &str) -> Result<Filter> {
    if which.is_all() && !all {
        let text = format!("say which to {verb} (--id, --type, --campaign, --reason, --since), or --all");
        return Err(Failure::new(Exit::Usage, text));
    }
    dead(which)
}
