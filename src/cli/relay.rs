//! `mailtap relay`: the role, or a look at what it would send.
//!
//! - Layer: cli
//! - Takes: the configuration; with `--dry-run` the events that wait in the spool.
//! - Gives: a daemon; with `--dry-run` requests as JSON lines, without the API secret, and nothing is changed.
//! - On failure: exit code 69 where there is no spool yet.

use serde_json::{Value, json};

use super::exit::{Exit, OrExit, Result};
use super::{assemble, events, print, roles};
use crate::config::Config;
use crate::event::{Event, EventId};
use crate::queue::spool::{Filter, State};
use crate::relay;
use crate::service::clock;

/// Run the relay: sends events to GA4.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap relay                                           as a daemon
  mailtap relay --dry-run | jq 'select(.body) | .body'    what would be sent of the events that wait in the spool?
  mailtap relay --dry-run | jq -c 'select(.dead)'         what would be a dead letter, and why?

Each line of --dry-run is a request (url, body, headers, bytes), a repair, a dead letter, or an event that is switched off.")]
pub(super) struct Args {
    /// Print the requests that the relay would send now of the spool's events, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the queues of a relay that is gone for good: what it had in hand becomes uncertain.
    #[arg(long, conflicts_with = "dry_run")]
    take_over: bool,
    /// With --dry-run: of at most so many events.
    #[arg(long, default_value_t = 1_000, requires = "dry_run")]
    max: usize,
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        if !self.dry_run {
            let which = if self.take_over { roles::Which::RelayTakingOver } else { roles::Which::Relay };
            return roles::run(config, which);
        }
        events::say_what_is_not_seen(config);
        let filter = Filter { states: vec![State::Pending], ..Filter::default() };
        let waiting = events::open(config)?.list(&filter, None, self.max).or_exit(Exit::Io)?;
        let (mut events, mut malformed) = (Vec::new(), Vec::new());
        for stored in &waiting {
            match Event::from_json(stored.body.as_bytes()) {
                Ok(event) => events.push(event),
                // As the spool does when the relay claims it.
                Err(error) => {
                    let said: Value = serde_json::from_str(&stored.body).unwrap_or_default();
                    let id = said["id"].as_str().and_then(|id| id.parse::<EventId>().ok());
                    let line = json!({ "event": id.map(|id| id.to_string()), "published": stored.added,
                                       "dead": "malformed", "why": error.to_string() });
                    malformed.push(line.to_string());
                }
            }
        }
        let lines = relay::dry_run(&assemble::relay(config), &config.mapping, &events, clock::now());
        let lines = lines.or_exit(Exit::Config)?;
        print(lines.into_iter().chain(malformed).map(|line| line + "\n").collect::<String>())
    }
}
