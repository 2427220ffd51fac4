//! `mailtap relay`: the role, or a look at what it would send.
//!
//! - Layer: cli
//! - Takes: the configuration; with `--dry-run` the events that wait in the spool.
//! - Gives: a daemon; with `--dry-run` requests as JSON lines, without the API secret, and nothing is changed.
//! - On failure: exit code 69 where there is no spool yet.

use super::exit::{Exit, OrExit, Result};
use super::{assemble, events, print, roles};
use crate::config::Config;
use crate::event::Event;
use crate::queue::spool::{Filter, State};
use crate::relay;
use crate::service::clock;

/// Run the relay: sends events to GA4.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap relay                              as a daemon
  mailtap relay --dry-run | jq .body         what would be sent of the events that wait in the spool?")]
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
        let events: Vec<Event> =
            waiting.iter().filter_map(|stored| Event::from_json(stored.body.as_bytes()).ok()).collect();
        let lines = relay::dry_run(&assemble::relay(config), &config.mapping, &events, clock::now());
        print(lines.or_exit(Exit::Config)?.iter().map(|line| line.clone() + "\n").collect::<String>())
    }
}
