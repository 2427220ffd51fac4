//! `mailtap spool status|peek|export`.
//!
//! - Layer: cli
//! - Takes: the spool of this host.
//! - Gives: counts, events that wait.
//! - On failure: exit code 69 where there is no spool yet.

use clap::Subcommand;
use serde_json::json;

use super::dead_broker::say;
use super::events::{as_json, in_spool, open, show};
use super::exit::{Exit, OrExit, Result};
use super::print;
use super::terminal::{CARE, GOOD, paint};
use crate::config::Config;
use crate::event::Event;
use crate::queue::spool::{Admin, Filter, State};
use crate::service::clock;

/// Look at the spool.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How full it is, and how old the oldest event that waits
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// The first of the events that wait, and when each is due
    Peek {
        /// At most so many.
        #[arg(long, default_value_t = 10)]
        max: usize,
        /// As JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// All events that it holds, as CloudEvents in JSON lines
    Export,
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        let spool = open(config)?;
        match self.command {
            Command::Status { json } => status(&spool, config, json),
            Command::Peek { max, json } => {
                let filter = Filter { states: vec![State::Pending], ..Filter::default() };
                let found = in_spool(spool.list(&filter, None, max).or_exit(Exit::Io)?);
                print(if json { as_json(&found) } else { show(&found) })
            }
            Command::Export => {
                let (mut after, mut left_out) = (None, 0);
                loop {
                    let page = spool.list(&Filter::default(), after, 1_000).or_exit(Exit::Io)?;
                    let Some(last) = page.last() else {
                        if left_out > 0 {
                            say(&format!("{left_out} stored texts are no events: see mailtap dead show"));
                        }
                        return Ok(());
                    };
                    after = Some(last.seq);
                    // What is no event may be of several lines, and hold anything.
                    let (events, others): (Vec<_>, Vec<_>) =
                        page.iter().partition(|stored| Event::from_json(stored.body.as_bytes()).is_ok());
                    left_out += others.len();
                    print(events.iter().map(|stored| stored.body.clone() + "\n").collect::<String>())?;
                }
            }
        }
    }
}

fn status(spool: &Admin, config: &Config, as_json: bool) -> Result {
    let now = clock::now();
    let status = spool.status().or_exit(Exit::Io)?;
    let not_due = spool.not_due(now).or_exit(Exit::Io)?;
    let age = status.oldest.map(|oldest| now.since(oldest).as_secs());
    if as_json {
        let object = json!({ "pending": status.pending, "not_due": not_due, "claimed": status.claimed,
            "dead": status.dead, "uncertain": status.uncertain, "bytes": status.bytes,
            "file_bytes": status.file_bytes, "oldest_age_s": age, "known_ids": status.seen,
            "max_bytes": config.spool_max_bytes });
        return print(object.to_string() + "\n");
    }
    let dead = status.dead + status.uncertain;
    let style = if dead == 0 { GOOD } else { CARE };
    let age = age.map_or_else(|| "nothing waits".to_owned(), |age| format!("the oldest for {age} s"));
    print(format!(
        "waiting    {} ({age}), {not_due} of them not due yet\nunder way  {}\ndead       {}, {} of them uncertain\n\
         size       {} KiB of {} KiB, file {} KiB\nknown ids  {}\n",
        status.pending,
        status.claimed,
        paint(style, &dead.to_string()),
        status.uncertain,
        status.bytes / 1024,
        config.spool_max_bytes / 1024,
        status.file_bytes / 1024,
        status.seen
    ))
}
