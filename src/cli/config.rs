//! `mailtap config check|show`.
//!
//! - Layer: cli
//! - Takes: the configuration file.
//! - Gives: `ok`, or every problem; the effective values as TOML or JSON, secrets redacted.
//! - On failure: exit code 78 with the report.

use std::path::Path;

use clap::Subcommand;

use super::exit::{Exit, OrExit, Result};
use super::own_hosts::own_hosts;
use super::print;
use super::terminal::{CARE, GOOD, paint};
use crate::config::Config;

/// Check or show the configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Report everything that is wrong, or `ok`
    Check,
    /// Show the effective values, secrets redacted
    Show {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Args {
    pub(super) fn run(self, path: &Path) -> Result {
        let config = Config::load(path).or_exit(Exit::Config)?;
        match self.command {
            Command::Check => {
                crate::keys::Keys::open(&config.keyring).or_exit(Exit::Config)?;
                crate::keys::load_pseudonym_key(&config.pseudonym_key).or_exit(Exit::Config)?;
                for warning in super::assemble_tracker::warnings(&config) {
                    print(format!("{}: {}: {warning}\n", path.display(), paint(CARE, "warning")))?;
                }
                print(format!("{}: {}\n", path.display(), paint(GOOD, "ok")))?;
                print(own_hosts_note(&config))
            }
            Command::Show { json: true } => {
                let text = serde_json::to_string_pretty(&config.effective()).or_exit(Exit::Software)?;
                print(text + "\n")
            }
            Command::Show { json: false } => {
                print(toml::to_string(&config.effective()).or_exit(Exit::Software)?)
            }
        }
    }
}

/// Whose bounces count once is worth a word where nobody said it: on another host's report the guess may be wrong.
fn own_hosts_note(config: &Config) -> String {
    if !config.raw.tap.enabled || !config.raw.bounce.own_hosts.is_empty() {
        return String::new();
    }
    let hosts = own_hosts(config).join(", ");
    format!(
        "note: bounce.own_hosts is empty: what {hosts} report about their own queue is known from the log, and not \
         counted twice; name your other relays there too, if their bounces come back to this host\n"
    )
}
