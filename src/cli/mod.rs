//! The command line: one binary, a subcommand for each role and each task.
//!
//! - Layer: cli
//! - Takes: arguments, the environment variable `MAILTAP_CONFIG`.
//! - Gives: what the subcommand gives, on standard output; logs and errors on standard error.
//! - On failure: one message, and an exit code of `exit::Exit`.

mod amqp;
mod assemble;
mod assemble_tracker;
mod bots;
mod bots_replay;
mod bounce;
mod classes;
mod collector;
mod config;
mod config_file;
mod consent;
mod dead;
mod dead_broker;
mod diff;
mod events;
pub mod exit;
mod init;
mod keys;
mod own_hosts;
mod postfix;
mod readable;
mod relay;
mod rewrite;
mod roles;
mod spool;
mod tail;
mod tap;
mod terminal;
mod token;
mod via_milter;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Config;
use crate::telemetry;
use exit::{Exit, Failure, OrExit, Result};

/// Turns the mail flow of your own Postfix relays into Google Analytics 4 events.
#[derive(Debug, Parser)]
#[command(name = "mailtap", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(
        long,
        short,
        global = true,
        env = CONFIG_VARIABLE,
        default_value = "/etc/mailtap/mailtap.toml",
        value_name = "FILE"
    )]
    config: PathBuf,

    #[command(subcommand)]
    command: Command,
}

/// Names the configuration file; empty is as good as unset.
const CONFIG_VARIABLE: &str = "MAILTAP_CONFIG";

const EXAMPLES: &str = "\
Examples:
  mailtap init --dir /etc/mailtap --tracking-url https://t.example.org --domain example.org
  mailtap config check
  mailtap postfix                                   the settings for main.cf
  mailtap run                                       every role in one process
  mailtap rewrite --sender news@example.org --recipient ann@example.net --explain < in.eml > out.eml
  mailtap keys rotate --activate-in 1h
  mailtap token inspect https://t.example.org/c/EQ…

Exit codes are those of sysexits(3): 0 well, 1 a check said no, 64 usage, 65 data, 66 input, 69 unavailable,
70 a defect, 73 can't create, 74 input/output, 75 try again, 78 configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a complete configuration with fresh keys, and print the Postfix settings
    Init(init::Args),
    /// Check or show the configuration
    Config(config::Args),
    /// Print the settings for Postfix
    Postfix(postfix::Args),
    /// Run every enabled role in one process
    Run(roles::Args),
    /// Run the milter: rewrites links, adds the pixel
    Milter(roles::Args),
    /// Run the tap: turns Postfix's log into events
    Tap(tap::Args),
    /// Read one returned message from standard input, as a pipe(8) transport
    Bounce(bounce::Args),
    /// Run the tracker: answers clicks and opens
    Tracker(roles::Args),
    /// Run the relay: sends events to GA4
    Relay(relay::Args),
    /// Run the forwarder: takes events from this host's spool to RabbitMQ
    Forward(roles::Args),
    /// Rewrite one message from standard input, just as the milter does
    Rewrite(rewrite::Args),
    /// Make, list and change keys
    Keys(keys::Args),
    /// Keep the list of recipients who withdrew their consent
    Consent(consent::Args),
    /// Look into tokens
    Token(token::Args),
    /// Print the pseudonym of an address
    Pseudonym(token::PseudonymArgs),
    /// Look at events, stored or as they come
    Events(events::Args),
    /// Look at the spool
    Spool(spool::Args),
    /// List, show, replay or drop dead letters
    Dead(dead::Args),
    /// Look at the rules that tell machines from people
    Bots(bots::Args),
    /// Look at the rules that tell why a delivery failed
    Classes(classes::Args),
    /// Prepare RabbitMQ by hand
    Amqp(amqp::Args),
    /// Stand in for GA4: a strict collector for tests and staging
    Collector(collector::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them
    #[command(after_help = "\
Examples:
  mailtap man | man -l -
  mailtap man keys rotate | man -l -
  mailtap man --dir /usr/local/share/man/man1")]
    Man {
        /// A subcommand, like `keys rotate`; none: mailtap itself.
        command: Vec<String>,
        /// Write the pages of all commands into this directory, which is made if it is missing.
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
}

/// Parses, runs, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() && bounce::is_asked_for(std::env::args_os()) {
                return ExitCode::from(Exit::TempFail as u8);
            }
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let ended = cli.run();
    telemetry::finish_logs();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                let _ = writeln!(anstream::stderr(), "mailtap: {}", failure.message);
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn parse() -> std::result::Result<Cli, clap::Error> {
    let mut command = Cli::command();
    if std::env::var_os(CONFIG_VARIABLE).is_some_and(|file| file.is_empty()) {
        command = command.mut_arg("config", |config| config.env(Resettable::Reset));
    }
    let mut matches = command.try_get_matches()?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut Cli::command()))
}

impl Cli {
    fn run(self) -> Result {
        let load = || Config::load(&self.config).or_exit(Exit::Config);
        match self.command {
            Command::Init(args) => args.run(),
            Command::Config(args) => args.run(&self.config),
            Command::Postfix(args) => args.run(&load()?),
            Command::Run(_) => roles::run(&load()?, roles::Which::All),
            Command::Milter(_) => roles::run(&load()?, roles::Which::Milter),
            Command::Tap(args) => args.run(load),
            Command::Bounce(args) => args.run(load),
            Command::Tracker(_) => roles::run(&load()?, roles::Which::Tracker),
            Command::Relay(args) => args.run(&load()?),
            Command::Forward(_) => roles::run(&load()?, roles::Which::Forward),
            Command::Rewrite(args) => args.run(load),
            Command::Keys(args) => args.run(&self.config),
            Command::Consent(args) => args.run(&self.config),
            Command::Token(args) => args.run(&load()?),
            Command::Pseudonym(args) => args.run(&load()?),
            Command::Events(args) => args.run(&load()?),
            Command::Spool(args) => args.run(&load()?),
            Command::Dead(args) => args.run(&load()?),
            Command::Amqp(args) => args.run(&load()?),
            Command::Bots(args) => args.run(load),
            Command::Classes(args) => args.run(load),
            Command::Collector(args) => args.run(),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "mailtap", &mut std::io::stdout());
                Ok(())
            }
            Command::Man { dir: Some(dir), .. } => {
                let made = std::fs::create_dir_all(&dir);
                let made = made.and_then(|()| clap_mangen::generate_to(Cli::command(), &dir));
                made.map_err(|error| Failure::new(Exit::CantCreate, format!("{}: {error}", dir.display())))
            }
            Command::Man { command, .. } => man(&command),
        }
    }
}

/// Prints the manual page of a command.
fn man(names: &[String]) -> Result {
    // As in the directory of all pages, which has none for `help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives the subcommands their whole names.
    command.build();
    for name in names {
        let found = command.find_subcommand(name).cloned();
        command = found.ok_or_else(|| {
            let text = format!("`{}` is no command; `mailtap --help` lists them", names.join(" "));
            Failure::new(Exit::Usage, text)
        })?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).or_exit(Exit::Io)?;
    print(String::from_utf8_lossy(&page))
}

/// Prints to standard output; a reader that has gone (`| head`) is not an error.
fn print(text: impl AsRef<str>) -> Result {
    match anstream::stdout().write_all(text.as_ref().as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Io, error)),
        _ => Ok(()),
    }
}
