//! `mailtap tap`: the log role, or one reading of given logs.
//!
//! - Layer: cli
//! - Takes: the configured source; with `--once --stdout` the files named, `-` for standard input.
//! - Gives: events in the spool; or events as JSON lines on standard output, and nothing else changed.
//! - On failure: exit code 66 for a file that can't be read.

use std::io::Write as _;
use std::path::PathBuf;

use super::exit::{Exit, Failure, OrExit, Result};
use super::{assemble, roles};
use crate::config::Config;
use crate::service::clock;
use crate::tap::once::{self, Input};

/// Run the tap: turns Postfix's log into events.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mailtap tap                                            follow the configured log, as a daemon
  mailtap tap --once --stdout /var/log/mail.log          what events would this log give?
  journalctl -o short-iso -u 'postfix*' | mailtap tap --once --stdout -")]
pub(super) struct Args {
    /// Read to the end and stop.
    #[arg(long, requires = "stdout")]
    once: bool,
    /// Print events as JSON lines, and keep no state.
    #[arg(long, requires = "once")]
    stdout: bool,
    /// Logs to read, oldest first; `-` is standard input.
    #[arg(value_name = "FILE", requires = "once")]
    files: Vec<PathBuf>,
}

impl Args {
    pub(super) fn run(self, config: &Config) -> Result {
        if !self.once {
            return roles::run(config, roles::Which::Tap);
        }
        if self.files.is_empty() {
            return Err(Failure::new(Exit::Usage, "--once needs files to read, or - for standard input"));
        }
        let inputs = self.files.into_iter().map(|path| {
            if path.as_os_str() == "-" {
                Input::Reader(Box::new(std::io::stdin()))
            } else {
                Input::File(path)
            }
        });
        let parts = assemble::tap_parts(config)?;
        let mut output = std::io::BufWriter::new(std::io::stdout().lock());
        let mut broken = None;
        let summary = once::once(inputs.collect(), parts, clock::now(), &mut |event| {
            if broken.is_none() {
                broken = writeln!(output, "{}", event.to_json()).err();
            }
        });
        let flushed = output.flush().err();
        let summary = summary.map_err(|error| {
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Failure::new(Exit::NoInput, format!("{error}: {why}"))
        })?;
        match broken.or(flushed) {
            Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Failure::new(Exit::Io, error));
            }
            _ => {}
        }
        let counts = summary.counts;
        let text = format!(
            "{} lines: {} of Postfix, {} of a shape not known; {} events; {} references verified, {} not; \
             {} attempts without reference\n",
            summary.lines,
            counts.lines,
            counts.unknown,
            counts.events,
            counts.refs,
            counts.unverified_refs,
            counts.attempts_without_ref
        );
        anstream::stderr().write_all(text.as_bytes()).or_exit(Exit::Io)
    }
}
